from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from microos.raft.configuration import changed, check, is_joint, left, refusal
from microos.raft.entry import Change, Configuration
from microos.raft.quorum import Outcome, joint_outcome
from microos.types import NodeId
from tests.raft.network import configuration

NAMES = [NodeId(c) for c in "abcdef"]


@st.composite
def steady(draw: st.DrawFn) -> Configuration:
    voters = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=5))
    rest = [name for name in NAMES if name not in voters]
    learners = draw(st.lists(st.sampled_from(rest), unique=True, max_size=2)) if rest else []
    return configuration(voters, learners)


@st.composite
def changes(draw: st.DrawFn, most: int = 4) -> Change:
    chosen = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=most))
    kinds = [draw(st.integers(0, 2)) for _ in chosen]
    parts = [tuple(n for n, k in zip(chosen, kinds, strict=True) if k == kind) for kind in range(3)]
    return Change(*parts)


def majorities(one: Configuration) -> list[set[NodeId]]:
    """Return every set of members that can win an election in it."""
    members = one.members()
    return [
        set(chosen)
        for size in range(1, len(members) + 1)
        for chosen in combinations(members, size)
        if joint_outcome(one, {n: n in chosen for n in members}) is Outcome.WON
    ]


def assert_majorities_meet(one: Configuration, other: Configuration) -> None:
    assert all(a & b for a in majorities(one) for b in majorities(other))


@given(begin=steady(), change=changes())
@settings(max_examples=60, deadline=None)
def test_neighbouring_configurations_have_majorities_that_meet(
    begin: Configuration, change: Change
) -> None:
    assume(not refusal(begin, change))

    middle = changed(begin, change)
    end = left(middle)

    for each in (middle, end):
        check(each)
    assert_majorities_meet(begin, middle)
    assert_majorities_meet(middle, end)


@given(begin=steady(), change=changes())
@settings(max_examples=60, deadline=None)
def test_a_joint_change_ends_where_simple_changes_end(begin: Configuration, change: Change) -> None:
    assume(not refusal(begin, change))

    by_steps = begin
    # Additions first, so that no step is without voters.
    for step in (
        *(Change(add_voters=(n,)) for n in change.add_voters),
        *(Change(add_learners=(n,)) for n in change.add_learners),
        *(Change(remove=(n,)) for n in change.remove),
    ):
        if refusal(by_steps, step) != "unchanged":
            by_steps = changed(by_steps, step)
            assert not is_joint(by_steps)

    assert left(changed(begin, change)) == by_steps


def test_one_item_is_simple_and_several_are_joint() -> None:
    begin = configuration("abc")

    simple = changed(begin, Change(add_voters=(NodeId("d"),)))
    joint = changed(begin, Change(add_voters=(NodeId("d"),), remove=(NodeId("a"),)))

    assert simple == configuration("abcd")
    assert joint == Configuration(voters=configuration("bcd").voters, outgoing=begin.voters)


def test_a_demoted_voter_waits_until_its_half_has_ended() -> None:
    begin = configuration("abc")

    joint = changed(begin, Change(add_voters=(NodeId("d"),), add_learners=(NodeId("c"),)))

    assert joint.learners_next == ("c",)
    assert joint.learners == ()
    assert left(joint) == configuration("abd", "c")


@pytest.mark.parametrize(
    ("begin", "change", "reason"),
    [
        (configuration("a"), Change(remove=(NodeId("a"),)), "voters"),
        (configuration("a"), Change(add_learners=(NodeId("a"),)), "voters"),
        (configuration("a"), Change(add_voters=(NodeId("a"),)), "unchanged"),
        (configuration("ab"), Change(remove=(NodeId("z"),)), "unchanged"),
        (configuration("a"), Change(), "not_joint"),
        (configuration("ab"), Change(add_voters=(NodeId("c"),), remove=(NodeId("c"),)), "overlap"),
        (Configuration(voters=(NodeId("a"),), outgoing=(NodeId("b"),)), Change(), ""),
        (
            Configuration(voters=(NodeId("a"),), outgoing=(NodeId("b"),)),
            Change(add_voters=(NodeId("c"),)),
            "joint",
        ),
    ],
)
def test_an_impossible_change_is_refused_with_a_reason(
    begin: Configuration, change: Change, reason: str
) -> None:
    assert refusal(begin, change) == reason
