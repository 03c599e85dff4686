"""The clock of versions: it rises, hears, and knows no wall clock but the first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from microos.hlc import COUNTER_BITS
from microos.ring.stamps import Stamps

steps = st.lists(
    st.tuples(
        st.sampled_from(["next", "above", "hear", "peek"]),
        st.floats(0.0, 10.0),
        st.integers(0, 1 << 48).map(lambda ms: ms << COUNTER_BITS),
    ),
    max_size=40,
)


@given(st.floats(-1e6, 1e10), steps)
def test_what_is_given_is_above_all_given_and_heard(
    wall: float, did: list[tuple[str, float, int]]
) -> None:
    now = 50.0
    stamps = Stamps(wall, now)
    highest = 0
    for what, passed, heard in did:
        now += passed
        if what == "hear":
            stamps.hear(heard, now)
            highest = max(highest, heard)
        elif what == "peek":
            assert stamps.peek(now) >= highest
            assert stamps.peek(now) == stamps.peek(now)
        else:
            given = stamps.above(heard, now) if what == "above" else stamps.next(now)
            assert given > highest
            assert given > heard or what == "next"
            highest = given


def test_it_begins_with_the_wall_clock_and_goes_on_with_the_other() -> None:
    stamps = Stamps(1_700_000_000.0, 20.0)

    assert stamps.next(20.0) == 1_700_000_000_000 << COUNTER_BITS
    assert stamps.next(20.5) == 1_700_000_000_500 << COUNTER_BITS


def test_many_in_one_millisecond_are_counted() -> None:
    stamps = Stamps(1000.0, 0.0)

    given = [stamps.next(0.0) for _ in range(100_000)]

    assert given == list(range(given[0], given[0] + 100_000))


def test_it_goes_on_from_the_fastest_clock_it_has_heard() -> None:
    slow, fast = Stamps(1000.0, 0.0), Stamps(4600.0, 70.0)

    slow.hear(fast.next(70.0), 0.0)

    assert (slow.next(10.0) >> COUNTER_BITS) == 4_610_000
    fast.hear(slow.peek(10.0), 80.0)
    assert (fast.next(80.0) >> COUNTER_BITS) == 4_610_000
