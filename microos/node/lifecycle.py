"""One node's life: start, find or found a cluster, serve, leave.

    sockets ─▶ gossip ─▶ cluster known? ── no ─▶ founding ─┐
                              │ yes                        │
                              └──────────▶ consensus ◀─────┘ ─▶ sessions, steward ─▶ ready

Everything runs in one nursery, handed in by the door. Nothing opens before the
settings are known to be good; a port that is taken, files that belong to another
cluster and a data directory in use are errors of `start`, each said in one line.

A member whose log is damaged is never repaired by cutting: acknowledged votes and
entries may be in what would be cut. Its files are set aside, and the node comes
back under a new id as a learner; the group replaces the old id in time.
"""

import errno
import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf

import msgspec
import trio

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import (
    LimitError,
    NoQuorumError,
    OverloadedError,
    RemoteProtocolError,
    StorageError,
    UnavailableError,
)
from microos.gossip.core import Gossip
from microos.gossip.members import Me, Member, Remembered, State
from microos.gossip.notes import Died, Joined, LeaveDone, Refuted, Restarted
from microos.hashing import label_hash, u64
from microos.keyring import Keyring, parse_keys
from microos.net.handshake import Hello
from microos.net.links import Links
from microos.net.network import Listener, Stream, Udp
from microos.net.notes import DialFailed, Foreign, LinkLost, LinkNote, LinkStatistics, LinkUp
from microos.net.sealed import Sealer
from microos.node.calls import Calls, Later
from microos.node.consensus import Consensus
from microos.node.founding import FILE as FOUNDING_FILE
from microos.node.founding import Founder
from microos.node.membership import Membership
from microos.node.ownership import NUMBER as RING
from microos.node.ownership import OwnershipMachine
from microos.node.participation import ENDPOINT as REPORT
from microos.node.participation import Participation
from microos.node.patience import once_there_is_room
from microos.node.runtime import Runtime
from microos.node.sessions import Session, Sessions
from microos.node.snapshots import Snapshots
from microos.node.statistics import NodeStatistics, QueueStatistics
from microos.node.steward import Steward
from microos.raft.bootstrap import Cluster, Founding, FoundingState, solo
from microos.raft.composite import SYSTEM, Machines, Restored
from microos.raft.configuration import voters as everybody
from microos.raft.core import Raft
from microos.raft.entry import HardState, Persist, SnapshotMark, Token
from microos.raft.log import Log
from microos.raft.machine import Machine
from microos.raft.notes import BecameLeader, LeaderChanged
from microos.ring.epochs import RingState
from microos.ring.planner import Report
from microos.ring.ring import Owner, Ring
from microos.settings import Settings, is_loopback
from microos.storage.files import (
    DamagedError,
    Identity,
    load_identity,
    quarantine,
    read_small,
    save_identity,
    write_small,
)
from microos.storage.snapshot import read_snapshot, write_snapshot
from microos.storage.wal import Loaded, Wal
from microos.types import Address, BootId, Index, NodeId, Term, parse_address
from microos.wire import Channel

CLUSTER_FILE = "cluster"
"""Small file that keeps what was founded."""

STATE_CLUSTER = 1
"""User state of this kind says which cluster a node belongs to."""

PORT_TRIES = 16
"""How often a free port is looked for that serves datagrams and streams alike."""

RING_TIMEOUT = 5.0
"""For a command that changes the ring [s]."""

HAND_OVER_TIMEOUT = 15.0
"""Longest wait until what a leaving node keeps is with others [s]."""

LEAVE_TIMEOUT = 5.0
"""Longest wait for the group to let a leaving voter go [s]."""


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What a node's gossip says of its cluster."""

    id: bytes
    epoch: int


class Quarantined(msgspec.Struct, frozen=True):
    """This node's log is damaged and was set aside; it came back as a new node."""

    number: int
    why: str


class Founded(msgspec.Struct, frozen=True):
    """This node knows its cluster now."""

    cluster: str


class Ready(msgspec.Struct, frozen=True):
    """This node is in the group and has caught up."""


_decode_cluster: Decoder[Cluster] = Decoder(Cluster)
_decode_told: Decoder[Told] = Decoder(Told)
_decode_remembered: Decoder[Remembered] = Decoder(Remembered)
_decode_state: Decoder[FoundingState] = Decoder(FoundingState)


