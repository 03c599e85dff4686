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

from microos.raft.entry import Configuration
from microos.raft.log import Log
from microos.raft.messages import PreVote, Vote
from microos.raft.quorum import Outcome, joint_outcome
from microos.types import NodeId, Random, Term


def draw_timeout(timeout_max: float, random: Random) -> float:
    """Return a wait within [E/2, E) [s], where E is `timeout_max`."""
    return timeout_max / 2 * (1 + random.random())


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


class Ballot:
    """One running election, real or tried. Cleared with each change of role."""

    def __init__(self, term: Term, *, trial: bool) -> None:
        self.term = term
        """The term asked for."""
        self.trial = trial
        """A pre-vote."""
        self.votes: dict[NodeId, bool] = {}

    def record(self, voter: NodeId, granted: bool) -> None:
        """Count the first answer of `voter`; repeats change nothing."""
        self.votes.setdefault(voter, granted)

    def outcome(self, configuration: Configuration) -> Outcome:
        return joint_outcome(configuration, self.votes)
