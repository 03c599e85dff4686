"""Many deadlines that are mostly removed before they come: those of calls.

Deadlines are rounded up to whole ticks, and all of one tick share a bucket. Adding and
removing touch one dictionary; only a tick nobody has waited for yet goes into a heap.

    order    812 ─ 813 ─ 1310          (a heap of ticks)
    buckets   │     │      └─ 17 18 19
              │     └─ (emptied by answers: skipped when its turn comes)
              └─ 4 9

With a hundred buckets a second, a thousand calls a second cost a tenth of the heap of a
thousand entries, and who waits does so for at most one tick too long (rpc-router.md 7.2;
Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", SOSP 1987, scheme 6, with a
heap in place of the wheel so that nothing has to tick).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Generic, TypeVar

K = TypeVar("K")

BUCKETS_MIN = 64
"""Fewer buckets than this are never cleared of empty ones."""


class Deadlines(Generic[K]):
    """Deadlines in buckets of equal expiry: adding and removing cost a dictionary each.

    Args:
        tick: Width of a bucket [s]. What is due waits for at most this much longer.
    """

    def __init__(self, tick: float = 0.01) -> None:
        assert 0.0 < tick < inf
        self._tick = tick
        self._buckets: dict[int, dict[K, None]] = {}
        self._order: list[int] = []
        """A heap. Invariant: the keys of `_buckets`, each once."""
        self._buckets_max = BUCKETS_MIN

    def add(self, key: K, at: float) -> None:
        """Wait for `at`, rounded up to a whole tick; `inf` is never due and not kept.

        Args:
            key: What for. Keys of equal `at` are distinct.
            at: When [s].
        """
        if at == inf:
            return
        # Here and in `remove`, spelled out twice: this is the hot path of every call.
        number = ceil(at / self._tick)
        if number * self._tick < at:  # The division has rounded down.
            number += 1
        bucket = self._buckets.get(number)
        if bucket is None:
            self._open(number)[key] = None
        else:
            bucket[key] = None

    def remove(self, key: K, at: float) -> None:
        """Wait no longer. Harmless if it is not there.

        Args:
            at: As given to `add` [s].
        """
        if at == inf:
            return
        number = ceil(at / self._tick)
        if number * self._tick < at:
            number += 1
        bucket = self._buckets.get(number)
        if bucket is not None:
            bucket.pop(key, None)

    def due(self, now: float) -> list[K]:
        """Remove and return all whose tick has come: oldest tick first, then in order of adding."""
        found: list[K] = []
        while self._order and self._order[0] * self._tick <= now:
            found += self._buckets.pop(heappop(self._order))
        return found

    @property
    def deadline(self) -> float:
        """When the first is due, `inf` if none is [s]."""
        order = self._order
        while order:
            if self._buckets[order[0]]:
                return order[0] * self._tick
            del self._buckets[heappop(order)]
        return inf

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def check(self) -> None:
        """Assert all invariants."""
        assert sorted(self._order) == sorted(self._buckets)
        assert all(
            self._order[(place - 1) // 2] < self._order[place]
            for place in range(1, len(self._order))
        )
        assert len(self._buckets) <= self._buckets_max

    def _open(self, number: int) -> dict[K, None]:
        """Return a new bucket, having cleared away the empty ones if half may be."""
        if len(self._buckets) >= self._buckets_max:
            self._buckets = {number: bucket for number, bucket in self._buckets.items() if bucket}
            self._order = list(self._buckets)
            heapify(self._order)
            self._buckets_max = max(BUCKETS_MIN, 2 * len(self._buckets))
        bucket = self._buckets[number] = {}
        heappush(self._order, number)
        return bucket
