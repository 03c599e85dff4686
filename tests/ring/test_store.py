"""What one node keeps: the ends of lives."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from microos.ring.entry import is_tombstone, pack, version_bytes
from microos.ring.store import Store, name_of

NAME = name_of("b", b"k")


@given(st.integers(1, 10_000_000))
@example(16310)
def test_what_is_due_ends_at_once_though_its_time_in_milliseconds_is_rounded_down(end: int) -> None:
    """16.31 s are 16309.999999999998 ms: an entry put back would be due again, for ever."""
    store = Store(1 << 20)
    store.apply(1, NAME, pack(version_bytes(5, 1), end=end, flags=0, value=b"x"))

    ended = store.expire(store.deadline)

    entry = store.get(1, NAME, 0)
    assert ended == 1
    assert entry is not None
    assert is_tombstone(entry)
    store.check()
