"""What retries may cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from microos.router.budget import RESERVE, Budget


def spend(budget: Budget, now: float, share: float) -> int:
    """Take until there is no more; return how much there was."""
    taken = 0
    while budget.take(now, share):
        taken += 1
    return taken


def test_a_service_called_seldom_has_the_reserve() -> None:
    budget = Budget()
    budget.called(100.0)

    assert spend(budget, 100.0, 0.1) == RESERVE


def test_each_call_earns_its_share() -> None:
    budget = Budget()
    for _ in range(1000):
        budget.called(5.0)

    assert spend(budget, 5.0, 0.1) == RESERVE + 100


def test_without_a_share_there_is_the_reserve_only() -> None:
    budget = Budget()
    for _ in range(1000):
        budget.called(5.0)

    assert spend(budget, 5.0, 0.0) == RESERVE


def test_what_was_earned_and_spent_is_forgotten_after_ten_seconds() -> None:
    budget = Budget()
    for _ in range(1000):
        budget.called(5.5)
    spend(budget, 5.5, 0.1)

    assert spend(budget, 14.9, 0.1) == 0
    assert spend(budget, 15.0, 0.1) == RESERVE


def test_a_long_silence_empties_every_slot() -> None:
    budget = Budget()
    for second in range(30):
        budget.called(float(second))

    budget.called(1e9)

    assert spend(budget, 1e9, 1.0) == RESERVE + 1


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans()), max_size=200),
    st.floats(0.0, 1.0),
)
def test_no_more_is_spent_than_the_reserve_and_what_was_earned(
    steps: list[tuple[float, bool]], share: float
) -> None:
    budget, now = Budget(), 0.0
    calls: list[float] = []
    taken: list[float] = []
    for pause, is_call in steps:
        now += pause
        if is_call:
            budget.called(now)
            calls.append(now)
        elif budget.take(now, share):
            taken.append(now)
        budget.check()

        spent = sum(at > now - 9.0 for at in taken)
        earned = sum(at > now - 10.0 for at in calls)
        if taken and taken[-1] == now and not is_call:
            assert spent <= RESERVE + share * earned + 1e-9