class StorageFailed(msgspec.Struct, frozen=True):
    """This node's files failed it; it has ended its part in the group for good."""

    why: str


class _OpenLog(msgspec.Struct, frozen=True):
    wal: Wal
    loaded: Loaded
    mark: SnapshotMark | None
    machines: Machines


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

        self._keyring: Keyring | None = None
        self._founder: Founder | None = None
        self._consensus: Consensus | None = None
        self._sessions: Sessions | None = None
        self._applied: Machines | None = None
        self._snapshots: Snapshots | None = None
        self._seeds: dict[str, tuple[Address, ...]] = {}
        """Where the seeds are, as far as their names have been resolved."""
        self._resolved = trio.Event()
        self._consensus_there = trio.Event()
        self._ready = trio.Event()
        self._failed = trio.Event()
        self._leaving = False
        self._leave_told = trio.Event()
        self._quarantined = ""

    # Start.

    async def start(self, nursery: trio.Nursery) -> None:
        """Open sockets and files and begin to live in `nursery`.

        Raises:
            UnavailableError: The port is taken.
            StorageError: The data directory belongs to another node or cluster, or is in use.
        """
        self._nursery = nursery
        self._identity = await self._load_identity()
        log = await self._recover()
        self.boot = BootId(int.from_bytes(self.runtime.entropy(8), "big") | 1)
        self._label = label_hash(self.settings.cluster)
        self.name = self.settings.name or f"node-{self.node[:4]}"
        sealer = self._unlock()
        listener, udp = await self._bind()
        self.address = listener.address
        wall_ms = int(self._clock.wall() * 1000)
        remembered = await self._remembered()
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
        self.calls.open(self.node)
        self._participation.begin()
        await self._resolve_seeds()
        nursery.start_soon(self.calls.run)
        nursery.start_soon(self._links.run, listener)
        nursery.start_soon(self._membership.run)
        if not self._resolved.is_set():
            nursery.start_soon(self._keep_resolving)
        nursery.start_soon(self._live, log)
        for task in self._on_start:
            nursery.start_soon(task)

    @property
    def node(self) -> NodeId:
        return self._identity.node

    async def _load_identity(self) -> Identity:
        found = await load_identity(self.runtime.disk)
        if found is None:
            found = self._new_identity(b"", 0)
            await save_identity(self.runtime.disk, found)
        if found.label != self.settings.cluster:
            raise StorageError(
                f"expected a data directory of cluster {self.settings.cluster!r}, "
                f"found one of {found.label!r}; name that cluster or another directory",
                reason="foreign",
            )
        return found

    def _new_identity(self, cluster: bytes, epoch: int) -> Identity:
        node = NodeId(self.runtime.entropy(16).hex())
        return Identity(node=node, cluster=cluster, epoch=epoch, label=self.settings.cluster)

    async def _remembered(self) -> Remembered | None:
        data = await read_small(self.runtime.disk, "members")
        if data is None:
            return None
        try:
            return _decode_remembered(data)
        except RemoteProtocolError:
            self.counters["members.file_unreadable"] += 1
            return None

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

    async def _bind(self) -> tuple[Listener, Udp]:
        """Open one port for streams and datagrams."""
        wanted = parse_address(self.settings.bind)
        for left in reversed(range(PORT_TRIES)):
            try:
                listener = await self.runtime.network.listen(wanted)
                try:
                    return listener, await self.runtime.network.udp(listener.address)
                except OSError:
                    listener.close()
                    raise
            except OSError as error:
                if wanted.port == 0 and left:
                    continue
                raise UnavailableError(
                    f"expected to listen on {wanted}, found {_os_reason(error)}; "
                    "stop what holds the port or choose another with bind",
                    reason="bind",
                ) from error
        raise AssertionError("unreachable")

    async def _resolve_seeds(self) -> None:
        """Look for the seeds not found so far, and join at those that are."""
        for seed in self.settings.seeds:
            if seed in self._seeds:
                continue
            address = parse_address(seed)
            try:
                resolved = tuple(await self.runtime.network.resolve(address.host, address.port))
            except OSError:
                self.counters["seeds.unresolved"] += 1
                continue
            if self._leaving:
                return  # To join now would be to come back.
            self._seeds[seed] = resolved
            others = [each for each in resolved if each != self.address]
            self._membership.ask(lambda gossip, now, others=others: gossip.join(others, now))  # type: ignore[misc]
        if len(self._seeds) == len(self.settings.seeds):
            self._resolved.set()

    async def _keep_resolving(self) -> None:
        while not (self._resolved.is_set() or self._leaving):
            pause = self.settings.gossip.reconnect_interval
            await self._clock.sleep_until(self._clock.now() + pause)
            await self._resolve_seeds()

    # Finding or founding the cluster.

    async def _live(self, log: _OpenLog | None) -> None:
        if log is None:
            cluster = await self._find()
            log = await once_there_is_room(self._clock, lambda: self._join(cluster))
        self._note("node", Founded(self._identity.cluster.hex()))
        told = encode(Told(self._identity.cluster, self._identity.epoch))
        tag = u64(self._identity.cluster) & 0xFFFF_FFFF or 1

        def tell(gossip: Gossip, now: float) -> None:
            gossip.set_cluster(tag, now)
            gossip.set_state(STATE_CLUSTER, told, now)

        self._membership.ask(tell)
        await self._take_part(log)

    async def _join(self, cluster: Cluster) -> _OpenLog:
        """Take the cluster for this node's own, for good, and begin its log."""
        # First what was founded: a crash after the identity must not lose who votes.
        await write_small(self.runtime.disk, CLUSTER_FILE, encode(cluster))
        self._identity = msgspec.structs.replace(
            self._identity, cluster=cluster.id, epoch=cluster.epoch
        )
        await save_identity(self.runtime.disk, self._identity)
        return await self._open_log(cluster)

    async def _find(self) -> Cluster:
        """Return the cluster of the others, or found one with them."""
        if self.settings.bootstrap == "solo" or not self.settings.seeds:
            return solo(self.node, self.runtime.entropy(16))
        found: list[Cluster] = []
        if not self._resolved.is_set():
            # Who decides must be the same everywhere: with a part of the seeds nobody founds.
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    found.append(await self._found((), None))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                await self._resolved.wait()
                nursery.cancel_scope.cancel()
        if found:
            return found[0]
        seats = self._seats()
        if seats == (self.address,):
            return solo(self.node, self.runtime.entropy(16))
        data = await read_small(self.runtime.disk, FOUNDING_FILE)
        return await self._found(seats, None if data is None else _decode_state(data))

    def _seats(self) -> tuple[Address, ...]:
        """Return who decides on a founding; nobody: this node only joins."""
        if self.settings.bootstrap != "seeds" or self._is_only_a_name():
            return ()
        return tuple(sorted({each for seed in self._seeds.values() for each in seed}))

    def _is_only_a_name(self) -> bool:
        """Whether all that is known is one name, whose answer may differ by time and place."""
        if len(self.settings.seeds) != 1:
            return False
        return not is_literal(self.settings.seeds[0])

    async def _found(self, seats: tuple[Address, ...], state: FoundingState | None) -> Cluster:
        self._founder = Founder(
            runtime=self.runtime,
            founding=Founding(
                self.node,
                self.address if self.address in seats else None,
                seats,
                state,
                settings=self.settings.raft,
                random=self.runtime.random("founding"),
                cluster_id=self.runtime.entropy(16),
                now=self._clock.now(),
            ),
            seen=lambda: self._seen(seats),
            send=self._send,
            on_note=lambda note: self._note("founding", note),
        )
        self._hear()
        return await self._founder.run()

    def _seen(self, seats: Sequence[Address]) -> tuple[Mapping[Address, NodeId], Sequence[NodeId]]:
        """Return who answers for which seat, and who could vote."""
        live = [m for m in self._membership.members if m.state == State.ALIVE]
        wanted = dict.fromkeys(seats)
        return {m.address: m.node for m in live if m.address in wanted}, [m.node for m in live]

    def _hear(self) -> None:
        """Tell the founding of a cluster that others belong to."""
        if self._founder is None:
            return
        for member in self._membership.members:
            told = self._told_by(member)
            if told is not None and member.state == State.ALIVE:
                self._founder.heard(Cluster(told.id, told.epoch))
        self._founder.moved()

    def _told_by(self, member: Member) -> Told | None:
        for kind, body in member.states:
            if kind == STATE_CLUSTER:
                try:
                    return _decode_told(body)
                except RemoteProtocolError:
                    self.counters["gossip.malformed_state"] += 1
        return None

    # Taking part in the group.

    async def _recover(self) -> _OpenLog | None:
        """Open the log of a node that knows its cluster; set a damaged one aside."""
        identity = self._identity
        if not identity.cluster:
            return None
        data = await read_small(self.runtime.disk, CLUSTER_FILE)
        cluster = (
            _decode_cluster(data)
            if data is not None
            else Cluster(id=identity.cluster, epoch=identity.epoch)
        )
        try:
            return await self._open_log(cluster)
        except DamagedError as error:
            number = await quarantine(self.runtime.disk)
            self._identity = self._new_identity(identity.cluster, identity.epoch)
            await save_identity(self.runtime.disk, self._identity)
            self._quarantined = str(error)
            self._note("node", Quarantined(number, str(error)))
            return await self._open_log(cluster)

    async def _open_log(self, cluster: Cluster) -> _OpenLog:
        """Recover log and state; a founding voter begins with the founding as its snapshot."""
        disk = self.runtime.disk
        machines = Machines(cluster.epoch, self._machines)
        wal, loaded = await Wal.open(disk, self._identity)
        mark = loaded.mark
        if mark is None and self.node in cluster.voters:
            mark = cluster.mark()
            machines.begin(mark)
            await write_snapshot(disk, mark, machines.freeze())
            hard_state = HardState(Term(1), NodeId(""), Index(1))
            await wal.write([Persist(Token(0, Term(1)), (), hard_state, mark, True)])
            loaded = msgspec.structs.replace(loaded, hard_state=hard_state, mark=mark)
        elif mark is not None:
            machines.restore(await read_snapshot(disk, mark))
        return _OpenLog(wal, loaded, mark, machines)

    async def _take_part(self, log: _OpenLog) -> None:
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

    # What comes in.

    def _hello(self) -> Hello:
        return Hello(
            node=self.node,
            boot=self.boot,
            name=self.name,
            address=self.address,
            label=self.settings.cluster,
            cluster=self._identity.cluster,
        )

    def _admit(self, hello: Hello) -> str:
        """Return why a link is refused, or nothing."""
        ours = self._identity.cluster
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
            case Channel.FOUNDING if self._founder is not None:
                address = self._membership.address_of(node)
                if address is not None:
                    self._founder.receive(body, address)
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
        if consensus is None or not self.settings.raft.evidence or self._leaving:
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
            others = [v for v in self._voters() if v != lost.node]
            if self.node in others:
                consensus.evidence(lost.node, others.index(self.node))

    def _members_changed(self) -> None:
        self._hear()
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
                self._leave_told.set()
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

    # Leaving.

    async def leave(self) -> None:
        """Hand over what this node keeps and leads, be let go, tell everyone, hang up."""
        await self._drain()
        self._leaving = True
        others = [m for m in self.members() if m.state == State.ALIVE and m.node != self.node]
        with self._clock.timeout_at(self._clock.now() + LEAVE_TIMEOUT):
            if others:
                await self._hand_over()
            self._membership.ask(lambda gossip, now: gossip.leave(now))
            if others:
                await self._wait_let_go()
                await self._leave_told.wait()
        await self._links.bye(self.settings.gossip.leave_timeout)

    async def _drain(self) -> None:
        """Begin no more handlers, let those that run end, hand over what is kept here."""
        now = self._clock.now()
        self._participation.end()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.calls.drain, now + self.settings.rpc.grace)
            with self._clock.timeout_at(now + HAND_OVER_TIMEOUT):
                for task in self._on_leave:
                    await task()

    async def _hand_over(self) -> None:
        """Give leadership to a voter that stays, the one that has most of the log."""
        consensus = self._consensus
        while consensus is not None and consensus.leads():
            progress = consensus.status().progress
            heirs = {
                node: progress[node].match
                for node in self._staying()
                if node in progress and node in self._voters()
            }
            if not heirs:
                return
            consensus.transfer(max(heirs, key=lambda node: (heirs[node], node)))
            await self._clock.sleep_until(
                self._clock.now() + self.settings.raft.election_timeout_max / 2
            )

    async def _wait_let_go(self) -> None:
        """Wait until the group's configuration is without this node, or nobody is left to do it."""
        pause = self.settings.raft.heartbeat_interval
        while self.node in self._voters() and self._staying():
            await self._clock.sleep_until(self._clock.now() + pause)

    def _staying(self) -> list[NodeId]:
        """Return the others of the group that are alive and stay; a learner may vote soon."""
        group = self._applied.configuration.members() if self._applied is not None else ()
        return [
            member.node
            for member in self.members()
            if member.state == State.ALIVE and member.node in group and member.node != self.node
        ]

    def _voters(self) -> tuple[NodeId, ...]:
        """Return who votes, as this node has applied it; while a change is joint, both halves."""
        return everybody(self._applied.configuration) if self._applied is not None else ()

    # What it says of itself.

    def reason(self) -> str:
        """Say in one sentence what keeps this node from serving; empty if nothing does."""
        if self._consensus is None:
            return f"not founded: {self._missing()}"
        if self._consensus.storage != "ok":
            return self._consensus.reason()
        if not self._ready.is_set():
            return (
                self._quarantined and f"rejoining, its log was set aside: {self._quarantined}"
            ) or f"not in the group yet: {self._consensus.reason()}"
        return "" if self._consensus.leader else self._consensus.reason()

    def _missing(self) -> str:
        """Say what keeps this node from finding or founding a cluster."""
        seeds = ", ".join(self.settings.seeds)
        if not self._resolved.is_set():
            unknown = ", ".join(seed for seed in self.settings.seeds if seed not in self._seeds)
            return f"waiting for the names of seeds to resolve: {unknown}"
        if self.settings.bootstrap == "seeds" and self._is_only_a_name():
            return (
                f"waiting for a cluster at {seeds}; one name founds none, set bootstrap=solo once"
            )
        if self.settings.bootstrap == "join":
            return f"waiting for a cluster at one of the seeds {seeds}"
        return f"waiting for a majority of the seeds {seeds}"

    def state(self) -> tuple[int, int] | None:
        """Return (applied index, digest of the machines); None before there are any."""
        return None if self._applied is None else (self._applied.applied, self._applied.digest())

    def statistics(self) -> NodeStatistics:
        names = {member.node: member.name for member in self.members()}
        counts = Counter(member.state for member in self.members())
        status = self._consensus.status() if self._consensus is not None else None
        links = self._links.statistics()
        queues = [queue for queues in self._queues for queue in queues()]
        queues += self._membership.queues()
        queues += [
            QueueStatistics(
                f"links.{names.get(link.node, link.node)}",
                link.queue_frames,
                link.queue_frames_bound,
                "refuse",
                link.queue_drops,
            )
            for link in links.links
        ]
        for part in (self.calls, self._founder, self._consensus, self._snapshots):
            if part is not None:
                queues += part.queues()
        configuration = status.configuration if status is not None else None
        counters = self.counters + self._membership.counters + _counters(links)
        return NodeStatistics(
            node=self.node,
            name=self.name,
            address=str(self.address),
            cluster=self._identity.cluster.hex(),
            ready=self._ready.is_set(),
            reason=self.reason(),
            role=status.role.value if status is not None else "",
            leader=names.get(status.leader, status.leader) if status and status.leader else "",
            raft_term=status.term if status is not None else 0,
            raft_commit_index=status.commit if status is not None else 0,
            raft_applied_index=status.applied if status is not None else 0,
            raft_last_index=status.last_index if status is not None else 0,
            voters=tuple(names.get(n, n) for n in everybody(configuration))
            if configuration
            else (),
            learners=tuple(names.get(n, n) for n in configuration.learners)
            if configuration
            else (),
            members_alive=counts[State.ALIVE],
            members_suspect=counts[State.SUSPECT],
            members_dead=counts[State.DEAD],
            members_left=counts[State.LEFT],
            sessions=len(self._applied.sessions()) if self._applied is not None else 0,
            health_score=self._membership.score,
            storage=self._consensus.storage if self._consensus is not None else "ok",
            queues=tuple(queues),
            counters=dict(sorted(counters.items())),
        )


def is_literal(seed: str) -> bool:
    """Return whether HOST:PORT is an address as it stands, or this machine."""
    try:
        ipaddress.ip_address(parse_address(seed).host)
    except ValueError:
        return is_loopback(seed)
    return True


def _ignore(outcome: object) -> None:
    """A report that did not arrive is followed by the next."""


def _os_reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port in use"
    return error.strerror or str(error)


def _counters(links: LinkStatistics) -> Counter[str]:
    """Return the counters of all links under their names."""
    names = "accepted dialled dials_failed refused rejected lost foreign malformed wrong_cluster"
    names += " plain sealed unauthenticated http silent failures drops"
    return Counter({f"links.{name}": getattr(links, name) for name in names.split()})
