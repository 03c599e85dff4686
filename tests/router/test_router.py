"""`node.router`: policies by pattern, figures, and what is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from microos import limits
from microos.errors import LimitError, NoMemberError, UnavailableError
from microos.gossip.members import State
from microos.router import Breaker, Policy, Retry
from tests.router.fake import (
    Endpoint,
    FakeKernel,
    answers,
    hangs,
    node,
    raises,
    refused,
    router_on,
)

BUY = Endpoint()


def attempts(count: int) -> Policy:
    return Policy(retry=Retry(attempts=count), breaker=None)


async def attempts_of(name: str, *patterns: tuple[str, int]) -> int:
    """Return how often a failing call of an endpoint is attempted under these policies."""
    kernel = FakeKernel(range(1, 10), service=name.rpartition(".")[0])
    kernel.default = raises(refused)
    router = router_on(kernel)
    for pattern, count in patterns:
        router.apply(pattern, attempts(count))
    with pytest.raises(UnavailableError):
        await router.call(Endpoint(name), ())
    return len(kernel.sent)


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ((), 3),
        ((("*", 1),), 1),
        ((("shop.*", 2), ("*", 1)), 2),
        ((("shop.buy", 4), ("shop.*", 2), ("*", 1)), 4),
        ((("other.*", 1), ("shop.sell", 1), ("sho.*", 1)), 3),
        ((("shop.*", 2), ("shop.*", 5)), 5),
    ],
)
async def test_the_most_specific_pattern_wins_and_the_later_among_equals(
    patterns: tuple[tuple[str, int], ...], wanted: int, autojump_clock: MockClock
) -> None:
    assert await attempts_of("shop.buy", *patterns) == wanted


async def test_the_service_is_what_stands_before_the_last_dot(autojump_clock: MockClock) -> None:
    assert await attempts_of("eu.shop.buy", ("eu.shop.*", 2), ("eu.*", 1)) == 2


@pytest.mark.parametrize(
    "pattern", ["", "shop", "shop.", ".buy", "*.buy", "**", "shop.b*", "*.*", "s*.buy"]
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        router_on(FakeKernel(range(0))).apply(pattern, Policy())


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a Policy"):
        router_on(FakeKernel(range(0))).apply("*", Retry())  # type: ignore[arg-type]


def test_policies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROUTER_POLICIES", 3)
    router = router_on(FakeKernel(range(0)))
    router.apply("a.*", Policy())
    router.apply("b.*", Policy())

    router.apply("b.*", attempts(1))
    with pytest.raises(LimitError):
        router.apply("c.*", Policy())


async def test_a_policy_takes_effect_for_new_calls(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 10))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=attempts(2))

    for _ in range(2):
        with pytest.raises(UnavailableError):
            await router.call(BUY, ())
        router.apply("shop.*", attempts(1))

    assert len(kernel.sent) == 3


async def test_another_breaker_begins_closed_and_the_same_one_stays(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(retry=None))
    for _ in range(5):
        with pytest.raises(UnavailableError):
            await router.call(BUY, ())

    def state() -> Any:
        return router.statistics().instances[0].breakers

    router.apply("shop.buy", Policy(retry=Retry()))
    assert state() == {"shop.buy": "open"}
    router.apply("shop.buy", Policy(breaker=Breaker(consecutive=9)))
    assert state() == {}
    router.apply("shop.buy", Policy(breaker=None))
    assert state() == {}
    router.check()


async def test_a_call_under_way_may_see_its_breaker_replaced(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))
    router = router_on(kernel)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.call, BUY, ("hat",))
        await trio.sleep(0.005)
        router.apply("*", Policy(breaker=Breaker(probes=2)))

    router.check()


async def test_statistics_count_calls_and_name_what_is_wrong_with_whom(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 4))
    kernel.scripts[node(2)] = hangs
    router = router_on(kernel)

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(router.call, BUY, ("hat",))
            await trio.sleep(0.02)
        (endpoint,) = router.statistics().endpoints
        instances = router.statistics().instances
        nursery.cancel_scope.cancel()

    assert (endpoint.endpoint, endpoint.calls, endpoint.error) == ("shop.buy", 30, 0)
    assert endpoint.success == endpoint.calls - instances[1].in_flight
    assert [instance.node for instance in instances] == [node(1), node(2), node(3)]
    assert [instance.suspect for instance in instances] == [False, True, False]
    assert [instance.in_flight > 0 for instance in instances] == [False, True, False]
    assert all(instance.breakers == {"shop.buy": "closed"} for instance in instances)
    assert all(instance.in_flight == 0 for instance in router.statistics().instances)


async def test_every_live_node_is_a_possible_caller(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 4))
    router = router_on(kernel)
    await router.call(BUY, ("hat",))
    pool = router._services["shop"].pool
    assert pool.callers == 3

    for number in range(4, 11):
        kernel.join(number, service="other")
    kernel.join(11, state=State.DEAD)

    assert pool.callers == 10
    for number in range(1, 11):
        kernel.leave(number)
    assert pool.callers == 1


async def test_who_has_left_is_forgotten_with_all_its_states(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 3))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(retry=None))
    for _ in range(20):
        with pytest.raises(UnavailableError):
            await router.call(BUY, ())

    kernel.leave(1)
    router.check()
    assert [instance.node for instance in router.statistics().instances] == [node(2)]
    kernel.join(1)

    first, second = router.statistics().instances
    assert first.breakers == {}
    assert not first.suspect
    assert second.breakers == {"shop.buy": "open"}


async def test_an_instance_may_leave_while_it_is_called(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))
    router = router_on(kernel)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.call, BUY, ("hat",))
        await trio.sleep(0.005)
        kernel.leave(1)
        router.check()
        kernel.join(1)
        router.check()

    router.check()
    assert router.statistics().instances[0].in_flight == 0


async def test_endpoints_are_bounded_and_those_in_use_stay(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(limits, "ROUTER_ENDPOINTS", 3)
    kernel = FakeKernel(range(1, 2))
    router = router_on(kernel)

    async with trio.open_nursery() as nursery:
        kernel.default = hangs
        nursery.start_soon(router.call, Endpoint("shop.slow"), ())
        await trio.sleep(0.001)
        kernel.default = answers
        for number in range(20):
            await router.call(Endpoint(f"shop.f{number}"), ())
            with pytest.raises(NoMemberError):
                await router.call(Endpoint(f"none{number}.f"), ())
            router.check()
        nursery.cancel_scope.cancel()

    names = [endpoint.endpoint for endpoint in router.statistics().endpoints]
    assert len(names) == 3
    assert "shop.slow" in names


async def test_too_many_endpoints_at_once_are_refused(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(limits, "ROUTER_ENDPOINTS", 2)
    router = router_on(FakeKernel(range(1, 2)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.call, Endpoint("shop.a"), ())
        nursery.start_soon(router.call, Endpoint("shop.b"), ())
        await trio.sleep(0.001)
        with pytest.raises(LimitError):
            await router.call(Endpoint("shop.c"), ())
