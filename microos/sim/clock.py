"""Time in the world: the clock trio runs on, and the clock each simulated node believes in.

`WorldClock` *is* the world: trio asks it how long to sleep exactly when no task is
runnable, and there the heap is popped. All events of the earliest instant run, they
reschedule tasks, and trio goes on. No task per packet, no pump (7.5 µs a packet
against 32 µs, measured).

`NodeClock` is a line through world time, with drift in parts per million, in integers:

    local = offset + (t - base) * (10**6 + ppm) // 10**6

A deadline d becomes the first nanosecond t with now_at(t) >= d, so a core that was
promised a deadline is never woken early and always finds it due.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

import trio

from microos.sim.world import SECOND, TIME_MAX, World, instant

MILLION = 1_000_000
WALL_BASE = 1_700_000_000
"""What the wall clocks show at the beginning, since 1970 [s]."""

Gate = Callable[[Callable[[], object]], None]


class WorldClock(trio.abc.Clock):
    """Trio's clock: world time, moved forward by running the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.scope = trio.CancelScope()
        """To be entered by the main task; cancelled when the world has failed."""
        self.blocked: Callable[[], str] = str
        """Says who waits where, for the report of a world in which nothing can happen."""
        self.over = False
        """The main task has ended: time stands still while trio takes itself down."""
        self.asked = 0
        """How often trio found no task runnable."""

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._world.now / 1e9

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Advance to the earliest event or deadline and return 0.

        No exception of an event may leave, trio would die of it. The one that does
        is the last resort against tasks that outlive a failed world.
        """
        self.asked += 1
        if self.over:
            return 0.0
        world = self._world
        if world.failure is not None and world.now > world.failure.at_ns + 10 * SECOND:
            raise RuntimeError(f"tasks outlive the failed world: {self.blocked()}")
        try:
            self._step(deadline)
        except Exception:
            world.fail("simulator", "exception", traceback.format_exc())
        if world.failure is not None:
            self.scope.cancel()
        return 0.0

    def _step(self, deadline: float) -> None:
        world = self._world
        due = world.next()
        native = None if deadline == inf else max(world.now, instant(deadline))
        if due is not None and (native is None or due <= native):
            world.run_instant()
        elif native is not None:
            world.advance(native)
        elif world.failure is None:
            world.fail("liveness", "deadlock", f"every task waits for ever: {self.blocked()}")
        else:
            world.advance(world.now + SECOND)


class Line:
    """How one machine's time runs: kept over the restarts of its processes.

    Args:
        offset: Its monotonic clock at world time 0 [ns].
        ppm: How much too fast it runs, in millionths. Range ±200_000.
    """

    def __init__(self, world: World, *, offset: int = 0, ppm: int = 0) -> None:
        assert abs(ppm) <= MILLION // 5
        assert 0 <= offset < TIME_MAX // 2
        self.world = world
        self.wall_offset = 0
        """Added to the wall clock: jumps, set by a fault [ns]."""
        self._offset = offset
        self._ratio = MILLION + ppm

    def local(self, time: int) -> int:
        """Return the machine's own nanoseconds at world time `time` [ns]."""
        return self._offset + time * self._ratio // MILLION

    def now_at(self, time: int) -> float:
        return self.local(time) / 1e9

    def now(self) -> float:
        return self.local(self.world.now) / 1e9

    def wall(self) -> float:
        return (WALL_BASE * SECOND + self.local(self.world.now) + self.wall_offset) / 1e9

    def when(self, at: float) -> int:
        """Return the first world time at which `now()` is at least `at` [ns]."""
        if self.now_at(0) >= at:
            return 0
        time = (instant(at) - self._offset) * MILLION // self._ratio
        while self.now_at(time) < at:
            time += 1
        while time > 0 and self.now_at(time - 1) >= at:
            time -= 1
        return time


class NodeClock:
    """`microos.clock.Clock` of one process: its machine's line, behind its gate."""

    def __init__(self, line: Line, gate: Gate) -> None:
        self._line = line
        self._world = line.world
        self._gate = gate
        self._never = line.now_at(TIME_MAX - 1)

    def now(self) -> float:
        return self._line.now()

    def wall(self) -> float:
        return self._line.wall()

    async def sleep_until(self, at: float) -> None:
        if self.now() >= at:
            await trio.lowlevel.checkpoint()
            return
        lot = trio.lowlevel.ParkingLot()
        undo = self.call_at(at, lot.unpark_all)
        try:
            await lot.park()
        finally:
            undo()

    @contextmanager
    def timeout_at(self, at: float) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            if self.now() >= at:
                scope.cancel()
            undo = self.call_at(at, scope.cancel)
            try:
                yield scope
            finally:
                undo()

    def call_at(self, at: float, fn: Callable[[], object]) -> Callable[[], None]:
        if at >= self._never:
            return _nothing
        alarm = _Alarm(fn)
        timer = self._world.at(self._line.when(at), lambda: self._gate(alarm))

        def undo() -> None:
            timer.cancel()
            alarm.fn = None

        return undo


class _Alarm:
    """A call that can be undone even while it waits at the gate."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[], object]) -> None:
        self.fn: Callable[[], object] | None = fn

    def __call__(self) -> None:
        fn, self.fn = self.fn, None
        if fn is not None:
            fn()


def _nothing() -> None:
    pass
