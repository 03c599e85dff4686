"""What keepers say to each other: requests, each with one answer, as calls of one endpoint.

MessagePack arrays `[kind, …]`. Every request begins with what all have:

| field | is |
|---|---|
| boot | the process it is meant for; another one does nothing and says so |
| revision | of the ring the sender goes by |
| stamp | the sender's clock |

| kind | request | asks | repeatable |
|---|---|---|---|
| 1 | Read | the entry of one name | yes |
| 2 | Write | keep an entry if it is newer | yes |
| 3 | Prepare | promise to refuse older ballots, say what is here | yes |
| 4 | Accept | keep an atomic entry, unless a newer ballot was promised | yes |
| 5 | Compare | is your copy of these slots equal to mine? | yes |
| 6 | List | names and versions of a slot, a page | yes |
| 7 | Fetch | entries of some names | yes |
| 8 | Keep | entries handed over: keep what is newer | yes |
| 9 | Purge | forget these tombstones: every owner has them | yes |
| 10 | GetRing | the ring you go by | yes |
| 11 | Do | decide a write under a condition for me | no |
| 12 | Many | some Read, Write, Prepare and Accept, in order | yes |
| 13 | ReadMany | the versions of some names, and the entries if wanted | yes |
| 14 | WriteMany | keep some plain entries where they are newer | yes |

An `Answer` is small and says what the requester must know before it may count it.
"""

from typing import Annotated

import msgspec

from microos import limits
from microos.codec import Decoder
from microos.ring.entry import HEAD, NO_HEAD, VERSION

_Name = Annotated[bytes, msgspec.Meta(min_length=2, max_length=limits.KV_NAME_MAX)]
_Version = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Entry = Annotated[
    bytes, msgspec.Meta(min_length=HEAD, max_length=HEAD + VERSION + limits.KV_VALUE_MAX)
]
HEAD_SIZE = len(NO_HEAD)
_Slot = Annotated[int, msgspec.Meta(ge=0, lt=limits.RING_SLOTS)]
_U64 = Annotated[int, msgspec.Meta(ge=0)]
_Stamp = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Code:
    """Why an answer counts, or does not: bits of a plain int, looked at for every answer."""

    OK = 0
    NEWER_SLOT = 1
    """The slot has changed since the ring the request went by."""
    BEHIND = 2
    """The request goes by a newer ring than is known here."""
    UNSYNCED = 4
    """This copy is not whole yet: it has no vote in what is true."""
    NEWER_VERSION = 8
    """A newer entry is here; it comes along."""
    REFUSED = 16
    """A newer ballot was promised."""
    WRONG_BOOT = 32
    """The process meant is gone."""
    FULL = 64
    """No room."""


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What every request has."""

    boot: _U64
    revision: _U64
    stamp: _Stamp


class Read(Request, frozen=True, array_like=True, tag=1, gc=False):
    slot: _Slot
    name: _Name


class Write(Request, frozen=True, array_like=True, tag=2, gc=False):
    slot: _Slot
    name: _Name
    entry: _Entry
    repair: bool = False
    """It brings a copy up to what is known elsewhere: an atomic entry bows to promises."""


class Prepare(Request, frozen=True, array_like=True, tag=3, gc=False):
    slot: _Slot
    name: _Name
    ballot: _Version


class Accept(Request, frozen=True, array_like=True, tag=4, gc=False):
    slot: _Slot
    name: _Name
    entry: _Entry
    """Its version is the ballot."""


class Compare(Request, frozen=True, array_like=True, tag=5):
    digests: Annotated[tuple[tuple[_Slot, _U64], ...], msgspec.Meta(max_length=limits.RING_SLOTS)]


class List(Request, frozen=True, array_like=True, tag=6, gc=False):
    slot: _Slot
    digest: _U64
    after: Annotated[bytes, msgspec.Meta(max_length=limits.KV_NAME_MAX)] = b""


class Fetch(Request, frozen=True, array_like=True, tag=7):
    slot: _Slot
    names: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=limits.KV_PAGE_NAMES)]


class Keep(Request, frozen=True, array_like=True, tag=8):
    slot: _Slot
    entries: Annotated[
        tuple[tuple[_Name, _Entry], ...], msgspec.Meta(max_length=limits.KV_PAGE_NAMES)
    ]


class Purge(Request, frozen=True, array_like=True, tag=9):
    slot: _Slot
    names: Annotated[
        tuple[tuple[_Name, _Version], ...], msgspec.Meta(max_length=limits.KV_PAGE_NAMES)
    ]


class GetRing(Request, frozen=True, array_like=True, tag=10, gc=False):
    pass


class Do(Request, frozen=True, array_like=True, tag=11, gc=False):
    slot: _Slot
    name: _Name
    entry: _Entry
    """What to write; its version is set by whoever decides."""
    condition: _Version
    """The version that must be there; all zeros: no value."""
    budget_ms: _U64
    """How long the asker will wait."""


class ReadMany(Request, frozen=True, array_like=True, tag=13):
    names: Annotated[
        tuple[tuple[_Slot, _Name], ...],
        msgspec.Meta(min_length=1, max_length=limits.KV_TOGETHER),
    ]
    whole: bool = False
    """Entries are wanted, not versions alone."""


class WriteMany(Request, frozen=True, array_like=True, tag=14):
    entries: Annotated[
        tuple[tuple[_Slot, _Name, _Entry], ...],
        msgspec.Meta(min_length=1, max_length=limits.KV_TOGETHER),
    ]


Single = Read | Write | Prepare | Accept
"""What users' operations ask: one name each, answered by one `Answer`."""

