"""One timer per core: wakes it at its deadline, and costs nothing per message.

A core's deadline moves with every message; arming a timer each time would cost
more than the message. So one task sleeps until the deadline it saw last, and is
disturbed only when the deadline has moved *earlier*. If it has moved later, the
task finds nothing due and sleeps on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import trio

from microos.clock import Clock


class Alarm:
    """Calls `wake` whenever `deadline()` has come."""

    def __init__(
        self, clock: Clock, deadline: Callable[[], float], wake: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._deadline = deadline
        self._wake = wake
        self._armed = -1.0
        self._moved = trio.Event()

    def moved(self) -> None:
        """Say that the deadline may have changed. Call after each turn of the core."""
        if self._deadline() < self._armed:
            self._moved.set()

    async def run(self) -> NoReturn:
        while True:
            self._moved = trio.Event()
            self._armed = self._deadline()
            with self._clock.timeout_at(self._armed):
                await self._moved.wait()
            if self._clock.now() >= self._deadline():
                self._wake()
