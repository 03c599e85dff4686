"""What the core wants done, gathered until the shell takes it.

What is said to one address within one step shares packets, and what room is left in
them carries news (piggyback). A packet never exceeds `datagram_size`, head and tail
included, and nothing is split: larger things go over links, or by reference.
"""

import msgspec

from microos import limits
from microos.codec import encode
from microos.gossip.broadcast import HEADER_SIZE, MESSAGES_MAX, Queue, pack
from microos.gossip.members import Remembered
from microos.gossip.messages import DatagramMessage, LinkMessage
from microos.gossip.notes import Note
from microos.types import Address, NodeId


class Dial(msgspec.Struct, frozen=True):
    """A fresh connection wanted; the answer is a `Dialled` with the same address."""

    address: Address
    node: NodeId | None
    """Who should be there, if that is known."""
    timeout: float
    """[s]"""
    purpose: str
    """`join`, `probe` or `evidence`; for people."""


class Effects(msgspec.Struct, frozen=True):
    """What is to be done, in this order."""

    persist: Remembered | None
    """To be durable before anything below is done."""
    datagrams: tuple[tuple[Address, bytes], ...]
    """Payloads, without head and tail."""
    streams: tuple[tuple[NodeId, LinkMessage], ...]
    """To be sent over the link to that node, dialling it if there is none."""
    dials: tuple[Dial, ...]
    notes: tuple[Note, ...]


class Outbox:
    """Effects in the making."""

    def __init__(self, datagram_size: int) -> None:
        self.room = datagram_size - limits.DATAGRAM_HEAD - limits.DATAGRAM_TAG - HEADER_SIZE
        """Bytes of messages in one packet."""
        self._said: dict[Address, list[bytes]] = {}
        self._packets: list[tuple[Address, bytes]] = []
        self._streams: list[tuple[NodeId, LinkMessage]] = []
        self._dials: list[Dial] = []
        self._notes: list[Note] = []
        self.persist: Remembered | None = None

    def say(self, to: Address, message: DatagramMessage) -> None:
        """Send a message in a packet."""
        if to.host:
            self._said.setdefault(to, []).append(encode(message))

    def packet(self, to: Address, payload: bytes) -> None:
        """Send a packet that is already full."""
        self._packets.append((to, payload))

    def stream(self, to: NodeId, message: LinkMessage) -> None:
        """Send a message over the link."""
        self._streams.append((to, message))

    def dial(self, dial: Dial) -> None:
        """Ask for a connection."""
        self._dials.append(dial)

    def note(self, note: Note) -> None:
        """Tell what was observed."""
        self._notes.append(note)

    def take(self, queue: Queue, limit: int) -> Effects:
        """Hand over and forget everything; packets take along what fits from `queue`."""
        datagrams: list[tuple[Address, bytes]] = []
        for address, parts in self._said.items():
            self._pack(address, parts, queue, limit, datagrams)
        datagrams += self._packets
        effects = Effects(
            persist=self.persist,
            datagrams=tuple(datagrams),
            streams=tuple(self._streams),
            dials=tuple(self._dials),
            notes=tuple(self._notes),
        )
        self._said, self._packets, self._streams = {}, [], []
        self._dials, self._notes, self.persist = [], [], None
        return effects

    def _pack(
        self,
        address: Address,
        parts: list[bytes],
        queue: Queue,
        limit: int,
        datagrams: list[tuple[Address, bytes]],
    ) -> None:
        packet: list[bytes] = []
        room = self.room
        for part in parts:
            if packet and (len(part) > room or len(packet) == MESSAGES_MAX):
                datagrams.append((address, pack(packet)))
                packet, room = [], self.room
            packet.append(part)
            room -= len(part)
        packet += queue.fill(room, count=MESSAGES_MAX - len(packet), limit=limit)
        datagrams.append((address, pack(packet)))
