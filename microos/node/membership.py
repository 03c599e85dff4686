"""Drives gossip: datagrams, link frames and dial results in; packets, dials and notes out.

With a keyring datagrams are sealed, and one that does not open, or opens a second time,
reaches nobody: it is counted, and noted once per source and minute. Which are new, and
whether their sender lives at all, `contacts.py` finds out.

Everything a turn of the gossip core asks for is done at once and without waiting
(a datagram is sent or dropped, a frame is queued or dropped), so a turn is a
plain function, called wherever something has happened. Only dials wait, each in
a task of its own, and so does the member file, written by one task.

    socket ─▶ up to 64 datagrams ─▶ receive ┐
    links  ─▶ frame, LinkLost ─────▶ receive├─ turn ─▶ datagrams, frames, dials, notes
    alarm  ─▶ wake ─────────────────────────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import trio

from microos.codec import encode
from microos.errors import RemoteProtocolError, StorageError
from microos.gossip.core import Gossip
from microos.gossip.members import Member, Remembered
from microos.gossip.messages import (
    STATE_KINDS,
    Dialled,
    LinkLost,
    Sender,
    decode_datagram,
    decode_link,
)
from microos.gossip.outbox import Dial
from microos.keyring import Keyring, SealError
from microos.net.links import Links
from microos.net.network import Udp
from microos.node.alarm import Alarm
from microos.node.contacts import Contacts
from microos.node.runtime import Runtime
from microos.node.statistics import QueueStatistics
from microos.storage.files import write_small
from microos.types import Address, BootId, NodeId
from microos.wire import (
    Channel,
    Datagram,
    WrongClusterError,
    pack_datagram,
    unpack_datagram,
)

MEMBER_FILE_INTERVAL = 10.0
"""Least time between two writes of the member file, unless numbers run out [s]."""


class Membership:
    """One node's part in the gossip."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        gossip: Gossip,
        boot: BootId,
        label: int,
        udp: Udp,
        links: Links,
        keyring: Keyring | None = None,
        on_change: Callable[[], None],
        on_note: Callable[[object], None],
    ) -> None:
        self._runtime = runtime
        self._clock = runtime.clock
        self._gossip = gossip
        self._boot = boot
        self._label = label
        self._udp = udp
        self._links = links
        self._keyring = keyring
        self._contacts = Contacts(boot, runtime.entropy)
        self._on_change = on_change
        self._on_note = on_note
        self._counter = 0
        self._members: tuple[Member, ...] = gossip.members()
        self._addresses: dict[NodeId, Address] = {}
        self._remember: Remembered | None = None
        self._remember_awake = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._alarm = Alarm(runtime.clock, lambda: gossip.deadline, self.turn)
        self.counters: Counter[str] = Counter()

    @property
    def members(self) -> tuple[Member, ...]:
        """Every known member as of the last turn: an immutable snapshot."""
        return self._members

    def address_of(self, node: NodeId) -> Address | None:
        return self._addresses.get(node)

    def queues(self) -> tuple[QueueStatistics, ...]:
        bound = len(self._members) * (1 + STATE_KINDS)
        return (QueueStatistics("gossip.news", self._gossip.queued, bound, "latest", 0),)

    @property
    def score(self) -> int:
        """How little this node trusts its own timing; 0 is well."""
        return self._gossip.score

    async def run(self) -> None:
        """Remember the incarnation first, then speak, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            remembered = self._gossip.take()
            if remembered.persist is not None:
                await self._write(remembered.persist)
            nursery.start_soon(self._keep_file)
            nursery.start_soon(self._alarm.run)
            nursery.start_soon(self._listen)
            self.turn()

    async def _listen(self) -> None:
        while True:
            for data, source in await self._udp.receive():
                self._datagram(data, source)
            self.turn()

    def _datagram(self, data: bytes, source: Address) -> None:
        try:
            packet = unpack_datagram(data, self._label, self._keyring)
        except WrongClusterError:
            self._refuse(source, "wrong_cluster")
            return
        except SealError as error:
            self._refuse(source, error.reason)
            return
        except RemoteProtocolError:
            self._refuse(source, "foreign")
            return
        if self._keyring is None:
            self._packet(packet, source)
            return
        verdict = self._contacts.receive(packet, source)
        if verdict.is_replay:
            self._refuse(source, "replayed")
        if verdict.contact:
            self._send(verdict.contact, source, is_contact=True)
        for taken in verdict.taken:
            self._packet(*taken)

    def _packet(self, packet: Datagram, source: Address) -> None:
        """Take in one packet of a sender that is believed."""
        try:
            messages, skipped = decode_datagram(packet.payload)
        except RemoteProtocolError:
            self._refuse(source, "foreign")
            return
        self.counters["datagrams.skipped_messages"] += skipped
        sender = Sender(packet.sender, source, None)
        self._gossip.receive_batch(messages, sender, self._clock.now())

    def _send(self, payload: bytes, to: Address, *, is_contact: bool = False) -> None:
        self._counter += 1
        packet = pack_datagram(
            self._label, self._boot, self._counter, payload, self._keyring, is_contact=is_contact
        )
        self._udp.send(packet, to)

    def _refuse(self, source: Address, what: str) -> None:
        self.counters[f"datagrams.{what}"] += 1
        self._links.note_foreign(source, what)

    def receive(self, body: bytes, node: NodeId, boot: BootId, address: Address) -> None:
        """Take in one gossip frame from a link.

        Raises:
            RemoteProtocolError: The frame breaks the protocol.
        """
        message = decode_link(body)
        self._gossip.receive(message, Sender(boot, address, node), self._clock.now())
        self.turn()

    def link_lost(self, node: NodeId, boot: BootId, clean: bool) -> None:
        address = self._addresses.get(node, Address("", 0))
        lost = LinkLost(node, boot, clean)
        self._gossip.receive(lost, Sender(boot, address, node), self._clock.now())
        self.turn()

    def ask(self, request: Callable[[Gossip, float], None]) -> None:
        """Make a request of the core (`join`, `announce`, …) and do what comes of it."""
        request(self._gossip, self._clock.now())
        self.turn()

    def turn(self) -> None:
        """Wake the core and do everything it wants done."""
        if self._nursery is None:
            return  # Not started: what was asked for is done by the first turn.
        self._gossip.wake(self._clock.now())
        effects = self._gossip.take()
        if effects.persist is not None:
            self._remember = effects.persist
            self._remember_awake.set()
        self._publish()
        for address, payload in effects.datagrams:
            self._send(payload, address)
        for node, message in effects.streams:
            self._links.send(node, Channel.GOSSIP, encode(message))
        for dial in effects.dials:
            self._nursery.start_soon(self._dial, dial)
        for note in effects.notes:
            self._on_note(note)
        self._alarm.moved()

    def _publish(self) -> None:
        members = self._gossip.members()
        if members is self._members:
            return
        self._members = members
        self._addresses = {member.node: member.address for member in members}
        self._on_change()

    async def _dial(self, dial: Dial) -> None:
        result = await self._links.dial(dial.address, dial.node, dial.timeout)
        dialled = Dialled(dial.address, result.node, result.boot, result.outcome, result.rtt)
        sender = Sender(result.boot or BootId(0), dial.address, result.node)
        self._gossip.receive(dialled, sender, self._clock.now())
        self.turn()

    async def _keep_file(self) -> None:
        while True:
            while self._remember is None:
                self._remember_awake = trio.Event()
                await self._remember_awake.wait()
            remember, self._remember = self._remember, None
            await self._write(remember)
            await self._clock.sleep_until(self._clock.now() + MEMBER_FILE_INTERVAL)

    async def _write(self, remembered: Remembered) -> None:
        """Write the member file; a disk that refuses costs the memory of it, not the node."""
        try:
            await write_small(self._runtime.disk, "members", encode(remembered))
        except (StorageError, OSError):
            self.counters["members.not_written"] += 1
