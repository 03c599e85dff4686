"""Everything a core waits for, in one heap, at most one timer per key.

A cancelled or moved timer leaves its old place in the heap, which is recognised by its
number and skipped; the heap is rebuilt when more than half of it is such litter.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf

Key = tuple[str, object]
"""What for, and for whom."""


class Timers:
    """Keyed deadlines. Setting, cancelling and taking cost O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._live: dict[Key, tuple[float, int]] = {}
        self._number = 0

    def set(self, key: Key, at: float) -> None:
        """Set the timer of `key`, in place of an earlier one."""
        self._number += 1
        self._live[key] = (at, self._number)
        heappush(self._heap, (at, self._number, key))
        if len(self._heap) > 64 + 2 * len(self._live):
            self._heap = [(at, number, key) for key, (at, number) in self._live.items()]
            heapify(self._heap)

    def cancel(self, key: Key) -> None:
        """Drop the timer of `key`, if any."""
        self._live.pop(key, None)

    def at(self, key: Key) -> float | None:
        """Return when `key` is due, None if it is not set [s]."""
        found = self._live.get(key)
        return None if found is None else found[0]

    @property
    def deadline(self) -> float:
        """When the first is due, `inf` if none is set [s]."""
        while self._heap and not self._is_live(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else inf

    def pop(self, now: float) -> Key | None:
        """Take out the first timer due at `now`; None if none is."""
        if self.deadline > now:
            return None
        key = heappop(self._heap)[2]
        del self._live[key]
        return key

    def raise_to(self, now: float) -> None:
        """Let what is overdue be due now, in the order it would have come."""
        overdue = sorted((at, number, key) for key, (at, number) in self._live.items() if at < now)
        for _, _, key in overdue:
            self.set(key, now)

    def check(self) -> None:
        """Assert that every timer stands in the heap, once."""
        found = [entry for entry in self._heap if self._is_live(entry)]
        assert len(found) == len(self._live)

    def _is_live(self, entry: tuple[float, int, Key]) -> bool:
        at, number, key = entry
        return self._live.get(key) == (at, number)
