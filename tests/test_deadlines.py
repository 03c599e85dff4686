from __future__ import annotations

from math import ceil, inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from microos.deadlines import BUCKETS_MIN, Deadlines

times = st.floats(0.0, 1e6) | st.integers(0, 300).map(lambda tick: tick * 0.01)


def test_what_is_due_comes_oldest_tick_first_and_in_order_of_adding() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, at in (("c", 2.0), ("a", 1.001), ("b", 1.004), ("later", 2.001)):
        deadlines.add(key, at)

    assert deadlines.due(1.005) == []
    assert deadlines.due(2.0) == ["a", "b", "c"]
    assert deadlines.due(2.0) == []
    assert len(deadlines) == 1


def test_the_deadline_is_that_of_the_first_still_waiting() -> None:
    deadlines: Deadlines[str] = Deadlines(tick=0.5)
    deadlines.add("first", 1.2)
    deadlines.add("second", 7.0)

    assert deadlines.deadline == 1.5
    deadlines.remove("first", 1.2)
    assert deadlines.deadline == 7.0
    deadlines.remove("second", 7.0)
    assert deadlines.deadline == inf


def test_infinity_is_never_due_and_not_kept() -> None:
    deadlines: Deadlines[int] = Deadlines()

    deadlines.add(1, inf)
    deadlines.remove(1, inf)
    deadlines.remove(2, 5.0)

    assert len(deadlines) == 0
    assert deadlines.deadline == inf


def test_buckets_emptied_by_answers_do_not_pile_up() -> None:
    deadlines: Deadlines[int] = Deadlines()
    deadlines.add(-1, 0.5)

    for key in range(10_000):
        deadlines.add(key, 1.0 + key)
        deadlines.remove(key, 1.0 + key)
        deadlines.check()

    assert len(deadlines._buckets) <= BUCKETS_MIN
    assert deadlines.due(1e9) == [-1]


@pytest.mark.parametrize("tick", [0.01, 0.1, 0.25, 1.0])
@given(at=times)
@example(at=5445.740000000001)  # The division by 0.01 rounds down to a tick before it.
def test_nothing_is_due_before_its_time_or_more_than_a_tick_after(tick: float, at: float) -> None:
    deadlines: Deadlines[int] = Deadlines(tick)

    deadlines.add(1, at)

    due = deadlines.deadline
    assert at <= due <= (at + tick) * (1 + 1e-12)
    assert deadlines.due(at) == ([1] if due == at else [])
    assert deadlines.due(due) == ([1] if due > at else [])


class AgainstAList(RuleBasedStateMachine):
    """The same, slowly: a list of (tick, order of adding, key, at)."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines: Deadlines[int] = Deadlines(tick=0.25)
        self.model: list[tuple[int, int, float]] = []
        self.added = 0

    @rule(at=st.integers(0, 4000).map(lambda n: n / 16), count=st.integers(1, 40))
    def add(self, at: float, count: int) -> None:
        for place in range(count):
            self.added += 1
            self.deadlines.add(self.added, at + place)
            self.model.append((ceil((at + place) * 4), self.added, at + place))

    @rule(share=st.floats(0.0, 1.0))
    def remove_the_first_added(self, share: float) -> None:
        gone = self.model[: int(share * len(self.model))]
        for _, key, at in gone:
            self.deadlines.remove(key, at)
        self.model = self.model[len(gone) :]

    @rule(now=st.floats(0.0, 300.0))
    def due(self, now: float) -> None:
        wanted = sorted(entry for entry in self.model if entry[0] * 0.25 <= now)

        assert self.deadlines.due(now) == [key for _, key, _ in wanted]

        self.model = [entry for entry in self.model if entry[0] * 0.25 > now]

    @invariant()
    def agrees(self) -> None:
        self.deadlines.check()
        assert len(self.deadlines) == len(self.model)
        first = min((tick * 0.25 for tick, _, _ in self.model), default=inf)
        assert self.deadlines.deadline == first


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=20)
