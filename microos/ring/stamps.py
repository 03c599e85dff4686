"""The clock of versions: a hybrid logical clock that goes by the monotonic clock.

    physical time = monotonic clock + offset

The offset is the wall clock's at the start and rises when a stamp from further ahead is
heard; it never falls. So all nodes go by the fastest clock among them, a wall clock that
jumps changes nothing (GEN-6), and one that was wrong at the start moves the numbers of
versions, not their order: what was acknowledged before a write began is always below it.

Source: Kulkarni et al., "Logical Physical Clocks" (OPODIS 2014); hlc.py has the form.
"""

from __future__ import annotations

from microos.hlc import COUNTER_BITS


class Stamps:
    """One node's versions.

    Args:
        wall: Seconds since 1970 by the wall clock.
        now: The monotonic clock at that moment [s].
    """

    def __init__(self, wall: float, now: float) -> None:
        self._offset = wall - now
        self._last = 0

    def next(self, now: float) -> int:
        """Return a stamp above all given and heard before."""
        self._last = max(self._physical(now), self._last + 1)
        return self._last

    def above(self, stamp: int, now: float) -> int:
        """Return a stamp that is above `stamp` as well."""
        self.hear(stamp, now)
        return self.next(now)

    def peek(self, now: float) -> int:
        """Return what a message says of this clock: no stamp given is above it."""
        return max(self._last, self._physical(now))

    def hear(self, stamp: int, now: float) -> None:
        """Take in another clock's stamp."""
        if stamp > self._last:
            self._last = stamp
            ahead = (stamp >> COUNTER_BITS) / 1000.0 - now
            if ahead > self._offset:
                self._offset = ahead

    def _physical(self, now: float) -> int:
        return max(0, int((now + self._offset) * 1000.0)) << COUNTER_BITS
