"""Everything gossip says: messages in datagrams, messages on links, results of the shell.

A message is a MessagePack array whose first element is its type. One datagram carries one
array of them; one frame on a link carries one. Types:

    1 Ping        4 PingReq   7 Dead        10 DeadNotice     32 PushPull        36 Record
    2 Ack         5 Alive     8 Left        11 Digest         33 Buckets         37 StreamPing
    3 Nack        6 Suspect   9 UserState                     34 BucketRecords   38 StreamAck
                                                              35 RecordPull      39 Refuse

Every length and number is bounded here, by the decoder; fields that come after those we
know are ignored, so later versions may add some (gossip.md 19.2).
"""

from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from microos import limits
from microos.codec import BatchDecoder, Decoder
from microos.types import Address, BootId, Incarnation, NodeId

PAGE_BYTES = limits.FRAME_SMALL - 4 * limits.KIB
"""Records, or bytes of a record, in one message on a link: nothing larger stands before raft."""

STATE_KINDS = 64
"""Kinds of user state per member."""

PAGE_RECORDS = 8192
"""Records in one message at most; the bytes of a page end it long before."""

U8 = Annotated[int, Meta(ge=0, le=255)]
U16 = Annotated[int, Meta(ge=0, le=65_535)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Meta(ge=0)]
"""MessagePack itself has no larger one."""

Counter = Annotated[Incarnation, Meta(ge=0, le=2**62)]
"""Room above for as many refutations as anybody will ever need."""

Node = Annotated[NodeId, Meta(min_length=1, max_length=32)]
Boot = Annotated[BootId, Meta(ge=0)]
Name = Annotated[str, Meta(max_length=limits.NAME_TEXT)]
Host = Annotated[str, Meta(max_length=255)]
Text = Annotated[str, Meta(max_length=255)]
Age = Annotated[float, Meta(ge=0.0, le=1e9)]
"""How long ago [s]; NaN is not within."""

Kind = Annotated[int, Meta(ge=0, lt=STATE_KINDS)]
Accusers = Annotated[tuple[Node, ...], Meta(max_length=16)]


class Evidence(IntEnum):
    """What an accusation rests on."""

    SILENCE = 0
    REFUSED = 1


class NackReason(IntEnum):
    """Why a probe was not acknowledged."""

    SILENCE = 1
    """A relay heard nothing in the time it was given."""
    NOT_ME = 2
    """The Ping was meant for another process."""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Are you, that very process, there?"""

    seq: U64
    target: Boot
    incarnation: Counter
    """The sender's own."""
    score: U8
    """The sender's awareness."""
    cluster: U32
    """Low bits of the hash of the founded cluster's id; 0: none is known."""
    digest: U64
    count: U32


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """I am; or, from a relay: it is."""

    seq: U64
    incarnation: Counter
    score: U8
    cluster: U32
    digest: U64
    count: U32


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """No answer there; or: it is not me you mean."""

    seq: U64
    reason: NackReason