AnyRequest = Single | Compare | List | Fetch | Keep | Purge | GetRing | Do | ReadMany | WriteMany


class Many(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """What one node asks another in one turn of its loop travels together."""

    requests: Annotated[
        tuple[Single, ...], msgspec.Meta(min_length=1, max_length=limits.KV_TOGETHER)
    ]


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """To Read, Write, Prepare, Accept, Keep and Purge."""

    code: int
    revision: _U64
    stamp: _Stamp
    entry: _Entry | None = None
    """What is here, to Read and Prepare; what is newer, to the others."""
    promised: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    """The newer ballot, if that is why it was refused."""


class Compared(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """To Compare: of the slots at a position both know, which are equal, which differ."""

    code: int
    revision: _U64
    stamp: _Stamp
    equal: tuple[_Slot, ...] = ()
    different: tuple[_Slot, ...] = ()
    unsynced: tuple[_Slot, ...] = ()
    """Those of both kinds whose copy here is not whole itself."""


class Listing(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """To List: the names behind `after`, with versions; also of a copy that is not whole."""

    code: int
    revision: _U64
    stamp: _Stamp
    equal: bool = False
    """The digests agree: nothing to list."""
    names: tuple[tuple[_Name, _Version], ...] = ()
    last: bool = True


class Entries(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """To Fetch: as many of the entries as fit a page, in the order asked."""

    code: int
    revision: _U64
    stamp: _Stamp
    entries: tuple[tuple[_Name, _Entry], ...] = ()


class RingState(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """To GetRing."""

    code: int
    revision: _U64
    stamp: _Stamp
    state: bytes = b""


class Did(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """To Do: what came of it."""

    code: int
    revision: _U64
    stamp: _Stamp
    version: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    """Written, or found instead."""
    error: str = ""
    """Class of the error tree; empty: it was written."""
    reason: str = ""
    message: str = ""


class Found(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """To ReadMany: what is here under each name, in order."""

    code: int
    revision: _U64
    stamp: _Stamp
    heads: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=HEAD_SIZE)], ...],
        msgspec.Meta(max_length=limits.KV_TOGETHER),
    ]
    """Version and flags; empty where this copy has no say."""
    entries: Annotated[tuple[_Entry | None, ...], msgspec.Meta(max_length=limits.KV_TOGETHER)] = ()
    """If they are wanted: as many of the first as fit a page."""


class Kept(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """To WriteMany: a byte of each entry, in order; 0 if it is kept."""

    code: int
    revision: _U64
    stamp: _Stamp
    codes: Annotated[bytes, msgspec.Meta(max_length=limits.KV_TOGETHER)]


AnyAnswer = Answer | Compared | Listing | Entries | RingState | Did | Found | Kept


class Answers(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """To Many: one each, in order, to as many of the first as fit a page."""

    answers: Annotated[
        tuple[Answer, ...], msgspec.Meta(min_length=1, max_length=limits.KV_TOGETHER)
    ]


decode_request: Decoder[AnyRequest] = Decoder(AnyRequest)
decode_requests: Decoder[AnyRequest | Many] = Decoder(AnyRequest | Many)
decode_answers: Decoder[Answers] = Decoder(Answers)
decode_answer: Decoder[AnyAnswer] = Decoder(AnyAnswer)
