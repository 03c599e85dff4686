"""One member of the gossip group in layer `cores`: its core, its timer, its dials and links.

Datagrams go through the weather like everything else. A link is what it is for gossip:
frames in order or not at all, and the news of its loss. A dial is answered as a kernel
would: accepted, refused where the process is gone, timed out where the machine is gone,
the way is cut, or nobody wakes up to say hello.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from microos.codec import encode
from microos.gossip.core import Gossip
from microos.gossip.members import Me, Remembered
from microos.gossip.messages import Dialled, LinkLost, Sender, decode_datagram, decode_link
from microos.gossip.outbox import Dial
from microos.settings import GossipSettings
from microos.sim.host import Host
from microos.sim.world import SECOND
from microos.types import Address, BootId, NodeId

GOSSIP = b"G"
LINK = b"L"
PORT = 7946
SEEDS = 3


def address_of(number: int) -> Address:
    """Return where the host of that number listens."""
    return Address(f"10.0.{number // 250}.{number % 250 + 1}", PORT)


class Group(Protocol):
    """The other members, as one member reaches them."""

    def rumour_at(self, address: Address) -> Rumour | None: ...
    def rumour_of(self, node: NodeId) -> Rumour | None: ...
    def is_silent(self, address: Address) -> bool: ...


class Rumour:
    """One boot of one member."""

    def __init__(self, host: Host, group: Group, settings: GossipSettings) -> None:
        self.host = host
        self.boot = BootId(host.number + 1 << 32 | host.boot)
        self.address = address_of(host.number)
        self._boot_number = host.boot
        self._group = group
        self._world = host.world
        self._armed = inf
        """Deadline of the earliest timer set, on the node's clock [s]."""
        self._links: dict[NodeId, Rumour] = {}
        """Processes that a link is open to."""
        self._arrivals: dict[NodeId, int] = {}
        self.gossip = Gossip(
            Me(host.id, self.boot, host.name, self.address, {}),
            settings=settings,
            random=host.random("gossip"),
            now=host.line.now(),
            wall_ms=int(host.line.wall() * 1000),
            remembered=host.remembered if isinstance(host.remembered, Remembered) else None,
        )
        now = host.line.now()
        self.gossip.join([address_of(n) for n in range(SEEDS) if n != host.number], now)
        self.gossip.announce(f"record of {host.name} boot {host.boot}".encode(), now)
        self._turn()

    def is_alive(self) -> bool:
        return self.host.is_running(self._boot_number)

    # What comes in.

    def receive(self, kind: bytes, body: bytes, sender: NodeId) -> None:
        """Take in one datagram or one frame of a link."""
        other = self._group.rumour_of(sender)
        if other is None:
            return
        now = self.host.line.now()
        if kind == GOSSIP:
            messages, _ = decode_datagram(body)
            self.gossip.receive_batch(messages, Sender(other.boot, other.address, None), now)
        else:
            link = Sender(other.boot, other.address, sender)
            self.gossip.receive(decode_link(body), link, now)
        self._turn()

    def link_lost(self, other: Rumour) -> None:
        """Take in that the link to a process is gone."""
        node = other.host.id
        if self._links.get(node) is other:
            del self._links[node]
            lost = LinkLost(node, other.boot, False)
            sender = Sender(other.boot, other.address, node)
            self.gossip.receive(lost, sender, self.host.line.now())
            self._turn()

    def end(self, *, silent: bool) -> None:
        """The process is gone: its kernel resets its links, unless the machine is gone too."""
        for other in list(self._links.values()):
            delays = None if silent else self.host.distance(other.host.id)
            if delays is not None:
                self._later(delays[0], other, lambda o=other: o.link_lost(self))

    # One turn.

    def _turn(self) -> None:
        if not self.is_alive():
            return
        gossip = self.gossip
        gossip.wake(self.host.line.now())
        effects = gossip.take()
        if effects.persist is not None:
            self.host.remembered = effects.persist
        for address, payload in effects.datagrams:
            there = self._group.rumour_at(address)
            if there is not None:
                self.host.send(there.host.id, GOSSIP + payload)
        for node, message in effects.streams:
            self._stream(node, LINK + encode(message))
        for dial in effects.dials:
            self._dial(dial)
        for note in effects.notes:
            self.host.note("gossip", note)
        if self._world.executed & 15 == 0:
            gossip.check()
        self._arm()

    def _arm(self) -> None:
        deadline = self.gossip.deadline
        if deadline >= self._armed:
            return
        self._armed = deadline

        def ring() -> None:
            if self._armed == deadline:
                self._armed = inf
            self.host.gate(self._ring)

        self._world.at(self.host.line.when(deadline), ring)

    def _ring(self) -> None:
        if not self.is_alive():
            return
        if self.host.line.now() >= self.gossip.deadline:
            self._turn()
        else:
            self._arm()

    # Links and dials.

    def _stream(self, node: NodeId, data: bytes) -> None:
        """Send a frame over the link, opening one on demand; lost with the link."""
        other = self._group.rumour_of(node)
        delays = self.host.distance(node)
        if other is None or delays is None:
            before = self._links.get(node)
            if before is not None:
                self._later(SECOND, self, lambda: self.link_lost(before))
            return
        self._link(other)
        arrival = max(self._world.now + delays[0], self._arrivals.get(node, 0) + 1)
        self._arrivals[node] = arrival
        cluster, sender = self.host.cluster, self.host.id
        self._world.at(arrival, lambda: cluster.deliver(node, data, sender))

    def _link(self, other: Rumour) -> None:
        self._links[other.host.id] = other
        other._links[self.host.id] = self

    def _dial(self, dial: Dial) -> None:
        there = self._group.rumour_at(dial.address)
        name = self._group.is_silent(dial.address)
        delays = None if there is None else self.host.distance(there.host.id)
        patience = int(dial.timeout * SECOND)
        if there is None:
            if name:
                self._answer(patience, Dialled(dial.address, None, None, "timeout"))
            else:
                self._answer(SECOND // 1000, Dialled(dial.address, None, None, "refused"))
            return
        if delays is None or sum(delays) > patience or there.host.gate.paused:
            self._answer(patience, Dialled(dial.address, None, None, "timeout"))
            return
        rtt = sum(delays)
        if there is self or (dial.node is not None and dial.node != there.host.id):
            outcome = Dialled(dial.address, there.host.id, there.boot, "rejected:node", rtt / 1e9)
            self._answer(rtt, outcome)
            return
        self._link(there)
        self._answer(rtt, Dialled(dial.address, there.host.id, there.boot, "ok", rtt / 1e9))

    def _answer(self, delay: int, result: Dialled) -> None:
        def answered() -> None:
            sender = Sender(result.boot or BootId(0), result.address, result.node)
            self.gossip.receive(result, sender, self.host.line.now())
            self._turn()

        self._later(delay, self, answered)

    def _later(self, delay: int, whose: Rumour, fn: object) -> None:
        """Call `fn` in `delay`, if the process `whose` is still there to notice."""

        def arrive() -> None:
            whose.host.gate(lambda: fn() if whose.is_alive() else None)  # type: ignore[operator]

        self._world.after(delay, arrive)