class PingReq(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Ask for me whether that process is there."""

    seq: U64
    target: Boot
    host: Host
    port: U16
    allowed: U32
    """Time the asker still waits [ms]."""


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """What a member says about itself."""

    node: Node
    boot: Annotated[BootId, Meta(ge=1)]
    incarnation: Counter
    name: Name
    host: Host
    port: U16
    labels: Annotated[dict[Text, Text], Meta(max_length=64)]
    record_hash: U64
    """0: it has no record."""
    record_size: Annotated[int, Meta(ge=0, le=limits.RECORD_MAX)]
    brief: Annotated[bytes, Meta(max_length=limits.BRIEF_MAX)]
    """The record itself if it is small, else empty."""

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)


class Suspect(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """`accuser` does not reach a member."""

    node: Node
    incarnation: Counter
    accuser: Node
    evidence: Evidence


class Dead(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """A suspect's time is over."""

    node: Node
    incarnation: Counter
    accusers: Accusers
    evidence: Evidence
    age: Age
    name: Name = ""
    """With the address in exchanges, for those who never knew it; so they call it too."""
    host: Host = ""
    port: U16 = 0


class Left(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """A member has left, or `by` asks to forget a dead one."""

    node: Node
    incarnation: Counter
    age: Age
    by: Node | None = None
    name: Name = ""
    host: Host = ""
    port: U16 = 0


class UserState(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """A small value of an upper floor; the latest version within a start wins."""

    boot: Boot
    kind: Kind
    version: U64
    body: Annotated[bytes, Meta(max_length=limits.USER_STATE_MAX)]


class DeadNotice(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """You are held to be dead or to have left; say no if you live."""

    incarnation: Counter
    state: Annotated[int, Meta(ge=2, le=3)]


class Digest(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """This is what I know, while it changes."""

    digest: U64
    count: U32


Record = Alive | Suspect | Dead | Left | UserState
"""What a table is exchanged as."""

Records = Annotated[list[Record], Meta(max_length=PAGE_RECORDS)]


class PushPull(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """My whole table, or a page of it; my own Alive first in every page."""

    cluster: U32
    join: bool
    """The sender does not take part yet and asks to."""
    wants: bool
    """The whole table is wanted back."""
    records: Records


class Buckets(msgspec.Struct, frozen=True, array_like=True, tag=33):
    """The digests of my sixteen buckets."""

    cluster: U32
    hashes: Annotated[tuple[U64, ...], Meta(min_length=16, max_length=16)]


class BucketRecords(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """My records of the buckets in `mask`, or a page of them."""

    cluster: U32
    mask: U16
    wants: bool
    """The other's records of these buckets are wanted back."""
    records: Records


class RecordPull(msgspec.Struct, frozen=True, array_like=True, tag=35, gc=False):
    """Give me the record of `node` with that hash, from `offset` on."""

    node: Node
    hash: U64
    offset: Annotated[int, Meta(ge=0, le=limits.RECORD_MAX)]


class RecordPart(msgspec.Struct, frozen=True, array_like=True, tag=36, gc=False):
    """Part of a record; size 0: I do not hold it."""

    node: Node
    hash: U64
    offset: Annotated[int, Meta(ge=0, le=limits.RECORD_MAX)]
    size: Annotated[int, Meta(ge=0, le=limits.RECORD_MAX)]
    body: Annotated[bytes, Meta(max_length=limits.FRAME_SMALL)]


class StreamPing(msgspec.Struct, frozen=True, array_like=True, tag=37, gc=False):
    """A probe over the link; sent to monitor targets once, so that there is a link to lose."""

    seq: U64


class StreamAck(msgspec.Struct, frozen=True, array_like=True, tag=38, gc=False):
    """The answer to it."""

    seq: U64


class Refuse(msgspec.Struct, frozen=True, array_like=True, tag=39, gc=False):
    """You may not join."""

    reason: Annotated[str, Meta(max_length=32)]
    """`name` or `cluster`."""


DatagramMessage = (
    Ping | Ack | Nack | PingReq | Alive | Suspect | Dead | Left | UserState | DeadNotice | Digest
)
LinkMessage = (
    PushPull | Buckets | BucketRecords | RecordPull | RecordPart | StreamPing | StreamAck | Refuse
)

decode_datagram: BatchDecoder[DatagramMessage] = BatchDecoder(
    DatagramMessage, limit=limits.DATAGRAM_MESSAGES
)
decode_link: Decoder[LinkMessage] = Decoder(LinkMessage)


# What the shell found out comes in through `receive`, like a message.


class Dialled(msgspec.Struct, frozen=True):
    """What became of a dial; also of dials that nobody here asked for."""

    address: Address
    node: NodeId | None
    """Who answered there; None if nobody did."""
    boot: BootId | None
    outcome: str
    """`ok`, `refused`, `reset`, `timeout`, `failed`, or `rejected:` and a reason."""
    rtt: float = 0.0
    """[s]"""


class LinkLost(msgspec.Struct, frozen=True, gc=False):
    """The last link to that process is gone."""

    node: NodeId
    boot: BootId
    clean: bool
    """It said goodbye."""


Result = Dialled | LinkLost
Message = DatagramMessage | LinkMessage | Result


class Sender(msgspec.Struct, frozen=True):
    """Whom a message came from, as its packet or link says."""

    boot: BootId
    address: Address
    node: NodeId | None = None
    """Set if it came over a link, where both have introduced themselves."""
