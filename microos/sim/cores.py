"""Layer `cores`: whole groups of cores with the real storage code, stepped by a plain heap.

No task, no socket, no driver: 10 to 50 times as fast as the whole node, so this is where
deep protocol states and parameters at scale are found. Races across an `await` are not:
those belong to layer `node`.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from math import log10

from microos.config.machine import ConfigMachine
from microos.node.ownership import NUMBER as OWNERSHIP
from microos.node.steward import STATES
from microos.raft.composite import Done, Machines
from microos.raft.entry import Change, Configuration, Entry, SnapshotMark
from microos.raft.messages import Snapshot
from microos.raft.proposal import Proposed
from microos.ring.keeper import Keeper
from microos.ring.planner import View
from microos.ring.ring import Owner
from microos.sim.calls import Calls
from microos.sim.checkers.calls import CallChecker
from microos.sim.checkers.gossip import GossipChecker
from microos.sim.checkers.kv import KvChecker
from microos.sim.checkers.membership import MembershipChecker
from microos.sim.checkers.raft import RaftChecker
from microos.sim.checkers.witness import Witness
from microos.sim.clients import AGENT, Agent, Operation
from microos.sim.clock import Line
from microos.sim.columns import Columns
from microos.sim.customers import Customers, keys_of
from microos.sim.faults import LEADER, Fault, Faults
from microos.sim.hearsay import Hearsay, boot_of
from microos.sim.host import Host, node_id, node_name
from microos.sim.keeping import Keeping, Proposing
from microos.sim.member import EPOCH, RAFT, Member
from microos.sim.network import SimulatedNetwork
from microos.sim.rings import Rings, SharingMachine
from microos.sim.rumours import GOSSIP, LINK, Rumour, address_of
from microos.sim.swarm import Config, Store, calmed, tail_weather
from microos.sim.world import FAULT, SECOND, World
from microos.sync.machine import LockMachine
from microos.types import Address, Index, NodeId, Term

FRAME_HEAD = 1
DEATH_WITHIN = 5
"""A triggered crash comes within this many mean syncs."""
RESTART_AFTER = SECOND
SAMPLE_EVERY = SECOND
SERVED_AT_THE_END = 3 * SECOND // 2
"""So long before the clients stop everything they ask of store and calls has to succeed [ns]."""

ELECTED_WITHIN, SERVED_WITHIN, EQUAL_WITHIN = 10, 20, 30
"""Bounds of the quiet tail, in election timeouts."""


class CoresWorld:
    """One world of layer `cores`, from configuration and plan to its verdict."""

    def __init__(
        self, config: Config, plan: Sequence[Fault], *, frozen: bool = False, printed: bool = False
    ) -> None:
        """Make the world; nothing happens before `run`.

        Args:
            frozen: The plan holds everything that happened: no more crashes by trigger.
            printed: Print the columns as they come.
        """
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
        everybody = max(config.nodes, config.members)
        self._number = {node_id(n): n for n in range(everybody)}
        self._at = {address_of(n): n for n in range(everybody)}
        self._names = [f"n{n}" for n in range(config.nodes)]
        self._hosts = [Host(self, n, self._line(n)) for n in range(everybody)]
        self._rumours: list[Rumour | None] = [None] * everybody
        self._gossip = GossipChecker(self.world, self._running_rumours)
        self._membership = MembershipChecker(self.world, config.gossip.reconnect_timeout)
        self._gone: list[NodeId] = []
        self._members: list[Member | None] = [None] * config.nodes
        self._agents: list[Agent | None] = [None] * config.nodes
        self._quiet = False
        self._witness = Witness(self.world, self._running_agents)
        self._rings = Rings()
        self._ring = SharingMachine(self._rings)
        oracle = Machines(EPOCH, (LockMachine(), ConfigMachine(), self._ring))
        self._checker = RaftChecker(self.world, oracle, self._committed)
        self._calls: list[Calls | None] = [None] * config.nodes
        self._keepings: dict[Owner, Keeping] = {}
        """Of the processes that run."""
        self._undisturbed_ns = [0] * config.nodes
        """By node: since when its process has run, unpaused and in time [ns]."""
        self._hearsay: Hearsay | None = None
        self._kv: KvChecker | None = None
        self._call_checker = CallChecker(self.world)
        if config.store is not None:
            self._kv = KvChecker(self.world, keys_of(config.store), self._keepers)
            if config.members < config.nodes:
                self._hearsay = Hearsay(
                    self.world,
                    self._hosts[: config.nodes],
                    dead_after_ns=config.store.dead_after_ns,
                    wrong_ppm=config.store.wrong_ppm,
                    is_quiet=lambda: self._quiet,
                )
        voters = tuple(node_id(n) for n in range(config.nodes))
        self._founding = SnapshotMark(Index(1), Term(1), Configuration(voters=voters))
        self._stop = config.end_ns - min(3 * SECOND, (config.end_ns - config.tail_ns) // 3)
        """When the clients stop asking [ns]."""
        self._settled = Index(0)
        """What was committed long enough before the end to be everywhere at the end."""

    def _line(self, number: int) -> Line:
        if number >= self.config.nodes:
            return Line(self.world, offset=number * SECOND)
        offset, ppm = self.config.offsets_ns[number], self.config.ppm[number]
        return Line(self.world, offset=offset, ppm=ppm)

    # The run.

    def run(self) -> None:
        """Run to the end or to the first failure; the verdict is in `world.failure`."""
        config, world = self.config, self.world
        collecting = gc.isenabled()
        gc.disable()
        try:
            for n in range(len(self._hosts)):
                world.at(0, lambda n=n: self.start(n))  # type: ignore[misc]
            if config.members:
                world.at(SAMPLE_EVERY, self._sample)
            self.faults.plan(self._plan)
            world.at(config.tail_ns, self._calm, FAULT)
            self._expect(ELECTED_WITHIN, self._one_leader)
            self._expect(SERVED_WITHIN, self._served)
            travel = int(2 * config.raft.election_timeout_max * SECOND)
            world.at(config.end_ns - travel, self._settle)
            world.run(config.end_ns)
            if world.failure is None:
                self._final()
        except AssertionError:
            world.fail("safety", "assertion", traceback.format_exc())
        except Exception:
            world.fail("exception", "cores", traceback.format_exc())
        finally:
            if collecting:
                gc.enable()

    def operations(self) -> int:
        asked = len(self._kv.history) if self._kv is not None else 0
        return len(self.history) + asked + len(self._call_checker.history)

    def _committed(self, entry: Entry, done: Done) -> None:
        self._witness.committed(entry, done)
        if self._kv is not None:
            self._kv.moved(self._ring.state)

    def _settle(self) -> None:
        self._settled = self._checker.last_index

    def _calm(self) -> None:
        """Begin the quiet tail: faults end, everybody is there, nothing is slow."""
        self._quiet = True
        timeout = int(self.config.raft.election_timeout_max * SECOND)
        self.network.calm(tail_weather(timeout))
        self.config = calmed(self.config, timeout)
        for host in self._hosts:
            self.disk(host.number, "stall", False)
            self.disk(host.number, "full", False)
            host.sync_fails = False
            host.gate.delay = 0
            self._disturb(host.number)
            if host.gate.paused:
                host.gate.resume()
            self.start(host.number)
        self.columns.add("-", 0, "fault", "quiet tail")
        if self.config.members > self.config.nodes:
            # One that has nothing to do with raft dies for good: all must find out.
            last = len(self._hosts) - 1
            self._gone.append(self._hosts[last].id)
            self.crash(last, silent=True)
        self._gossip.settled_ns = self.world.now + self._longest_suspicion()

    def _longest_suspicion(self) -> int:
        """Return how long a suspicion from before the quiet tail may go on [ns]."""
        gossip = self.config.gossip
        base = gossip.suspicion_factor * max(1.0, log10(len(self._hosts))) * gossip.probe_interval
        return int((gossip.suspicion_ceiling_factor * base + 4 * gossip.probe_interval) * SECOND)

    def _sample(self) -> None:
        self._gossip.sample()
        self.world.after(SAMPLE_EVERY, self._sample)

    def _expect(self, timeouts: int, fulfilled: object) -> None:
        at = self.config.tail_ns + int(timeouts * self.config.raft.election_timeout_max * SECOND)
        if at < self.config.end_ns:
            self.world.at(at, fulfilled)  # type: ignore[arg-type]

    def _one_leader(self) -> None:
        leaders = [m for m in self._members if m is not None and m.is_leader()]
        if not leaders:
            self.world.fail("liveness", "leader", f"none {ELECTED_WITHIN} E after the last fault")

    def _served(self) -> None:
        since = self.config.tail_ns
        served = any(
            o.returned_ns is not None and o.called_ns >= since and o.returned_ns < self._stop
            for o in self.history
        )
        if not served:
            self.world.fail("liveness", "service", f"nothing {SERVED_WITHIN} E after the faults")

    def _final(self) -> None:
        self._witness.final(self.history)
        if self.config.members:
            self._gossip.final(self._gone)
        voters = self._checker.oracle.configuration.voters
        self._final_store()
        for number, member in enumerate(self._members):
            if member is None or member.raft is None:
                self.world.fail("liveness", "recovery", f"n{number} has not come back")
                continue
            self._checker.final(member.host, member.machines)
            behind = self._settled - member.machines.applied
            if behind > 0 and member.host.id in voters:
                status = member.raft.status()
                self.world.fail("liveness", "views", f"{member.host.name} lacks {behind}: {status}")

    def _final_store(self) -> None:
        """Store and calls serve everybody again, in time, and nothing is left over."""
        if self._kv is None:
            return
        running = {
            f"{host.name}.{host.boot}": float(self._undisturbed_ns[host.number])
            for host in self._hosts[: self.config.nodes]
        }
        since = self._stop - SERVED_AT_THE_END
        inside = self._checker.oracle.configuration.members()
        self._kv.overdue(running)
        self._kv.final(since, [node_name(node) for node in inside])
        self._call_checker.final(since, running)
        for calls in self._calls:
            if calls is not None:
                calls.check()

    # What hosts need.

    def deliver(self, to: NodeId, data: bytes, sender: NodeId) -> None:
        number = self._number[to]
        host = self._hosts[number]
        host.gate(lambda: self._receive(number, data, sender))

    def _receive(self, number: int, data: bytes, sender: NodeId) -> None:
        self.world.trace("frame", self._hosts[number].name, sender[-2:], data)
        kind, body = data[:FRAME_HEAD], data[FRAME_HEAD:]
        if kind in (GOSSIP, LINK):
            rumour = self._rumours[number]
            if rumour is not None and rumour.is_alive():
                rumour.receive(kind, body, sender)
            return
        member, agent = self._members[number], self._agents[number]
        if kind == RAFT and member is not None:
            member.receive(body, sender)
        elif kind == AGENT and agent is not None:
            agent.receive(body, sender)

    def deliver_snapshot(self, to: NodeId, data: bytes, message: Snapshot, sender: NodeId) -> bool:
        number = self._number[to]
        host, member = self._hosts[number], self._members[number]
        if host.gate.dead or member is None or member.raft is None:
            return False
        self.world.sometimes("raft.snapshot_sent")
        host.gate(lambda: member.arrived(data, message, sender))
        return True

    def is_up(self, node: NodeId) -> bool:
        return not self._hosts[self._number[node]].gate.dead

    # What calls and the store need.

    def _keepers(self) -> dict[Owner, Keeper]:
        return {owner: keeping.keeper for owner, keeping in self._keepings.items()}

    def calls_of(self, node: NodeId) -> Calls | None:
        calls = self._calls[self._number[node]]
        return calls if calls is not None and calls.is_alive() else None

    def is_silent_node(self, node: NodeId) -> bool:
        return self._hosts[self._number[node]].silent

    def _views(self, number: int) -> tuple[View, ...]:
        """Return the members as one of them sees them."""
        if self._hearsay is not None:
            return self._hearsay.views(number)
        rumour = self._rumours[number]
        if rumour is None:
            return ()
        return tuple(
            View(m.node, m.boot, m.incarnation, STATES[m.state], m.since)
            for m in rumour.gossip.members()
            if self._number[m.node] < self.config.nodes
        )

    # What gossip needs.

    def rumour_at(self, address: Address) -> Rumour | None:
        number = self._at.get(address)
        rumour = None if number is None else self._rumours[number]
        return rumour if rumour is not None and rumour.is_alive() else None

    def rumour_of(self, node: NodeId) -> Rumour | None:
        return self.rumour_at(address_of(self._number[node]))

    def is_silent(self, address: Address) -> bool:
        number = self._at.get(address)
        return number is None or self._hosts[number].silent

    def _running_rumours(self) -> list[Rumour]:
        return [r for r in self._rumours if r is not None and r.is_alive()]

    def noted(self, host: Host, source: str, what: object) -> None:
        """Look at a note; hosts call it with each."""
        if source == "gossip":
            self._gossip.noted(host.name, what)
            self._membership.noted(host.name, host.boot, what)

    def restart(self, number: int) -> None:
        """Let a supervisor start a process again that has ended by itself."""
        fault = Fault(self.world.now, "crash", {"node": number, "for_ns": RESTART_AFTER})
        self.world.after(0, lambda: self._restart(fault))

    def _restart(self, fault: Fault) -> None:
        number = fault.number("node")
        self.crash(number, silent=False)
        self.world.after(RESTART_AFTER, lambda: self.start(number))

    def trigger(self, number: int, point: str) -> None:
        """Let a process crash shortly after it did something delicate, now and then."""
        if self._triggers and self._trigger_chance.randrange(1_000_000) < self._triggers:
            later = self._trigger_chance.randrange(DEATH_WITHIN * self.config.sync_ns)
            lasts = self._trigger_chance.randrange(1, SECOND)
            what: dict[str, int | list[int]] = {"node": number, "for_ns": lasts}
            self.faults.trigger(Fault(self.world.now + later, "crash", what))
            self.world.sometimes(f"trigger.{point}")

    def _running_agents(self) -> list[Agent]:
        return [a for a in self._agents if a is not None and not a.host.gate.dead]

    def _note_fault(self, fault: Fault) -> None:
        self.columns.add("-", 0, "fault", fault)
        self.world.sometimes(f"fault.{fault.kind}")

    # Faults.

    def names(self) -> Sequence[str]:
        return self._names

    def leader(self) -> int | None:
        """Return the leader of the highest term."""
        found = [
            (m.raft.term, n) for n, m in enumerate(self._members) if m and m.raft and m.is_leader()
        ]
        return max(found)[1] if found else None

    def start(self, node: int) -> None:
        host = self._hosts[node]
        if not host.gate.dead:
            return
        host.start()
        if node < self.config.members:
            self._rumours[node] = Rumour(host, self, self.config.gossip)
        if node >= self.config.nodes:
            return
        machine = SharingMachine(self._rings)
        member = Member(
            host,
            self._checker,
            settings=self.config.raft,
            founding=self._founding,
            turn_ns=self.config.turn_ns,
            segment_bytes=self.config.segment_bytes,
            ring=machine,
        )
        self._members[node] = member
        agent = self._agents[node] = Agent(host, member, self.config, self.history, self._stop)
        if self.config.store is not None:
            self._start_store(host, member, agent, machine, self.config.store)

    def _start_store(
        self, host: Host, member: Member, agent: Agent, machine: SharingMachine, store: Store
    ) -> None:
        number = host.number
        assert self._kv is not None
        self._undisturbed_ns[number] = self.world.now
        if self._hearsay is not None:
            self._hearsay.forget(number)
        calls = self._calls[number] = Calls(host, boot_of(host), self)
        keeping = Keeping(
            host,
            calls,
            machine,
            self._rings,
            store.kv,
            views=lambda: self._views(number),
            leader=lambda: member.raft.leader if member.raft is not None else None,
            turn_ns=self.config.turn_ns,
        )
        self._keepings[keeping.owner] = keeping
        agent.proposing = keeping.proposing = Proposing(
            host,
            machine,
            store.ring,
            views=lambda: self._views(number),
            submit=lambda body, told: agent.submit(OWNERSHIP, body, told),
            soon=member.soon,
        )
        Customers(
            host,
            keeping,
            calls,
            store,
            kv_judge=self._kv,
            call_judge=self._call_checker,
            nodes=[node_id(n) for n in range(self.config.nodes)],
            stop_ns=self._stop,
        )

    def crash(self, node: int, *, silent: bool) -> None:
        host = self._hosts[node]
        if host.gate.dead:
            return
        rumour, self._rumours[node] = self._rumours[node], None
        host.crash(silent=silent)
        if rumour is not None:
            rumour.end(silent=silent)
        if node < self.config.nodes:
            self._members[node] = self._agents[node] = None
            self._crash_store(host, silent=silent)

    def _crash_store(self, host: Host, *, silent: bool) -> None:
        calls, self._calls[host.number] = self._calls[host.number], None
        if calls is not None and self._kv is not None:
            calls.end(silent=silent)
            owner = Owner(host.id, boot_of(host))
            del self._keepings[owner]
            self._kv.crashed(owner)

    def pause(self, node: int) -> None:
        self._hosts[node].gate.pause()

    def resume(self, node: int) -> None:
        self._disturb(node)
        self._hosts[node].gate.resume()

    def slow(self, node: int, delay: int) -> None:
        self._disturb(node)
        self._hosts[node].gate.delay = delay

    def _disturb(self, node: int) -> None:
        if node < self.config.nodes:
            self._undisturbed_ns[node] = self.world.now

    def disk(self, node: int, kind: str, on: bool) -> None:
        host = self._hosts[node]
        if kind == "stall":
            host.stalled = on
        elif kind == "full":
            host.platter.full = on
        else:
            host.sync_fails = on

    def turn_wall(self, node: int, jump: int) -> None:
        self._hosts[node].line.wall_offset += jump

    def transfer(self, to: int) -> None:
        leader = self.leader()
        if leader is not None:
            member = self._members[leader]
            assert member is not None and member.raft is not None
            member.raft.transfer(node_id(to), member.host.line.now())
            member.soon()

    def change(self, node: int, number: int) -> None:
        """Let the leader change the configuration: one in or out, or two at once."""
        member = self._members[node]
        if node == LEADER or member is None or member.raft is None:
            return
        configuration = member.machines.configuration
        voters = configuration.voters
        outside = [node_id(n) for n in range(self.config.nodes) if node_id(n) not in voters]
        inside = sorted(voters)
        gone = inside[number % len(inside)]
        come = outside[number // 16 % len(outside)] if outside else None
        change = Change(remove=(gone,))
        if come is not None:
            choices = (
                Change(add_voters=(come,)),
                Change(add_voters=(come,), remove=(gone,)),
                Change(add_learners=(come,)),
                Change(add_voters=tuple(outside)),
            )
            change = choices[number // 256 % len(choices)]
        elif len(inside) <= 2:
            return
        outcome = member.raft.change(change, member.host.line.now())
        if isinstance(outcome, Proposed):
            self.world.sometimes("raft.change_proposed")
        member.soon()
