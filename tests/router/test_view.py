"""What is known of a service: an attempt tells pick and circuit how it went, once."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from microos.errors import (
    CircuitOpenError,
    NoMemberError,
    OverloadedError,
    RejectedError,
    UnavailableError,
)
from microos.router import Breaker, Policy
from microos.router.breaker import State
from microos.router.pick import DRAIN_WAIT
from microos.router.view import EndpointView, View
from microos.rpc.messages import Load
from tests.router.model import instance

IDLE = Load(0, 10_000)


class Shop:
    """One service with one endpoint."""

    def __init__(self, count: int, *, breaker: Breaker | None = None) -> None:
        chance = random.Random(1)
        self.now = 100.0
        self.view = View("shop", "me", chance)
        policy = Policy(breaker=breaker or Breaker())
        self.buy = EndpointView("shop.buy", self.view, policy, chance, lambda note: None)
        self.view.endpoints["shop.buy"] = self.buy
        self.view.sync([instance(n) for n in range(count)], callers=1)

    def choose(self, *tried: int) -> int:
        names = {instance(n).node: False for n in tried}
        found = self.buy.choose(self.now, tried=names, drained={})
        self.view.check()
        assert found is not None
        return int(found.node, 16)

    def ask(self, number: int, outcome: UnavailableError | RejectedError | Load) -> None:
        attempt = self.buy.begin(self.view.pool.everyone[number], self.now)
        if isinstance(outcome, Load):
            attempt.answered(outcome, self.now)
        else:
            attempt.failed(outcome, self.now)
        attempt.close()
        self.view.check()


def refused(load: Load | None = None) -> UnavailableError:
    error = UnavailableError("refused", reason="connection_refused")
    error.load = load
    return error


def test_who_was_tried_is_left_out_while_there_is_another() -> None:
    shop = Shop(3)

    assert {shop.choose(0) for _ in range(50)} == {1, 2}
    assert {shop.choose(0, 1) for _ in range(50)} == {2}
    assert {shop.choose(0, 1, 2) for _ in range(50)} == {0, 1, 2}


@pytest.mark.parametrize("count", [2, 5])
def test_an_instance_that_came_back_starts_slowly(count: int) -> None:
    shop = Shop(count, breaker=Breaker(consecutive=1))
    for number in range(1, count):
        shop.ask(number, IDLE)
    shop.ask(0, refused())
    assert 0 not in {shop.choose() for _ in range(100)}
    shop.now += 1.5
    for _ in range(3):
        for number in range(count):
            shop.ask(number, IDLE)

    assert shop.buy.circuits is not None
    assert set(shop.buy.circuits.states().values()) == {State.CLOSED}
    assert 0 not in {shop.choose() for _ in range(100)}
    shop.now += 10.0
    assert Counter(shop.choose() for _ in range(200))[0] > 15


def test_any_answer_tells_the_queue() -> None:
    shop = Shop(3)
    no = RejectedError("no")
    no.load = Load(8, 1)

    shop.ask(0, no)
    shop.ask(1, refused(Load(6, 1)))

    assert [candidate.queue for candidate in shop.view.pool.everyone] == [4.0, 3.0, 0.0]


def test_the_first_outcome_counts() -> None:
    shop = Shop(3, breaker=Breaker(consecutive=1))
    candidate = shop.view.pool.everyone[0]
    attempt = shop.buy.begin(candidate, shop.now)

    attempt.answered(IDLE, shop.now)
    attempt.failed(refused(), shop.now)
    attempt.timed_out(shop.now)
    attempt.close()

    assert not shop.view.pool.suspects(candidate, shop.now)
    assert shop.buy.circuits is not None
    assert shop.buy.circuits.are_quiet


def test_a_busy_instance_is_charged_half() -> None:
    shop = Shop(3)

    for _ in range(9):
        shop.ask(0, OverloadedError("full"))

    assert shop.view.pool.everyone[0].bad_until - shop.now <= 0.75
    assert shop.buy.circuits is not None
    assert shop.buy.circuits.are_quiet


def test_one_that_drains_is_used_last_and_its_circuit_stays_closed() -> None:
    shop = Shop(3, breaker=Breaker(consecutive=1))

    shop.ask(0, UnavailableError("leaving", reason="draining"))

    shop.now += DRAIN_WAIT - 0.1
    assert 0 not in {shop.choose() for _ in range(100)}
    assert shop.buy.circuits is not None
    assert shop.buy.circuits.are_quiet


def test_with_all_breakers_open_nobody_is_chosen() -> None:
    shop = Shop(2, breaker=Breaker(consecutive=1))
    shop.ask(0, refused())
    shop.ask(1, refused())

    with pytest.raises(CircuitOpenError, match=r"all 2 instances of 'shop' fail 'shop\.buy'"):
        shop.choose()


def test_with_nobody_there_it_says_whether_there_ever_was() -> None:
    unknown, gone = Shop(0), Shop(1)
    gone.view.sync([], callers=1)

    for shop, reason in ((unknown, "unknown_service"), (gone, "none_usable")):
        with pytest.raises(NoMemberError) as caught:
            shop.choose()
        assert caught.value.reason == reason
