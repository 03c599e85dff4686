"""What a majority has decided, also when two majorities must agree.

A decision needs more than half of the voters; any two majorities share a member,
and that member is why two decisions never contradict each other. During a joint
change there are two sets of voters, and a decision needs a majority of each.

    voters   1  2  3  4  5          sorted descending    9 7 5 3 3
    value    9  3  7  5  3          the 3rd of 5 is what a majority reached: 5

An empty set of voters has nothing against anything: it has won, and it has
reached everything, so that a configuration that is not joint needs no case of
its own.

Source: Ongaro, "Consensus: Bridging Theory and Practice" (2014), §4.3; etcd-io/raft,
quorum/majority.go and quorum/joint.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from microos.raft.entry import Configuration
from microos.types import NodeId

EVERYTHING = 1 << 62
"""What no voters at all have reached."""


class Outcome(Enum):
    """How an election stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(count: int) -> int:
    """Return how many of `count` voters decide."""
    return count // 2 + 1


def outcome(voters: Sequence[NodeId], votes: Mapping[NodeId, bool]) -> Outcome:
    """Return how the vote of one set of voters stands; who has not answered may still.

    Args:
        voters: Distinct. Empty: won.
        votes: Answers so far; those of others do not count.
    """
    if not voters:
        return Outcome.WON
    wanted = majority(len(voters))
    granted = sum(votes.get(voter) is True for voter in voters)
    refused = sum(votes.get(voter) is False for voter in voters)
    if granted >= wanted:
        return Outcome.WON
    if len(voters) - refused < wanted:
        return Outcome.LOST
    return Outcome.PENDING


def reached(voters: Sequence[NodeId], values: Mapping[NodeId, int]) -> int:
    """Return the largest value that a majority is at or above; absent voters are at 0.

    Cost:
        O(v log v) of at most seven voters.
    """
    if not voters:
        return EVERYTHING
    ordered = sorted((values.get(voter, 0) for voter in voters), reverse=True)
    return ordered[majority(len(voters)) - 1]


def joint_outcome(configuration: Configuration, votes: Mapping[NodeId, bool]) -> Outcome:
    """Return how the vote stands over both halves: lost by one is lost, won is won by both."""
    halves = (outcome(configuration.voters, votes), outcome(configuration.outgoing, votes))
    if Outcome.LOST in halves:
        return Outcome.LOST
    return Outcome.WON if halves == (Outcome.WON, Outcome.WON) else Outcome.PENDING


def joint_reached(configuration: Configuration, values: Mapping[NodeId, int]) -> int:
    """Return the largest value that majorities of both halves are at or above."""
    return min(
        reached(configuration.voters, values),
        reached(configuration.outgoing, values),
    )
