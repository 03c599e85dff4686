"""Layer `node`: whole nodes, as they ship, under one trio run in one process.

Replaced are clock, chance, network and disk; drivers, links, features and recovery are
the real ones. This is where races across `await`, cancellation and start-up are found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from microos._open import living
from microos.errors import StorageError
from microos.gossip.members import State
from microos.net.memory import MemoryNetwork
from microos.raft.election import Role
from microos.ring.keeper import Keeper
from microos.ring.ring import Owner
from microos.settings import Settings, SyncSettings
from microos.sim.checkers.calls import CallChecker
from microos.sim.checkers.kv import KvChecker
from microos.sim.checkers.nodes import NodesChecker, keeper_of, raft_of
from microos.sim.clock import Line
from microos.sim.columns import Columns
from microos.sim.customers import keys_of
from microos.sim.faults import Fault, Faults
from microos.sim.loop import simulate
from microos.sim.machine import PORT, Machine
from microos.sim.network import SimulatedNetwork
from microos.sim.process import Process
from microos.sim.swarm import Config, calmed, tail_weather
from microos.sim.visitors import Visitors, service_of
from microos.sim.workload import Holding, Operation, Users
from microos.sim.world import FAULT, SECOND, World, exponential
from microos.types import Index, NodeId

SEEDS = 3
SYNC_RARE_FACTOR = 50
RESTART_AFTER = SECOND
CHECK_EVERY = SECOND // 4
SERVED_AT_THE_END = 3 * SECOND // 2
"""So long before the users stop everything they ask of store and calls has to succeed [ns]."""


class Member(Machine):
    """A machine of such a world: its disk is slow at times, and its end may come at a sync."""

    def __init__(self, cluster: NodesWorld, number: int) -> None:
        config = cluster.config
        line = Line(cluster.world, offset=config.offsets_ns[number], ppm=config.ppm[number])
        super().__init__(cluster.world, number, line, sync_ns=config.sync_ns)
        self._cluster = cluster

    def sync_time(self) -> int:
        self._cluster.trigger(self, "sync")
        config = self._cluster.config
        bits = self.chance.getrandbits(64)
        delay = config.sync_ns // 4 + exponential(bits, config.sync_ns)
        if config.sync_rare and bits & 255 == 0:
            delay *= SYNC_RARE_FACTOR
        if self.world.now < config.tail_ns:
            delay = min(delay, config.tail_ns - self.world.now)
        return delay


class NodesWorld:
    """One world of layer `node`, from configuration and plan to its verdict."""

    def __init__(
        self, config: Config, plan: Sequence[Fault], *, frozen: bool = False, printed: bool = False
    ) -> None:
        self.config = config
        self.world = World(config.seed)
        self.network = SimulatedNetwork(self.world, config.weather)
        self.network.horizon = config.tail_ns
        self.columns = Columns(self.world, printed=printed)
        self.history: list[Operation] = []
        self.faults = Faults(self, config.tail_ns, self._note_fault)
        self._plan = plan
        self._triggers = 0 if frozen else config.triggers_ppm
        self._trigger_chance = self.world.random("triggers")
        self._hub = MemoryNetwork(self.network)
        self._holdings: dict[int, Holding] = {}
        self._checker = NodesChecker(
            self.world, lambda: list(self._holdings.values()), config.gossip
        )
        self._machines = [Member(self, number) for number in range(config.nodes)]
        self._kv: KvChecker | None = None
        self._call_checker = CallChecker(self.world)
        if config.store is not None:
            self._kv = self._checker.kv = KvChecker(
                self.world, keys_of(config.store), self._keepers
            )
        self._stop = config.end_ns - min(3 * SECOND, (config.end_ns - config.tail_ns) // 3)
        self._settled = Index(0)
        """What was committed long enough before the end to be everywhere at the end."""
        self._nursery: trio.Nursery

    # The run.

    def run(self) -> None:
        """Run to the end or to the first failure; the verdict is in `world.failure`."""
        simulate(self.world, self._main)
        if self.world.failure is None:
            self._checker.final(self.history)

    def operations(self) -> int:
        asked = len(self._kv.history) if self._kv is not None else 0
        return len(self.history) + asked + len(self._call_checker.history)

    def _keepers(self) -> dict[Owner, Keeper]:
        """Return the stores of the processes that run."""
        found = {}
        for machine in self._machines:
            keeper = keeper_of(machine.node) if machine.node is not None else None
            if keeper is not None and self.is_running(machine.number):
                found[keeper.me] = keeper
        return found

    async def _main(self) -> None:
        end = trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for machine in self._machines:
                self.start(machine.number)
            self.faults.plan(self._plan)
            self.world.at(self.config.tail_ns, self._calm, FAULT)
            self.world.at(self.config.end_ns, end.set, FAULT)
            self.world.at(CHECK_EVERY, self._check)
            self.world.at(self.config.end_ns - self._travel(), self._settle)
            await end.wait()
            self._final()
            nursery.cancel_scope.cancel()

    def _travel(self) -> int:
        """Return how long what is committed may take to reach everybody in the tail [ns]."""
        return int(2 * self.config.raft.election_timeout_max * SECOND)

    def _settle(self) -> None:
        self._settled = self._checker.last_index

    def _calm(self) -> None:
        """Begin the quiet tail: faults end, everybody is there, nothing is slow."""
        timeout = int(self.config.raft.election_timeout_max * SECOND)
        self.network.calm(tail_weather(timeout))
        self.config = calmed(self.config, timeout)
        for machine in self._machines:
            machine.stalled = machine.sync_fails = False
            machine.platter.full = False
            process = machine.process
            if process is not None:
                process.gate.delay = 0
                if process.gate.paused:
                    process.gate.resume()
            self.start(machine.number)
        self.columns.add("-", 0, "fault", "quiet tail")

    def _check(self) -> None:
        """Let every core assert what it must."""
        for machine in self._machines:
            if machine.node is not None and self.is_running(machine.number):
                raft = raft_of(machine.node)
                if raft is not None:
                    raft.check()
                self._checker.agrees(machine.name, machine.node)
                keeper = keeper_of(machine.node)
                if keeper is not None:
                    keeper.check()
                machine.node._lifecycle.calls.check()
        self.world.after(CHECK_EVERY, self._check)

    def _final(self) -> None:
        """After the tail there is one leader, everybody has everything, and clients are served."""
        leaders, applied = [], []
        for machine in self._machines:
            node = machine.node
            raft = None if node is None else raft_of(node)
            if raft is None:
                self.world.fail("liveness", "recovery", f"{machine.name} does not take part")
                return
            if raft.role is Role.LEADER:
                leaders.append(machine.name)
            applied.append(raft.status().applied)
        if len(leaders) != 1:
            self.world.fail("liveness", "leader", f"{leaders} lead at the end")
        if min(applied) < self._settled:
            self.world.fail("liveness", "views", f"{applied}, long committed is {self._settled}")
        served = any(
            o.outcome == "ok" and o.kind == "set" and o.called_ns >= self.config.tail_ns
            for o in self.history
        )
        if not served:
            self.world.fail("liveness", "service", "no write has succeeded in the quiet tail")
        for machine in self._machines:
            assert machine.node is not None
            alive = [m for m in machine.node.members() if m.state == State.ALIVE]
            if len(alive) != len(self._machines):
                names = [m.name for m in alive]
                self.world.fail("liveness", "members", f"{machine.name} sees only {names} alive")

        if self._kv is not None:
            since = self._stop - SERVED_AT_THE_END
            self._kv.final(since, self.names())
            self._call_checker.final(since, {})

    # One process.

    def start(self, node: int) -> None:
        machine = self._machines[node]
        if self.is_running(node):
            return
        process = machine.begin(self._hub)
        self.note(machine, "process", "Started")
        self._nursery.start_soon(process.run, lambda p: self._live(machine, p))

    async def _live(self, machine: Machine, process: Process) -> None:
        """One boot: a node, its users, and the supervisor that restarts what ended by itself."""
        if process.gate.dead:
            return  # It crashed in the very instant of its start.

        def observe(source: str, note: object) -> None:
            self.note(machine, source, note)
            if machine.process is process and machine.node is not None:
                self._checker.noted(process, machine.node, source, note)

        runtime = machine.runtime(process, observe)
        shop = service_of(process, machine.number, self._call_checker)
        try:
            async with (
                living(runtime, self._settings(machine), (shop,)) as node,
                trio.open_nursery() as n,
            ):
                machine.node = node
                if self._kv is not None and self.config.store is not None:
                    visitors = Visitors(
                        node,
                        process,
                        self.config.store,
                        kv_judge=self._kv,
                        call_judge=self._call_checker,
                        stop_ns=self._stop,
                    )
                    n.start_soon(visitors.run)
                users = Users(node, process, self.config, self.history, self._holdings, self._stop)
                n.start_soon(users.run)
                why = await node.wait_failed()
                self.note(machine, "process", f"failed {why}")
                n.cancel_scope.cancel()
        except* StorageError as group:
            self.note(machine, "process", f"StorageError {group.exceptions[0]}")
            if not (machine.doomed or machine.platter.full):
                raise
        else:
            assert machine.doomed or process.gate.dead, "the node ended by itself on a good disk"
        self._end(machine, process)

    def _end(self, machine: Machine, process: Process) -> None:
        """A process has ended by itself: its supervisor starts it again."""
        if machine.process is process and not process.gate.dead:
            self.crash(machine.number, silent=False)
            self.world.after(RESTART_AFTER, lambda: self.start(machine.number))

    def _settings(self, machine: Machine) -> Settings:
        config = self.config
        seeds = tuple(f"{m.ip}:{PORT}" for m in self._machines[:SEEDS])
        settings = Settings(
            name=machine.name,
            bind=f"{machine.ip}:{PORT}",
            seeds=seeds,
            cluster="sim",
            gossip=config.gossip,
            raft=config.raft,
            sync=SyncSettings(ttl=config.ttl, command_ttl=2 * config.ttl),
        )
        if config.store is not None:
            settings = settings.replace(ring=config.store.ring, kv=config.store.kv)
        # The addresses of this world are off loopback, and only look like it.
        faults = [fault for fault in settings.faults() if not fault.startswith("bind: ")]
        assert not faults, faults
        return settings

    def note(self, machine: Machine, source: str, note: object) -> None:
        self.columns.add(machine.name, machine.boot, source, note)
        kind = note.partition(" ")[0] if isinstance(note, str) else type(note).__name__
        self.world.sometimes(f"{source}.{kind}")
        self.world.trace("note", machine.name, f"{source}.{kind}")

    def _note_fault(self, fault: Fault) -> None:
        self.columns.add("-", 0, "fault", fault)
        self.world.sometimes(f"fault.{fault.kind}")

    def trigger(self, machine: Machine, point: str) -> None:
        """Let a point in the code be the moment of a crash, now and then."""
        if self._triggers and self._trigger_chance.randrange(1_000_000) < self._triggers:
            later = self._trigger_chance.randrange(5 * self.config.sync_ns)
            lasts = self._trigger_chance.randrange(1, SECOND)
            what: dict[str, int | list[int]] = {"node": machine.number, "for_ns": lasts}
            self.faults.trigger(Fault(self.world.now + later, "crash", what))
            self.world.sometimes(f"trigger.{point}")

    # Faults.

    def names(self) -> Sequence[str]:
        return [machine.name for machine in self._machines]

    def is_running(self, node: int) -> bool:
        process = self._machines[node].process
        return process is not None and not process.gate.dead

    def leader(self) -> int | None:
        found = []
        for machine in self._machines:
            raft = None if machine.node is None else raft_of(machine.node)
            if raft is not None and raft.role is Role.LEADER and self.is_running(machine.number):
                found.append((raft.term, machine.number))
        return max(found)[1] if found else None

    def crash(self, node: int, *, silent: bool) -> None:
        machine = self._machines[node]
        if machine.process is not None and self.is_running(node):
            machine.process.crash(silent=silent)
            self._lose(machine)

    def _lose(self, machine: Machine) -> None:
        """Let a machine lose its process and perhaps its power; look at what its disk has left."""
        self.note(machine, "process", "Crashed")
        node, machine.node = machine.node, None
        machine.sync_fails = False
        if machine.doomed or machine.chance.random() < 0.5:
            machine.platter.crash(machine.chance)
        else:
            machine.platter.kill()
        if node is not None:
            keeper = keeper_of(node)
            if keeper is not None and self._kv is not None:
                self._kv.crashed(keeper.me)
            self._checker.crashed(machine.name, node, machine.platter.seen())

    def pause(self, node: int) -> None:
        self._with_process(node, lambda process: process.gate.pause())

    def resume(self, node: int) -> None:
        self._with_process(node, lambda process: process.gate.resume())

    def slow(self, node: int, delay: int) -> None:
        def do(process: Process) -> None:
            process.gate.delay = delay

        self._with_process(node, do)

    def _with_process(self, node: int, fn: Callable[[Process], None]) -> None:
        process = self._machines[node].process
        if process is not None and not process.gate.dead:
            fn(process)

    def disk(self, node: int, kind: str, on: bool) -> None:
        machine = self._machines[node]
        if kind == "stall":
            machine.stalled = on
        elif kind == "full":
            machine.platter.full = on
        else:
            machine.sync_fails = on

    def turn_wall(self, node: int, jump: int) -> None:
        self._machines[node].line.wall_offset += jump

    def transfer(self, to: int) -> None:
        leader, target = self.leader(), self._machines[to].node
        if leader is not None and target is not None:
            node = self._machines[leader].node
            assert node is not None and node._lifecycle._consensus is not None
            node._lifecycle._consensus.transfer(NodeId(target.id))

    def change(self, node: int, number: int) -> None:
        """The autopilot changes the configuration in this layer, nobody else."""
