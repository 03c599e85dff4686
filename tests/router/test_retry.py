"""Whether a call is tried again, when, and what it ends with."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos.errors import (
    ConflictError,
    MicroosError,
    NoMemberError,
    OverloadedError,
    RejectedError,
    RemoteError,
    RemoteProtocolError,
    UnavailableError,
    UncertainError,
)
from microos.router.budget import RESERVE, Budget
from microos.router.policy import Retry
from microos.router.retry import Tries

PATIENT = Retry(attempts=5, budget=1.0)


class Course:
    """One logical call that fails again and again."""

    def __init__(
        self,
        *,
        retry: Retry | None = PATIENT,
        idempotent: bool = True,
        deadline: float = 10.0,
        has_others: bool = True,
    ) -> None:
        self.tries = Tries(retry, idempotent=idempotent, deadline=deadline)
        self.budget = Budget()
        self.chance = random.Random(1)
        self.has_others = has_others
        self.now = 0.0
        self.attempts = 0

    def fail(self, error: MicroosError) -> float | None:
        self.tries.failed(f"n{self.attempts}", error)
        self.attempts += 1
        others = self.has_others
        pause = self.tries.pause(self.now, self.budget, self.chance, has_others=others)
        self.tries.check()
        return pause


def refused() -> UnavailableError:
    return UnavailableError("refused", reason="connection_refused")


def lost() -> UncertainError:
    return UncertainError("lost", reason="connection_lost")


def draining() -> UnavailableError:
    return UnavailableError("leaving", reason="draining")


@pytest.mark.parametrize(
    ("error", "idempotent", "again"),
    [
        (refused(), False, True),
        (OverloadedError("full"), False, True),
        (lost(), True, True),
        (lost(), False, False),
        (RejectedError("no"), True, False),
        (ConflictError("no"), True, False),
        (RemoteError("raised"), True, False),
        (RemoteProtocolError("nonsense"), True, False),
        (UnavailableError("refused", retried=True), True, False),
    ],
)
def test_the_class_of_the_error_decides(error: MicroosError, idempotent: bool, again: bool) -> None:
    assert (Course(idempotent=idempotent).fail(error) is not None) == again


def test_the_first_retry_leaves_at_once_if_there_is_another_instance() -> None:
    assert Course().fail(refused()) == 0.0


def test_the_only_instance_is_given_a_moment() -> None:
    pause = Course(has_others=False).fail(refused())

    assert pause is not None
    assert 0.0 < pause <= 0.025


@given(st.integers(0, 10_000))
def test_later_pauses_have_full_jitter_below_a_ceiling_that_doubles(seed: int) -> None:
    course = Course(retry=Retry(attempts=9, budget=1.0))
    course.chance = random.Random(seed)

    pauses = [course.fail(refused()) for _ in range(8)]

    for number, pause in enumerate(pauses):
        assert pause is not None
        assert 0.0 <= pause <= (min(1.0, 0.025 * 2**number) if number else 0.0)


def test_jitter_reaches_from_nothing_to_the_ceiling() -> None:
    pauses = []
    for seed in range(200):
        course = Course()
        course.chance = random.Random(seed)
        course.fail(refused())
        pauses.append(course.fail(refused()) or 0.0)

    assert min(pauses) < 0.005
    assert max(pauses) > 0.045


def test_the_attempts_are_limited() -> None:
    course = Course(retry=Retry(attempts=3, budget=1.0))

    pauses = [course.fail(refused()) for _ in range(3)]

    assert [pause is None for pause in pauses] == [False, False, True]


def test_without_a_retry_policy_there_is_one_attempt() -> None:
    assert Course(retry=None).fail(refused()) is None


def test_the_callee_says_how_long_to_wait_at_least() -> None:
    assert Course().fail(OverloadedError("full", retry_after=0.7)) == 0.7


@pytest.mark.parametrize("wait", [-1, -1.0, math.nan, math.inf, 11.0])
def test_the_callee_may_forbid_it_or_ask_for_more_than_there_is(wait: float) -> None:
    assert Course().fail(OverloadedError("full", retry_after=wait)) is None


@pytest.mark.parametrize("fact", ["soon", None, [1]])
def test_a_senseless_wait_is_ignored(fact: object) -> None:
    assert Course().fail(OverloadedError("full", retry_after=fact)) == 0.0


def test_nothing_is_repeated_at_or_after_the_deadline() -> None:
    course = Course(deadline=10.0)
    course.now = 10.0

    assert course.fail(refused()) is None
    assert course.fail(draining()) is None
    assert course.budget.used == 0


def test_a_pause_beyond_the_deadline_is_not_begun_and_costs_nothing() -> None:
    course = Course(deadline=1e-9, has_others=False)

    assert course.fail(refused()) is None
    assert course.budget.used == 0


def test_an_empty_budget_ends_it() -> None:
    course = Course(retry=Retry(attempts=50, budget=0.0))

    pauses = [course.fail(refused()) for _ in range(RESERVE + 1)]

    assert None not in pauses[:RESERVE]
    assert pauses[RESERVE] is None


def test_draining_costs_neither_budget_nor_attempts() -> None:
    course = Course(retry=Retry(attempts=2, budget=0.0))

    assert [course.fail(draining()) for _ in range(7)] == [0.0] * 7

    assert course.budget.used == 0
    assert course.tries.retries == 0
    assert list(course.tries.drained) == [f"n{n}" for n in range(7)]
    assert course.fail(refused()) == 0.0


def test_draining_is_passed_over_also_without_a_retry_policy() -> None:
    assert Course(retry=None, idempotent=False).fail(draining()) == 0.0


# What it ends with.


def test_a_single_error_stays_as_it_is() -> None:
    course, error = Course(idempotent=False), lost()
    course.fail(error)

    assert course.tries.ending(error) is error
    assert error.facts == {}


def test_what_may_have_been_done_is_not_forgotten_when_a_later_attempt_did_nothing() -> None:
    course = Course()
    course.fail(lost())
    course.fail(refused())

    ending = course.tries.ending(NoMemberError("all gone", reason="none_usable"))

    assert isinstance(ending, UncertainError)
    assert ending.reason == "connection_lost"
    assert "all gone" in str(ending)


def test_a_deadline_after_something_uncertain_is_an_uncertain_deadline() -> None:
    course = Course()
    course.fail(lost())

    ending = course.tries.ending(UnavailableError("late", reason="deadline"))

    assert isinstance(ending, UncertainError)
    assert ending.reason == "deadline"


def test_an_answer_is_certain_whatever_came_before() -> None:
    course, answer = Course(), RemoteError("raised")
    course.fail(lost())

    assert course.tries.ending(answer) is answer


def test_the_layer_above_is_told_that_it_was_tried_again() -> None:
    course = Course(retry=Retry(attempts=2))
    course.fail(refused())
    error = refused()
    assert course.fail(error) is None

    assert course.tries.ending(error).facts["retried"] is True
    above = Course()
    assert above.fail(error) is None


ERRORS: list[Callable[[], MicroosError]] = [refused, lost, draining, lambda: RemoteError("raised")]


@given(
    st.lists(st.tuples(st.sampled_from(ERRORS), st.floats(0.0, 2.0)), max_size=30),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
)
def test_whatever_fails_the_limits_hold(
    steps: list[tuple[Callable[[], MicroosError], float]],
    attempts: int,
    idempotent: bool,
    others: bool,
) -> None:
    course = Course(retry=Retry(attempts, 1.0), idempotent=idempotent, has_others=others)
    maybe_done = False
    for make, duration in steps:
        error = make()
        course.now += duration
        pause = course.fail(error)
        maybe_done |= isinstance(error, UncertainError)
        if pause is None:
            ending = course.tries.ending(error)
            assert not (maybe_done and isinstance(ending, UnavailableError))
            break
        assert not isinstance(error, RemoteError)
        assert idempotent or not isinstance(error, UncertainError)
        course.now += pause
        assert course.now < 10.0
    assert course.attempts - len(course.tries.drained) <= attempts
    assert course.budget.used == course.tries.retries
