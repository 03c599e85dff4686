"""The world's heap, chance, and arithmetic."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.sim.clock import Line
from microos.sim.world import (
    EXPONENTIAL,
    FAULT,
    MILLISECOND,
    SECOND,
    World,
    exponential,
    instant,
    log_uniform,
)

BITS = st.integers(0, 2**64 - 1)


def test_faults_come_first_in_their_instant_and_equals_in_order() -> None:
    world, seen = World(1), []
    for name in ("a", "b"):
        world.at(5, lambda name=name: seen.append(name))  # type: ignore[misc]
    world.at(5, lambda: seen.append("fault"), FAULT)

    world.run(10)

    assert seen == ["fault", "a", "b"]
    assert world.now == 10


def test_a_cancelled_event_never_happens() -> None:
    world, seen = World(1), []
    timer = world.at(5, lambda: seen.append(1))

    timer.cancel()
    world.run(10)

    assert (seen, world.next()) == ([], None)


def test_too_many_events_in_a_second_are_a_storm() -> None:
    world = World(1, events_per_second=100)

    def again() -> None:
        world.after(MILLISECOND, again)

    again()
    again()  # Two thousand events a second.
    world.run(SECOND)

    assert world.failure is not None
    assert world.failure.kind == "storm"


def test_the_first_failure_counts_and_ends_the_run() -> None:
    world = World(1)
    world.at(3, lambda: world.fail("safety", "first", ""))
    world.at(4, lambda: world.fail("liveness", "second", ""))

    world.run(10)

    assert world.failure is not None
    assert (world.failure.invariant, world.now) == ("first", 3)


def test_the_trace_hash_depends_on_time_and_content() -> None:
    a, b, c = World(1), World(1), World(1)
    a.trace("sent", "n1", "n2", b"x")
    b.trace("sent", "n1", "n2", b"y")
    c.advance(1)
    c.trace("sent", "n1", "n2", b"x")

    assert len({a.trace_hash(), b.trace_hash(), c.trace_hash()}) == 3


def test_the_exponential_table_is_the_logarithm() -> None:
    wanted = [-log((i + 0.5) / 4096) for i in range(4096)]

    assert [v / 2**24 for v in EXPONENTIAL] == pytest.approx(wanted, abs=1e-6)


@given(BITS, st.integers(1, 10**6), st.integers(1, 10**9))
@settings(max_examples=100)
def test_draws_stay_within_their_bounds(bits: int, low: int, mean: int) -> None:
    assert low <= log_uniform(bits, low, low * 1000) <= low * 1000
    assert 0 <= exponential(bits, mean) <= 10 * mean


@given(st.floats(0, 8_000_000))
@settings(max_examples=200)
def test_the_instant_of_a_deadline_is_the_first_that_has_reached_it(at: float) -> None:
    t = instant(at)

    assert t / 1e9 >= at
    assert t == 0 or (t - 1) / 1e9 < at


@given(st.integers(-100_000, 100_000), st.integers(0, 10 * SECOND), st.floats(0, 1_000_000))
@settings(max_examples=200)
def test_a_drifting_clock_wakes_nobody_early_and_nobody_a_nanosecond_late(
    ppm: int, offset: int, at: float
) -> None:
    line = Line(World(1), offset=offset, ppm=ppm)

    t = line.when(at)

    assert line.now_at(t) >= at
    assert t == 0 or line.now_at(t - 1) < at
