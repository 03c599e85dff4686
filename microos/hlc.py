"""Hybrid logical clock: wall time that never runs backwards and orders cause before effect.

    bit 63 ............. 16 | 15 ..... 0
        milliseconds, 1970  | counter

Kulkarni et al., "Logical Physical Clocks" (OPODIS 2014). The counter breaks ties
within a millisecond, and carries on while the wall clock stands still or jumps
back. A remote stamp more than `AHEAD_MAX` ahead of our wall clock is not taken
over, so one wrong clock cannot drag a cluster into the future.
"""

from __future__ import annotations

COUNTER_BITS = 16
AHEAD_MAX = 0.5
"""How far ahead of the own wall clock a remote stamp is believed [s]."""


class HybridClock:
    """One node's stamps. Told the wall time; never reads a clock itself."""

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def tick(self, wall: float) -> int:
        """Return a stamp above every stamp given or merged before.

        Args:
            wall: Seconds since 1970, now.
        """
        self.last = max(_floor(wall), self.last + 1)
        return self.last

    def merge(self, stamp: int, wall: float) -> bool:
        """Take in a remote stamp; return whether it was believed."""
        if stamp > _floor(wall + AHEAD_MAX):
            return False
        self.last = max(self.last, stamp)
        return True


def seconds(stamp: int) -> float:
    """Return the wall time of a stamp, since 1970 [s]. For display."""
    return (stamp >> COUNTER_BITS) / 1000.0


def _floor(wall: float) -> int:
    return int(wall * 1000.0) << COUNTER_BITS
