"""How far to trust our own timing.

A node that is slow itself must not accuse others. Its score rises when its own probes
fail without even a Nack, or when it has to refute; intervals and timeouts are multiplied
by score + 1. The lateness of our own wake-ups sets a floor under the score: a stalled
loop shows there before it shows anywhere else.

    score used = max(score, min(7, floor(4 · lag / T)))

Source: Lifeguard (arXiv:1707.00788), LHA-Probe; the lag is what Orleans and hyperscale do.
"""

from __future__ import annotations

from collections import deque

NOTABLE = 0.001
"""Lateness below this is the ordinary grain of timers [s]."""


def lag_floor(lag: float, interval: float, highest: int) -> int:
    """Return the least score for a loop that was `lag` late [s]."""
    # The grain keeps a lag that is exactly a quarter of T from falling below by rounding.
    return min(highest, int(4.0 * lag / interval + 1e-9))


class Awareness:
    """The score of this node and the lag of its loop."""

    def __init__(self, *, score_count: int, interval: float) -> None:
        """
        Args:
            score_count: The score is 0..score_count - 1.
            interval: The probe interval T [s].
        """
        self._highest = score_count - 1
        self._interval = interval
        self._late: deque[tuple[float, float]] = deque()
        self.score = 0

    def change(self, by: int) -> None:
        """Raise or lower the score; it stays in its range."""
        self.score = max(0, min(self._highest, self.score + by))

    def late(self, lateness: float, now: float) -> None:
        """Take in how late a wake-up was [s]."""
        if lateness < NOTABLE:
            return
        # A queue of falling lateness: what is smaller and older can never be the greatest again.
        while self._late and self._late[-1][1] <= lateness:
            self._late.pop()
        self._late.append((now, lateness))

    def lag(self, now: float) -> float:
        """Return the greatest lateness of the last 3 T [s]."""
        while self._late and self._late[0][0] < now - 3.0 * self._interval:
            self._late.popleft()
        return self._late[0][1] if self._late else 0.0

    def used(self, now: float) -> int:
        """Return the score to act by."""
        return max(self.score, lag_floor(self.lag(now), self._interval, self._highest))

    def check(self) -> None:
        """Assert the invariants."""
        assert 0 <= self.score <= self._highest
        lates = [lateness for _, lateness in self._late]
        assert lates == sorted(lates, reverse=True)
