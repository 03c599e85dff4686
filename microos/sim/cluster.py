"""Whole nodes in one world: the real node on simulated network, disks and clocks.

    run_cluster(scenario, nodes=5, seed=7)

boots the nodes, runs `scenario(cluster)` beside them on virtual time and fails if the
scenario raises, a node raises, or a checker finds something. Replaced are only clock,
chance, sockets and files; a scenario speaks to `cluster[0]` as a user speaks to a node.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from math import ceil, log2, log10
from typing import Any

import msgspec
import trio

from microos import limits, wire
from microos._open import Node, living
from microos.errors import RemoteProtocolError
from microos.gossip.messages import decode_datagram
from microos.net.memory import MemoryHost, MemoryNetwork
from microos.raft.messages import decode_message
from microos.service.service import Service
from microos.settings import GossipSettings, Settings
from microos.sim.checkers.cluster import ClusterChecks
from microos.sim.clock import Line
from microos.sim.loop import simulate
from microos.sim.machine import PORT, Machine
from microos.sim.network import SimulatedNetwork, Weather
from microos.sim.process import Process
from microos.sim.world import MILLISECOND, SECOND, World
from microos.storage.memory import MemoryDisk


class Note(msgspec.Struct, frozen=True):
    """One thing one node observed."""

    at: float
    """World time [s]."""
    node: int
    boot: int
    source: str
    what: object


class Bounds(msgspec.Struct, frozen=True):
    """The symbols of the acceptance criteria for this cluster [s]."""

    T: float
    """Probe interval."""
    S: float
    """Longest suspicion."""
    E: float
    """Upper end of the election timeout."""
    G: float
    """One full gossip spread."""
    tick: float = 0.01


PATIENCE = 600.0
"""A scenario that has not ended by then waits for what will not come [s of world time]."""


class Captured(msgspec.Struct, frozen=True):
    """One packet, as somebody on the wires sees it."""

    kind: str
    """`datagram` or `segment`."""
    sender: str
    receiver: str
    data: bytes


class Wires(SimulatedNetwork):
    """The network, with an ear: counts what arrives, by what it is, and keeps it if told to.

    Args:
        sealed: Streams are TLS, whose bytes are OpenSSL's own chance; their sizes are not.
            The trace has the sizes then, and a world with a secret replays as any other.
    """

    def __init__(self, world: World, weather: Weather, *, sealed: bool = False) -> None:
        super().__init__(world, weather)
        self._sealed = sealed
        self.captured: list[Captured] | None = None
        """All that has arrived since `Cluster.capture`; None: not kept."""
        self.frames: Counter[tuple[str, str]] | None = None
        """(sender, kind) of all that arrived since `Cluster.count_frames`; None: not counted."""

    def delivered(self, kind: str, sender: str, receiver: str, data: bytes) -> None:
        hidden = self._sealed and kind == "segment"
        super().delivered(kind, sender, receiver, b"%d" % len(data) if hidden else data)
        if self.captured is not None:
            self.captured.append(Captured(kind, sender, receiver, data))
        if self.frames is not None:
            self.frames.update((sender, one) for one in kinds_in(kind, data))


def kinds_in(kind: str, data: bytes) -> Iterator[str]:
    """Return what one datagram or segment carries: `gossip.Ping`, `raft.Append`, `session`, …

    A segment that begins within a frame longer than the window is a `part`, and so is
    everything that is sealed.
    """
    try:
        if kind == "datagram":
            messages, _ = decode_datagram(data[limits.DATAGRAM_HEAD : -limits.DATAGRAM_TAIL])
            yield from (f"gossip.{type(message).__name__}" for message in messages)
            return
        if data.startswith(wire.MAGIC):
            yield "preface"
            data = data[wire.PREFACE_SIZE :]
        for channel, body in wire.FrameReader().feed(data):
            name = channel.name.lower()
            is_raft = channel is wire.Channel.RAFT
            yield f"raft.{type(decode_message(body)).__name__}" if is_raft else name
    except RemoteProtocolError:
        yield "part"


class Member(Machine):
    """A machine of a cluster, and what a scenario wants of it."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        line = Line(cluster.world, offset=(number + 1) * SECOND)
        super().__init__(cluster.world, number, line, sync_ns=cluster.sync_ns)
        self.cluster = cluster
        self.opened = trio.Event()
        self.stop = trio.Event()
        self.changes: dict[str, Any] = {}
        """Settings of this machine alone, from its next start."""

    def settings(self) -> Settings:
        told = {"name": self.name, "bind": f"{self.ip}:{PORT}", "seeds": self.cluster.seeds}
        return dataclasses.replace(self.cluster.settings, **{**told, **self.changes})

    def observe(self, boot: int, source: str, what: object) -> None:
        world = self.cluster.world
        kind = type(what).__name__
        world.sometimes(f"{source}.{kind}")
        world.trace("note", self.name, kind)
        note = Note(world.now / SECOND, self.number, boot, source, what)
        self.cluster.notes.append(note)
        self.cluster.checks.note(note)

    async def live(self, process: Process) -> None:
        """Be a node until told to stop, or killed."""
        runtime = self.runtime(process, partial(self.observe, process.boot))
        cluster = self.cluster
        services = cluster.services(self.number)
        async with living(runtime, self.settings(), services, cluster.middleware) as node:
            self.node = node
            self.opened.set()
            await self.stop.wait()
        await runtime.disk.close()


