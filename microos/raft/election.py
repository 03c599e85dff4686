"""Who may lead: timeouts, who is granted a vote, and how an election stands.

    follower ──timeout──▶ pre-candidate ──majority would──▶ candidate ──majority did──▶ leader
        ▲                      │ lost                          │ lost
        └──────────────────────┴───────────────────────────────┘

The timeouts are drawn, so that seldom two stand at once. A pre-candidate asks
whether it would be voted for before it raises its term: one that was cut off and
returns disturbs nobody. Who has heard its leader lately refuses both.

Source: Ongaro, dissertation, §3.4, §3.6.1, §4.2.3, §9.6; etcd-io/raft, raft.go.
"""

from __future__ import annotations

import math
from enum import Enum

from microos.raft.entry import Configuration, HardState
from microos.raft.log import Log
from microos.raft.messages import PreVote, PreVoteAnswer, Vote, VoteAnswer
from microos.raft.quorum import Outcome, joint_outcome
from microos.settings import RaftSettings
from microos.types import Index, NodeId, Random, Term


class Role(Enum):
    """What a member does in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


def draw_timeout(timeout_max: float, random: Random) -> float:
    """Return a wait within [E/2, E) [s], where E is `timeout_max`."""
    return timeout_max / 2 * (1 + random.random())


class Timer:
    """How long a member waits for a leader, and to whom it is deaf meanwhile."""

    def __init__(
        self, settings: RaftSettings, random: Random, now: float, *, grant_after: float
    ) -> None:
        """Begin to wait.

        Args:
            settings: E, and whether majorities are checked.
            random: For timeouts.
            now: Own clock [s].
            grant_after: No vote is granted before, unless a leader hands over [s].
        """
        self._settings = settings
        self._random = random
        self._grant_after = grant_after
        self.contact = -math.inf
        """When a leader was last heard [s]; -inf: never."""
        self.rearm(now)

    def rearm(self, now: float) -> None:
        """Wait anew, for a time newly drawn."""
        self._timeout = draw_timeout(self._settings.election_timeout_max, self._random)
        self.deadline = now + self._timeout

    def postpone(self, now: float) -> None:
        """Wait anew, for the time drawn before: somebody else was granted a vote."""
        self.deadline = now + self._timeout

    def heard(self, now: float) -> None:
        """Wait anew, for the time drawn before: the leader lives."""
        self.contact = now
        self.deadline = now + self._timeout

    def is_deaf(
        self,
        asked: PreVote | Vote,
        *,
        term: Term,
        role: Role,
        leader: NodeId | None,
        stalled: bool,
        now: float,
    ) -> bool:
        """Return whether the question is not even answered.

        While a leader is heard nobody else can win, however high its term (§4.2.3);
        only the leader's own wish overrides. Who cannot write cannot promise.

        Args:
            asked: By another member.
            term: Own term.
            role: Own role.
            leader: Leader known in it.
            stalled: Nothing can be written here.
            now: Own clock [s].
        """
        if isinstance(asked, Vote) and asked.force:
            return False
        half = self._settings.election_timeout_max / 2
        in_lease = leader is not None and (role is Role.LEADER or now - self.contact < half)
        held = self._settings.check_quorum and in_lease and asked.term > term
        return held or now < self._grant_after or stalled


def may_grant(
    asked: PreVote | Vote,
    sender: NodeId,
    *,
    term: Term,
    vote: NodeId,
    leader: NodeId | None,
    log: Log,
) -> bool:
    """Return whether the rules let this member vote for `sender`.

    The asker's log must be at least as new, which is what makes every leader hold
    every committed entry (§3.6.1). A pre-vote for a later term is no promise, so
    who was voted for in this one does not matter to it.

    Args:
        asked: Its term is `term` or, in a `PreVote`, higher.
        sender: Who asks.
        term: Own term.
        vote: Own vote in it; empty: none.
        leader: Leader known in it.
        log: Own log.
    """
    free = vote == sender or (not vote and leader is None)
    ahead = isinstance(asked, PreVote) and asked.term > term
    return (free or ahead) and log.is_at_least(asked.last_index, asked.last_term)


def answer_to(
    asked: PreVote | Vote,
    sender: NodeId,
    state: HardState,
    *,
    leader: NodeId | None,
    log: Log,
) -> PreVoteAnswer | VoteAnswer:
    """Return the answer to `sender`. A granted `VoteAnswer` is the vote of this term.

    Args:
        asked: Its term is the own one or, in a `PreVote`, higher.
        sender: Who asks.
        state: Own term, vote and commit index, durable or not.
        leader: Leader known in this term.
        log: Own log.
    """
    granted = may_grant(asked, sender, term=state.term, vote=state.vote, leader=leader, log=log)
    if isinstance(asked, PreVote):
        if granted:
            return PreVoteAnswer(asked.term, granted=True)
        return PreVoteAnswer(state.term, False, *known(log, state.commit))
    if granted:
        return VoteAnswer(state.term, granted=True)
    return VoteAnswer(state.term, False, *known(log, state.commit))


def known(log: Log, commit: Index) -> tuple[Index, Term]:
    """Return the commit index and its term, to be told with questions and refusals."""
    return commit, log.term(commit) or Term(0)


class Ballot:
    """One running election, real or tried. Cleared with each change of role."""

    def __init__(self, term: Term, *, trial: bool) -> None:
        self.term = term
        """The term asked for."""
        self.trial = trial
        """A pre-vote."""
        self.votes: dict[NodeId, bool] = {}

    def question(self, log: Log, commit: Index, *, force: bool = False) -> PreVote | Vote:
        """Return what the other voters are to be asked.

        Args:
            log: Own log.
            commit: Own commit index.
            force: The leader wishes it. Not in a trial.
        """
        if self.trial:
            return PreVote(self.term, log.last_index, log.last_term, *known(log, commit))
        return Vote(self.term, log.last_index, log.last_term, *known(log, commit), force)

    def is_answered_by(self, answer: PreVoteAnswer | VoteAnswer) -> bool:
        """Return whether `answer` is one to this question."""
        if self.trial != isinstance(answer, PreVoteAnswer):
            return False
        # A grant of a trial is of the term asked for; that of an earlier one does not count.
        return not answer.granted or answer.term == self.term

    def record(self, voter: NodeId, granted: bool) -> None:
        """Count the first answer of `voter`; repeats change nothing."""
        self.votes.setdefault(voter, granted)

    def outcome(self, configuration: Configuration) -> Outcome:
        return joint_outcome(configuration, self.votes)
