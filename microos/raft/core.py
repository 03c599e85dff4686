"""One member of a raft group as a pure state machine: messages and time in, effects out.

    receive ─┐                        ┌▶ persist ──▶ storage ──Persisted──┐
    wake ────┼─▶ Raft ─▶ take() ─▶ Effects ─▶ messages ─▶ others          ├─▶ receive
    propose ─┘                        └▶ committed ─▶ machines ─Applied───┘

Nothing here waits. What is to be written is handed out at once, and batches may
be on their way to storage without number. What a member *promises* by a message
(a vote, an acknowledgement, its candidacy) is kept back until everything the
promise rests on is durable; what promises nothing leaves at once, so a leader's
entries travel while its own disk still writes them.

Appends are made in `take()`, from marks set during the turn: a turn is one message
per follower, one batch to storage, one round for all its reads.

Time is deadlines on the clock handed in, which never falls. Chance is one number
per drawn timeout, and one at the start.

Source: Ongaro, "Consensus: Bridging Theory and Practice" (2014); the rules and their
order are those of etcd-io/raft (raft.go, log.go), which learned them in production.
Exceptions: candidates ask for votes only once their own is durable, so that an
answer to an earlier life can never elect one that has forgotten entries since; and
a snapshot is taken whether or not its configuration names the receiver, because a
newcomer may be added after the leader's last one.
"""

import math
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, TypeAlias

import msgspec

from microos.codec import encode
from microos.raft import configuration as configurations
from microos.raft.election import Ballot, draw_timeout, may_grant
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
    Token,
    Unreachable,
    decode_configuration,
)
from microos.raft.log import Log, size_of
from microos.raft.messages import (
    ENTRIES_MAX,
    Append,
    AppendAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Message,
    PreVote,
    PreVoteAnswer,
    Propose,
    ReadIndex,
    ReadIndexAnswer,
    Snapshot,
    TimeoutNow,
    TransferLeader,
    Vote,
    VoteAnswer,
)
from microos.raft.notes import (
    BecameCandidate,
    BecameFollower,
    BecameLeader,
    BecamePreCandidate,
    Committed,
    Compacted,
    ConfigurationChanged,
    Conflict,
    LateWake,
    LeaderChanged,
    Note,
    ReadConfirmed,
    SnapshotRestored,
    Stalled,
    SteppedDown,
    TermChanged,
    VoteGranted,
)
from microos.raft.quorum import Outcome
from microos.raft.reads import Read, Reads
from microos.raft.replication import Leadership, follow
from microos.settings import RaftSettings
from microos.types import Index, NodeId, Random, Term

NOBODY = NodeId("")


class Role(Enum):
    """What a member does in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class ReadReady(msgspec.Struct, frozen=True, gc=False):
    """The read of `context` may be answered once everything up to `index` is applied."""

    context: int
    index: Index


class Effects(msgspec.Struct, frozen=True):
    """What one turn wants done. Nothing in `messages` depends on `persist` of the same turn."""

    persist: Persist | None = None
    """To storage, at once, in the order handed out; `Persisted` when durable."""
    messages: tuple[tuple[NodeId, Message], ...] = ()
    """To the network, at once."""
    committed: tuple[Entry, ...] = ()
    """To be applied in order; `Applied` afterwards. All of it is durable here."""
    reads: tuple[ReadReady, ...] = ()
    dropped: tuple[int, ...] = ()
    """Contexts of reads that will not be answered; ask again under a new one."""
    notes: tuple[Note, ...] = ()


class Proposed(msgspec.Struct, frozen=True, gc=False):
    """In the leader's log at `first..last`; committed if entries of `term` are applied there."""

    term: Term
    first: Index
    last: Index


class Forwarded(msgspec.Struct, frozen=True, gc=False):
    """Sent to the leader; whether it arrives nobody will say."""

    leader: NodeId


class Dropped(msgspec.Struct, frozen=True, gc=False):
    """Not taken, nothing happened; try again, at `leader` if there is one.

    `no_leader`, `not_leader`, `transfer` (`leader` is its target), `uncommitted`
    (too many bytes).
    """

    reason: str
    leader: NodeId | None


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The change is impossible now.

    `pending` (another one is not applied yet), or a word of `configuration.refusal`.
    """

    reason: str


Proposal: TypeAlias = Proposed | Forwarded | Dropped
Event: TypeAlias = Message | Persisted | Applied | Unreachable | SnapshotSent


class FollowerStatus(msgspec.Struct, frozen=True, gc=False):
    """One follower, or the leader itself, in the leader's eyes."""

    match: Index
    next: Index
    state: str
    """`probe`, `replicate`, `snapshot`."""
    recent_active: bool
    paused: bool
    inflight: int
    inflight_bytes: int
    snapshot: Index
    """Index of the snapshot on its way; 0 if none."""


