"""A tiny network of gossip cores on virtual time: seeded, lossy, cut and healed on order.

One heap of events. Datagrams take 0.5–2 ms and may be lost; links deliver in order or not
at all; dials answer as a kernel would: accepted, refused where nobody listens, timed out
where the host is gone or cut off. A paused process reads everything late, then wakes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

from microos.codec import encode
from microos.gossip.core import Gossip
from microos.gossip.members import Me, Member, Remembered, State
from microos.gossip.messages import (
    Dialled,
    LinkLost,
    LinkMessage,
    Sender,
    decode_datagram,
    decode_link,
)
from microos.gossip.outbox import Dial, Effects
from microos.limits import DATAGRAM_HEAD, DATAGRAM_TAIL
from microos.settings import GossipSettings
from microos.types import Address, BootId, NodeId

N = TypeVar("N")
WALL_MS = 1_700_000_000_000


class Process:
    """One start of one node."""

    def __init__(self, world: World, me: Me, remembered: Remembered | None) -> None:
        self.me = me
        self.remembered = remembered
        self.core = Gossip(
            me,
            settings=world.settings,
            random=random.Random(f"{world.seed}/{me.node}/{me.boot}"),
            now=world.now,
            wall_ms=WALL_MS + int(world.now * 1000),
            remembered=remembered,
        )
        self.running = True
        self.paused = False
        self.inbox: list[Callable[[], None]] = []
        self.notes: list[tuple[float, object]] = []
        self.packets = 0
        self.bytes = 0


class World:
    """All of it."""

    def __init__(
        self, seed: int = 0, *, settings: GossipSettings | None = None, loss: float = 0.0
    ) -> None:
        self.seed = seed
        self.settings = settings or GossipSettings()
        self.loss = loss
        self.now = 0.0
        self.checked = True
        self.processes: dict[NodeId, Process] = {}
        self._random = random.Random(f"world/{seed}")
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._boots = count(1)
        self._groups: dict[NodeId, int] = {}
        self._severed: set[frozenset[NodeId]] = set()
        self._vanished: set[Address] = set()
        self._links: dict[tuple[BootId, BootId], None] = {}

    # What a test asks for.

    def start(
        self,
        index: int,
        *,
        seeds: Iterable[int] = (),
        node: str | None = None,
        name: str | None = None,
        labels: dict[str, str] | None = None,
        remembered: Remembered | None = None,
    ) -> Process:
        """Start a process at address `index` that joins at the addresses `seeds`."""
        me = Me(
            NodeId(node or f"node-{index:03}"),
            BootId(next(self._boots) * 1_000_003),
            name or f"n{index}",
            address(index),
            labels or {},
        )
        process = Process(self, me, remembered)
        self.processes[me.node] = process
        self._vanished.discard(me.address)
        process.core.join([address(seed) for seed in seeds], self.now)
        self._done(process)
        return process

    def cluster(self, size: int, *, seeds: int = 1) -> list[Process]:
        """Start `size` processes within 100 ms, whose first `seeds` are everybody's seeds."""
        found = []
        for index in range(size):
            self.run(0.1 / size)
            found.append(self.start(index, seeds=range(seeds)))
        return found

    def do(self, process: Process, action: Callable[[Gossip, float], None]) -> None:
        """Ask something of a core."""
        action(process.core, self.now)
        self._done(process)

    def crash(self, process: Process, *, vanish: bool = False) -> None:
        """Kill a process; `vanish` takes its host along, so that nothing is refused."""
        process.running = False
        if vanish:
            self._vanished.add(process.me.address)
        for other in list(self.processes.values()):
            link = _pair(process.me.boot, other.me.boot)
            if self._links.pop(link, link) is None and not vanish and self._reach(process, other):
                lost = LinkLost(process.me.node, process.me.boot, clean=False)
                self._later(0.001, other, lost, None)

    def restart(self, process: Process, *, seeds: Iterable[int] = (0,)) -> Process:
        """Start the same node again, with its member file."""
        self.crash(process)
        index = process.me.address.port
        return self.start(index, seeds=seeds, node=process.me.node, remembered=process.remembered)

    def pause(self, process: Process, seconds: float) -> None:
        """Stop a process for a while, as SIGSTOP does."""
        process.paused = True

        def resume() -> None:
            process.paused = False
            inbox, process.inbox = process.inbox, []
            for deliver in inbox:
                deliver()
            self._done(process)

        self._at(self.now + seconds, resume)

    def split(self, *groups: Iterable[Process]) -> None:
        """Cut the network into groups; who is in none is in the first."""
        self._groups = {p.me.node: k for k, group in enumerate(groups) for p in group}

    def sever(self, one: Process, other: Process) -> None:
        """Cut the path between two processes alone."""
        self._severed.add(frozenset((one.me.node, other.me.node)))

    def heal(self) -> None:
        """Undo `split` and `sever`."""
        self._groups = {}
        self._severed = set()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, event = heappop(self._heap)
            event()
        self.now = end

    def run_until(self, condition: Callable[[], bool], within: float) -> float:
        """Let time pass until `condition`; return how long it took [s]."""
        start = self.now
        while not condition():
            assert self.now - start <= within, f"not within {within} s"
            self.run(0.01)
        return self.now - start

    # What a test looks at.

    @property
    def running(self) -> list[Process]:
        return [process for process in self.processes.values() if process.running]

    def agree(self) -> bool:
        """Return whether each running process holds exactly the running ones to be alive."""
        wanted = sorted(process.me.node for process in self.running)
        return all(alive(p) == present(p) == wanted for p in self.running)

    def same(self) -> bool:
        """Return whether all running processes hold the same about the living."""
        views = [facts(process) for process in self.running]
        return all(view == views[0] for view in views)

    def notes(self, kind: type[N]) -> list[N]:
        """Return all notes of one kind, of all processes."""
        every = [note for process in self.processes.values() for _, note in process.notes]
        return [note for note in every if isinstance(note, kind)]

    # The machinery.

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heappush(self._heap, (when, next(self._number), event))

    def _done(self, process: Process) -> None:
        if not process.running:
            return
        process.core.wake(self.now)
        self._perform(process, process.core.take())
        if self.checked:
            process.core.check()
        deadline = process.core.deadline

        def wake() -> None:
            if process.running and not process.paused and process.core.deadline <= self.now:
                self._done(process)

        self._at(max(deadline, self.now), wake)

    def _perform(self, process: Process, effects: Effects) -> None:
        if effects.persist is not None:
            process.remembered = effects.persist
        for to, payload in effects.datagrams:
            size = len(payload) + DATAGRAM_HEAD + DATAGRAM_TAIL
            assert size <= self.settings.datagram_size
            process.packets += 1
            process.bytes += size
            self._datagram(process, to, payload)
        for node, message in effects.streams:
            self._stream(process, node, message)
        for dial in effects.dials:
            self._dial(process, dial)
        process.notes += [(self.now, note) for note in effects.notes]

    def _datagram(self, source: Process, to: Address, payload: bytes) -> None:
        if self._random.random() < self.loss:
            return
        sender = Sender(source.me.boot, source.me.address)

        def deliver() -> None:
            target = self._listening(to)
            if target is None or not self._reach(source, target):
                return
            if target.paused:
                target.inbox.append(lambda: take_in(target))
                return
            take_in(target)
            self._done(target)

        def take_in(target: Process) -> None:
            messages, _ = decode_datagram(payload)
            target.core.receive_batch(messages, sender, self.now)

        self._at(self.now + self._latency(), deliver)

    def _stream(self, source: Process, node: NodeId, message: LinkMessage) -> None:
        assert node != source.me.node
        decoded = decode_link(encode(message))
        target = self.processes.get(node)
        if target is None or not target.running or not self._reach(source, target):
            return
        self._link(source, target)
        sender = Sender(source.me.boot, source.me.address, source.me.node)
        # In order: links do not jitter.
        self._later(0.001, target, decoded, sender)

    def _dial(self, source: Process, dial: Dial) -> None:
        target = self._listening(dial.address)
        cut = dial.address in self._vanished or any(
            p.me.address == dial.address and not self._reach(source, p)
            for p in self.processes.values()
        )
        if cut or (target is not None and target.paused):
            answer = Dialled(dial.address, None, None, "timeout", dial.timeout)
            self._later(dial.timeout, source, answer, None)
        elif target is None:
            answer = Dialled(dial.address, None, None, "refused", 0.001)
            self._later(0.001, source, answer, None)
        else:
            if target is not source:
                self._link(source, target)
            me = target.me
            answer = Dialled(dial.address, me.node, me.boot, "ok", 0.002)
            self._later(0.002, source, answer, None)

    def _later(
        self,
        delay: float,
        target: Process,
        message: Dialled | LinkLost | LinkMessage,
        sender: Sender | None,
    ) -> None:
        def deliver() -> None:
            if not target.running:
                return
            if target.paused:
                target.inbox.append(lambda: target.core.receive(message, sender, self.now))
                return
            target.core.receive(message, sender, self.now)
            self._done(target)

        self._at(self.now + delay, deliver)

    def _link(self, one: Process, other: Process) -> None:
        self._links[_pair(one.me.boot, other.me.boot)] = None

    def _reach(self, one: Process, other: Process) -> bool:
        if one.me.address in self._vanished or other.me.address in self._vanished:
            return False
        if frozenset((one.me.node, other.me.node)) in self._severed:
            return False
        return self._groups.get(one.me.node, 0) == self._groups.get(other.me.node, 0)

    def _listening(self, at: Address) -> Process | None:
        for process in self.processes.values():
            if process.running and process.me.address == at:
                return process
        return None

    def _latency(self) -> float:
        return 0.0005 + 0.0015 * self._random.random()


def address(index: int) -> Address:
    """Return where process `index` listens."""
    return Address("10.0.0.1", index)


def alive(process: Process) -> list[NodeId]:
    """Return whom a process holds to be alive, suspects not among them."""
    return [m.node for m in process.core.members() if m.state is State.ALIVE]


def present(process: Process) -> list[NodeId]:
    """Return whom a process holds to be alive or suspect."""
    return [m.node for m in process.core.members() if m.state <= State.SUSPECT]


def member(process: Process, other: Process) -> Member:
    """Return what `process` holds of `other`."""
    return next(m for m in process.core.members() if m.node == other.me.node)


def facts(process: Process) -> list[object]:
    """Return what a process holds of those that take part, without what is local."""
    return [
        (m.node, m.boot, m.incarnation, m.address, m.labels, m.record, m.states)
        for m in process.core.members()
        if m.state <= State.SUSPECT
    ]


def _pair(one: BootId, other: BootId) -> tuple[BootId, BootId]:
    return (min(one, other), max(one, other))
