"""What the command line and a node say to each other, over the node's own port.

    client                                     node
      preface (flag CONTROL) ─────────────────▶
      Request(1, "members") ──────────────────▶
                      ◀────────────────────────  Answer(1, [...])       or Failure(1, ...)
      Request(2, "config.watch", path) ───────▶
                      ◀────────────────────────  Item(2, ...)  Beat  Item(2, ...)  ...
      Cancel(2) ──────────────────────────────▶
                      ◀────────────────────────  End(2)

Frames of channel CONTROL (`microos/wire.py`), MessagePack arrays `[kind, ...]`. A request
gets exactly one of Answer, Failure or End, the last of its messages. While a stream runs
the node says `Beat` every second, so that a client notices a node that stands still.
A Failure with id 0 is about the connection, which ends with it.

| kind | message | fields |
|---|---|---|
| 0 | Request | id, verb, timeout [s], arguments |
| 1 | Cancel | id |
| 2 | Answer | id, result |
| 3 | Failure | id, error, reason, message |
| 4 | Item | id, value |
| 5 | End | id |
| 6 | Beat | – |

| verb | arguments | result |
|---|---|---|
| `members` | – | every known member |
| `status` | – | the node's statistics |
| `services` | – | names, with how many instances and which endpoints |
| `instances` | service | its instances |
| `config.list` | – | names of documents |
| `config.get` | path, latest | value, version, revision |
| `config.set` | path, value, if_version | version |
| `config.delete` | path, if_version | version |
| `config.watch` | path | items: value, version, revision |
| `call` | endpoint, arguments, idempotent | what the endpoint returned |
| `kv.get` | bucket, key, one | value, version, what is left of its time |
| `kv.put` | bucket, key, value, ttl, if_version, one | version |
| `kv.delete` | bucket, key, if_version, one | version |
| `ring` | slots | ring epoch, members with their slots; `slots`: the owners of each |
| `ring.gone` | node | how many owners are gone by this word |
| `lock` | name, ttl, wait | one item, the token; held until Cancel or the end of the connection |

Values of services and of the store come as JSON can have them: the keys of maps are text,
bytes are base64. A version of the store has 128 bits, more than an integer of MessagePack:
it is its decimal digits here, and `"0"` is that of no value.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from microos import limits
from microos.codec import Decoder

BEAT = 1.0
"""Between two signs of life while a stream runs [s]."""

SILENCE = 5.0
"""A client that hears nothing for so long while a stream runs gives the node up [s]."""

WAIT_MAX = 1e9
"""Longest timeout asked for [s]."""

RequestId = Annotated[int, Meta(ge=1, lt=1 << 32)]
_Verb = Annotated[str, Meta(max_length=64)]
_Timeout = Annotated[float, Meta(gt=0.0, le=WAIT_MAX)]
_Path = Annotated[str, Meta(max_length=limits.CONFIG_PATH_TEXT)]
_Version = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Request(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Do something, or begin a stream."""

    id: RequestId
    verb: _Verb
    timeout: _Timeout
    """How long the node may take [s]; for a stream, until its first item."""
    arguments: dict[str, Any] = {}


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Stop; a stream ends with End once what it held is given back."""

    id: RequestId


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """It is done."""

    id: int
    result: Any


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """It was not done, or may not have been: one of our errors by the name of its class."""

    id: int
    error: str
    reason: str
    message: str


class Item(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """One value of a stream."""

    id: int
    value: Any


class End(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The stream is over."""

    id: int


class Beat(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The node is alive."""


decode_ask: Decoder[Request | Cancel] = Decoder(Request | Cancel)
decode_reply: Decoder[Answer | Failure | Item | End | Beat] = Decoder(
    Answer | Failure | Item | End | Beat
)


# The arguments of each verb.


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No arguments."""


class OfService(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    service: Annotated[str, Meta(max_length=limits.SERVICE_NAME_TEXT)]


class ConfigGet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: _Path
    latest: bool = False
    """Ask a majority first, so that every acknowledged change is seen."""


class ConfigSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: _Path
    value: Any
    if_version: _Version | None = None


class ConfigDelete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: _Path
    if_version: _Version | None = None


class ConfigWatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: _Path


class CallMade(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    endpoint: Annotated[str, Meta(max_length=limits.ENDPOINT_TEXT)]
    arguments: tuple[Any, ...] = ()
    idempotent: bool = False
    """Calling twice does no more than calling once, so it may be retried."""


_Bucket = Annotated[str, Meta(max_length=limits.KV_BUCKET_TEXT)]
_Key = Annotated[str, Meta(max_length=limits.KV_KEY_MAX)]
_KvVersion = Annotated[str, Meta(pattern=r"^[0-9]{1,39}$")]


class KvGet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bucket: _Bucket
    key: _Key
    one: bool = False
    """One owner is enough."""


class KvPut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bucket: _Bucket
    key: _Key
    value: Any
    ttl: Annotated[float, Meta(gt=0.0, le=WAIT_MAX)] | None = None
    if_version: _KvVersion | None = None
    """`"0"`: only if there is no value."""
    one: bool = False


class KvDelete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bucket: _Bucket
    key: _Key
    if_version: _KvVersion | None = None
    one: bool = False


class RingShow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slots: bool = False


class RingGone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: Annotated[str, Meta(max_length=limits.NAME_TEXT)]
    """Name or id."""


class LockTake(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(max_length=limits.LOCK_NAME_TEXT)]
    ttl: Annotated[float, Meta(gt=0.0, le=WAIT_MAX)] | None = None
    wait: Annotated[float, Meta(ge=0.0)] | None = None
