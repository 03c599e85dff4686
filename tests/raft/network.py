"""A whole raft group in one hand: cores, platters, wires and time, step by step.

Nothing happens by itself. A test delivers, loses and repeats messages, lets
batches become durable, applies, crashes and restarts; or lets `settle` and
`advance` do all that in the plain order. After each step the invariants that
need more than one member's eyes are asserted.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from microos.codec import encode
from microos.raft.core import Raft
from microos.raft.effects import Effects, ReadReady
from microos.raft.election import Role
from microos.raft.entry import (
    Applied,
    Change,
    Configuration,
    Entry,
    HardState,
    Kind,
    Persist,
    Persisted,
    SnapshotMark,
    SnapshotSent,
)
from microos.raft.log import Log
from microos.raft.messages import (
    AppendAnswer,
    Message,
    Snapshot,
    Vote,
    VoteAnswer,
    decode_message,
)
from microos.raft.notes import BecameLeader, Note
from microos.raft.proposal import Proposed
from microos.raft.status import Status
from microos.settings import RaftSettings
from microos.types import Index, NodeId, Term

E = 1.0
SETTINGS = RaftSettings(election_timeout_max=E, heartbeat_interval=0.1)


def node(name: str) -> NodeId:
    return NodeId(name)


def configuration(voters: Iterable[str], learners: Iterable[str] = ()) -> Configuration:
    return Configuration(
        voters=tuple(sorted(map(NodeId, voters))), learners=tuple(sorted(map(NodeId, learners)))
    )


def entries(*terms: int, first: int = 1) -> tuple[Entry, ...]:
    """Return entries of these terms, the first at `first`, each with its own data."""
    return tuple(
        Entry(Term(term), Index(first + at), 0, Kind.COMMAND, b"%d/%d" % (term, first + at))
        for at, term in enumerate(terms)
    )


def core(
    voters: str = "abc",
    *terms: int,
    id: str = "a",
    learners: str = "",
    term: int = 0,
    vote: str = "",
    commit: int = 0,
    applied: int = 0,
    settings: RaftSettings = SETTINGS,
    grant_after: float = -math.inf,
) -> Raft:
    """Return one core alone, at time 100, with a log of these terms."""
    return Raft(
        NodeId(id),
        Log(entries(*terms)),
        HardState(Term(term or max(terms, default=0)), NodeId(vote), Index(commit)),
        configuration(voters, learners),
        applied=Index(applied),
        settings=settings,
        random=random.Random(1),
        now=100.0,
        grant_after=grant_after,
    )


def drain(raft: Raft) -> list[tuple[NodeId, Message]]:
    """Let everything become durable and be applied; return all messages on the way there."""
    messages: list[tuple[NodeId, Message]] = []
    while True:
        effects = raft.take()
        raft.check()
        messages.extend(effects.messages)
        if effects.persist is not None:
            raft.receive(Persisted(effects.persist.token), raft.id, 0.0)
        if effects.committed:
            raft.receive(Applied(effects.committed[-1].index), raft.id, 0.0)
        if effects == Effects(notes=effects.notes):
            return messages


@dataclass
class Platter:
    """What survives a crash of one member."""

    hard_state: HardState = field(default_factory=HardState)
    synced: HardState = field(default_factory=HardState)
    entries: list[Entry] = field(default_factory=list)
    mark: SnapshotMark | None = None

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else self.mark.index if self.mark else 0

    def write(self, persist: Persist) -> None:
        if persist.snapshot is not None:
            self.mark, self.entries = persist.snapshot, []
        if persist.entries:
            first = persist.entries[0].index
            assert first <= self.last_index + 1, "a gap on disk"
            self.entries = [e for e in self.entries if e.index < first] + list(persist.entries)
        if persist.hard_state is not None:
            assert persist.hard_state.term >= self.hard_state.term
            self.hard_state = persist.hard_state
        if persist.must_sync:
            self.synced = self.hard_state


class Packet(NamedTuple):
    sender: NodeId
    to: NodeId
    message: Message


class Member:
    """One member: its core if it runs, its platter, what it has applied."""

    def __init__(self, id: NodeId) -> None:
        self.id = id
        self.raft: Raft | None = None
        self.platter = Platter()
        self.writing: deque[Persist] = deque()
        self.applying: deque[Entry] = deque()
        self.machine: list[bytes] = []
        self.reads: list[ReadReady] = []
        self.dropped: list[int] = []
        self.notes: list[Note] = []
        self.slow = False
        """Its disk writes only when told."""

    @property
    def core(self) -> Raft:
        assert self.raft is not None
        return self.raft

    @property
    def status(self) -> Status:
        return self.core.status()


class Network:
    """The group, and everything that can happen to it."""

    def __init__(
        self,
        voters: str,
        learners: str = "",
        *,
        others: str = "",
        settings: RaftSettings = SETTINGS,
        seed: int = 0,
        logs: Mapping[str, Sequence[Entry]] | None = None,
        states: Mapping[str, HardState] | None = None,
    ) -> None:
        """Start everyone. `others` run with an empty configuration until they are added."""
        self.now = 100.0
        self.random = random.Random(seed)
        self.settings = settings
        self.first = configuration(voters, learners)
        self.others = tuple(map(NodeId, others))
        self.wire: deque[Packet] = deque()
        self.blocked: set[tuple[NodeId, NodeId]] = set()
        self.members: dict[NodeId, Member] = {}
        self.context = 0
        # What the invariants remember.
        self.leaders: dict[Term, NodeId] = {}
        self.votes: dict[tuple[NodeId, Term], NodeId] = {}
        self.applied: dict[Index, Entry] = {}
        self.terms: dict[NodeId, Term] = {}
        self.snapshots: dict[tuple[Index, Term], list[bytes]] = {}
        self.asked: dict[tuple[NodeId, int], Index] = {}
        self.promise_checks = True
        for name in (*self.first.members(), *self.others):
            member = self.members[name] = Member(name)
            member.platter.entries = list((logs or {}).get(name, ()))
            member.platter.hard_state = (states or {}).get(name, HardState())
            member.platter.synced = member.platter.hard_state
            self.restart(name)

    def __getitem__(self, name: str) -> Member:
        return self.members[NodeId(name)]

    def running(self) -> list[Member]:
        return [member for member in self.members.values() if member.raft is not None]

    @property
    def leader(self) -> Member | None:
        """The leader of the highest term."""
        leading = [m for m in self.running() if m.status.role is Role.LEADER]
        return max(leading, key=lambda m: m.status.term, default=None)

    # Life of a member.

    def restart(self, name: str) -> None:
        member = self[name]
        assert member.raft is None
        mark = member.platter.mark
        begin = Configuration() if member.id in self.others else self.first
        member.raft = Raft(
            member.id,
            Log(member.platter.entries, mark),
            member.platter.hard_state,
            mark.configuration if mark else begin,
            applied=mark.index if mark else Index(0),
            settings=self.settings,
            random=self.random,
            now=self.now,
        )
        member.machine = list(self.snapshots[mark.index, mark.term]) if mark else []
        self.turn(member)

    def crash(self, name: str, *, written: int = 0, forget_commit: bool = False) -> None:
        """Stop a member; of its batches on the way only the first `written` reach the platter."""
        member = self[name]
        for persist in list(member.writing)[:written]:
            member.platter.write(persist)
        if forget_commit:
            state = member.platter.hard_state
            member.platter.hard_state = HardState(
                state.term, state.vote, member.platter.synced.commit
            )
        member.raft = None
        member.writing.clear()
        member.applying.clear()
        member.reads.clear()

    # Steps.

    def turn(self, member: Member) -> Effects:
        """Take the core's effects and put them where they belong."""
        core = member.core
        effects = core.take()
        core.check()
        if effects.persist is not None:
            member.writing.append(effects.persist)
        for to, message in effects.messages:
            assert to != member.id
            self._check_promise(member, to, message)
            # As on a real link: nothing leaves that could not be read on arrival.
            self.wire.append(Packet(member.id, to, decode_message(encode(message))))
        for entry in effects.committed:
            self._check_committed(member, entry)
        member.applying.extend(effects.committed)
        for ready in effects.reads:
            assert ready.index >= self.asked.pop((member.id, ready.context)), "a stale read"
        for context in effects.dropped:
            del self.asked[member.id, context]
        member.reads.extend(effects.reads)
        member.dropped.extend(effects.dropped)
        member.notes.extend(effects.notes)
        self._check_notes(member, effects.notes)
        return effects

    def persist(self, member: Member) -> bool:
        """Let the oldest batch become durable."""
        if not member.writing:
            return False
        persist = member.writing.popleft()
        member.platter.write(persist)
        if persist.snapshot is not None:
            member.applying.clear()
            mark = persist.snapshot
            member.machine = list(self.snapshots[mark.index, mark.term])
        member.core.receive(Persisted(persist.token), member.id, self.now)
        self.turn(member)
        return True

    def apply(self, member: Member) -> bool:
        """Apply the next committed entry."""
        if not member.applying:
            return False
        entry = member.applying.popleft()
        if entry.kind == Kind.COMMAND:
            member.machine.append(entry.data)
        member.core.receive(Applied(entry.index), member.id, self.now)
        self.turn(member)
        return True

    def deliver(self, packet: Packet) -> None:
        """Bring a packet to its receiver, unless it is down or cut off."""
        to = self.members.get(packet.to)
        arrives = (
            to is not None
            and to.raft is not None
            and (packet.sender, packet.to) not in self.blocked
        )
        if arrives and to is not None:
            to.core.receive(packet.message, packet.sender, self.now)
            self.turn(to)
        sender = self.members[packet.sender]
        if isinstance(packet.message, Snapshot) and sender.raft is not None:
            sender.core.receive(SnapshotSent(packet.to, arrives), packet.sender, self.now)
            self.turn(sender)

    def wake(self, member: Member) -> None:
        member.core.wake(self.now)
        self.turn(member)

    # The plain order.

    def settle(self) -> None:
        """Deliver, write and apply until nothing is left to do at this time."""
        for _ in range(20_000):
            if self.wire:
                self.deliver(self.wire.popleft())
            elif not any((not m.slow and self.persist(m)) or self.apply(m) for m in self.running()):
                return
        raise AssertionError("a storm of messages")

    def advance(self, seconds: float) -> None:
        """Let time pass, everyone awake when it wishes, the network instant."""
        until = self.now + seconds
        self.settle()
        for _ in range(20_000):
            due = min((m.core.deadline for m in self.running()), default=math.inf)
            if due > until:
                break
            self.now = max(self.now, due)
            for member in self.running():
                if member.core.deadline <= self.now:
                    self.wake(member)
            self.settle()
        else:
            raise AssertionError("woken without end")
        self.now = until
        for member in self.running():
            self.wake(member)
        self.settle()

    def elect(self, name: str) -> Member:
        """Have a member elected, as if its timer had fired first."""
        member = self[name]
        if member.status.role is not Role.LEADER:
            for other in self.running():
                if other is not member:
                    other.core.forget_leader(self.now)
                    self.turn(other)
            member.core.campaign(self.now)
            self.turn(member)
            self.settle()
        assert member.status.role is Role.LEADER
        return member

    def propose(self, name: str, *data: bytes) -> object:
        member = self[name]
        answer = member.core.propose(data, self.now)
        self.turn(member)
        return answer

    def change(
        self,
        name: str,
        *,
        add_voters: str = "",
        add_learners: str = "",
        remove: str = "",
    ) -> object:
        member = self[name]
        wanted = Change(
            tuple(map(NodeId, add_voters)),
            tuple(map(NodeId, add_learners)),
            tuple(map(NodeId, remove)),
        )
        answer = member.core.change(wanted, self.now)
        self.turn(member)
        return answer

    def read(self, name: str) -> int:
        """Ask for a read; return its context. What is acknowledged now it must see."""
        member = self[name]
        self.context += 1
        newest = max((m.status.commit for m in self.running()), default=Index(0))
        self.asked[member.id, self.context] = max(newest, max(self.applied, default=Index(0)))
        member.core.read(self.context, self.now)
        self.turn(member)
        return self.context

    def compact(self, name: str, *, trailing: int = 0) -> None:
        """Store a snapshot of what a member has applied, and cut its log behind it."""
        member = self[name]
        status = member.status
        if status.applied <= status.snapshot_index or status.pending_snapshot:
            return
        term = member.core.log.term(status.applied)
        assert term is not None
        time = next((e.time for e in member.platter.entries if e.index == status.applied), 0)
        mark = SnapshotMark(status.applied, term, status.configuration, time)
        first = Index(max(1, mark.index + 1 - trailing))
        self.snapshots[mark.index, mark.term] = list(member.machine)
        member.platter.mark = mark
        member.platter.entries = [e for e in member.platter.entries if e.index >= first]
        member.core.compact(mark, first)
        self.turn(member)

    # Faults.

    def cut(self, one: str, other: str) -> None:
        self.blocked.add((NodeId(one), NodeId(other)))
        self.blocked.add((NodeId(other), NodeId(one)))

    def isolate(self, *names: str) -> None:
        """Cut these off from everyone else; among themselves they talk on."""
        for name in names:
            for other in self.members:
                if other not in names:
                    self.cut(name, other)

    def heal(self) -> None:
        self.blocked.clear()

    # What no member can see alone.

    def check(self) -> None:
        """Log matching: where two logs agree on a term, they agree on all before."""
        logs = [m.core.log for m in self.running()]
        for at, one in enumerate(logs):
            for other in logs[at + 1 :]:
                low = max(one.first_index, other.first_index)
                equal = False
                for index in range(min(one.last_index, other.last_index), low - 1, -1):
                    mine = one.slice(Index(index), Index(index))
                    theirs = other.slice(Index(index), Index(index))
                    assert not equal or mine == theirs, f"logs differ below an equal entry: {index}"
                    equal = equal or mine[0].term == theirs[0].term

    def _check_promise(self, member: Member, to: NodeId, message: Message) -> None:
        """No answer leaves before what it promises is on the platter; one vote per term."""
        if not self.promise_checks:
            return
        state = member.platter.hard_state
        if isinstance(message, Vote) or (isinstance(message, VoteAnswer) and message.granted):
            choice = member.id if isinstance(message, Vote) else to
            assert self.votes.setdefault((member.id, message.term), choice) == choice, "two votes"
            assert state.term >= message.term
            assert state.term > message.term or state.vote == choice, "a vote not durable"
        if isinstance(message, AppendAnswer) and not message.reject and state.term == message.term:
            assert member.platter.last_index >= message.index, "acknowledged before durable"

    def _check_committed(self, member: Member, entry: Entry) -> None:
        """All apply the same entry at each index, and it is durable where it is applied."""
        assert self.applied.setdefault(entry.index, entry) == entry, "a committed entry changed"
        assert member.platter.last_index >= entry.index, "applied before durable"

    def _check_notes(self, member: Member, notes: Iterable[Note]) -> None:
        status = member.status
        assert status.term >= self.terms.get(member.id, 0), "a term fell"
        if member.platter.hard_state.term == status.term:
            self.terms[member.id] = status.term
        for note in notes:
            if isinstance(note, BecameLeader):
                leader = self.leaders.setdefault(note.term, member.id)
                assert leader == member.id, "two leaders in one term"
                log = member.core.log
                for index, entry in self.applied.items():
                    known = log.term(index)
                    assert index < log.first_index or known == entry.term, "a leader lacks commits"


def proposed(answer: object) -> Proposed:
    assert isinstance(answer, Proposed)
    return answer
