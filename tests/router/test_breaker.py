"""Circuits: when they open, whom they let through, how they close."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos.router.breaker import (
    SLOW_START,
    BreakerMoved,
    Circuits,
    Pass,
    State,
)
from microos.router.policy import Breaker


class Named(msgspec.Struct, frozen=True):
    node: str


class Evenly(random.Random):
    """Chance in the middle: jitter is a factor of 1."""

    def random(self) -> float:
        return 0.5


class Line:
    """The circuits of one endpoint, and a clock."""

    def __init__(self, count: int = 1, settings: Breaker | None = None) -> None:
        self.now = 100.0
        self.notes: list[BreakerMoved] = []
        self.settings = settings or Breaker()
        self.nodes = [Named(f"n{number}") for number in range(count)]
        self.circuits = Circuits("shop.buy", self.settings, Evenly(), self._observe)

    def _observe(self, note: object) -> None:
        assert isinstance(note, BreakerMoved)
        self.notes.append(note)

    def begin(self, number: int = 0) -> Pass:
        return self.circuits.begin(f"n{number}", self.now)

    def fail(self, times: int, number: int = 0, weight: float = 1.0) -> None:
        for _ in range(times):
            self.begin(number).failed(self.now, weight)
            self.circuits.check()

    def succeed(self, times: int, number: int = 0) -> None:
        for _ in range(times):
            self.begin(number).succeeded(self.now)
            self.circuits.check()

    def usable(self) -> Sequence[str]:
        return [named.node for named in self.circuits.usable(self.nodes, self.now)]

    def state(self, number: int = 0) -> State:
        return self.circuits.states()[f"n{number}"]

    def half_open(self, number: int = 0) -> Pass:
        """Open it, wait, and return its first probe."""
        self.fail(self.settings.consecutive, number)
        self.now += self.settings.cooldown
        return self.begin(number)


@pytest.mark.criterion("ROUT-6")
def test_five_failures_in_a_row_open_it() -> None:
    line = Line()

    line.fail(4)
    assert line.usable() == ["n0"]
    line.fail(1)

    assert line.usable() == []
    assert line.circuits.retry_after(line.nodes, line.now) == pytest.approx(1.0)
    assert line.notes == [BreakerMoved("shop.buy", "n0", "closed", "open", 1.0)]


def test_a_success_ends_a_row_of_failures() -> None:
    line = Line()

    line.fail(4)
    line.succeed(1)
    line.fail(4)

    assert line.state() is State.CLOSED


def test_a_refusal_of_a_busy_instance_is_half_a_failure() -> None:
    line = Line()

    line.fail(9, weight=0.5)
    assert line.state() is State.CLOSED
    line.fail(1, weight=0.5)

    assert line.state() is State.OPEN


def test_half_of_twenty_calls_open_it() -> None:
    line = Line()

    for _ in range(9):
        line.fail(1)
        line.succeed(1)
    line.succeed(1)
    assert line.state() is State.CLOSED
    line.fail(1)

    assert line.state() is State.OPEN


def test_fewer_calls_than_the_minimum_say_nothing() -> None:
    line = Line(settings=Breaker(minimum=21))

    for _ in range(10):
        line.fail(1)
        line.succeed(1)

    assert line.state() is State.CLOSED


def test_what_is_older_than_the_window_does_not_count() -> None:
    line = Line()

    for _ in range(9):
        line.succeed(1)
        line.fail(1)
    line.now += 10.0
    line.succeed(1)
    line.fail(1)

    assert line.state() is State.CLOSED


def test_the_half_before_still_counts() -> None:
    line = Line()

    for _ in range(9):
        line.succeed(1)
        line.fail(1)
    line.now += 5.0
    line.succeed(1)
    line.fail(1)

    assert line.state() is State.OPEN


@pytest.mark.criterion("ROUT-6")
@pytest.mark.parametrize("probes", [1, 3])
def test_half_open_lets_exactly_its_probes_through(probes: int) -> None:
    line = Line(settings=Breaker(probes=probes))
    line.half_open()

    for _ in range(probes - 1):
        assert line.usable() == ["n0"]
        line.begin()

    assert line.state() is State.HALF_OPEN
    assert line.usable() == []
    assert 0.0 < line.circuits.retry_after(line.nodes, line.now) <= 0.1


def test_a_probe_that_has_shown_nothing_makes_room_for_the_next() -> None:
    line = Line()
    probe = line.half_open()

    probe.dropped()
    probe.dropped()

    assert line.usable() == ["n0"]
    line.begin()
    assert line.usable() == []
    line.circuits.check()


@pytest.mark.criterion("ROUT-6")
def test_three_successes_close_it_into_a_slow_start() -> None:
    line = Line()
    line.half_open().succeeded(line.now)
    line.succeed(1)
    assert line.state() is State.HALF_OPEN
    line.succeed(1)

    assert line.state() is State.CLOSED
    assert line.circuits.penalties(line.now) == {"n0": pytest.approx(10.0)}
    line.now += SLOW_START / 2
    assert line.circuits.penalties(line.now) == {"n0": pytest.approx(1 / 0.55)}
    assert not line.circuits.are_quiet
    line.now += SLOW_START / 2
    assert line.circuits.penalties(line.now) == {}
    assert line.circuits.are_quiet
    assert [note.after for note in line.notes] == ["open", "half_open", "closed"]


@pytest.mark.criterion("ROUT-6")
def test_each_failed_probe_waits_twice_as_long_up_to_half_a_minute() -> None:
    line = Line()
    line.fail(5)
    waits = [line.notes[-1].wait]

    for _ in range(6):
        line.now += waits[-1]
        line.fail(1)
        waits.append(line.notes[-1].wait)

    assert waits == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0])


def test_after_closing_the_first_wait_is_short_again() -> None:
    line = Line()
    line.half_open().failed(line.now)
    line.now += 2.0
    line.succeed(3)

    line.fail(5)

    assert line.notes[-1].wait == pytest.approx(1.0)


def test_jitter_is_half_of_the_wait_either_way() -> None:
    waits = []
    for seed in range(200):
        line = Line()
        line.circuits.random = random.Random(seed)
        line.fail(5)
        waits.append(line.notes[-1].wait)

    assert 0.5 <= min(waits) < 0.55
    assert 1.45 < max(waits) <= 1.5


def test_an_answer_from_before_the_change_says_nothing_of_after_it() -> None:
    line = Line()
    early = [line.begin() for _ in range(10)]
    probe = line.half_open()

    for passing in early[:5]:
        passing.failed(line.now)
    for passing in early[5:]:
        passing.succeeded(line.now)

    assert line.state() is State.HALF_OPEN
    probe.succeeded(line.now)
    line.succeed(1)
    assert line.state() is State.HALF_OPEN


def test_only_the_first_outcome_of_a_call_counts() -> None:
    line = Line()
    passing = line.begin()

    passing.succeeded(line.now)
    for _ in range(10):
        passing.failed(line.now)

    assert line.state() is State.CLOSED


# Several instances.


def test_half_of_the_instances_may_be_out() -> None:
    line = Line(4)

    line.fail(5, 0)
    line.fail(5, 1)

    assert line.usable() == ["n2", "n3"]


def test_with_more_than_half_out_everybody_is_a_candidate_again() -> None:
    line = Line(4)

    for number in range(3):
        line.fail(5, number)

    assert line.usable() == ["n0", "n1", "n2", "n3"]


def test_calls_sent_in_panic_change_nothing_of_an_open_circuit() -> None:
    line = Line(3)
    for number in range(2):
        line.fail(5, number)

    line.succeed(5, 0)
    line.fail(5, 1)

    assert line.state(0) is line.state(1) is State.OPEN
    assert len(line.notes) == 2


@pytest.mark.criterion("ROUT-6")
def test_the_last_one_that_is_well_always_remains() -> None:
    line = Line(3, Breaker(eject_max=1.0))

    line.fail(5, 0)
    line.fail(5, 1)

    assert line.usable() == ["n2"]


def test_with_all_open_nobody_is_called_until_the_first_has_cooled() -> None:
    line = Line(2)
    line.fail(5, 0)
    line.now += 0.25
    line.fail(5, 1)

    assert line.usable() == []
    assert line.circuits.retry_after(line.nodes, line.now) == pytest.approx(0.75)
    line.now += 0.75
    assert line.usable() == ["n0"]
    line.begin(0)
    assert line.usable() == []


def test_in_panic_a_half_open_circuit_still_gives_its_probes_only() -> None:
    line = Line(4)
    line.half_open(0)
    line.fail(5, 1)
    line.fail(5, 2)
    line.fail(5, 3)
    assert line.usable() == []

    panicking = Line(4, Breaker(eject_max=0.0))
    panicking.half_open(0)
    panicking.fail(5, 1)

    assert panicking.usable() == ["n1", "n2", "n3"]


def test_a_forgotten_instance_leaves_nothing_behind() -> None:
    line = Line()
    passing = line.begin()
    line.fail(4)

    line.circuits.forget("n0")
    passing.failed(line.now)

    line.circuits.check()
    assert line.circuits.are_quiet
    assert line.circuits.states() == {}
    assert line.notes == []


# Any schedule.

STEP = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["begin", "succeed", "fail", "half", "drop", "wait", "forget"]),
    st.floats(0.0, 3.0),
)


@given(
    st.lists(STEP, max_size=120),
    st.integers(1, 2),
    st.integers(1, 4),
    st.floats(0.0, 1.0),
    st.integers(0, 1000),
)
def test_whatever_happens_the_rules_hold(
    steps: list[tuple[int, str, float]], probes: int, consecutive: int, eject: float, seed: int
) -> None:
    line = Line(4, Breaker(probes=probes, consecutive=consecutive, minimum=4, eject_max=eject))
    line.circuits.random = random.Random(seed)
    flying: list[tuple[int, Pass]] = []
    for number, step, pause in steps:
        usable = line.usable()
        if step == "begin" and f"n{number}" in usable:
            flying.append((number, line.begin(number)))
        elif step == "wait":
            line.now += pause
        elif step == "forget":
            line.circuits.forget(f"n{number}")
        elif flying and step != "begin":
            _, passing = flying.pop(number % len(flying))
            if step == "succeed":
                passing.succeeded(line.now)
            elif step == "drop":
                passing.dropped()
            else:
                passing.failed(line.now, 0.5 if step == "half" else 1.0)
        line.circuits.check()
        states = line.circuits.states()
        usable = line.usable()
        well = [n.node for n in line.nodes if states.get(n.node, State.CLOSED) is State.CLOSED]
        assert set(well) <= set(usable)
        open_ = [n for n in line.nodes if states.get(n.node) is State.OPEN]
        out = [n for n in open_ if n.node not in usable]
        assert not well or len(out) <= eject * len(line.nodes)
        if not usable:
            assert 0.0 < line.circuits.retry_after(line.nodes, line.now) <= 45.0
    moves = {(note.before, note.after) for note in line.notes}
    assert moves <= {
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
        ("half_open", "closed"),
    }
