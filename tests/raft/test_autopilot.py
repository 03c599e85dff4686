"""The voter group follows the cluster, and never changes itself out of its majority."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.raft.autopilot import MemberView, ProgressView, Transfer, View, due
from microos.raft.bootstrap import voters_for
from microos.raft.configuration import changed, left, refusal
from microos.raft.entry import Change, Configuration
from microos.types import Index, NodeId

NOW = 1000.0
LONG_AGO = 100.0
COMMIT = Index(5000)
ALIVE = MemberView("alive", LONG_AGO)
SUSPECT = MemberView("suspect", NOW - 1.0)
DEAD = MemberView("dead", LONG_AGO)
FRESHLY_DEAD = MemberView("dead", NOW - 1.0)
LEFT = MemberView("left", NOW - 1.0)
HERE = ProgressView(COMMIT, True, NOW)
LAGGING = ProgressView(Index(1), True, NOW)
SILENT = ProgressView(COMMIT, False, LONG_AGO)


def ids(names: str) -> tuple[NodeId, ...]:
    return tuple(NodeId(name) for name in names)


def view(voters: str, learners: str = "", **members: MemberView) -> View:
    """Return what leader `a` sees: all are alive and caught up but those said otherwise.

    Who left still answers: it is removed before it stops.
    """
    known = {NodeId(name): ALIVE for name in voters + learners}
    known |= {NodeId(name): member for name, member in members.items()}
    return View(
        now=NOW,
        me=NodeId("a"),
        configuration=Configuration(voters=ids(voters), learners=ids(learners)),
        members=known,
        progress={n: SILENT if m.state == "dead" else HERE for n, m in known.items()},
        commit=COMMIT,
        own_term_committed=True,
        pending=False,
        healthy_since=LONG_AGO,
        dead_after=30.0,
    )


def change(add: str = "", learn: str = "", remove: str = "") -> Change:
    return Change(ids(add), ids(learn), ids(remove))


def test_nothing_is_due_in_a_whole_group() -> None:
    assert due(view("abc")) is None
    assert due(view("abc", "d")) is None
    assert due(view("abcde", "fg")) is None


def test_one_change_at_a_time_and_only_by_a_leader_of_this_term() -> None:
    wanting = view("abc", "de")
    joint = msgspec.structs.replace(wanting.configuration, outgoing=ids("ab"))

    assert due(wanting) is not None
    for blocked in (
        msgspec.structs.replace(wanting, pending=True),
        msgspec.structs.replace(wanting, own_term_committed=False),
        msgspec.structs.replace(wanting, configuration=joint),
    ):
        assert due(blocked) is None


def test_live_nodes_that_are_unknown_become_learners() -> None:
    assert due(view("a", e=ALIVE, d=ALIVE, f=DEAD, g=LEFT)) == change(learn="de")


def test_learners_that_left_or_are_dead_for_long_are_removed() -> None:
    assert due(view("abc", "def", d=DEAD, e=LEFT, f=FRESHLY_DEAD)) == change(remove="de")


@pytest.mark.parametrize(
    ("voters", "learners", "add"),
    [("a", "b", ""), ("a", "bc", "bc"), ("abc", "d", ""), ("abc", "de", "de"), ("ab", "c", "c")],
)
def test_learners_are_promoted_to_an_odd_number_of_voters(
    voters: str, learners: str, add: str
) -> None:
    assert due(view(voters, learners)) == (change(add) if add else None)


def test_only_learners_that_have_caught_up_and_stayed_are_promoted() -> None:
    lagging = view("a", "bc")
    late = {**lagging.progress, NodeId("c"): LAGGING}

    assert due(msgspec.structs.replace(lagging, progress=late)) is None
    assert due(view("a", "bc", c=MemberView("alive", NOW - 9.0))) is None
    assert due(view("a", "bc", c=MemberView("alive", LONG_AGO, eligible=False))) is None
    assert due(msgspec.structs.replace(view("a", "bc"), healthy_since=NOW - 9.0)) is None


@pytest.mark.criterion("SYNC-13")
def test_a_voter_dead_for_long_is_swapped_for_a_spare() -> None:
    assert due(view("abc", "d", c=DEAD)) == change("d", remove="c")
    assert due(view("abc", "d", c=FRESHLY_DEAD)) is None
    assert due(view("abc", c=DEAD)) is None


def test_a_voter_that_raft_still_hears_is_not_dead() -> None:
    heard = view("abc", "d", c=DEAD)
    progress = {**heard.progress, NodeId("c"): HERE}

    assert due(msgspec.structs.replace(heard, progress=progress)) is None


def test_five_voters_without_a_spare_shrink_when_two_are_dead() -> None:
    assert due(view("abcde", e=DEAD)) is None
    assert due(view("abcde", d=DEAD, e=DEAD)) == change(remove="de")
    assert due(view("abcde", "f", d=DEAD, e=DEAD)) == change("f", remove="d")


def test_a_dead_voter_of_four_is_dropped_because_three_survive_more() -> None:
    restless = msgspec.structs.replace(view("abcd", d=DEAD), healthy_since=NOW - 1.0)

    assert due(restless) == change(remove="d")


@pytest.mark.criterion("SYNC-13")
def test_a_voter_that_left_goes_at_once() -> None:
    fresh = msgspec.structs.replace(view("abc", "d", c=LEFT), healthy_since=NOW - 1.0)

    assert due(fresh) == change("d", remove="c")
    assert due(view("ab", b=LEFT)) == change(remove="b")
    assert due(view("abcde", e=LEFT)) == change(learn="d", remove="e")


def test_three_become_one_by_leaving_one_after_the_other() -> None:
    assert due(view("abc", c=LEFT)) == change(learn="b", remove="c")
    assert due(view("a", "b", b=LEFT)) == change(remove="b")
    assert due(view("a")) is None


def test_a_leader_that_leaves_hands_over_to_the_one_with_the_longest_log() -> None:
    leaving = view("abc", a=LEFT)
    behind = {**leaving.progress, NodeId("b"): ProgressView(Index(4999), True, NOW)}

    assert due(leaving) == Transfer(NodeId("b"))
    assert due(msgspec.structs.replace(leaving, progress=behind)) == Transfer(NodeId("c"))


def test_a_single_voter_that_leaves_is_swapped_for_a_learner() -> None:
    assert due(view("a", "bc", a=LEFT)) == change("b", remove="a")
    assert due(view("a", a=LEFT)) is None


def test_a_fixed_number_of_voters_is_kept() -> None:
    three = msgspec.structs.replace(view("abcde"), wanted=3)

    assert due(three) == change(learn="de")
    assert due(msgspec.structs.replace(view("abc", "de"), wanted=3)) is None


def test_the_leader_never_takes_the_vote_from_itself() -> None:
    led_by_the_last = msgspec.structs.replace(view("abcde"), wanted=3, me=NodeId("e"))

    assert due(led_by_the_last) == change(learn="cd")


def test_without_a_majority_nothing_is_proposed() -> None:
    assert due(view("abc", "de", b=DEAD, c=DEAD)) is None


NODES = "abcdefgh"
_members = st.sampled_from([ALIVE, ALIVE, ALIVE, SUSPECT, DEAD, DEAD, FRESHLY_DEAD, LEFT])
_eligible = st.sampled_from([True, True, True, False])


@st.composite
def views(draw: st.DrawFn, *, calm: bool = False) -> View:
    """Any group led by `a`. Calm: everyone is either there and caught up, or gone for long."""
    roles = {name: draw(st.sampled_from(["voter", "voter", "learner", "none"])) for name in NODES}
    roles["a"] = "voter"
    base = view(
        "".join(n for n in NODES if roles[n] == "voter"),
        "".join(n for n in NODES if roles[n] == "learner"),
        **{
            n: draw(st.sampled_from([ALIVE, ALIVE, DEAD, LEFT]) if calm else _members)
            for n in NODES
        },
    )
    members = {**base.members, NodeId("a"): ALIVE}
    wanted = draw(st.sampled_from([0, 0, 1, 3, 5]))
    if calm:
        gone = {n: HERE if m.state == "alive" else SILENT for n, m in members.items()}
        return msgspec.structs.replace(base, members=members, wanted=wanted, progress=gone)
    members = {n: msgspec.structs.replace(m, eligible=draw(_eligible)) for n, m in members.items()}
    members[NodeId("a")] = draw(st.sampled_from([ALIVE, ALIVE, LEFT]))
    progress = {n: draw(st.sampled_from([HERE, HERE, HERE, LAGGING, SILENT])) for n in members}
    return msgspec.structs.replace(
        base,
        members=members,
        progress=progress,
        wanted=wanted,
        healthy_since=draw(st.sampled_from([LONG_AGO, NOW - 1.0])),
    )


def after(seen: View, what: Change) -> Configuration:
    assert refusal(seen.configuration, what) == ""
    return left(changed(seen.configuration, what))


def useful(seen: View, nodes: Sequence[NodeId]) -> list[NodeId]:
    """Return those that are live and caught up, and stay."""
    return [
        node
        for node in nodes
        if seen.members[node].state in ("alive", "suspect")
        and (node == seen.me or seen.progress[node] == HERE)
    ]


@pytest.mark.prop
@settings(max_examples=150, deadline=None)
@given(views())
def test_no_change_costs_the_group_its_majority_or_its_leader(seen: View) -> None:
    what = due(seen)

    if isinstance(what, Transfer):
        assert seen.members[seen.me].state == "left"
        assert useful(seen, [what.to])
    if isinstance(what, Change):
        old, new = seen.configuration.voters, after(seen, what).voters
        assert new == old or 2 * len(useful(seen, new)) > len(new)
        assert len(useful(seen, [n for n in old if n not in new])) <= max(1, (len(old) - 1) // 2)
        assert seen.me in new or seen.members[seen.me].state == "left"
        assert len(useful(seen, what.add_voters)) == len(what.add_voters)
        assert all(seen.members[node].eligible for node in what.add_voters)
        assert len(new) <= max(5, len(old))


@pytest.mark.prop
@pytest.mark.criterion("SYNC-13")
@settings(max_examples=100, deadline=None)
@given(views(calm=True))
def test_every_group_with_a_majority_converges(seen: View) -> None:
    begun = seen.configuration.voters
    for _ in range(12):
        what = due(seen)
        assert not isinstance(what, Transfer)
        if what is None:
            break
        seen = msgspec.structs.replace(seen, configuration=after(seen, what))
    assert due(seen) is None
    if 2 * len(useful(seen, begun)) <= len(begun):
        assert seen.configuration.voters == begun
        return

    alive = [node for node, member in seen.members.items() if member.state == "alive"]
    voters, learners = seen.configuration.voters, seen.configuration.learners
    dead = [node for node in voters if node not in alive]
    assert sorted((*voters, *learners)) == sorted((*alive, *dead))
    assert len(voters) == voters_for(len(alive) + len(dead), seen.wanted)
    if dead:  # Kept, because nobody could take its place.
        assert len(dead) == 1
        assert learners == ()
        assert seen.members[dead[0]].state == "dead"
