"""The planner: what it waits for, what it never does, and that it always gets there."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from math import inf
from random import Random
from typing import Literal

import pytest

from microos.ring.epochs import (
    Applied,
    Command,
    Done,
    Gone,
    Pause,
    Propose,
    Resume,
    RingState,
    Settle,
)
from microos.ring.notes import CopiesLost, PlannerNote, RemovalsHeld
from microos.ring.planner import (
    REMOVAL_WINDOW,
    REMOVALS,
    SETTLE_GAP,
    Answered,
    Planner,
    Report,
    Seen,
    View,
)
from microos.ring.quorum import wanted
from microos.ring.ring import SET_BYTES, SLOTS, Owner, slot_set, slots_in
from microos.settings import RingSettings
from microos.types import BootId, Incarnation, NodeId, Revision
from tests.ring.log import Log, owner

SETTINGS = RingSettings(batch_window=1.0, batch_window_max=2.0, replace_after=10.0)
State = Literal["alive", "suspect", "dead", "left"]


class Leader:
    """A planner, the log it proposes to, and the nodes it hears of; time only by `run`."""

    def __init__(self, names: str = "", settings: RingSettings = SETTINGS) -> None:
        self.log = Log()
        self.settings = settings
        self.planner = Planner(settings)
        self.now = 100.0
        self.views: dict[str, View] = {}
        self.score = 0
        self.commands: list[tuple[float, Command]] = []
        self.notes: list[PlannerNote] = []
        self.answering = True
        for name in names:
            self.see(name)

    @property
    def state(self) -> RingState:
        return self.log.state

    def see(
        self,
        name: str,
        state: State = "alive",
        boot: int = 1,
        *,
        participate: bool = True,
        weight: int = 1,
        incarnation: int | None = None,
    ) -> None:
        view = self.views.get(name)
        since = view.since if view and (view.state, view.boot) == (state, boot) else self.now
        self.views[name] = View(
            NodeId(name),
            BootId(boot),
            Incarnation(boot if incarnation is None else incarnation),
            state,
            since,
            participate,
            weight,
        )
        self.tell()

    def tell(self) -> None:
        self.planner.receive(Seen(tuple(self.views.values()), self.score), self.now)
        self.step()

    def report(self, of: Owner, slots: bytes | None = None, revision: int | None = None) -> None:
        if slots is None:
            mine = [slot for slot in range(SLOTS) if of in self.state.next[slot]]
            slots = slot_set(mine)
        known = Revision(self.state.revision if revision is None else revision)
        self.planner.receive(Report(of, known, slots), self.now)
        self.step()

    def report_all(self) -> None:
        for of in self.state.owners():
            view = self.views.get(of.node)
            if view and view.boot == of.boot and view.state in ("alive", "suspect"):
                self.report(of)

    def apply(self, command: Command) -> Applied:
        applied = self.log.do(command)
        self.planner.receive(self.state, self.now)
        return applied

    def step(self) -> None:
        self.planner.wake(self.now)
        self.planner.check()
        effects = self.planner.take()
        self.notes += effects.notes
        if effects.command is not None:
            self.commands.append((self.now, effects.command))
            if self.answering:
                result = self.apply(effects.command).result
                self.planner.receive(Answered(isinstance(result, Done)), self.now)
                self.step()

    def run(self, seconds: float) -> list[Command]:
        """Let time pass; return what was submitted."""
        before, end = len(self.commands), self.now + seconds
        while self.planner.deadline <= end:
            assert self.planner.deadline >= self.now
            self.now = self.planner.deadline
            self.step()
        self.now = end
        return [command for _, command in self.commands[before:]]

    def members(self) -> str:
        return "".join(
            f"{member.node}{member.boot if member.boot > 1 else ''}"
            for member in self.state.members
        )


def ring_of(names: str) -> Leader:
    """Return a leader whose first epoch is agreed on, an hour ago."""
    leader = Leader(names)
    leader.run(10.0)
    assert leader.members() == names
    leader.run(3600.0)
    leader.commands.clear()
    return leader


# Batches.


def test_nodes_that_start_together_make_one_epoch() -> None:
    leader = Leader("a")
    for name in "bc":
        leader.run(0.9)
        leader.see(name)

    leader.run(0.15)
    assert leader.commands == []
    leader.run(10.0)

    assert [type(command) for _, command in leader.commands] == [Propose]
    assert leader.members() == "abc"
    assert leader.commands[0][0] == pytest.approx(102.0)


def test_one_change_waits_a_second_for_others() -> None:
    leader = ring_of("ab")
    leader.see("c")

    assert leader.run(0.99) == []
    assert [type(command) for command in leader.run(0.02)] == [Propose]


def test_epochs_are_two_seconds_apart() -> None:
    leader = ring_of("ab")
    leader.see("c")
    leader.run(1.0)
    leader.see("d")
    leader.run(5.0)

    times = [time for time, command in leader.commands if isinstance(command, Propose)]
    assert times[1] - times[0] == pytest.approx(2.0)


def test_a_change_taken_back_in_time_makes_no_epoch() -> None:
    leader = ring_of("ab")
    leader.see("c")
    leader.run(0.5)
    leader.see("c", "dead")

    assert leader.run(30.0) == []


def test_a_refuted_accusation_is_no_change() -> None:
    leader = ring_of("abc")
    leader.see("b", "suspect")
    leader.see("b", incarnation=2)

    assert leader.run(30.0) == []


def test_a_new_weight_is_a_change() -> None:
    leader = ring_of("abc")
    leader.see("b", weight=3)
    leader.run(2.0)

    assert [member.weight for member in leader.state.members] == [1, 3, 1]


def test_a_member_with_an_impossible_weight_stays_out() -> None:
    leader = ring_of("ab")
    leader.see("c", weight=99)

    assert leader.run(30.0) == []


def test_a_command_is_followed_only_when_it_is_over_and_later_if_it_failed() -> None:
    leader = ring_of("ab")
    leader.answering = False
    leader.see("c")
    assert len(leader.run(60.0)) == 1 and leader.planner.deadline == inf

    leader.planner.receive(Answered(False), leader.now)
    leader.step()
    assert leader.run(SETTLE_GAP - 0.01) == []
    assert [type(command) for command in leader.run(0.02)] == [Propose]


# Who takes part.


def test_who_is_suspect_neither_enters_nor_leaves_nor_is_waited_for() -> None:
    leader = ring_of("abc")
    leader.see("b", "suspect")
    leader.see("x", "suspect")
    leader.see("d")
    for _ in range(20):
        leader.run(0.1)
        leader.see("b", "suspect", incarnation=2)

    assert leader.members() == "abcd"


def test_a_suspect_new_boot_enters_once_it_is_alive() -> None:
    leader = ring_of("abc")
    leader.see("b", "suspect", boot=2)
    assert leader.run(10.0) == []

    leader.see("b", boot=2)
    leader.run(2.0)

    assert leader.members() == "ab2c"


def test_only_who_says_so_takes_part_and_whoever_stops_goes_at_once() -> None:
    leader = ring_of("abc")
    leader.see("x", participate=False)
    leader.see("c", participate=False)
    leader.run(1.0)

    assert leader.members() == "ab"
    assert leader.state.gone == {}


def test_a_restarted_member_is_replaced_by_its_new_boot_at_once() -> None:
    leader = ring_of("abc")
    leader.see("b", boot=2)
    leader.run(1.0)

    assert leader.members() == "ab2c"
    assert [*leader.state.gone] == [owner("b")]


def test_news_older_than_the_ring_changes_nothing() -> None:
    leader = ring_of("abc")
    leader.see("b", boot=2)
    leader.run(1.0)
    leader.report_all()
    leader.run(5.0)
    leader.commands.clear()

    old: State
    for old in ("alive", "suspect", "dead", "left"):
        leader.see("b", old, boot=1)
        assert leader.run(300.0) == []
    assert leader.members() == "ab2c"


def test_who_left_is_removed_at_once_and_named_gone() -> None:
    leader = ring_of("abcd")
    leader.see("d", "left")
    (command,) = leader.run(1.0)

    assert isinstance(command, Propose) and command.gone == (owner("d"),)
    assert leader.members() == "abc"


def test_who_leaves_after_its_removal_is_named_gone_as_well() -> None:
    leader = ring_of("abcd")
    leader.see("d", participate=False)
    leader.run(1.0)
    assert leader.state.gone == {}

    leader.see("d", "left")
    leader.run(5.0)

    assert [*leader.state.gone] == [owner("d")]
    assert leader.run(60.0) == []


def test_who_has_restarted_and_takes_part_no_more_is_named_gone() -> None:
    """A slot of which it kept the last copy would wait for the old boot for ever."""
    leader = ring_of("abcd")
    leader.see("d", participate=False)
    leader.run(1.0)
    assert leader.state.gone == {}

    leader.see("d", boot=2, participate=False)
    leader.run(5.0)

    assert [*leader.state.gone] == [owner("d")]
    assert leader.run(60.0) == []


def test_a_leave_of_a_boot_nobody_knew_counts_by_its_incarnation() -> None:
    leader = ring_of("abc")
    leader.see("c", "left", boot=0, incarnation=5)
    leader.run(1.0)

    assert [*leader.state.gone] == [owner("c")]


def test_the_last_member_is_never_removed() -> None:
    leader = ring_of("a")
    leader.see("a", "dead")
    leader.see("b", participate=False)

    assert leader.run(300.0) == []


# The dead.


@pytest.mark.parametrize(("score", "wait"), [(0, 10.0), (2, 30.0), (3, 40.0)])
def test_the_dead_are_replaced_later_the_worse_the_leader_feels(score: int, wait: float) -> None:
    leader = ring_of("abc")
    leader.score = score
    leader.see("b", "dead")

    assert leader.run(wait + 0.99) == []
    leader.run(0.02)
    assert leader.members() == "ac"


def test_a_leader_in_bad_health_removes_nobody_and_does_the_rest() -> None:
    leader = ring_of("abc")
    leader.score = 4
    leader.see("b", "dead")
    leader.see("d")
    leader.run(600.0)
    assert leader.members() == "abcd"

    leader.score = 0
    leader.tell()
    leader.run(1.0)
    assert leader.members() == "acd"


def test_a_member_that_gossip_has_forgotten_is_dead_since_it_was_missed() -> None:
    leader = ring_of("abc")
    del leader.views["b"]
    leader.tell()

    assert leader.run(10.9) == []
    leader.run(0.2)
    assert leader.members() == "ac"


def test_most_of_the_ring_is_not_removed_at_once() -> None:
    leader = ring_of("abcde")
    for name in "cde":
        leader.see(name, "dead")
        leader.run(3.0)

    assert leader.run(60.0) == [Pause(REMOVALS)]
    assert leader.members() == "abcde"
    assert leader.notes == [RemovalsHeld((NodeId("c"), NodeId("d"), NodeId("e")), 2)]
    assert leader.run(600.0) == []


def test_nor_one_after_the_other() -> None:
    leader = ring_of("abcde")
    for name in "cd":
        leader.see(name, "dead")
    leader.run(20.0)
    assert leader.members() == "abe"
    leader.see("e", "dead")

    assert leader.run(20.0) == [Pause(REMOVALS)]


def test_a_second_of_five_may_follow_the_first() -> None:
    leader = ring_of("abcde")
    for name in "cd":
        leader.see(name, "dead")
        leader.run(20.0)

    assert leader.members() == "abe"


def test_a_minute_later_the_limit_is_counted_anew() -> None:
    leader = ring_of("abcde")
    for name in "cd":
        leader.see(name, "dead")
    leader.run(12.0)
    leader.run(REMOVAL_WINDOW - SETTINGS.replace_after)
    leader.see("e", "dead")
    leader.run(20.0)

    assert leader.members() == "ab"


def test_the_planners_own_pause_ends_when_all_are_back() -> None:
    leader = ring_of("abcde")
    for name in "cde":
        leader.see(name, "dead")
    leader.run(60.0)
    for name in "cd":
        leader.see(name)
    assert leader.run(60.0) == []

    leader.commands.clear()
    leader.see("e", boot=2)
    leader.run(5.0)

    assert [type(command) for _, command in leader.commands] == [Resume, Propose]
    assert leader.members() == "abcde2"


def test_an_operators_pause_holds_until_the_operator_resumes() -> None:
    leader = ring_of("abc")
    leader.apply(Pause("operator"))
    leader.see("d")
    assert leader.run(60.0) == []

    leader.apply(Resume())
    leader.run(2.0)

    assert leader.members() == "abcd"


def test_who_an_operator_says_is_gone_is_left_out_at_once_and_may_return() -> None:
    leader = ring_of("abcd")
    leader.apply(Gone((owner("d"),)))
    leader.run(2.0)
    assert leader.members() == "abc"
    leader.report_all()

    leader.run(10.0)

    assert leader.members() == "abcd"


def test_a_gone_member_is_not_waited_for_whatever_gossip_says() -> None:
    leader = ring_of("abcd")
    leader.see("d", "suspect")
    leader.apply(Gone((owner("d"),)))
    leader.run(2.0)

    assert leader.members() == "abc"


# Settling.


def joining() -> Leader:
    """Return a leader whose ring of a, b, c is taking in d."""
    leader = ring_of("abc")
    leader.see("d")
    leader.run(1.0)
    assert leader.state.joint()
    return leader


def test_slots_settle_once_every_living_owner_of_next_is_synced() -> None:
    leader = joining()
    for name in "abc":
        leader.report(owner(name))
    leader.run(60.0)
    joint = leader.state.joint()
    assert all(owner("d") in leader.state.next[slot] for slot in joint) and joint

    leader.report(owner("d"))

    leader.run(1.0)
    assert leader.state.joint() == ()


def test_the_dead_are_not_waited_for_and_a_quorum_is() -> None:
    leader = joining()
    leader.see("a", "dead")
    leader.see("b", "suspect")
    for name in "cd":
        leader.report(owner(name))
    leader.run(1.0)
    # With b unheard and alive for all we know, only the rows without it can settle.
    assert all(owner("b") in leader.state.next[slot] for slot in leader.state.joint())

    leader.see("b", "dead")
    leader.run(1.0)

    for slot in leader.state.joint():
        living = [o for o in leader.state.next[slot] if o.node in ("c", "d")]
        assert len(living) < wanted(3)


def test_an_owner_newer_than_what_gossip_knows_is_waited_for() -> None:
    leader = ring_of("abc")
    leader.see("b", boot=2)
    leader.run(1.0)
    leader.see("b", "dead", boot=1)
    for name in "ac":
        leader.report(owner(name))
    leader.run(5.0)
    assert leader.state.joint()

    leader.report(owner("b", 2))
    leader.run(1.0)

    assert leader.state.joint() == ()


def test_a_report_counts_only_for_positions_its_sender_knew() -> None:
    leader = joining()
    joint = len(leader.state.joint())
    everything = b"\xff" * SET_BYTES
    for name in "abcd":
        leader.report(owner(name), everything, revision=leader.state.revision - 1)
    leader.run(5.0)
    assert len(leader.state.joint()) == joint

    for name in "abcd":
        leader.report(owner(name), everything)

    leader.run(1.0)
    assert leader.state.joint() == ()


def test_the_newest_report_of_an_owner_counts() -> None:
    leader = joining()
    joint, revision = len(leader.state.joint()), leader.state.revision
    for name in "abcd":
        leader.report(owner(name), bytes(SET_BYTES), revision + 1)
        leader.report(owner(name), b"\xff" * SET_BYTES, revision)
        leader.report(owner(name), b"\xff", revision + 2)

    leader.run(5.0)
    assert len(leader.state.joint()) == joint


def test_settling_comes_in_bunches() -> None:
    leader = joining()
    joint = leader.state.joint()
    bunches = [slot_set(joint[: 10 * count]) for count in range(1, 6)]
    for bunch in bunches:
        for name in "abcd":
            leader.report(owner(name), bunch)
        leader.run(0.1)
    leader.run(1.0)

    times = [time for time, command in leader.commands if isinstance(command, Settle)]
    assert len(times) >= 2
    assert all(later - earlier >= SETTLE_GAP for earlier, later in pairwise(times))
    assert len(leader.state.joint()) == len(joint) - 50


def test_a_slot_most_of_whose_owners_are_gone_settles_as_lossy() -> None:
    leader = ring_of("abcd")
    ab = {owner("a"), owner("b")}
    both = [slot for slot, row in enumerate(leader.state.current) if ab <= {*row}]
    assert 0 < len(both) < SLOTS
    for name in "ab":
        leader.see(name, boot=2)
    leader.run(1.0)
    leader.report_all()
    leader.run(1.0)

    assert leader.state.joint() == ()
    lost = [note for note in leader.log.notes if isinstance(note, CopiesLost)]
    assert all(note.owners == (owner("a"), owner("b")) for note in lost)
    assert sorted(slot for note in lost for slot in note.slots) == both


def test_one_survivor_of_two_has_every_acknowledged_write() -> None:
    leader = ring_of("ab")
    leader.see("b", boot=2)
    leader.run(1.0)
    leader.report_all()
    leader.run(1.0)

    assert leader.state.joint() == ()
    assert not [note for note in leader.log.notes if isinstance(note, CopiesLost)]


# Any schedule.


class Schedule:
    """Nodes that come, stall, die, restart and leave at random; everyone synced reports."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.leader = Leader("abcde")
        self.boots = dict.fromkeys("abcdefg", 1)
        self.removed: deque[tuple[float, int, int]] = deque()

    def disturb(self) -> None:
        leader, chance = self.leader, self.chance
        name = chance.choice("abcdefg")
        was = leader.views.get(name)
        boot = self.boots[name]
        match chance.randrange(8):
            case 0 | 1 if was is not None and was.state in ("alive", "suspect"):
                leader.see(name, "suspect", boot)
            case 2 if was is not None and was.state == "suspect":
                leader.see(name, "dead", boot)
            case 3 | 4 | 5 if was is None or was.state != "left":
                leader.see(name, "alive", boot)
            case 6:
                self.boots[name] += 1
                leader.see(name, "alive", self.boots[name])
            case 7 if was is not None and chance.random() < 0.3:
                leader.see(name, chance.choice(("left", "dead")), boot)
            case _:
                leader.score = chance.choice((0, 0, 1, 5))
                leader.tell()
        if chance.random() < 0.5:
            leader.report_all()

    def judge(self, before: RingState, views: dict[str, View], command: Command) -> None:
        leader = self.leader
        if isinstance(command, Propose):
            old = {member.node: member for member in before.members}
            new = {member.node: member for member in command.members}
            for name, view in views.items():
                node = NodeId(name)
                if view.state == "suspect" and not (node in old and old[node].owner in before.gone):
                    assert new.get(node) == old.get(node)
                if view.state in ("dead", "left"):
                    assert node not in new or node in old
            dead = [n for n in old if n not in new and views[n].state == "dead"]
            if dead:
                assert leader.score < 4
                self.removed.append((leader.now, len(dead), len(old)))
            while self.removed and self.removed[0][0] <= leader.now - REMOVAL_WINDOW:
                self.removed.popleft()
            if self.removed:
                most = max(size for _, _, size in self.removed) + sum(n for _, n, _ in self.removed)
                assert sum(count for _, count, _ in self.removed) <= max(1, (most - 1) // 2)
        if isinstance(command, Settle):
            lossy = {*slots_in(command.lossy)}
            for slot in slots_in(command.slots):
                row = before.next[slot]
                assert row
                living = [
                    o
                    for o in row
                    if views[o.node].boot == o.boot and views[o.node].state in ("alive", "suspect")
                ]
                assert len(living) >= wanted(len(row))
                former = before.current[slot]
                survivors = [o for o in former if o not in before.gone]
                assert (slot in lossy) == (len(survivors) < {1: 1, 2: 1, 3: 2}[len(former)])


@pytest.mark.prop
@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_rules_hold_and_quiet_settles_everything(seed: int) -> None:
    schedule = Schedule(seed)
    leader = schedule.leader
    judged = leader.apply

    def apply(command: Command) -> Applied:
        schedule.judge(leader.state, dict(leader.views), command)
        return judged(command)

    leader.apply = apply  # type: ignore[method-assign]
    for _ in range(80):
        schedule.disturb()
        leader.run(schedule.chance.choice((0.05, 0.5, 1.5, 6.0)))
    for name in leader.views:
        schedule.boots[name] += 1
        leader.see(name, "alive", schedule.boots[name])
    leader.score = 0
    leader.tell()
    for _ in range(4):
        leader.run(5.0)
        leader.report_all()
    leader.run(5.0)

    assert leader.state.joint() == ()
    assert [member.owner for member in leader.state.members] == [
        owner(name, schedule.boots[name]) for name in sorted(leader.views)
    ]
    assert leader.state.gone == {}
    assert leader.state.paused == ""
    assert leader.planner.deadline == inf