class Status(msgspec.Struct, frozen=True):
    """Everything that can be asked of a member. Points in time are on its own clock [s]."""

    id: NodeId
    term: Term
    vote: NodeId
    """Empty: nobody."""
    role: Role
    leader: NodeId | None
    promotable: bool
    """Whether it would stand for election if its timer fired now."""
    commit: Index
    applied: Index
    applying: Index
    """Last index handed out to be applied."""
    first_index: Index
    last_index: Index
    last_term: Term
    stable_index: Index
    """Last index known durable here."""
    snapshot_index: Index
    """0: no snapshot yet."""
    snapshot_term: Term
    pending_snapshot: Index
    """A snapshot received and not yet restored; 0 if none."""
    configuration: Configuration
    pending_change: Index
    progress: dict[NodeId, FollowerStatus]
    """Leader only; everyone in the configuration, itself included."""
    transferee: NodeId | None
    uncommitted_bytes: int
    reads_pending: int
    last_leader_contact: float
    """-inf: never."""
    deadline: float
    stalled_since: float | None
    """When the oldest write not yet durable was handed out, if that is too long ago."""
    unpersisted: int
    """Batches on their way to storage."""


class _Batch(NamedTuple):
    """One batch on its way to storage, and what its durability will prove."""

    number: int
    term: Term
    last: Index
    last_term: Term
    snapshot: Index
    must_sync: bool
    since: float


