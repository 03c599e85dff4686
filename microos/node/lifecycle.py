"""One node's life: start, find or found a cluster, serve, leave.

    sockets ─▶ gossip ─▶ cluster known? ── no ─▶ founding ─┐
                              │ yes                        │
                              └──────────▶ consensus ◀─────┘ ─▶ sessions, steward ─▶ ready

Everything runs in one nursery, handed in by the door. Nothing opens before the
settings are known to be good; a port that is taken, files that belong to another
cluster and a data directory in use are errors of `start`, each said in one line.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from math import inf

import msgspec
import trio

from microos import limits
from microos.codec import encode
from microos.errors import LimitError, NoQuorumError, OverloadedError
from microos.gossip.core import Gossip
from microos.gossip.members import Me, Member
from microos.gossip.notes import Died, Joined, LeaveDone, Refuted, Restarted
from microos.hashing import label_hash
from microos.keyring import Keyring, parse_keys
from microos.net.handshake import Hello
from microos.net.links import Links
from microos.net.network import Stream
from microos.net.notes import DialFailed, Foreign, LinkLost, LinkNote, LinkUp
from microos.net.sealed import Sealer
from microos.node.calls import Calls, Later
from microos.node.consensus import Consensus
from microos.node.files import Files, OpenLog
from microos.node.leaving import Leaving
from microos.node.membership import Membership
from microos.node.ownership import NUMBER as RING
from microos.node.ownership import OwnershipMachine
from microos.node.participation import ENDPOINT as REPORT
from microos.node.participation import Participation
from microos.node.patience import once_there_is_room
from microos.node.port import bind
from microos.node.runtime import Runtime
from microos.node.search import Search, tell
from microos.node.seeds import Seeds
from microos.node.sessions import Session, Sessions
from microos.node.snapshots import Snapshots
from microos.node.statistics import (
    NodeStatistics,
    QueueStatistics,
    link_counters,
    link_queues,
    node_statistics,
)
from microos.node.steward import Steward
from microos.raft.composite import SYSTEM, Machines, Restored
from microos.raft.configuration import voters as everybody
from microos.raft.core import Raft
from microos.raft.entry import Configuration
from microos.raft.log import Log
from microos.raft.machine import Machine
from microos.raft.notes import BecameLeader, LeaderChanged
from microos.ring.epochs import RingState
from microos.ring.planner import Report
from microos.ring.ring import Owner, Ring
from microos.settings import Settings
from microos.types import Address, BootId, NodeId, parse_address
from microos.wire import Channel

RING_TIMEOUT = 5.0
"""For a command that changes the ring [s]."""


class Founded(msgspec.Struct, frozen=True):
    """This node knows its cluster now."""

    cluster: str


class Ready(msgspec.Struct, frozen=True):
    """This node is in the group and has caught up."""


class StorageFailed(msgspec.Struct, frozen=True):
    """This node's files failed it; it has ended its part in the group for good."""

    why: str


