"""The gate of a process: through it passes every wake-up from outside.

A paused process finds them all waiting when it goes on, in order, after time has
jumped; a slow one gets each of them late; a dead one gets none. Only timers still ring
for the dead, so that a shielded clean-up with a deadline ends, unheard by anybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from microos.sim.world import World


class Gate:
    """Open, paused, slow or dead."""

    def __init__(self, world: World) -> None:
        self.delay = 0
        """How late every wake-up comes: an overloaded process [ns]."""
        self.dead = False
        self.paused = False
        self._world = world
        self._waiting: deque[tuple[Callable[[], object], bool]] = deque()

    def __call__(self, fn: Callable[[], object]) -> None:
        """Call `fn` when this process can notice: now, late, on resume, or never."""
        if not self.dead:
            self._pass(fn, False)

    def timer(self, fn: Callable[[], object]) -> None:
        """The same for a timer of the process's own."""
        if self.dead:
            fn()
        else:
            self._pass(fn, True)

    def _pass(self, fn: Callable[[], object], timer: bool) -> None:
        if self.paused:
            self._waiting.append((fn, timer))
        elif self.delay:
            self._world.after(self.delay, lambda: self._late(fn, timer))
        else:
            fn()

    def _late(self, fn: Callable[[], object], timer: bool) -> None:
        if self.paused:
            self._waiting.append((fn, timer))
        elif timer or not self.dead:
            fn()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """Let go what has come meanwhile, in order."""
        self.paused = False
        while self._waiting and not self.paused:
            fn, timer = self._waiting.popleft()
            if timer or not self.dead:
                fn()

    def kill(self) -> None:
        self.dead = True
        self.resume()
