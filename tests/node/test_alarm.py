"""One timer for a deadline that moves."""

from __future__ import annotations

import trio
import trio.testing

from microos.clock import SystemClock
from microos.node.alarm import Alarm


class Core:
    """Has a deadline; notes when it was woken."""

    def __init__(self, clock: SystemClock, deadline: float, period: float) -> None:
        self.clock = clock
        self.deadline = clock.now() + deadline
        self.period = period
        self.woken: list[float] = []

    def wake(self) -> None:
        self.woken.append(self.clock.now())
        self.deadline = self.clock.now() + self.period


async def test_it_wakes_at_each_deadline(autojump_clock: trio.testing.MockClock) -> None:
    core = Core(SystemClock(), 1.0, 2.0)
    begun = trio.current_time()
    alarm = Alarm(core.clock, lambda: core.deadline, core.wake)

    with trio.move_on_after(6.0):
        await alarm.run()

    assert [at - begun for at in core.woken] == [1.0, 3.0, 5.0]


async def test_a_deadline_moved_earlier_is_kept_and_one_moved_later_wakes_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    core = Core(SystemClock(), 100.0, 1000.0)
    begun = trio.current_time()
    alarm = Alarm(core.clock, lambda: core.deadline, core.wake)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        await trio.sleep(1.0)
        core.deadline = begun + 5.0
        alarm.moved()
        await trio.sleep(1.0)
        core.deadline = begun + 50.0
        alarm.moved()
        await trio.sleep(100.0)
        nursery.cancel_scope.cancel()

    assert [at - begun for at in core.woken] == [50.0]
