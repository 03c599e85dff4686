from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from microos.raft.entry import Configuration
from microos.raft.quorum import (
    EVERYTHING,
    Outcome,
    joint_outcome,
    joint_reached,
    majority,
    outcome,
    reached,
)
from microos.types import NodeId

names = st.lists(st.sampled_from([NodeId(c) for c in "abcdefg"]), unique=True, max_size=7).map(
    lambda found: tuple(sorted(found))
)
votes = st.dictionaries(st.sampled_from([NodeId(c) for c in "abcdefg"]), st.booleans())
values = st.dictionaries(st.sampled_from([NodeId(c) for c in "abcdefg"]), st.integers(0, 9))


def test_any_two_majorities_meet() -> None:
    for count in range(1, 8):
        chosen = list(combinations(range(count), majority(count)))

        assert all(set(one) & set(other) for one in chosen for other in chosen)


def test_nobody_at_all_agrees_with_everything() -> None:
    assert outcome((), {}) is Outcome.WON
    assert reached((), {}) == EVERYTHING


@given(voters=names, votes=votes)
@settings(max_examples=100, deadline=None)
def test_an_election_is_decided_once_no_further_answer_can_change_it(
    voters: tuple[NodeId, ...], votes: dict[NodeId, bool]
) -> None:
    silent = [voter for voter in voters if voter not in votes]
    best = outcome(voters, {**votes, **dict.fromkeys(silent, True)})
    worst = outcome(voters, {**votes, **dict.fromkeys(silent, False)})

    expected = best if best is worst else Outcome.PENDING
    assert outcome(voters, votes) is expected


@given(voters=names.filter(bool), values=values)
@settings(max_examples=100, deadline=None)
def test_what_is_reached_is_the_most_that_a_majority_has(
    voters: tuple[NodeId, ...], values: dict[NodeId, int]
) -> None:
    def have(value: int) -> int:
        return sum(values.get(voter, 0) >= value for voter in voters)

    found = reached(voters, values)

    assert have(found) >= majority(len(voters)) > have(found + 1)


@given(voters=names, outgoing=names, votes=votes, values=values)
@settings(max_examples=100, deadline=None)
def test_a_joint_decision_is_one_of_both_halves(
    voters: tuple[NodeId, ...],
    outgoing: tuple[NodeId, ...],
    votes: dict[NodeId, bool],
    values: dict[NodeId, int],
) -> None:
    joint = Configuration(voters=voters, outgoing=outgoing)
    halves = {outcome(voters, votes), outcome(outgoing, votes)}

    found = joint_outcome(joint, votes)

    assert (found is Outcome.WON) == (halves == {Outcome.WON})
    assert (found is Outcome.LOST) == (Outcome.LOST in halves)
    assert joint_reached(joint, values) == min(reached(voters, values), reached(outgoing, values))
