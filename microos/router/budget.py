"""How many retries the calls of one service may cost altogether.

Retries help while few calls fail, and finish off a service while most do. So they
are paid from what the calls of the last ten seconds have earned, one slot a second:

    slot    0    1    2    3    4    5    6    7    8    9
    calls  120  118  121  119  122  120  117  120  121  122      1200 calls
    used     1    0    0    2    0    1    0    0    3    0      7 of 10 + 0.1 × 1200

The reserve of 10 is for services that are called seldom. Source: Finagle,
`RetryBudget.scala` (20 % and 10 a second); Beyer et al., "Site Reliability
Engineering" (2016), ch. 21 (10 %).
"""

from __future__ import annotations

SLOTS = 10
SLOT_WIDTH = 1.0
"""[s]"""

RESERVE = 10
"""Retries allowed in ten seconds however few calls there were."""


class Budget:
    """The retries of one service as one caller makes them."""

    def __init__(self) -> None:
        self._calls = [0] * SLOTS
        self._used = [0] * SLOTS
        self._slot = 0

    def called(self, now: float) -> None:
        """Count one logical call."""
        self._turn(now)
        self._calls[self._slot % SLOTS] += 1

    def take(self, now: float, share: float) -> bool:
        """Pay for one retry; return whether there was enough.

        Args:
            share: Retries earned by each call. Range 0..1.
        """
        self._turn(now)
        if self.used + 1 > RESERVE + share * sum(self._calls):
            return False
        self._used[self._slot % SLOTS] += 1
        return True

    @property
    def used(self) -> int:
        """Retries within the slots kept."""
        return sum(self._used)

    def _turn(self, now: float) -> None:
        """Empty the slots that time has passed since it was last looked at."""
        slot = int(now / SLOT_WIDTH)
        if slot > self._slot:
            for passed in range(max(self._slot + 1, slot - SLOTS + 1), slot + 1):
                self._calls[passed % SLOTS] = self._used[passed % SLOTS] = 0
            self._slot = slot

    def check(self) -> None:
        """Assert all invariants."""
        assert len(self._calls) == len(self._used) == SLOTS
        assert all(count >= 0 for count in (*self._calls, *self._used))
