"""What two nodes say to each other about calls: the frames of the channel RPC.

Each is one MessagePack array `[kind, id, …]`. Ids are the caller's and never used twice
by one process, so that calls of both directions, and late news of calls long over,
cannot be mixed up.

| kind | frame | from | says |
|---|---|---|---|
| 1 | `Call` | caller | do this; so many ms are left |
| 2 | `Answer` | callee | done: the result |
| 3 | `Failure` | callee | not done, or not well: which error |
| 4 | `Chunk` | both | the body of that call or answer goes on |
| 5 | `Cancel` | caller | nobody waits any more |
| 6 | `Goaway` | callee | no new calls, please |

A body longer than `limits.RPC_CHUNK` begins in its `Call` or `Answer`, whose `size` is then
that of the whole (else 0), and goes on in Chunks, in order. An endpoint goes by its name, so
nothing has to be agreed on before the first call. Time left travels as a budget: no clocks
are compared. Fields added later stand at the end and have defaults; older readers skip them.

Every length is bounded here, by the decoder.
"""

from enum import IntEnum
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from microos import limits
from microos.codec import Decoder

FOREVER_MS = (1 << 32) - 1
"""This budget has no end."""

METADATA_KEY_TEXT = 128
ERROR_TEXT = 64
MESSAGE_BYTES = 4 * limits.KIB
FACTS_MAX = 32
FACT_BYTES = 16 * limits.KIB
"""One text or byte string among the facts of a failure; a traceback is the longest."""

FACTS_BYTES = 48 * limits.KIB
assert MESSAGE_BYTES + FACTS_BYTES + FACT_BYTES <= limits.RPC_FRAME_MAX

Id = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Milliseconds = Annotated[int, Meta(ge=0, le=FOREVER_MS)]
Piece = Annotated[bytes, Meta(max_length=limits.RPC_CHUNK)]
Endpoint = Annotated[str, Meta(max_length=limits.ENDPOINT_TEXT)]
Metadata = Annotated[
    dict[
        Annotated[str, Meta(max_length=METADATA_KEY_TEXT)],
        Annotated[str, Meta(max_length=limits.RPC_METADATA_MAX)],
    ],
    Meta(max_length=limits.RPC_METADATA_PAIRS),
]
Fact: TypeAlias = Annotated[str, Meta(max_length=FACT_BYTES)] | int | float | bool | None
Word = Annotated[str, Meta(max_length=ERROR_TEXT)]
Facts = Annotated[dict[Word, Fact], Meta(max_length=FACTS_MAX)]
Blobs = Annotated[
    dict[Word, Annotated[bytes, Meta(max_length=FACT_BYTES)]], Meta(max_length=FACTS_MAX)
]


class CancelReason(IntEnum):
    """Why nobody waits for a call any more."""

    UNKNOWN = 0
    """A word of a later version."""
    CALLER = 1
    """Whoever called has left."""
    DEADLINE = 2
    HEDGE = 3
    """Another instance was quicker."""
    CONNECTION_LOST = 4
    """Never sent: each side sees it for itself."""

    @classmethod
    def _missing_(cls, value: object) -> "CancelReason":
        return cls.UNKNOWN


class Load(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a callee says of itself with each answer."""

    in_flight: Count
    """Calls in progress and queued after this one."""
    service_us: Count
    """Time of this call from its start to its result [µs]."""
    cap: Count = 1
    """How many calls of the service truly run at once."""
    flags: Count = 0
    """1: draining."""


class Reply(msgspec.Struct, frozen=True):
    """The result of one attempt."""

    body: bytes
    load: Load | None


class Call(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Do this."""

    id: Id
    endpoint: Endpoint
    budget_ms: Milliseconds
    """Time left, rounded down. 0: none; `FOREVER_MS`: no end."""
    attempt: Count
    """Which try of the logical call, from 1."""
    metadata: Metadata | None
    size: Count
    """Of the whole body if it goes on in Chunks, else 0 [bytes]."""
    body: Piece


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Done."""

    id: Id
    load: Load | None
    size: Count
    """As in `Call`."""
    body: Piece


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Not done, or not well; `failure.py` turns errors into this and back."""

    id: Id
    load: Load | None
    error: Word
    """Name of the class in `microos.errors`."""
    reason: Word
    message: Annotated[str, Meta(max_length=MESSAGE_BYTES)]
    retry_after: Annotated[float, Meta(ge=-1.0, le=1e9)] = -1.0
    """When to try again [s]; -1: nothing is said."""
    facts: Facts | None = None
    blobs: Blobs | None = None
    """Facts that are bytes; no field can be declared to be either text or bytes."""


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """A body goes on."""

    id: Id
    of_call: bool
    """Of the Call with that id (from the caller), else of the Answer (from the callee)."""
    at: Count
    """How much of the body came before [bytes]."""
    data: Annotated[bytes, Meta(min_length=1, max_length=limits.RPC_CHUNK)]


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Nobody waits for that call any more; it is not answered."""

    id: Id
    reason: CancelReason


class Goaway(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """The sender leaves: it takes no new calls, and finishes those it has within the grace."""

    grace_ms: Milliseconds


Frame: TypeAlias = Call | Answer | Failure | Chunk | Cancel | Goaway

decode_frame: Decoder[Frame] = Decoder(Frame)
"""Return the frame in a body of the channel; raises RemoteProtocolError."""
