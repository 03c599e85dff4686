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

Here stand the term, the role and the commit index, and what follows from each message.
The parts are told what they need and know nothing of the member they belong to:

    election.py    Timer, Ballot      how long to wait for a leader, who may be the next
    leadership.py  Leadership         what only a leader does; its followers: replication.py
    reads.py       Reads              reads waiting for a round, or for the leader
    applying.py    Applying           what is on its way to the machines
    writes.py      Writes             what is on its way to storage, and the promises on it
    effects.py     Outbox, Effects    what the turn has gathered

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
from collections.abc import Sequence

from microos.raft import configuration as configurations
from microos.raft import notes
from microos.raft.applying import Applying
from microos.raft.effects import Effects, Event, Outbox, ReadReady
from microos.raft.election import Ballot, Role, Timer, answer_to, known
from microos.raft.entry import (
    Applied,
    Change,
    Configuration,
    HardState,
    Persisted,
    SnapshotMark,
    SnapshotSent,
    Token,
    Unreachable,
    decode_configuration,
)
from microos.raft.leadership import Leadership
from microos.raft.log import Log
from microos.raft.messages import (
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
from microos.raft.proposal import Dropped, Forwarded, Proposal, Proposed, Refused, portions
from microos.raft.quorum import Outcome
from microos.raft.reads import Read, Reads
from microos.raft.replication import follow
from microos.raft.status import Status, follower_statuses
from microos.raft.writes import Writes
from microos.settings import RaftSettings
from microos.types import Index, NodeId, Random, Term

NOBODY = NodeId("")


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
        self._now = now

        self._term = hard_state.term
        self._vote = hard_state.vote
        self._commit = min(max(hard_state.commit, applied), log.last_index)
        self._configuration = configuration
        self._applying = Applying(log, applied=applied, bytes_max=settings.apply_bytes_max)

        self._role = Role.FOLLOWER
        self._leader: NodeId | None = None
        self._ballot: Ballot | None = None
        self._leadership: Leadership | None = None
        self._reads = Reads(random.randrange(1 << 62))
        self._timer = Timer(settings, random, now, grant_after=grant_after)

        self._writes = Writes(
            hard_state,
            stall_after=settings.stall_after_ratio * settings.election_timeout_max,
        )
        self._out = Outbox()

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
                    self._leadership.replication.unreachable(message.node)
            case SnapshotSent():
                if self._leadership is not None:
                    self._leadership.replication.snapshot_sent(message.node, message.ok)
            case _:
                if sender != self.id:
                    self._step(message, sender)

    def wake(self, now: float) -> None:
        """Do what is due. Early or twice is harmless; late is noticed, and nobody is accused."""
        late = now - self.deadline
        self._now = max(self._now, now)
        was_late = late > self._settings.late_ratio * self._settings.election_timeout_max
        if was_late:
            self._out.notes.append(notes.LateWake(late))
        self._wake_leader(late if was_late else 0.0)
        if self._role is not Role.LEADER and self._now >= self._timer.deadline:
            if was_late or not self._can_stand():
                self._timer.rearm(self._now)
            else:
                self._stand()
        self._wake_stalled()
        self._out.dropped.extend(self._reads.expire(self._now, self._settings.election_timeout_max))

    @property
    def deadline(self) -> float:
        """When `wake` is next wanted [s]; inf if there is nothing to wait for."""
        due = math.inf
        if self._leadership is not None:
            due = min(self._leadership.heartbeat_deadline, self._leadership.quorum_deadline)
        elif configurations.is_voter(self._configuration, self.id):
            due = self._timer.deadline
        if self._reads.oldest is not None:
            due = min(due, self._reads.oldest + self._settings.election_timeout_max)
        return min(due, self._stall_deadline())

    def take(self) -> Effects:
        """Hand over, and forget, everything this turn wants done."""
        if self._leadership is not None:
            self._send_round()
            self._out.messages.extend(self._leadership.replication.appends(self._commit))
        state = HardState(self._term, self._vote, self._commit)
        persist = self._writes.hand_out(state, self.log, self._now)
        self._out.messages.extend(self._writes.hold(self.id))
        return self._out.take(persist, self._applying.hand_out(self._commit))

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
            return self._leadership.propose(data, self._now)
        if leader_only or self._leader is None:
            return Dropped("not_leader" if self._leader else "no_leader", self._leader)
        for portion in portions(data, self._settings.append_bytes_max):
            self._out.send(self._leader, Propose(self._term, portion))
        return Forwarded(self._leader)

    def change(self, change: Change, now: float) -> Proposed | Dropped | Refused:
        """Change the configuration; one change at a time, leader only.

        Several items go through a joint configuration, which leaves by itself.
        """
        self._now = max(self._now, now)
        if self._leadership is None:
            return Dropped("not_leader" if self._leader else "no_leader", self._leader)
        return self._leadership.change(
            change, self._configuration, applied=self._applying.applied, now=self._now
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
                self._out.dropped.append(context)
            return
        number = None if self._leader is None else self._reads.ask(context, self._now)
        if self._leader is None or number is None:
            self._out.dropped.append(context)
            return
        self._out.send(self._leader, ReadIndex(self._term, number))

    def transfer(self, to: NodeId, now: float) -> None:
        """Hand the leadership to voter `to`; given up after E/2. Others ask the leader to."""
        self._now = max(self._now, now)
        if self._leadership is not None:
            self._start_transfer(self._leadership, to)
        elif self._leader is not None:
            self._out.send(self._leader, TransferLeader(self._term, to))

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
        assert mark.index <= self._applying.applied
        if self.log.compact(mark, first):
            self._out.notes.append(notes.Compacted(first))

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
        return (
            self._out.has_news
            or self._writes.has_promises
            or (leadership is not None and leadership.replication.has_wants)
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
            applied=self._applying.applied,
            applying=self._applying.handed,
            first_index=log.first_index,
            last_index=log.last_index,
            last_term=log.last_term,
            stable_index=log.stable,
            snapshot_index=log.mark.index if log.mark else Index(0),
            snapshot_term=log.mark.term if log.mark else Term(0),
            pending_snapshot=log.pending.index if log.pending else Index(0),
            configuration=self._configuration,
            pending_change=leadership.pending_change if leadership else Index(0),
            progress=follower_statuses(leadership.replication.progress) if leadership else {},
            transferee=leadership.transferee if leadership else None,
            uncommitted_bytes=leadership.uncommitted_bytes if leadership else 0,
            reads_pending=len(self._reads),
            last_leader_contact=self._timer.contact,
            deadline=self.deadline,
            stalled_since=self._writes.oldest if self._writes.is_stalled(self._now) else None,
            unpersisted=len(self._writes.batches),
        )

    def check(self) -> None:
        """Assert every invariant that one member can see."""
        self.log.check()
        self._reads.check()
        self._writes.check()
        self._applying.check(self._commit)
        configurations.check(self._configuration)
        assert self._term >= self._writes.handed.term
        assert self._term > 0 or not self._vote
        assert self._commit <= self.log.last_index
        assert (self._role is Role.LEADER) == (self._leadership is not None)
        assert (self._role in (Role.PRE_CANDIDATE, Role.CANDIDATE)) == (self._ballot is not None)
        assert self._role is not Role.PRE_CANDIDATE or self._leader is None
        assert self._role is not Role.CANDIDATE or self._vote == self.id
        assert (self._leader == self.id) == (self._role is Role.LEADER)
        if self._leadership is not None:
            self._leadership.check(self._configuration)
        assert all(node != self.id for node, _ in self._out.messages)

    # Terms.

    def _step(self, message: Message, sender: NodeId) -> None:
        # A request to the leader is as good from a member that is behind.
        match message:
            case Propose():
                if self._leadership is not None:
                    self._leadership.propose(message.data, self._now)
                return
            case ReadIndex():
                if self._leadership is not None:
                    self._reads.wait(Read(sender, message.context))
                return
            case TransferLeader():
                if self._leadership is not None:
                    self._start_transfer(self._leadership, message.to)
                return
            case PreVote() | Vote() if self._timer.is_deaf(
                message,
                term=self._term,
                role=self._role,
                leader=self._leader,
                stalled=self._writes.is_stalled(self._now, 2),
                now=self._now,
            ):
                return

        if message.term > self._term:
            self._step_up(message, sender)
        elif message.term < self._term:
            self._step_back(message, sender)
            return
        self._dispatch(message, sender)

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
                refused = PreVoteAnswer(self._term, False, *known(self.log, self._commit))
                self._writes.promise(sender, refused)
            case Append() | Heartbeat() if self._settings.check_quorum or self._settings.pre_vote:
                self._writes.promise(sender, AppendAnswer(self._term, Index(0)))

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
                    self._out.send(sender, HeartbeatAnswer(self._term, message.round))
            case Snapshot():
                if self._hear_leader(sender):
                    self._receive_snapshot(message.mark, sender)
            case AppendAnswer():
                self._receive_append_answer(message, sender)
            case HeartbeatAnswer():
                if self._leadership is not None:
                    self._leadership.replication.heard(sender)
                    self._reads.echo(sender, message.round)
                    self._confirm_reads()
            case TimeoutNow():
                if self._role is Role.FOLLOWER and self._can_stand():
                    self._become_candidate(force=True)
            case ReadIndexAnswer():
                context = self._reads.answered(message.context)
                if context is not None:
                    self._out.ready.append(ReadReady(context, message.index))
            case _:
                raise AssertionError(f"requests end before: {message}")

    # Roles.

    def _become_follower(self, term: Term, leader: NodeId | None, reason: str) -> None:
        if self._leadership is not None:
            self._out.notes.append(notes.SteppedDown(self._term, reason))
        self._set_term(term)
        self._set_role(Role.FOLLOWER)
        if leader is not None:
            self._timer.contact = self._now
        self._follow(leader)
        self._out.notes.append(notes.BecameFollower(term, leader))

    def _stand(self) -> None:
        if not self._settings.pre_vote:
            self._become_candidate(force=False)
            return
        self._set_role(Role.PRE_CANDIDATE)
        # Having given up on the leader is what lets us grant others a pre-vote.
        self._follow(None)
        self._out.notes.append(notes.BecamePreCandidate(self._term))
        self._ballot = Ballot(Term(self._term + 1), trial=True)
        question = self._ballot.question(self.log, self._commit)
        for voter in self._other_voters():
            self._out.send(voter, question)
        self._count(self.id, granted=True)

    def _become_candidate(self, *, force: bool) -> None:
        self._set_term(Term(self._term + 1))
        self._vote = self.id
        self._set_role(Role.CANDIDATE)
        self._follow(None)
        self._out.notes.append(notes.BecameCandidate(self._term))
        self._ballot = Ballot(self._term, trial=False)
        # The own vote counts when it is durable, and nobody is asked before.
        self._writes.promise(self.id, VoteAnswer(self._term, granted=True))
        question = self._ballot.question(self.log, self._commit, force=force)
        for voter in self._other_voters():
            self._writes.promise(voter, question)

    def _become_leader(self) -> None:
        self._set_role(Role.LEADER)
        self._leadership = Leadership(
            self.id,
            self.log,
            self._configuration,
            term=self._term,
            settings=self._settings,
            notes=self._out.notes,
            now=self._now,
        )
        self._follow(self.id)
        self._out.notes.append(notes.BecameLeader(self._term))
        self._leadership.begin(self._now)

    def _set_term(self, term: Term) -> None:
        assert term >= self._term
        if term > self._term:
            self._term, self._vote = term, NOBODY
            self._out.notes.append(notes.TermChanged(term))

    def _set_role(self, role: Role) -> None:
        self._role = role
        self._ballot = None
        self._leadership = None
        self._out.dropped.extend(self._reads.drop())
        self._timer.rearm(self._now)

    def _follow(self, leader: NodeId | None) -> None:
        if leader != self._leader:
            self._leader = leader
            self._out.dropped.extend(self._reads.drop())
            self._out.notes.append(notes.LeaderChanged(leader, self._term))

    def _hear_leader(self, sender: NodeId) -> bool:
        """Take note that the leader of this term lives; False if we lead it, which cannot be."""
        if self._role is Role.LEADER:
            return False
        if self._role is not Role.FOLLOWER:
            self._become_follower(self._term, sender, "")
        if sender != self._leader:
            self._follow(sender)
        self._timer.heard(self._now)
        return True

    # Elections.

    def _can_stand(self) -> bool:
        """Return whether candidacy is safe and sensible.

        With a committed change not yet applied two leaders could be elected by
        majorities that do not meet (found by model checking, etcd-io/raft#456).
        """
        return (
            configurations.is_voter(self._configuration, self.id)
            and self.log.pending is None
            and not self._writes.is_stalled(self._now)
            and not self._applying.has_configuration(self._commit)
        )

    def _receive_question(self, asked: PreVote | Vote, sender: NodeId) -> None:
        self._commit_if_equal(asked.commit, asked.commit_term)
        state = HardState(self._term, self._vote, self._commit)
        answer = answer_to(asked, sender, state, leader=self._leader, log=self.log)
        if answer.granted and isinstance(answer, VoteAnswer):
            self._vote = sender
            self._timer.postpone(self._now)
            self._out.notes.append(notes.VoteGranted(self._term, sender))
        self._writes.promise(sender, answer)

    def _receive_vote(self, answer: PreVoteAnswer | VoteAnswer, sender: NodeId) -> None:
        if not answer.granted:
            self._commit_if_equal(answer.commit, answer.commit_term)
        if self._ballot is not None and self._ballot.is_answered_by(answer):
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

    def _commit_if_equal(self, commit: Index, term: Term) -> None:
        """Believe another's commit index if the entry there is the same one.

        Frees a member that cannot stand because it does not know that a change in
        its log is committed (etcd#12359).
        """
        if self._role is Role.LEADER or not term or self.log.term(commit) != term:
            return
        self._commit_to(commit)
        if self._ballot is not None and self._applying.has_configuration(self._commit):
            self._become_follower(self._term, None, "")

    # As follower.

    def _receive_append(self, message: Append, sender: NodeId) -> None:
        answer, cut = follow(self.log, message, self._commit)
        if cut is not None:
            self._out.notes.append(notes.Conflict(cut))
        if not answer.reject:
            # Not beyond what this message has shown to be equal: the rest may yet be cut.
            self._commit_to(min(message.commit, answer.index))
        self._writes.promise(sender, answer)

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
        self._writes.promise(sender, AppendAnswer(self._term, self._commit))

    def _restore(self, mark: SnapshotMark) -> None:
        self.log.restore(mark)
        self._applying.replaced()
        self._commit_to(mark.index)
        self._switch(mark.configuration, mark.index)

    # As leader.

    def _receive_append_answer(self, answer: AppendAnswer, sender: NodeId) -> None:
        leadership = self._leadership
        if leadership is None:
            return
        if not leadership.replication.answered(sender, answer, self._commit):
            return
        self._commit_by_counting(leadership)
        if sender == leadership.transferee and leadership.replication.has_everything(sender):
            self._out.send(sender, TimeoutNow(self._term))

    def _commit_by_counting(self, leadership: Leadership) -> None:
        index = leadership.replication.committed(self._configuration)
        if index is None or index <= self._commit:
            return
        committed = self.log.slice(Index(self._commit + 1), index)
        leadership.uncommitted_bytes -= sum(
            len(entry.data) for entry in committed if entry.term == self._term
        )
        self._commit_to(index)
        leadership.replication.tell_commit()

    def _wake_leader(self, late: float) -> None:
        leadership = self._leadership
        if leadership is None:
            return
        if not leadership.has_quorum(self._configuration, late=late, now=self._now):
            self._become_follower(self._term, None, "quorum")
        elif self._now >= leadership.heartbeat_deadline:
            self._send_heartbeats(leadership)

    def _send_heartbeats(self, leadership: Leadership) -> None:
        self._out.messages.extend(leadership.heartbeats(self._commit, self._reads.round, self._now))

    def _start_transfer(self, leadership: Leadership, to: NodeId) -> None:
        if leadership.start_transfer(to, self._configuration, self._now):
            self._out.send(to, TimeoutNow(self._term))

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
            self._out.notes.append(notes.ReadConfirmed(number, len(reads)))
            for read in reads:
                if read.requester is None:
                    self._out.ready.append(ReadReady(read.context, index))
                else:
                    self._out.send(read.requester, ReadIndexAnswer(self._term, read.context, index))

    # Committing and applying.

    def _commit_to(self, index: Index) -> None:
        if index > self._commit:
            assert index <= self.log.last_index
            self._commit = index
            self._out.notes.append(notes.Committed(index, self._term))

    def _have_applied(self, index: Index) -> None:
        if index <= self._applying.applied:
            return
        for entry in self._applying.done(index):
            self._switch(decode_configuration(entry.data), entry.index)
        if self._leadership is not None:
            self._leadership.leave_joint(self._configuration, applied=index, now=self._now)

    def _switch(self, configuration: Configuration, index: Index) -> None:
        """Let a configuration take effect, as each member does when it applies it."""
        voted = configurations.is_voter(self._configuration, self.id)
        self._configuration = configuration
        self._out.notes.append(notes.ConfigurationChanged(configuration, index))
        if not voted and configurations.is_voter(configuration, self.id):
            self._timer.rearm(self._now)
        leadership = self._leadership
        if leadership is None:
            return
        leadership.switch(configuration, self._now)
        if not configurations.is_voter(configuration, self.id):
            self._become_follower(self._term, None, "removed")
            return
        self._commit_by_counting(leadership)
        self._confirm_reads()

    # Durability.

    def _persisted(self, token: Token) -> None:
        for batch in self._writes.persisted(token, self._now):
            if batch.snapshot:
                self._restored(batch.snapshot)
            # Later terms may have cut the log and grown it again to the same length.
            if batch.term == self._term:
                self.log.persisted(batch.last, batch.last_term)
        for node, message in self._writes.released(token):
            if message.term < self._term:
                pass  # It tells of a log and a vote that may have been replaced since.
            elif node != self.id:
                self._out.send(node, message)
            else:
                self._dispatch(message, self.id)
        if self._leadership is not None:
            self._leadership.replication.acknowledge_own()
            self._commit_by_counting(self._leadership)

    def _restored(self, index: Index) -> None:
        """The machines stand at a received snapshot, whatever became of it since."""
        self.log.restored(index)
        self._out.notes.append(notes.SnapshotRestored(index))
        self._applying.restored(index)

    # Stalled disks.

    def _stall_deadline(self) -> float:
        if not self._writes.stall_told:
            return self._writes.stalls_at()
        if self._leadership is not None and self._other_voters():
            return self._writes.stalls_at(2)
        return math.inf

    def _wake_stalled(self) -> None:
        """Note a stalled disk; as leader hand over, and at twice the age stop leading.

        Heartbeats do not need the disk, so without this a leader that can commit
        nothing more would stay leader (hashicorp/raft#503). One that votes alone
        has nobody to make room for.
        """
        if not self._writes.is_stalled(self._now):
            return
        is_new = self._writes.tell_stall()
        if is_new:
            since = self._writes.oldest
            self._out.notes.append(notes.Stalled(since, self._now - since))
        leadership = self._leadership
        if leadership is None or not self._other_voters():
            return
        if self._writes.is_stalled(self._now, 2):
            self._become_follower(self._term, None, "stalled")
        elif is_new and leadership.transferee is None:
            heir = leadership.replication.best_heir(self._configuration)
            if heir is not None:
                self._start_transfer(leadership, heir)
