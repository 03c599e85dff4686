"""Trio's own order of tasks, made repeatable: its two private switches, here and nowhere else.

By default trio takes runnable tasks out of a set and reverses every other batch by
chance. With the first switch a batch is sorted by the age of its tasks and shuffled
by `_r`, so with `_r` seeded the order is a function of the seed, and more orders are
seen than production shows. `tests/test_trio_contract.py` says so on the day they move.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import trio._core._run as internals


@contextmanager
def repeatable(seed: str) -> Iterator[None]:
    """Make the order of tasks a function of `seed` within the block."""
    before = (internals._ALLOW_DETERMINISTIC_SCHEDULING, internals._r)
    internals._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    internals._r = random.Random(f"{seed}/schedule")
    try:
        yield
    finally:
        internals._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]
        internals._r = before[1]