class Raft:
    """One member of one consensus group."""

    def __init__(
        self,
        id: NodeId,
        log: Log,
        hard_state: HardState,
        configuration: Configuration,
        *,
        applied: Index,
        settings: RaftSettings,
        random: Random,
        now: float,
        grant_after: float = -math.inf,
    ) -> None:
        """Begin as a follower with what recovery found.

        Args:
            id: Own id.
            log: All of it durable.
            hard_state: Durable. A commit index beyond the log is not believed.
            configuration: As of `applied`; without voters for one that is yet to join.
            applied: What the machines have applied.
            settings: `heartbeat_interval` at most an eighth of `election_timeout_max`.
            random: For timeouts.
            now: Own monotonic clock [s].
            grant_after: No vote is granted before, unless a leader hands over; now + E/2
                after a restart, so that what was known of a leader before still counts.
        """
        assert settings.heartbeat_interval <= settings.election_timeout_max / 8
        snapshot = log.mark.index if log.mark is not None else 0
        assert max(snapshot, log.first_index - 1) <= applied <= log.last_index
        configurations.check(configuration)

        self.id = id
        self.log = log
        self._settings = settings
        self._random = random
        self._now = now
        self._grant_after = grant_after

        self._term = hard_state.term
        self._vote = hard_state.vote
        self._commit = min(max(hard_state.commit, applied), log.last_index)
        self._configuration = configuration
        self._applied = self._applying = applied
        self._applying_bytes = 0

        self._role = Role.FOLLOWER
        self._leader: NodeId | None = None
        self._contact = -math.inf
        self._ballot: Ballot | None = None
        self._leadership: Leadership | None = None
        self._reads = Reads(random.randrange(1 << 62))
        self._rearm()

        # What has been handed out, and what waits for it.
        self._handed = hard_state
        self._batches: deque[_Batch] = deque()
        self._number = 0
        self._promises: list[tuple[NodeId, Message]] = []
        self._held: deque[tuple[int, NodeId, Message]] = deque()
        self._stall_told = False

        # What the next `take` hands over.
        self._messages: list[tuple[NodeId, Message]] = []
        self._ready: list[ReadReady] = []
        self._dropped: list[int] = []
        self._notes: list[Note] = []

    # The four verbs.

    def receive(self, message: Event, sender: NodeId, now: float) -> None:
        """Take in a message of another member, or what the shell has finished (sender: own id)."""
        self._now = max(self._now, now)
        match message:
            case Persisted():
                self._persisted(message.token)
            case Applied():
                self._have_applied(message.index)
            case Unreachable():
                if self._leadership is not None:
                    self._leadership.unreachable(message.node)
            case SnapshotSent():
                if self._leadership is not None:
                    self._leadership.snapshot_sent(message.node, message.ok)
            case _:
                if sender != self.id:
                    self._step(message, sender)

    def wake(self, now: float) -> None:
        """Do what is due. Early or twice is harmless; late is noticed, and nobody is accused."""
        late = now - self.deadline
        self._now = max(self._now, now)
        was_late = late > self._settings.late_ratio * self._settings.election_timeout_max
        if was_late:
            self._notes.append(LateWake(late))
        self._wake_leader(late if was_late else 0.0)
        if self._role is not Role.LEADER and self._now >= self._election_deadline:
            if was_late or not self._can_stand():
                self._rearm()
            else:
                self._stand()
        self._wake_stalled()
        self._dropped.extend(self._reads.expire(self._now, self._settings.election_timeout_max))

    @property
    def deadline(self) -> float:
        """When `wake` is next wanted [s]; inf if there is nothing to wait for."""
        due = math.inf
        if self._leadership is not None:
            due = min(self._leadership.heartbeat_deadline, self._leadership.quorum_deadline)
        elif configurations.is_voter(self._configuration, self.id):
            due = self._election_deadline
        if self._reads.oldest is not None:
            due = min(due, self._reads.oldest + self._settings.election_timeout_max)
        return min(due, self._stall_deadline())

    def take(self) -> Effects:
        """Hand over, and forget, everything this turn wants done."""
        if self._leadership is not None:
            self._send_round()
            self._messages.extend(self._leadership.appends(self._commit))
        persist = self._hand_out()
        self._hold_promises()
        effects = Effects(
            persist=persist,
            messages=tuple(self._messages),
            committed=self._hand_committed(),
            reads=tuple(self._ready),
            dropped=tuple(self._dropped),
            notes=tuple(self._notes),
        )
        self._messages.clear()
        self._ready.clear()
        self._dropped.clear()
        self._notes.clear()
        return effects

    # Requests. The outcome is a value, never an exception.

    def propose(self, data: Sequence[bytes], now: float, *, leader_only: bool = False) -> Proposal:
        """Append encoded commands to the replicated log, or have the leader do it.

        Args:
            data: At least one. Together they are one batch of entries.
            now: Own clock [s].
            leader_only: Never forward.
        """
        assert data
        self._now = max(self._now, now)
        if self._leadership is not None:
            return self._append_commands(self._leadership, data)
        if leader_only or self._leader is None:
            return Dropped("not_leader" if self._leader else "no_leader", self._leader)
        self._forward(self._leader, data)
        return Forwarded(self._leader)

    def change(self, change: Change, now: float) -> Proposed | Dropped | Refused:
        """Change the configuration; one change at a time, leader only.

        Several items go through a joint configuration, which leaves by itself.
        """
        self._now = max(self._now, now)
        leadership = self._leadership
        if leadership is None:
            return Dropped("not_leader" if self._leader else "no_leader", self._leader)
        if leadership.transferee is not None:
            return Dropped("transfer", leadership.transferee)
        if self._applied < leadership.pending_change:
            return Refused("pending")
        refusal = configurations.refusal(self._configuration, change)
        if refusal:
            return Refused(refusal)
        return self._append_configuration(
            leadership, configurations.changed(self._configuration, change)
        )

    def read(self, context: int, now: float) -> None:
        """Ask from which applied index on a read sees everything acknowledged before this call.

        The answer is in `Effects.reads` or `Effects.dropped`, within E.

        Args:
            context: Any number not in use for another read of this member.
            now: Own clock [s].
        """
        self._now = max(self._now, now)
        if self._leadership is not None:
            if not self._reads.wait(Read(None, context)):
                self._dropped.append(context)
            return
        number = None if self._leader is None else self._reads.ask(context, self._now)
        if self._leader is None or number is None:
            self._dropped.append(context)
            return
        self._send(self._leader, ReadIndex(self._term, number))

    def transfer(self, to: NodeId, now: float) -> None:
        """Hand the leadership to voter `to`; given up after E/2. Others ask the leader to."""
        self._now = max(self._now, now)
        if self._leadership is not None:
            self._start_transfer(self._leadership, to)
        elif self._leader is not None:
            self._send(self._leader, TransferLeader(self._term, to))

    def forget_leader(self, now: float) -> None:
        """As a follower, forget the leader until it is heard again: pre-votes may be granted."""
        self._now = max(self._now, now)
        if self._role is Role.FOLLOWER:
            self._follow(None)

    def campaign(self, now: float) -> None:
        """Stand for election now if that is allowed at all."""
        self._now = max(self._now, now)
        if self._role is not Role.LEADER and self._can_stand():
            self._stand()

    def compact(self, mark: SnapshotMark, first: Index) -> None:
        """Forget the log before `first`; the stored snapshot `mark` covers it.

        Args:
            mark: At most the applied index.
            first: At most `mark.index + 1`. Entries from it on stay for slow followers.
        """
        assert mark.index <= self._applied
        if self.log.compact(mark, first):
            self._notes.append(Compacted(first))

    @property
    def term(self) -> Term:
        return self._term

    @property
    def role(self) -> Role:
        return self._role

    @property
    def leader(self) -> NodeId | None:
        """Whom this member follows; itself if it leads; None if it knows of nobody."""
        return self._leader

    @property
    def has_news(self) -> bool:
        """Whether what was received since the last `take` wants anything done."""
        leadership = self._leadership
        return bool(
            self._messages
            or self._promises
            or self._ready
            or self._dropped
            or self._notes
            or (leadership is not None and leadership.has_wants)
        )

    @property
    def own_term_committed(self) -> bool:
        """Whether an entry of the present term is committed; before, a leader knows little."""
        return self.log.term(self._commit) == self._term

    def status(self) -> Status:
        """Return everything that can be asked, frozen. Cost: O(followers)."""
        log, leadership = self.log, self._leadership
        return Status(
            id=self.id,
            term=self._term,
            vote=self._vote,
            role=self._role,
            leader=self._leader,
            promotable=self._role is not Role.LEADER and self._can_stand(),
            commit=self._commit,
            applied=self._applied,
            applying=self._applying,
            first_index=log.first_index,
            last_index=log.last_index,
            last_term=log.last_term,
            stable_index=log.stable,
            snapshot_index=log.mark.index if log.mark else Index(0),
            snapshot_term=log.mark.term if log.mark else Term(0),
            pending_snapshot=log.pending.index if log.pending else Index(0),
            configuration=self._configuration,
            pending_change=leadership.pending_change if leadership else Index(0),
            progress=_follower_statuses(leadership) if leadership else {},
            transferee=leadership.transferee if leadership else None,
            uncommitted_bytes=leadership.uncommitted_bytes if leadership else 0,
            reads_pending=len(self._reads),
            last_leader_contact=self._contact,
            deadline=self.deadline,
            stalled_since=self._oldest_write() if self._is_stalled() else None,
            unpersisted=len(self._batches),
        )

    def check(self) -> None:
        """Assert every invariant that one member can see."""
        self.log.check()
        self._reads.check()
        configurations.check(self._configuration)
        assert self._term >= self._handed.term
        assert self._term > 0 or not self._vote
        assert self._applied <= self._applying <= self._commit <= self.log.last_index
        if self.log.pending is None:
            assert self.log.first_index <= self._applied + 1
            assert self._applying <= self.log.stable
        assert (self._role is Role.LEADER) == (self._leadership is not None)
        assert (self._role in (Role.PRE_CANDIDATE, Role.CANDIDATE)) == (self._ballot is not None)
        assert self._role is not Role.PRE_CANDIDATE or self._leader is None
        assert self._role is not Role.CANDIDATE or self._vote == self.id
        assert (self._leader == self.id) == (self._role is Role.LEADER)
        if self._leadership is not None:
            self._leadership.check(self._configuration)
            assert self.log.last_term == self._term
            assert self.log.pending is None
        numbers = [batch.number for batch in self._batches]
        assert numbers == list(range(self._number - len(numbers) + 1, self._number + 1))
        assert all(node != self.id for node, _ in self._messages)
        assert not self._held or self._batches

    # Terms.

    def _step(self, message: Message, sender: NodeId) -> None:
        # A request to the leader is as good from a member that is behind.
        match message:
            case Propose():
                if self._leadership is not None:
                    self._append_commands(self._leadership, message.data)
                return
            case ReadIndex():
                if self._leadership is not None:
                    self._reads.wait(Read(sender, message.context))
                return
            case TransferLeader():
                if self._leadership is not None:
                    self._start_transfer(self._leadership, message.to)
                return
            case PreVote() | Vote() if self._is_deaf(message):
                return

        if message.term > self._term:
            self._step_up(message, sender)
        elif message.term < self._term:
            self._step_back(message, sender)
            return
        self._dispatch(message, sender)

    def _is_deaf(self, asked: PreVote | Vote) -> bool:
        """Return whether the question is not even answered.

        While a leader is heard nobody else can win, however high its term (§4.2.3);
        only the leader's own wish overrides. Who cannot write cannot promise.
        """
        if isinstance(asked, Vote) and asked.force:
            return False
        half = self._settings.election_timeout_max / 2
        in_lease = self._leader is not None and (
            self._role is Role.LEADER or self._now - self._contact < half
        )
        held = self._settings.check_quorum and in_lease and asked.term > self._term
        return held or self._now < self._grant_after or self._is_stalled(2)

    def _step_up(self, message: Message, sender: NodeId) -> None:
        """Follow a higher term, unless it is only being asked about."""
        match message:
            case PreVote():
                pass
            case PreVoteAnswer(granted=True):
                pass
            case Append() | Heartbeat() | Snapshot():
                self._become_follower(message.term, sender, "higher_term")
            case _:
                self._become_follower(message.term, None, "higher_term")

    def _step_back(self, message: Message, sender: NodeId) -> None:
        """Answer a lower term where silence would leave its sender stuck for ever."""
        match message:
            case PreVote():
                self._promise(sender, self._refused_pre_vote())
            case Append() | Heartbeat() if self._settings.check_quorum or self._settings.pre_vote:
                self._promise(sender, AppendAnswer(self._term, Index(0)))

    def _dispatch(self, message: Message, sender: NodeId) -> None:
        match message:
            case PreVote() | Vote():
                self._receive_question(message, sender)
            case PreVoteAnswer() | VoteAnswer():
                self._receive_vote(message, sender)
            case Append():
                if self._hear_leader(sender):
                    self._receive_append(message, sender)
            case Heartbeat():
                if self._hear_leader(sender):
                    self._commit_known(message.commit)
                    self._send(sender, HeartbeatAnswer(self._term, message.round))
            case Snapshot():
                if self._hear_leader(sender):
                    self._receive_snapshot(message.mark, sender)
            case AppendAnswer():
                self._receive_append_answer(message, sender)
            case HeartbeatAnswer():
                if self._leadership is not None:
                    self._leadership.heard(sender)
                    self._reads.echo(sender, message.round)
                    self._confirm_reads()
            case TimeoutNow():
                if self._role is Role.FOLLOWER and self._can_stand():
                    self._become_candidate(force=True)
            case ReadIndexAnswer():
                context = self._reads.answered(message.context)
                if context is not None:
                    self._ready.append(ReadReady(context, message.index))
            case _:
                raise AssertionError(f"requests end before: {message}")

    # Roles.

    def _become_follower(self, term: Term, leader: NodeId | None, reason: str) -> None:
        if self._leadership is not None:
            self._notes.append(SteppedDown(self._term, reason))
        self._set_term(term)
        self._set_role(Role.FOLLOWER)
        self._contact = self._now if leader is not None else self._contact
        self._follow(leader)
        self._notes.append(BecameFollower(term, leader))

    def _stand(self) -> None:
        if not self._settings.pre_vote:
            self._become_candidate(force=False)
            return
        self._set_role(Role.PRE_CANDIDATE)
        # Having given up on the leader is what lets us grant others a pre-vote.
        self._follow(None)
        self._notes.append(BecamePreCandidate(self._term))
        self._ballot = Ballot(Term(self._term + 1), trial=True)
        question = PreVote(
            self._ballot.term, self.log.last_index, self.log.last_term, *self._known_commit()
        )
        for voter in self._other_voters():
            self._send(voter, question)
        self._count(self.id, granted=True)

    def _become_candidate(self, *, force: bool) -> None:
        self._set_term(Term(self._term + 1))
        self._vote = self.id
        self._set_role(Role.CANDIDATE)
        self._follow(None)
        self._notes.append(BecameCandidate(self._term))
        self._ballot = Ballot(self._term, trial=False)
        # The own vote counts when it is durable, and nobody is asked before.
        self._promise(self.id, VoteAnswer(self._term, granted=True))
        question = Vote(
            self._term, self.log.last_index, self.log.last_term, *self._known_commit(), force
        )
        for voter in self._other_voters():
            self._promise(voter, question)

    def _become_leader(self) -> None:
        self._set_role(Role.LEADER)
        self._leadership = Leadership(
            self.id,
            self.log,
            self._configuration,
            term=self._term,
            settings=self._settings,
            notes=self._notes,
            now=self._now,
        )
        self._follow(self.id)
        self._notes.append(BecameLeader(self._term))
        # An entry of the own term, so that those of earlier ones can be committed (§3.6.2).
        self._append(self._leadership, Kind.EMPTY, [b""])

    def _set_term(self, term: Term) -> None:
        assert term >= self._term
        if term > self._term:
            self._term, self._vote = term, NOBODY
            self._notes.append(TermChanged(term))

    def _set_role(self, role: Role) -> None:
        self._role = role
        self._ballot = None
        self._leadership = None
        self._dropped.extend(self._reads.drop())
        self._rearm()

    def _follow(self, leader: NodeId | None) -> None:
        if leader != self._leader:
            self._leader = leader
            self._dropped.extend(self._reads.drop())
            self._notes.append(LeaderChanged(leader, self._term))

    def _hear_leader(self, sender: NodeId) -> bool:
        """Take note that the leader of this term lives; False if we lead it, which cannot be."""
        if self._role is Role.LEADER:
            return False
        if self._role is not Role.FOLLOWER:
            self._become_follower(self._term, sender, "")
        self._follow(sender)
        self._contact = self._now
        self._election_deadline = self._now + self._timeout
        return True

    def _rearm(self) -> None:
        self._timeout = draw_timeout(self._settings.election_timeout_max, self._random)
        self._election_deadline = self._now + self._timeout

    # Elections.

    def _can_stand(self) -> bool:
        """Return whether candidacy is safe and sensible.

        With a committed change not yet applied two leaders could be elected by
        majorities that do not meet (found by model checking, etcd-io/raft#456).
        """
        return (
            configurations.is_voter(self._configuration, self.id)
            and self.log.pending is None
            and not self._is_stalled()
            and not self._has_unapplied_configuration()
        )

    def _has_unapplied_configuration(self) -> bool:
        if self._applied == self._commit:
            return False
        unapplied = self.log.slice(Index(self._applied + 1), self._commit)
        return any(entry.kind == Kind.CONFIGURATION for entry in unapplied)

    def _receive_question(self, asked: PreVote | Vote, sender: NodeId) -> None:
        self._commit_if_equal(asked.commit, asked.commit_term)
        granted = may_grant(
            asked, sender, term=self._term, vote=self._vote, leader=self._leader, log=self.log
        )
        if isinstance(asked, PreVote):
            yes = PreVoteAnswer(asked.term, granted=True)
            self._promise(sender, yes if granted else self._refused_pre_vote())
        elif granted:
            self._vote = sender
            self._election_deadline = self._now + self._timeout
            self._notes.append(VoteGranted(self._term, sender))
            self._promise(sender, VoteAnswer(self._term, granted=True))
        else:
            self._promise(sender, VoteAnswer(self._term, False, *self._known_commit()))

    def _refused_pre_vote(self) -> PreVoteAnswer:
        return PreVoteAnswer(self._term, False, *self._known_commit())

    def _receive_vote(self, answer: PreVoteAnswer | VoteAnswer, sender: NodeId) -> None:
        if not answer.granted:
            self._commit_if_equal(answer.commit, answer.commit_term)
        ballot = self._ballot
        if ballot is None or ballot.trial != isinstance(answer, PreVoteAnswer):
            return
        # A grant of a trial is of the term asked for; that of an earlier one does not count.
        if answer.granted and answer.term != ballot.term:
            return
        self._count(sender, granted=answer.granted)

    def _count(self, voter: NodeId, *, granted: bool) -> None:
        ballot = self._ballot
        assert ballot is not None
        ballot.record(voter, granted)
        match ballot.outcome(self._configuration):
            case Outcome.WON if ballot.trial:
                self._become_candidate(force=False)
            case Outcome.WON:
                self._become_leader()
            case Outcome.LOST:
                self._become_follower(self._term, None, "")
            case Outcome.PENDING:
                pass

    def _other_voters(self) -> list[NodeId]:
        return [node for node in configurations.voters(self._configuration) if node != self.id]

    def _known_commit(self) -> tuple[Index, Term]:
        """Return the commit index and its term, to be told with (refused) votes."""
        return self._commit, self.log.term(self._commit) or Term(0)

    def _commit_if_equal(self, commit: Index, term: Term) -> None:
        """Believe another's commit index if the entry there is the same one.

        Frees a member that cannot stand because it does not know that a change in
        its log is committed (etcd#12359).
        """
        if self._role is Role.LEADER or not term or self.log.term(commit) != term:
            return
        self._commit_to(commit)
        if self._ballot is not None and self._has_unapplied_configuration():
            self._become_follower(self._term, None, "")

    # As follower.

    def _receive_append(self, message: Append, sender: NodeId) -> None:
        answer, cut = follow(self.log, message, self._commit)
        if cut is not None:
            self._notes.append(Conflict(cut))
        if not answer.reject:
            # Not beyond what this message has shown to be equal: the rest may yet be cut.
            self._commit_to(min(message.commit, answer.index))
        self._promise(sender, answer)

    def _commit_known(self, commit: Index) -> None:
        """Follow a heartbeat, which never names more than we have acknowledged."""
        if commit <= self.log.last_index:
            self._commit_to(commit)

    def _receive_snapshot(self, mark: SnapshotMark, sender: NodeId) -> None:
        if mark.index > self._commit:
            if self.log.term(mark.index) == mark.term:
                self._commit_to(mark.index)
            else:
                self._restore(mark)
        self._promise(sender, AppendAnswer(self._term, self._commit))

    def _restore(self, mark: SnapshotMark) -> None:
        self.log.restore(mark)
        self._applying_bytes = 0
        self._commit_to(mark.index)
        self._switch(mark.configuration, mark.index)

    # As leader.

    def _append_commands(self, leadership: Leadership, data: Sequence[bytes]) -> Proposed | Dropped:
        if leadership.transferee is not None:
            return Dropped("transfer", leadership.transferee)
        size = sum(map(len, data))
        # One batch always fits, or a bound below its size would refuse it for ever.
        if leadership.uncommitted_bytes and (
            leadership.uncommitted_bytes + size > self._settings.uncommitted_bytes_max
        ):
            return Dropped("uncommitted", self.id)
        return self._append(leadership, Kind.COMMAND, data)

    def _append_configuration(
        self, leadership: Leadership, configuration: Configuration
    ) -> Proposed:
        leadership.pending_change = Index(self.log.last_index + 1)
        return self._append(leadership, Kind.CONFIGURATION, [encode(configuration)])

    def _append(self, leadership: Leadership, kind: Kind, data: Sequence[bytes]) -> Proposed:
        time = max(leadership.log_time(self._now), self.log.last_time)
        first = Index(self.log.last_index + 1)
        self.log.append(
            [
                Entry(self._term, Index(first + at), time, int(kind), each)
                for at, each in enumerate(data)
            ]
        )
        leadership.uncommitted_bytes += sum(map(len, data))
        leadership.want_all()
        return Proposed(self._term, first, self.log.last_index)

    def _forward(self, leader: NodeId, data: Sequence[bytes]) -> None:
        """Send proposals on, in messages no larger than an append."""
        batch: list[bytes] = []
        size = 0
        for each in data:
            too_large = size + len(each) > self._settings.append_bytes_max
            if batch and (too_large or len(batch) == ENTRIES_MAX):
                self._send(leader, Propose(self._term, tuple(batch)))
                batch, size = [], 0
            batch.append(each)
            size += len(each)
        self._send(leader, Propose(self._term, tuple(batch)))

    def _receive_append_answer(self, answer: AppendAnswer, sender: NodeId) -> None:
        leadership = self._leadership
        if leadership is None or not leadership.answered(sender, answer, self._commit):
            return
        self._commit_by_counting(leadership)
        if sender == leadership.transferee and leadership.has_everything(sender):
            self._send(sender, TimeoutNow(self._term))

    def _commit_by_counting(self, leadership: Leadership) -> None:
        index = leadership.committed(self._configuration)
        if index is None or index <= self._commit:
            return
        committed = self.log.slice(Index(self._commit + 1), index)
        leadership.uncommitted_bytes -= sum(
            len(entry.data) for entry in committed if entry.term == self._term
        )
        self._commit_to(index)
        leadership.tell_commit()

    def _wake_leader(self, late: float) -> None:
        leadership = self._leadership
        if leadership is None:
            return
        # While we were away answers could not be asked for, nor heard.
        leadership.quorum_deadline += late
        if self._now >= leadership.quorum_deadline:
            leadership.quorum_deadline = self._now + self._settings.election_timeout_max / 2
            heard = leadership.hears_quorum(self._configuration)
            if self._settings.check_quorum and not heard:
                self._become_follower(self._term, None, "quorum")
                return
            leadership.transferee = None
        if self._now >= leadership.heartbeat_deadline:
            self._send_heartbeats(leadership)

    def _send_heartbeats(self, leadership: Leadership) -> None:
        self._next_heartbeat(leadership)
        for node, progress in leadership.progress.items():
            if node != self.id:
                # Beyond what it has acknowledged it may hold entries that are not ours.
                commit = min(progress.match, self._commit)
                self._send(node, Heartbeat(self._term, commit, self._reads.round))

    def _next_heartbeat(self, leadership: Leadership, *, at_most: float = math.inf) -> None:
        """Set the time of the next heartbeat; who is alone has no need to wake its host often."""
        alone = len(leadership.progress) == 1
        wait = self._settings.election_timeout_max / 2 if alone else 0.0
        wait = max(wait, self._settings.heartbeat_interval)
        leadership.heartbeat_deadline = min(at_most, self._now + wait)

    def _start_transfer(self, leadership: Leadership, to: NodeId) -> None:
        if to in (self.id, leadership.transferee):
            return
        if not configurations.is_voter(self._configuration, to):
            return
        leadership.transferee = to
        leadership.quorum_deadline = self._now + self._settings.election_timeout_max / 2
        if leadership.has_everything(to):
            self._send(to, TimeoutNow(self._term))
        else:
            leadership.want(to, empty=True)

    # Reads.

    def _send_round(self) -> None:
        """Open a round for the reads of this turn, if an entry of this term is committed."""
        leadership = self._leadership
        assert leadership is not None
        if not self._reads.waiting or self.log.term(self._commit) != self._term:
            return
        self._reads.echo(self.id, self._reads.open_round(self._commit))
        # All of them: whoever is asked now need not be asked again for an interval.
        self._send_heartbeats(leadership)
        self._confirm_reads()

    def _confirm_reads(self) -> None:
        for number, index, reads in self._reads.confirmed(self._configuration):
            self._notes.append(ReadConfirmed(number, len(reads)))
            for read in reads:
                if read.requester is None:
                    self._ready.append(ReadReady(read.context, index))
                else:
                    self._send(read.requester, ReadIndexAnswer(self._term, read.context, index))

    # Committing and applying.

    def _commit_to(self, index: Index) -> None:
        if index > self._commit:
            assert index <= self.log.last_index
            self._commit = index
            self._notes.append(Committed(index, self._term))

    def _hand_committed(self) -> tuple[Entry, ...]:
        """Return what may be applied: committed, durable here, and not too much at once."""
        high = min(self._commit, self.log.stable)
        free = self._settings.apply_bytes_max - self._applying_bytes
        if self.log.pending is not None or high <= self._applying or free <= 0:
            return ()
        entries = self.log.slice(Index(self._applying + 1), high, bytes_max=free)
        # A single entry larger than the bound goes when nothing else is on its way.
        if self._applying_bytes and size_of(entries[0]) > free:
            return ()
        self._applying = entries[-1].index
        self._applying_bytes += sum(map(size_of, entries))
        return entries

    def _have_applied(self, index: Index) -> None:
        assert index <= self._applying
        if index <= self._applied:
            return
        # A snapshot received meanwhile may have replaced the log beneath them.
        low = max(Index(self._applied + 1), self.log.first_index)
        self._applied = index
        for entry in self.log.slice(low, index) if low <= index else ():
            self._applying_bytes -= size_of(entry)
            if entry.kind == Kind.CONFIGURATION:
                self._switch(decode_configuration(entry.data), entry.index)
        leadership = self._leadership
        if (
            leadership is not None
            and configurations.is_joint(self._configuration)
            and self._applied >= leadership.pending_change
        ):
            self._append_configuration(leadership, configurations.left(self._configuration))

    def _switch(self, configuration: Configuration, index: Index) -> None:
        """Let a configuration take effect, as each member does when it applies it."""
        voted = configurations.is_voter(self._configuration, self.id)
        self._configuration = configuration
        self._notes.append(ConfigurationChanged(configuration, index))
        if not voted and configurations.is_voter(configuration, self.id):
            self._rearm()
        leadership = self._leadership
        if leadership is None:
            return
        leadership.switch(configuration, active=True)
        self._next_heartbeat(leadership, at_most=leadership.heartbeat_deadline)
        if not configurations.is_voter(configuration, self.id):
            self._become_follower(self._term, None, "removed")
            return
        self._commit_by_counting(leadership)
        self._confirm_reads()

    # Durability.

    def _send(self, node: NodeId, message: Message) -> None:
        """Send at once."""
        self._messages.append((node, message))

    def _promise(self, node: NodeId, message: Message) -> None:
        """Send once everything up to now is durable; to oneself: take it in then."""
        self._promises.append((node, message))

    def _hand_out(self) -> Persist | None:
        entries, snapshot = self.log.hand_out()
        state = HardState(self._term, self._vote, self._commit)
        changed = state != self._handed
        if not entries and snapshot is None and not changed:
            return None
        voted = (state.term, state.vote) != (self._handed.term, self._handed.vote)
        must_sync = bool(entries) or snapshot is not None or voted
        self._handed = state
        self._number += 1
        # Each batch attests the whole log, in the present term: what an overwritten or
        # earlier batch can no longer prove, the next one does (the ABA race of etcd-io/raft).
        self._batches.append(
            _Batch(
                self._number,
                self._term,
                self.log.last_index,
                self.log.last_term,
                snapshot.index if snapshot is not None else Index(0),
                must_sync,
                self._now,
            )
        )
        return Persist(
            token=Token(self._number, self._term),
            entries=entries,
            hard_state=state if changed else None,
            snapshot=snapshot,
            must_sync=must_sync,
        )

    def _hold_promises(self) -> None:
        """Keep back what was promised this turn until the last batch it may rest on is durable."""
        rests_on = 0
        for batch in reversed(self._batches):
            if batch.must_sync:
                rests_on = batch.number
                break
        for node, message in self._promises:
            if rests_on:
                self._held.append((rests_on, node, message))
            else:
                assert node != self.id, "a vote for oneself is always new"
                self._messages.append((node, message))
        self._promises.clear()

    def _persisted(self, token: Token) -> None:
        while self._batches and self._batches[0].number <= token.number:
            batch = self._batches.popleft()
            if batch.snapshot:
                self._restored(batch.snapshot)
            # Later terms may have cut the log and grown it again to the same length.
            if batch.term == self._term:
                self.log.persisted(batch.last, batch.last_term)
        self._stall_told = self._stall_told and self._is_stalled()
        while self._held and self._held[0][0] <= token.number:
            _, node, message = self._held.popleft()
            if message.term < self._term:
                pass  # It tells of a log and a vote that may have been replaced since.
            elif node != self.id:
                self._messages.append((node, message))
            else:
                self._dispatch(message, self.id)
        if self._leadership is not None:
            self._leadership.acknowledge_own()
            self._commit_by_counting(self._leadership)

    def _restored(self, index: Index) -> None:
        """The machines stand at a received snapshot, whatever became of it since."""
        self.log.restored(index)
        self._notes.append(SnapshotRestored(index))
        if index > self._applied:
            self._applied = index
            self._applying = max(self._applying, index)

    # Stalled disks.

    def _oldest_write(self) -> float:
        for batch in self._batches:
            if batch.must_sync:
                return batch.since
        return math.inf

    def _stalls_at(self, times: int = 1) -> float:
        """Return when the oldest write will have been on its way for too long, `times` over."""
        wait = self._settings.stall_after_ratio * self._settings.election_timeout_max
        return self._oldest_write() + times * wait

    def _is_stalled(self, times: int = 1) -> bool:
        return self._now >= self._stalls_at(times)

    def _stall_deadline(self) -> float:
        if not self._stall_told:
            return self._stalls_at()
        if self._leadership is not None and self._other_voters():
            return self._stalls_at(2)
        return math.inf

    def _wake_stalled(self) -> None:
        """Note a stalled disk; as leader hand over, and at twice the age stop leading.

        Heartbeats do not need the disk, so without this a leader that can commit
        nothing more would stay leader (hashicorp/raft#503). One that votes alone
        has nobody to make room for.
        """
        if not self._is_stalled():
            return
        told, self._stall_told = self._stall_told, True
        if not told:
            since = self._oldest_write()
            self._notes.append(Stalled(since, self._now - since))
        leadership = self._leadership
        if leadership is None or not self._other_voters():
            return
        if self._is_stalled(2):
            self._become_follower(self._term, None, "stalled")
        elif not told and leadership.transferee is None:
            heir = leadership.best_heir(self._configuration)
            if heir is not None:
                self._start_transfer(leadership, heir)


def _follower_statuses(leadership: Leadership) -> dict[NodeId, FollowerStatus]:
    return {
        node: FollowerStatus(
            match=progress.match,
            next=progress.next,
            state=progress.state.value,
            recent_active=progress.active,
            paused=progress.is_paused,
            inflight=len(progress.window),
            inflight_bytes=progress.window.bytes,
            snapshot=progress.snapshot,
        )
        for node, progress in leadership.progress.items()
    }
