from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos import hlc
from microos.hlc import HybridClock

walls = st.floats(1e9, 2e9)


@pytest.mark.prop
@given(st.lists(st.tuples(st.booleans(), walls, st.integers(0, 2**62)), max_size=40))
def test_stamps_only_rise_whatever_the_wall_does(steps: list[tuple[bool, float, int]]) -> None:
    clock = HybridClock()

    given_out, floor = -1, -1
    for ticks, wall, remote in steps:
        if ticks:
            stamp = clock.tick(wall)
            assert stamp > max(given_out, floor)
            assert hlc.seconds(stamp) >= int(wall * 1000) / 1000
            given_out = stamp
        elif clock.merge(remote, wall):
            floor = max(floor, remote)


@given(walls, walls)
def test_an_effect_is_stamped_after_its_cause(here: float, there: float) -> None:
    cause = HybridClock().tick(there)
    clock = HybridClock()

    believed = clock.merge(cause, here)

    assert believed == (int(there * 1000) <= int((here + hlc.AHEAD_MAX) * 1000))
    assert not believed or clock.tick(here) > cause


def test_a_clock_from_the_future_is_not_believed() -> None:
    clock = HybridClock()
    clock.tick(1000.0)
    before = clock.last

    assert not clock.merge(HybridClock().tick(1001.0), 1000.0)
    assert clock.merge(HybridClock().tick(1000.4), 1000.0)
    assert clock.last > before


def test_the_counter_carries_within_a_millisecond() -> None:
    clock = HybridClock()

    stamps = [clock.tick(1000.0) for _ in range(70_000)]

    assert stamps == list(range(stamps[0], stamps[0] + 70_000))
    assert hlc.seconds(stamps[-1]) == pytest.approx(1000.001)