class Lifecycle:
    """One node; what features see of it is `node/kernel.py`."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self.runtime = runtime
        self.settings = settings
        self._clock = runtime.clock
        self._machines: list[Machine] = []
        self._told: dict[int, Callable[[object], None]] = {SYSTEM: self._told_of_sessions}
        self._on_members: list[Callable[[], None]] = []
        self._queues: list[Callable[[], tuple[QueueStatistics, ...]]] = []
        self._on_control: Callable[[Stream], Awaitable[None]] | None = None
        self.counters: Counter[str] = Counter()
        self._on_start: list[Callable[[], Awaitable[None]]] = []
        self._on_leave: list[Callable[[], Awaitable[None]]] = []
        self._on_ring: list[Callable[[], None]] = []
        self.calls = Calls(clock=self._clock, send=self._send_calls, observe=runtime.observe)
        self.serve, self.serve_inline = self.calls.serve, self.calls.serve_inline
        self.post, self.attempt = self.calls.post, self.calls.attempt
        self._ownership = OwnershipMachine(self._ring_changed)
        self.register(self._ownership, self._told_of_ring)
        self._participation = Participation(
            clock=self._clock,
            settings=settings.ring,
            machine=self._ownership,
            members=self.members,
            score=lambda: self._membership.score,
            leads=lambda: self._consensus is not None and self._consensus.leads(),
            submit=lambda command: self.submit(RING, command, timeout=RING_TIMEOUT),
            say=self._say,
            observe=lambda note: self._note("ring", note),
        )
        self.serve_inline(REPORT, self._reported)

        self._files = Files(runtime=runtime, label=settings.cluster, machines=self._machines)
        self._seeds = Seeds(
            runtime=runtime,
            settings=settings,
            join=self._join,
            leaving=lambda: self._leaving.going,
        )
        self._keyring: Keyring | None = None
        self._consensus: Consensus | None = None
        self._sessions: Sessions | None = None
        self._applied: Machines | None = None
        self._snapshots: Snapshots | None = None
        self._consensus_there = trio.Event()
        self._ready = trio.Event()
        self._failed = trio.Event()

    # Start.

    async def start(self, nursery: trio.Nursery) -> None:
        """Open sockets and files and begin to live in `nursery`.

        Raises:
            UnavailableError: The port is taken.
            StorageError: The data directory belongs to another node or cluster, or is in use.
        """
        self._nursery = nursery
        await self._files.load()
        log = await self._files.recover()
        self.boot = BootId(int.from_bytes(self.runtime.entropy(8), "big") | 1)
        self._label = label_hash(self.settings.cluster)
        self.name = self.settings.name or f"node-{self.node[:4]}"
        sealer = self._unlock()
        listener, udp = await bind(self.runtime.network, parse_address(self.settings.bind))
        self.address = listener.address
        wall_ms = int(self._clock.wall() * 1000)
        remembered = await self._files.remembered()
        gossip = Gossip(
            Me(self.node, self.boot, self.name, self.address, {}),
            settings=self.settings.gossip,
            random=self.runtime.random("gossip"),
            now=self._clock.now(),
            wall_ms=wall_ms,
            remembered=remembered,
        )
        self._links = Links(
            self._hello,
            label=self._label,
            clock=self._clock,
            random=self.runtime.random("links"),
            network=self.runtime.network,
            address_of=lambda node: self._membership.address_of(node),
            on_frame=self._frame,
            on_calls=self.calls.receive,
            on_note=self._link_note,
            on_control=self._on_control,
            admit=self._admit,
            sealer=sealer,
        )
        self._membership = Membership(
            runtime=self.runtime,
            gossip=gossip,
            boot=self.boot,
            label=self._label,
            udp=udp,
            links=self._links,
            keyring=self._keyring,
            on_change=self._members_changed,
            on_note=self._gossip_note,
        )
        self._search = Search(
            runtime=self.runtime,
            settings=self.settings,
            seeds=self._seeds,
            node=self.node,
            address=self.address,
            members=self.members,
            send=self._send,
        )
        self._leaving = Leaving(
            clock=self._clock,
            settings=self.settings,
            node=self.node,
            membership=self._membership,
            links=self._links,
            calls=self.calls,
            participation=self._participation,
            tasks=self._on_leave,
            consensus=lambda: self._consensus,
            configuration=self._configuration,
        )
        self.calls.open(self.node)
        self._participation.begin()
        await self._seeds.resolve()
        nursery.start_soon(self.calls.run)
        nursery.start_soon(self._links.run, listener)
        nursery.start_soon(self._membership.run)
        if not self._seeds.resolved.is_set():
            nursery.start_soon(self._seeds.keep_resolving)
        nursery.start_soon(self._live, log)
        for task in self._on_start:
            nursery.start_soon(task)

    @property
    def node(self) -> NodeId:
        return self._files.identity.node

    def _unlock(self) -> Sealer | None:
        """Make what seals datagrams and links of the secret; None without one."""
        if self.settings.secret is None:
            return None
        # Here, because only who has a secret pays for OpenSSL, and before a socket opens.
        from microos.net.tls import Tls

        self._keyring = Keyring(parse_keys(self.settings.secret), self.settings.cluster)
        return Tls(
            self._keyring,
            label=self.settings.cluster,
            name=self.name,
            node=self.node,
            entropy=self.runtime.entropy,
        )

    def _join(self, seed: Sequence[Address]) -> None:
        """Let gossip join at the addresses of a seed; at our own there is nobody."""
        others = [each for each in seed if each != self.address]
        self._membership.ask(lambda gossip, now: gossip.join(others, now))

    # Finding or founding the cluster, and taking part in its group.

    async def _live(self, log: OpenLog | None) -> None:
        """Find or found the cluster, unless it is known, and take part in it to the end."""
        if log is None:
            cluster = await self._search.run()
            log = await once_there_is_room(self._clock, lambda: self._files.join(cluster))
        identity = self._files.identity
        self._note("node", Founded(identity.cluster.hex()))
        self._membership.ask(tell(identity.cluster, identity.epoch))
        await self._take_part(log)

    async def _take_part(self, log: OpenLog) -> None:
        machines, mark, loaded = log.machines, log.mark, log.loaded
        now = self._clock.now()
        timeout = self.settings.raft.election_timeout_max
        restarted = loaded.hard_state.term > 1
        raft = Raft(
            self.node,
            Log(loaded.entries, mark),
            loaded.hard_state,
            machines.configuration,
            applied=machines.applied,
            settings=self.settings.raft,
            random=self.runtime.random("raft"),
            now=now,
            # A lease or a vote given before a crash is not broken by what comes after it.
            grant_after=now + timeout / 2 if restarted else -inf,
        )
        self._applied = machines
        self._snapshots = Snapshots(
            clock=self._clock,
            random=self.runtime.random("snapshots"),
            disk=self.runtime.disk,
            send=self._send,
            on_arrived=lambda arrived: consensus.arrived(arrived),
        )
        consensus = self._consensus = Consensus(
            runtime=self.runtime,
            settings=self.settings.raft,
            raft=raft,
            wal=log.wal,
            machines=machines,
            mark=mark,
            snapshots=self._snapshots,
            send=self._send_raft,
            on_event=self._event,
            on_note=self._raft_note,
        )
        self._sessions = Sessions(
            runtime=self.runtime,
            settings=self.settings.raft,
            consensus=consensus,
            machines=machines,
            node=self.node,
            boot=self.boot,
            send=self._send,
        )
        steward = Steward(
            clock=self._clock,
            settings=self.settings.raft,
            node=self.node,
            consensus=consensus,
            members=lambda: self._membership.members,
        )
        self._steward = steward
        for machine in self._machines:
            self._event(machine.number, Restored(machines.applied))
        self._consensus_there.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sessions.run)
            nursery.start_soon(steward.run)
            nursery.start_soon(self._participation.proposer.run)
            nursery.start_soon(self._become_ready)
            await consensus.run()
            nursery.cancel_scope.cancel()
        self._note("node", StorageFailed(consensus.reason()))
        self._failed.set()

    async def _become_ready(self) -> None:
        """Wait until this node is in the group and has applied what was committed before."""
        assert self._consensus is not None
        assert self._applied is not None
        while True:
            if self.node in self._applied.configuration.members():
                try:
                    patience = 2 * self.settings.raft.election_timeout_max
                    await self._consensus.barrier(self._clock.now() + patience)
                except NoQuorumError:
                    continue
                self._ready.set()
                self._note("node", Ready())
                return
            await self._consensus.wait_applied()

    def _configuration(self) -> Configuration:
        """Return who is in the group, as this node has applied it; nobody before there is one."""
        return self._applied.configuration if self._applied is not None else Configuration()

    # What comes in.

    def _hello(self) -> Hello:
        return Hello(
            node=self.node,
            boot=self.boot,
            name=self.name,
            address=self.address,
            label=self.settings.cluster,
            cluster=self._files.identity.cluster,
        )

    def _admit(self, hello: Hello) -> str:
        """Return why a link is refused, or nothing."""
        ours = self._files.identity.cluster
        if ours and hello.cluster and hello.cluster != ours:
            return "cluster"
        return ""

    def _frame(self, channel: Channel, node: NodeId, boot: BootId, body: bytes) -> None:
        """Hand a frame to whom it is for; what does not decode ends the link."""
        match channel:
            case Channel.GOSSIP:
                known = self._membership.address_of(node) or Address("", 0)
                self._membership.receive(body, node, boot, known)
            case Channel.RAFT if self._consensus is not None:
                self._consensus.receive(body, node)
            case Channel.SESSION if self._sessions is not None:
                self._sessions.receive(body, node)
            case Channel.SNAPSHOT if self._snapshots is not None:
                self._snapshots.receive(body, node)
            case Channel.FOUNDING if self._search.founder is not None:
                address = self._membership.address_of(node)
                if address is not None:
                    self._search.founder.receive(body, address)
            case _:
                self.counters["frames.too_early"] += 1

    def _link_note(self, note: LinkNote) -> None:
        match note:
            case LinkUp():
                self.calls.link_up(note.node, note.boot)
            case LinkLost():
                self._membership.link_lost(note.node, note.boot, note.clean)
                self._look_for_evidence(note)
                self.calls.link_lost(note.node, note.boot)
            case DialFailed():
                self.calls.dial_failed(note.node, note.outcome)
            case Foreign():
                self.counters["links.foreign"] += 1
        self._note("links", note)

    def _look_for_evidence(self, lost: LinkLost) -> None:
        """A link to the leader broke: is its process gone? Then do not wait for the timeout."""
        consensus = self._consensus
        if consensus is None or not self.settings.raft.evidence or self._leaving.going:
            return
        if consensus.leader == lost.node and not lost.clean:
            self._nursery.start_soon(self._redial, consensus, lost)

    async def _redial(self, consensus: Consensus, lost: LinkLost) -> None:
        address = self._membership.address_of(lost.node)
        if address is None:
            return
        result = await self._links.dial(address, lost.node, 0.2)
        # Another node at its address proves nothing: addresses are swapped and translated.
        reborn = result.node == lost.node and result.boot != lost.boot
        gone = result.outcome == "refused" or reborn
        if gone:
            others = [v for v in everybody(self._configuration()) if v != lost.node]
            if self.node in others:
                consensus.evidence(lost.node, others.index(self.node))

    def _members_changed(self) -> None:
        self._search.hear()
        self._participation.proposer.hurry()
        for told in self._on_members:
            told()

    def _ring_changed(self, ring: Ring) -> None:
        self._participation.proposer.hurry()
        for told in self._on_ring:
            told()

    def _told_of_ring(self, event: object) -> None:
        if not isinstance(event, Restored):
            self._note("ring", event)

    def _reported(self, body: bytes, sender: NodeId, later: Later) -> bytes:
        return self._participation.reported(body, sender)

    def _event(self, machine: int, event: object) -> None:
        told = self._told.get(machine)
        if told is not None:
            told(event)

    def _told_of_sessions(self, event: object) -> None:
        if self._sessions is None:
            return
        if isinstance(event, Restored):
            self._sessions.restored()
        else:
            self._sessions.told(event)

    def _gossip_note(self, note: object) -> None:
        match note:
            case LeaveDone():
                self._leaving.told()
            case Died():
                self.calls.died(note.node)
            case Joined() | Restarted() | Refuted():
                self._links.forgive(note.node)
        self._note("gossip", note)

    def _raft_note(self, note: object) -> None:
        if self._sessions is not None:
            if isinstance(note, BecameLeader):
                self._sessions.lead(note.term)
            if isinstance(note, BecameLeader | LeaderChanged):
                self._sessions.hurry()
                self._steward.hurry()
                self._participation.proposer.hurry()
        self._note("raft", note)

    def _note(self, source: str, note: object) -> None:
        self.runtime.observe(source, note)

    def _send(self, node: NodeId, channel: Channel, body: bytes) -> bool:
        return self._links.send(node, channel, body)

    def _send_calls(self, node: NodeId, frames: Sequence[bytes], bulk: bool) -> int:
        return self._links.send_each(node, Channel.RPC, frames, bulk=bulk)

    def _say(self, kind: int, body: bytes) -> None:
        self._membership.ask(lambda gossip, now: gossip.set_state(kind, body, now))

    def _send_raft(self, node: NodeId, channel: Channel, body: bytes) -> bool:
        # All of them, so that none overtakes another; appends are split, so none is long.
        return self._links.send(node, channel, body, urgent=True)

    # The kernel, for features.

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            self._nursery.start_soon(task)
        except RuntimeError:
            # A block of the user outlived the node: what it held ends with the session.
            self.counters["tasks.after_the_end"] += 1

    def members(self) -> tuple[Member, ...]:
        return self._membership.members

    def on_members(self, told: Callable[[], None]) -> None:
        self._on_members.append(told)

    def on_control(self, serve: Callable[[Stream], Awaitable[None]]) -> None:
        """Serve control connections by `serve`; before the start."""
        self._on_control = serve

    def announce(self, record: bytes) -> None:
        if len(record) > limits.RECORD_MAX:
            raise LimitError(
                f"expected a record of at most {limits.RECORD_MAX} bytes, found {len(record)}"
            )
        self._membership.ask(lambda gossip, now: gossip.announce(record, now))

    def register(self, machine: Machine, told: Callable[[object], None]) -> None:
        self._machines.append(machine)
        self._told[machine.number] = told

    @property
    def owner(self) -> Owner:
        return Owner(self.node, self.boot)

    def ring(self) -> tuple[Ring, RingState]:
        return self._ownership.ring(), self._ownership.state

    def takes_part(self, node: NodeId) -> bool:
        return self._participation.takes_part(node)

    def on_ring(self, told: Callable[[], None]) -> None:
        self._on_ring.append(told)

    def report(self, report: Report) -> None:
        leader = self._consensus.leader if self._consensus is not None else None
        if leader == self.node:
            self._participation.proposer.report(report)
        elif leader is not None:
            deadline = self._clock.now() + RING_TIMEOUT
            self.calls.post(leader, REPORT, encode(report), deadline, _ignore)

    def on_start(self, task: Callable[[], Awaitable[None]]) -> None:
        self._on_start.append(task)

    def on_leave(self, task: Callable[[], Awaitable[None]]) -> None:
        self._on_leave.append(task)

    def add_queues(self, queues: Callable[[], tuple[QueueStatistics, ...]]) -> None:
        self._queues.append(queues)

    async def _group(self, deadline: float) -> tuple[Consensus, Sessions]:
        """Wait for consensus to be there."""
        if not self._consensus_there.is_set():
            with self._clock.timeout_at(deadline):
                await self._consensus_there.wait()
        if self._consensus is None or self._sessions is None:
            raise NoQuorumError(f"not sent: {self.reason()}")
        return self._consensus, self._sessions

    async def submit(self, machine: int, command: bytes, *, timeout: float) -> bytes:
        deadline = self._clock.now() + timeout
        _, sessions = await self._group(deadline)
        session = await sessions.get(self.settings.sync.command_ttl, deadline)
        return await sessions.submit(machine, command, session, deadline)

    async def submit_in(
        self, session: Session, machine: int, command: bytes, *, timeout: float
    ) -> bytes:
        deadline = self._clock.now() + timeout
        _, sessions = await self._group(deadline)
        return await sessions.submit(machine, command, session, deadline)

    async def barrier(self, *, timeout: float) -> None:
        deadline = self._clock.now() + timeout
        consensus, _ = await self._group(deadline)
        if consensus.waiting_reads >= limits.INBOX:
            raise OverloadedError(f"{limits.INBOX} reads are waiting already; try again later")
        await consensus.barrier(deadline)

    async def session(self, ttl: float, *, timeout: float) -> Session:
        deadline = self._clock.now() + timeout
        _, sessions = await self._group(deadline)
        # Below two election timeouts a change of leader alone would end it.
        ttl = max(ttl, 2 * self.settings.raft.election_timeout_max)
        return await sessions.get(ttl, deadline)

    async def wait_ready(self, timeout: float = inf) -> None:
        """Wait until this node is in the group and has caught up.

        Raises:
            NoQuorumError: Not by the deadline; the message says what is missing.
        """
        with self._clock.timeout_at(self._clock.now() + timeout):
            await self._ready.wait()
        if not self._ready.is_set():
            raise NoQuorumError(f"not ready after {timeout:g} s: {self.reason()}")

    async def wait_failed(self) -> str:
        """Wait until the node's own files have failed it; return what happened."""
        await self._failed.wait()
        return self.reason()

    async def leave(self) -> None:
        """Hand over what this node keeps and leads, be let go, tell everyone, hang up."""
        await self._leaving.run()

    # What it says of itself.

    def reason(self) -> str:
        """Say in one sentence what keeps this node from serving; empty if nothing does."""
        if self._consensus is None:
            return f"not founded: {self._seeds.missing()}"
        if self._consensus.storage != "ok":
            return self._consensus.reason()
        if not self._ready.is_set():
            aside = self._files.quarantined
            return (
                aside and f"rejoining, its log was set aside: {aside}"
            ) or f"not in the group yet: {self._consensus.reason()}"
        return "" if self._consensus.leader else self._consensus.reason()

    def state(self) -> tuple[int, int] | None:
        """Return (applied index, digest of the machines); None before there are any."""
        return None if self._applied is None else (self._applied.applied, self._applied.digest())

    def statistics(self) -> NodeStatistics:
        consensus, applied = self._consensus, self._applied
        links = self._links.statistics()
        queues = [queue for queues in self._queues for queue in queues()]
        queues += self._membership.queues()
        queues += link_queues(links, self.members())
        for part in (self.calls, self._search.founder, consensus, self._snapshots):
            if part is not None:
                queues += part.queues()
        counters = self.counters + link_counters(links)
        for each in (self._files, self._seeds, self._search, self._membership):
            counters += each.counters
        return node_statistics(
            node=self.node,
            name=self.name,
            address=self.address,
            cluster=self._files.identity.cluster,
            ready=self._ready.is_set(),
            reason=self.reason(),
            members=self.members(),
            status=consensus.status() if consensus is not None else None,
            sessions=len(applied.sessions()) if applied is not None else 0,
            score=self._membership.score,
            storage=consensus.storage if consensus is not None else "ok",
            queues=queues,
            counters=counters,
        )


def _ignore(outcome: object) -> None:
    """A report that did not arrive is followed by the next."""
