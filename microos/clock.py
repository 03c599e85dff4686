"""Time, handed in. Everything that waits or measures takes a `Clock`, never trio or `time`.

A point in time is a float on the clock it was read from [s]; two nodes' clocks
have nothing to do with each other. `SystemClock` is the real one; the simulator
has its own (`microos.sim.clock`), which drifts, pauses and jumps as told.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import trio


class Clock(Protocol):
    """One node's own time."""

    def now(self) -> float:
        """Return the monotonic time [s]."""

    def wall(self) -> float:
        """Return seconds since 1970; may jump, so never for timeouts."""

    async def sleep_until(self, at: float) -> None:
        """Wait until `at`; always a checkpoint, also when `at` has passed."""

    def timeout_at(self, at: float) -> AbstractContextManager[trio.CancelScope]:
        """Return a scope that is cancelled at `at`, or when its user cancels it."""

    def call_at(self, at: float, fn: Callable[[], None]) -> Callable[[], None]:
        """Call `fn` at `at`, soon if that has passed; return what undoes it (harmless later)."""


class SystemClock:
    """The clock of the loop it runs in: tests with trio's own `MockClock` just work."""

    def __init__(self, spawn: Callable[..., None] | None = None) -> None:
        self._spawn = spawn or trio.lowlevel.spawn_system_task
        self._read: Callable[[], float] | None = None

    def now(self) -> float:
        # Hot path, several times a call: the loop's own clock is looked up once.
        if self._read is None:
            self._read = trio.lowlevel.current_clock().current_time
        return self._read()

    def wall(self) -> float:
        return time.time()

    async def sleep_until(self, at: float) -> None:
        await trio.sleep_until(at)

    def timeout_at(self, at: float) -> AbstractContextManager[trio.CancelScope]:
        return trio.move_on_at(at)

    def call_at(self, at: float, fn: Callable[[], None]) -> Callable[[], None]:
        scope = trio.CancelScope(deadline=math.inf)

        async def wait() -> None:
            with scope:
                await trio.sleep_until(at)
                fn()

        self._spawn(wait)
        return scope.cancel
