"""How two nodes introduce themselves on a fresh connection, and how they part.

    dialler                                acceptor
      preface, Hello ─────────────────────▶
                     ◀───────────────────── preface, Hello    (or Bye: no, and why)
      Use, frames … ──────────────────────▶                   (or Bye: only wanted to know)
                     ◀───────────────────── frames …

With a secret TLS comes first, and all of this is said within it (`sealed.py`).

The dialler decides whether the connection becomes a link, after it has learnt whom
it reached: a dial that only proves that somebody lives there disturbs no link in use.
`Bye` is the last frame of whoever says it; who hears it closes. The side that said it
reads on until then, so nothing that was under way is lost to a reset.

Messages of channel `LINK`, MessagePack arrays `[kind, …]`:

| kind | message | fields |
|---|---|---|
| 0 | Hello | node, boot, name, address, label, cluster, version |
| 1 | Use | – |
| 9 | Probe | number |
| 10 | Ack | number |
| 12 | Bye | reason |
"""

from collections import deque
from typing import Annotated

import msgspec
import trio

from microos import limits, wire
from microos.clock import Clock
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.net.network import Stream
from microos.net.sealed import Session, seal
from microos.types import Address, BootId, NodeId
from microos.wire import Channel, FrameReader

CHUNK = 64 * limits.KIB
"""Read at once [bytes]."""

MESSAGE_MAX = limits.FRAME_HEAD + wire.BODY_MAX[Channel.LINK]
NODE_TEXT = 64
HOST_TEXT = 255

_Word = Annotated[str, msgspec.Meta(pattern="^[a-z_]{1,32}$")]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Who speaks: the first frame each way."""

    node: Annotated[NodeId, msgspec.Meta(min_length=1, max_length=NODE_TEXT)]
    boot: Annotated[BootId, msgspec.Meta(ge=1)]
    name: Annotated[str, msgspec.Meta(max_length=limits.NAME_TEXT)]
    address: Address
    """Where this node listens, which is not where a dialler's connection comes from."""
    label: Annotated[str, msgspec.Meta(max_length=limits.LABEL_TEXT)]
    """The cluster's label in full: the preface only has 32 bits of its hash."""
    cluster: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    """The cluster id; empty until founded."""
    version: int = wire.VERSION
    """Newest protocol version spoken."""


class Use(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The dialler wants this connection as the link."""


class Probe(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Are you there? Any frame answers, an `Ack` at the latest."""

    number: int


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Yes."""

    number: int


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Nothing follows. `leave`, `duplicate`, `protocol`, or why a Hello was refused."""

    reason: _Word


LinkMessage = Hello | Use | Probe | Ack | Bye

decode_link_message: Decoder[LinkMessage] = Decoder(LinkMessage)


def link_frame(message: LinkMessage) -> bytes:
    """Return a message of the link itself as a packed frame."""
    return wire.pack_frame(Channel.LINK, encode(message))


def is_sound(address: Address) -> bool:
    """Return whether an address that came over the wire can be one."""
    return 0 < len(address.host) <= HOST_TEXT and 0 < address.port <= 65535


class Connection:
    """One fresh stream, read message by message until both sides know each other."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.peer: str | None = None
        """Who is there by its certificate, "" for a command line; None: the stream is plain."""
        self.reader = FrameReader()
        self._frames: deque[tuple[Channel, bytes]] = deque()

    async def first_bytes(self) -> bytes:
        """Return the 8 bytes of the preface, or fewer as soon as they cannot be one.

        Never reads beyond the preface: what follows may be for somebody else.
        """
        head = b""
        while len(head) < wire.PREFACE_SIZE and not (len(head) >= 4 and head[:2] != wire.MAGIC):
            data = await self.stream.receive_some(wire.PREFACE_SIZE - len(head))
            if not data:
                break
            head += data
        return head

    async def seal(self, session: Session, clock: Clock, heard: bytes = b"") -> None:
        """Put TLS around the stream; `heard` was read from it already.

        Raises:
            SealError: The other side speaks no TLS, or is not of this cluster.
            trio.BrokenResourceError: The connection ended instead.
        """
        sealed = await seal(self.stream, session, clock, heard)
        self.stream = sealed
        self.peer = sealed.node

    async def message(self) -> LinkMessage:
        """Return the next message of the link.

        Raises:
            RemoteProtocolError: It is something else, or not one of our frames.
            trio.BrokenResourceError: The connection ended instead.
        """
        size = 0
        while not self._frames:
            data = await self.stream.receive_some(CHUNK)
            if not data:
                raise trio.BrokenResourceError("the connection ended before the nodes had met")
            self._frames.extend(self.reader.feed(data))
            size += len(data)
            if not self._frames and size > MESSAGE_MAX:  # Strangers get no big buffer.
                raise RemoteProtocolError(f"expected one message, found {size} bytes of another")
        channel, body = self._frames.popleft()
        if channel is not Channel.LINK:
            raise RemoteProtocolError(f"expected a frame of the link, found one of {channel.name}")
        return decode_link_message(body)

    def rest(self) -> list[tuple[Channel, bytes]]:
        """Hand over the frames that came in one chunk with the last message."""
        rest = list(self._frames)
        self._frames.clear()
        return rest

    async def part(self, last_words: bytes) -> None:
        """Send the last words, wait until the other side closes, close. The caller bounds it.

        Closing with bytes unread would reset the connection and might overtake the words.
        """
        await self.stream.send_all(last_words)
        while await self.stream.receive_some(CHUNK):
            pass
        await self.stream.aclose()


async def introduce(connection: Connection, label: int, me: Hello) -> Hello | Bye:
    """Say who we are on a connection we dialled; return who answers, or the Bye that does.

    Raises:
        WrongClusterError: A node of another cluster.
        RemoteProtocolError: Not a node.
        trio.BrokenResourceError: It hung up.
    """
    await connection.stream.send_all(wire.pack_preface(label) + link_frame(me))
    head = await connection.first_bytes()
    if not head:
        raise trio.BrokenResourceError("the connection ended before a word was said")
    unpack_first_bytes(head, label)
    answer = await connection.message()
    if not isinstance(answer, Hello | Bye):
        raise RemoteProtocolError(f"expected Hello or Bye, found {type(answer).__name__}")
    return answer


def unpack_first_bytes(head: bytes, label: int) -> int:
    """Return the flags of the preface.

    Raises:
        WrongClusterError: Of a cluster with another label.
        RemoteProtocolError: Not our preface.
    """
    if len(head) < wire.PREFACE_SIZE:
        raise RemoteProtocolError(f"expected the preface of microos, found {head!r}")
    return wire.unpack_preface(head, label)
