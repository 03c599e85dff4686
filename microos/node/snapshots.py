"""Carries snapshots between nodes, whole and verified or not at all.

    leader                                   follower
      Offer(transfer, message, size, digest) ─▶
      Piece(transfer, offset, data) ─▶ …        ◀─ Got(transfer, bytes so far)
                                                ◀─ Got(transfer, size): whole and verified

A window of pieces is under way at a time, each at most 64 KiB, so a snapshot
never stands before raft's own frames. Only when all bytes are there and their
digest is right is the core told of the snapshot: nothing is committed by parts.
"""

from collections.abc import Callable
from typing import Annotated

import msgspec
import trio

from microos import limits
from microos.clock import Clock
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError, StorageError
from microos.hashing import xxh3
from microos.node.statistics import QueueStatistics
from microos.raft.messages import Snapshot
from microos.storage.disk import Disk
from microos.storage.snapshot import decode_snapshot, read_snapshot_bytes
from microos.types import NodeId, Random
from microos.wire import Channel

WINDOW = 8
"""Pieces under way; 512 KiB."""

PATIENCE = 5.0
"""Longest wait for progress before a transfer is given up [s]; raft starts another."""

_Data = Annotated[bytes, msgspec.Meta(max_length=limits.SNAPSHOT_CHUNK)]


class Offer(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Begins a transfer; a newer one of the same sender replaces it."""

    transfer: int
    message: Snapshot
    size: Annotated[int, msgspec.Meta(ge=1, le=limits.SNAPSHOT_MAX)]
    digest: int


class Piece(msgspec.Struct, frozen=True, array_like=True, tag=2):
    transfer: int
    offset: int
    data: _Data


class Got(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """So many bytes are here, without a gap; -1: start over."""

    transfer: int
    size: int


_decode: Decoder[Offer | Piece | Got] = Decoder(Offer | Piece | Got)


class Arrived(msgspec.Struct, frozen=True):
    """A snapshot that is here as a whole."""

    message: Snapshot
    sender: NodeId
    chunks: tuple[bytes, ...]
    """The state."""


class _Incoming:
    def __init__(self, offer: Offer, sender: NodeId) -> None:
        self.offer = offer
        self.sender = sender
        self.data = bytearray()


class _Outgoing:
    def __init__(self) -> None:
        self.got = 0
        self.moved = trio.Event()


class Snapshots:
    """Both ends of all snapshot transfers of one node."""

    def __init__(
        self,
        *,
        clock: Clock,
        random: Random,
        disk: Disk,
        send: Callable[[NodeId, Channel, bytes], bool],
        on_arrived: Callable[[Arrived], None],
    ) -> None:
        self._clock = clock
        self._random = random
        self._disk = disk
        self._send = send
        self._on_arrived = on_arrived
        self._incoming: _Incoming | None = None
        self._outgoing: dict[int, _Outgoing] = {}

    def queues(self) -> tuple[QueueStatistics, ...]:
        size = 0 if self._incoming is None else len(self._incoming.data)
        return (
            QueueStatistics("snapshots.incoming_bytes", size, limits.SNAPSHOT_MAX, "latest", 0),
        )

    async def send(self, node: NodeId, message: Snapshot) -> bool:
        """Send the snapshot of `message` to `node`; return whether it arrived as a whole."""
        try:
            data = await read_snapshot_bytes(self._disk, message.mark)
        except (StorageError, OSError):
            return False
        transfer = self._random.randrange(1 << 62)
        outgoing = self._outgoing[transfer] = _Outgoing()
        try:
            offer = Offer(transfer, message, len(data), xxh3(data))
            self._send(node, Channel.SNAPSHOT, encode(offer))
            return await self._stream(node, transfer, data, outgoing)
        finally:
            del self._outgoing[transfer]

    async def _stream(self, node: NodeId, transfer: int, data: bytes, outgoing: _Outgoing) -> bool:
        sent = 0
        while outgoing.got < len(data):
            while sent < min(len(data), outgoing.got + WINDOW * limits.SNAPSHOT_CHUNK):
                piece = Piece(transfer, sent, data[sent : sent + limits.SNAPSHOT_CHUNK])
                if not self._send(node, Channel.SNAPSHOT, encode(piece)):
                    return False
                sent += len(piece.data)
            outgoing.moved = trio.Event()
            with self._clock.timeout_at(self._clock.now() + PATIENCE) as scope:
                await outgoing.moved.wait()
            if scope.cancelled_caught or outgoing.got < 0:
                return False
        return True

    def receive(self, body: bytes, sender: NodeId) -> None:
        """Take in one frame of the snapshot channel.

        Raises:
            RemoteProtocolError: The frame breaks the protocol.
        """
        message = _decode(body)
        match message:
            case Offer():
                self._incoming = _Incoming(message, sender)
            case Got(transfer, size):
                outgoing = self._outgoing.get(transfer)
                if outgoing is not None:
                    outgoing.got = size if size < 0 else max(outgoing.got, size)
                    outgoing.moved.set()
            case Piece():
                self._take(message, sender)

    def _take(self, piece: Piece, sender: NodeId) -> None:
        incoming = self._incoming
        if incoming is None or incoming.offer.transfer != piece.transfer:
            return
        if piece.offset != len(incoming.data):
            return  # A piece was lost with its link; the sender's patience ends the transfer.
        if len(incoming.data) + len(piece.data) > incoming.offer.size:
            self._incoming = None
            raise RemoteProtocolError(
                f"expected a snapshot of {incoming.offer.size} bytes, found more"
            )
        incoming.data += piece.data
        size = len(incoming.data)
        if size == incoming.offer.size:
            self._incoming = None
            size = self._finish(incoming)
        self._send(sender, Channel.SNAPSHOT, encode(Got(piece.transfer, size)))

    def _finish(self, incoming: _Incoming) -> int:
        """Verify what has arrived and tell of it; return what to confirm."""
        data = bytes(incoming.data)
        if xxh3(data) != incoming.offer.digest:
            return -1
        try:
            mark, chunks = decode_snapshot(data)
        except StorageError:
            return -1
        if mark != incoming.offer.message.mark:
            return -1
        self._on_arrived(Arrived(incoming.offer.message, incoming.sender, chunks))
        return len(data)
