"""The system's clock, on trio's own mock: what every `Clock` promises."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from microos.clock import Clock, SystemClock


@pytest.fixture
def clock() -> Clock:
    return SystemClock()


async def test_it_sleeps_until_exactly_then(clock: Clock, autojump_clock: MockClock) -> None:
    began = clock.now()

    await clock.sleep_until(began + 3600.0)

    assert clock.now() == pytest.approx(began + 3600.0)


async def test_a_timeout_cancels_at_its_time(clock: Clock, autojump_clock: MockClock) -> None:
    began = clock.now()

    with clock.timeout_at(began + 5.0) as scope:
        await clock.sleep_until(math.inf)

    assert scope.cancelled_caught
    assert clock.now() == pytest.approx(began + 5.0)


async def test_a_timeout_that_is_not_reached_does_nothing(
    clock: Clock, autojump_clock: MockClock
) -> None:
    with clock.timeout_at(clock.now() + 5.0) as scope:
        await clock.sleep_until(clock.now() + 4.0)

    assert not scope.cancelled_caught


async def test_a_time_gone_by_still_lets_others_run(
    clock: Clock, autojump_clock: MockClock
) -> None:
    ran = []
    async with trio.open_nursery() as nursery:

        async def other() -> None:
            ran.append(True)

        nursery.start_soon(other)
        await clock.sleep_until(clock.now() - 1.0)
        await clock.sleep_until(clock.now() - 1.0)
        assert ran == [True]


async def test_calls_come_in_the_order_of_their_times(
    clock: Clock, autojump_clock: MockClock
) -> None:
    called: list[str] = []
    now = clock.now()

    clock.call_at(now + 2.0, lambda: called.append("second"))
    clock.call_at(now + 1.0, lambda: called.append("first"))
    clock.call_at(now - 1.0, lambda: called.append("overdue"))
    await clock.sleep_until(now + 3.0)

    assert called == ["overdue", "first", "second"]


async def test_an_undone_call_never_comes(clock: Clock, autojump_clock: MockClock) -> None:
    called: list[str] = []

    undo = clock.call_at(clock.now() + 1.0, lambda: called.append("never"))
    kept = clock.call_at(clock.now() + 1.0, lambda: called.append("kept"))
    undo()
    undo()
    await clock.sleep_until(clock.now() + 2.0)
    kept()

    assert called == ["kept"]


async def test_wall_time_is_since_1970(clock: Clock) -> None:
    assert clock.wall() > 1.7e9