class Cluster:
    """The nodes, what may befall them, and what to ask of them.

    Args:
        nodes: How many machines there are.
        seed: Everything follows from it.
        settings: Of every node, name and addresses apart; default the local preset.
        seeds: How many of the first machines every node is told of.
        weather: Of the network.
        sync_ns: Mean time of a disk's sync [ns].
        first: How many of the machines start at once; default all. The others by `start`.
        services: What the machine of that number serves; asked anew at each of its starts.
        middleware: Of every node.
    """

    def __init__(
        self,
        nodes: int,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        seeds: int = 3,
        weather: Weather | None = None,
        sync_ns: int = MILLISECOND,
        first: int | None = None,
        services: Callable[[int], Sequence[Service]] = lambda _: (),
        middleware: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.world = World(seed)
        self.settings = settings or Settings.local()
        self.sync_ns = sync_ns
        self.services = services
        self.middleware = middleware
        sealed = self.settings.secret is not None
        self.rules = Wires(self.world, weather or Weather(rare=False), sealed=sealed)
        self.hub = MemoryNetwork(self.rules)
        self.notes: list[Note] = []
        self.machines = [Member(self, number) for number in range(nodes)]
        self.seeds = tuple(f"{m.ip}:{PORT}" for m in self.machines[:seeds])
        self.checks = ClusterChecks(self.world, self.settings.gossip)
        for machine in self.machines:
            self.checks.watch(machine)
        self.error: Exception | None = None
        self._first = nodes if first is None else first
        self._nursery: trio.Nursery | None = None

    # Running.

    def run(self, scenario: Callable[[Cluster], Awaitable[None]], within: float = PATIENCE) -> None:
        """Boot all nodes, run the scenario to its end, look for what went wrong.

        Raises:
            AssertionError: Something did, or it took more than `within` [s of world time].
        """
        self.world.at(int(within * SECOND), lambda: self._too_long(within))
        simulate(self.world, lambda: self._main(scenario))
        if self.error is not None:
            raise self.error
        if self.world.failure is not None:
            raise AssertionError(f"seed {self.world.seed}: {self.world.failure}")

    def _too_long(self, within: float) -> None:
        self.world.fail("liveness", "scenario", f"it did not end within {within:g} s")

    async def _main(self, scenario: Callable[[Cluster], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for machine in self.machines[: self._first]:
                self._boot(machine)
            try:
                await scenario(self)
                self.checks.end(self.machines)
            except Exception as error:
                self.error = error
            nursery.cancel_scope.cancel()

    def _boot(self, machine: Member) -> None:
        assert self._nursery is not None
        machine.opened = trio.Event()
        machine.stop = trio.Event()
        self._nursery.start_soon(machine.begin(self.hub).run, machine.live)

    def __getitem__(self, number: int) -> Node:
        node = self.machines[number].node
        assert node is not None, f"n{number} has not opened yet"
        return node

    @property
    def nodes(self) -> list[Node]:
        """The nodes that run, in order."""
        return [m.node for m in self.machines if m.running and m.node is not None]

    @property
    def now(self) -> float:
        """World time [s]."""
        return self.world.now / SECOND

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a client beside the scenario."""
        assert self._nursery is not None
        self._nursery.start_soon(task)

    async def sleep(self, seconds: float) -> None:
        """Let world time pass."""
        lot = trio.lowlevel.ParkingLot()
        timer = self.world.at(self.world.now + int(seconds * SECOND), lot.unpark_all)
        try:
            await lot.park()
        finally:
            timer.cancel()

    async def wait_until(
        self, condition: Callable[[], bool], within: float, what: str = "the condition"
    ) -> float:
        """Wait until it holds; return how long that took, to within a tick [s].

        Raises:
            AssertionError: Not within `within` [s].
        """
        begun = self.now
        while not condition():
            if self.now - begun > within:
                raise AssertionError(f"{what} did not hold within {within:g} s (seed {self.seed})")
            await self.sleep(self.bounds.tick / 2)
        return self.now - begun

    async def ready(self, within: float = 30.0) -> None:
        """Wait until every running node is in the group and sees all others alive."""
        await self.wait_until(self._is_whole, within, "the cluster was whole")

    def _is_whole(self) -> bool:
        running = [m for m in self.machines if m.running]
        return all(
            m.node is not None
            and (s := m.node.statistics()).ready
            and s.members_alive == len(running)
            and s.leader
            for m in running
        )

    @property
    def seed(self) -> int:
        return self.world.seed

    @property
    def bounds(self) -> Bounds:
        """T, S, E and G of this cluster."""
        gossip: GossipSettings = self.settings.gossip
        n = len(self.machines)
        interval = gossip.probe_interval
        base = gossip.suspicion_factor * max(1.0, log10(n)) * interval
        return Bounds(
            T=interval,
            S=gossip.suspicion_ceiling_factor * base,
            E=self.settings.raft.election_timeout_max,
            G=ceil(log2(n) + 2) * gossip.gossip_interval,
        )

    def leader(self) -> int:
        """Return the number of the machine whose node leads the group.

        Raises:
            AssertionError: None does, as far as the nodes say.
        """
        leaders = [
            m.number
            for m in self.machines
            if m.running and m.node is not None and m.node.statistics().role == "leader"
        ]
        assert leaders, "nobody leads"
        return max(leaders, key=lambda number: self[number].statistics().raft_term)

    # What may befall them.

    def crash(self, number: int, *, silent: bool = False, power: bool = True) -> None:
        """End a process; with `power` the machine's unsynced writes are lost or torn as well."""
        machine = self.machines[number]
        assert machine.process is not None
        machine.process.crash(silent=silent)
        if power:
            machine.platter.crash(self.world.random(f"{machine.name}/{machine.boot}/crash"))
        else:
            machine.platter.kill()

    def start(self, number: int, **changes: Any) -> None:
        """Start a machine that has not run, or again after its end, with settings of its own."""
        machine = self.machines[number]
        assert not machine.running
        machine.changes.update(changes)
        if machine.node is not None:
            self.checks.left.pop(machine.node.id, None)
        self._boot(machine)

    def restart(self, number: int, *, disk: bool = True) -> None:
        """Start a process again, on its disk or an empty one."""
        machine = self.machines[number]
        assert not machine.running
        if not disk:
            machine.platter = MemoryDisk()
        self.start(number)

    async def leave(self, number: int) -> None:
        """Let a node leave in order, and end its process."""
        machine = self.machines[number]
        self.checks.left[self[number].id] = None
        await self[number].leave()
        machine.stop.set()
        await self.wait_until(lambda: not machine.running, 10.0, "the process ended")

    def partition(self, *groups: Sequence[int]) -> None:
        """Cut everything between the groups."""
        for one in groups:
            for other in groups:
                if one is not other:
                    for a in one:
                        for b in other:
                            self.rules.cut(f"n{a}", f"n{b}")

    def heal(self) -> None:
        """Undo all cuts."""
        self.rules.calm(self.rules.weather)

    def weather(self, *, loss: float = 0.0, latency: float = 0.001) -> None:
        """Let every link lose this share of its packets and take this long, mean, one way [s]."""
        self.rules.weather = Weather(
            loss_ppm=int(loss * 1_000_000), latency_mean_ns=int(latency * SECOND), rare=False
        )

    def disk(
        self,
        number: int,
        *,
        full: bool | None = None,
        broken: bool | None = None,
        stalled: bool | None = None,
        sync: float | None = None,
    ) -> None:
        """Let a disk have no room, fail its syncs, hang, or take this long to sync [s]."""
        machine = self.machines[number]
        if full is not None:
            machine.platter.full = full
        if broken is not None:
            machine.sync_fails = broken
        if stalled is not None:
            machine.stalled = stalled
        if sync is not None:
            machine.sync_ns = int(sync * SECOND)

    def count_frames(self) -> Counter[tuple[str, str]]:
        """Count what arrives from now on, by (sender, kind), in the value returned."""
        self.rules.frames = Counter()
        return self.rules.frames

    def capture(self) -> list[Captured]:
        """Keep every packet that arrives from now on in the value returned, in order."""
        self.rules.captured = []
        return self.rules.captured

    def stranger(self, name: str = "client") -> MemoryHost:
        """Return the network as a process sees it that is no node."""
        return self.hub.host(name, ip="10.0.9.9")

    def pause(self, number: int, seconds: float) -> None:
        """Let a process stand still."""
        process = self.machines[number].process
        assert process is not None
        process.gate.pause()
        self.world.at(self.world.now + int(seconds * SECOND), process.gate.resume)

    def shift_wall_clock(self, number: int, seconds: float) -> None:
        """Let a machine's wall clock jump."""
        self.machines[number].line.wall_offset += int(seconds * SECOND)


def run_cluster(
    scenario: Callable[[Cluster], Awaitable[None]],
    nodes: int = 5,
    *,
    seed: int = 0,
    settings: Settings | None = None,
    seeds: int = 3,
    weather: Weather | None = None,
    first: int | None = None,
    services: Callable[[int], Sequence[Service]] = lambda _: (),
    middleware: Sequence[Callable[..., Any]] = (),
    within: float = PATIENCE,
) -> Cluster:
    """Run one scenario in a fresh cluster; return it for a look at its notes."""
    cluster = Cluster(
        nodes,
        seed=seed,
        settings=settings,
        seeds=seeds,
        weather=weather,
        first=first,
        services=services,
        middleware=middleware,
    )
    cluster.run(scenario, within)
    return cluster
