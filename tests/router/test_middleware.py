"""The chain: order, kinds, and what a middleware may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from microos.errors import UnavailableError
from microos.router import Call, compose, middleware
from microos.router.middleware import CallMiddleware, Proceed, of_kind
from microos.rpc.messages import Reply
from tests.router.fake import LOAD, Endpoint, FakeKernel, Sent, raises, refused, router_on

SHOP = Endpoint()


def tracing(name: str, log: list[str]) -> CallMiddleware:
    async def trace(call: Call, proceed: Proceed) -> Any:
        where = "nobody" if call.instance is None else call.instance.name
        log.append(f"{name} {call.attempt} {where}")
        try:
            return await proceed(call)
        finally:
            log.append(f"{name} done")

    return trace


async def test_the_first_listed_is_the_outermost(autojump_clock: MockClock) -> None:
    log: list[str] = []

    def step(name: str) -> Callable[[str, Callable[[str], Awaitable[str]]], Awaitable[str]]:
        async def run(text: str, proceed: Callable[[str], Awaitable[str]]) -> str:
            log.append(name)
            return f"{name}({await proceed(text)})"

        return run

    async def innermost(text: str) -> str:
        return text

    assert await compose([step("a"), step("b")], innermost)("x") == "a(b(x))"
    assert log == ["a", "b"]


def test_a_chain_of_nothing_is_the_innermost_itself() -> None:
    async def innermost(text: str) -> str:
        return text

    assert compose([], innermost) is innermost


@pytest.mark.criterion("RPC-4")
def test_a_mark_limits_the_kinds() -> None:
    @middleware("attempt", "handler")
    def marked(call: object) -> None: ...

    def plain(call: object) -> None: ...

    assert of_kind("call", [marked, plain]) == (plain,)
    assert of_kind("attempt", [marked, plain]) == (marked, plain)
    assert of_kind("handler", [plain, marked]) == (plain, marked)


@pytest.mark.parametrize("kinds", [(), ("stream",), ("call", "atempt")])
def test_a_kind_that_does_not_exist_is_refused(kinds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="call, attempt, handler"):
        middleware(*kinds)


@pytest.mark.criterion("RPC-4")
async def test_call_middleware_runs_once_and_attempt_middleware_per_attempt(
    autojump_clock: MockClock,
) -> None:
    kernel, log = FakeKernel(range(1, 3)), list[str]()

    async def second_time_lucky(sent: Sent) -> Reply:
        if sent.attempt == 1:
            raise refused()
        return Reply(sent.body, LOAD)

    kernel.default = second_time_lucky
    call_level = [middleware("call")(tracing(name, log)) for name in ("outer", "inner")]
    attempt_level = [middleware("attempt")(tracing(name, log)) for name in ("first", "second")]
    router = router_on(kernel, *attempt_level, *call_level)

    assert await router.call(SHOP, ("hat",)) == "hat"

    one, two = (f"node-{int(sent.node, 16)}" for sent in kernel.sent)
    assert one != two
    assert log == [
        *("outer 0 nobody", "inner 0 nobody"),
        *(f"first 1 {one}", f"second 1 {one}", "second done", "first done"),
        *(f"first 2 {two}", f"second 2 {two}", "second done", "first done"),
        *("inner done", "outer done"),
    ]


async def test_one_without_a_mark_serves_calls_and_attempts(
    autojump_clock: MockClock,
) -> None:
    kernel, log = FakeKernel(range(1, 2)), list[str]()
    router = router_on(kernel, tracing("both", log))

    await router.call(SHOP, ("hat",))

    assert log == ["both 0 nobody", "both 1 node-1", "both done", "both done"]


async def test_metadata_set_on_the_way_arrives_and_does_not_leak(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 2))

    @middleware("call")
    async def tenant(call: Call, proceed: Proceed) -> Any:
        if call.arguments == ("hat",):
            call.metadata["tenant"] = "7"
        return await proceed(call)

    @middleware("attempt")
    async def numbered(call: Call, proceed: Proceed) -> Any:
        call.metadata["attempt"] = str(call.attempt)
        return await proceed(call)

    router = router_on(kernel, tenant, numbered)
    await router.call(SHOP, ("hat",))
    await router.call(SHOP, ("tie",))

    assert [sent.metadata for sent in kernel.sent] == [
        {"tenant": "7", "attempt": "1"},
        {"attempt": "1"},
    ]


async def test_a_call_may_be_answered_without_proceeding(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(0))

    @middleware("call")
    async def cached(call: Call, proceed: Proceed) -> Any:
        return "from the cache"

    contract = Endpoint()
    router = router_on(kernel, cached)

    assert await router.call(contract, ("hat",)) == "from the cache"
    assert contract.encoded == 0
    assert kernel.sent == []


async def test_an_attempt_answered_without_proceeding_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 2))

    @middleware("attempt")
    async def canned(call: Call, proceed: Proceed) -> Any:
        return f"by {call.instance.name if call.instance else ''}"

    router = router_on(kernel, canned)

    assert await router.call(SHOP, ("hat",)) == "by node-1"
    assert router.statistics().instances[0].in_flight == 0
    router.check()


async def test_a_call_refused_by_middleware_ends_with_its_error(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))

    @middleware("call")
    async def never(call: Call, proceed: Proceed) -> Any:
        raise PermissionError("not on Sundays")

    router = router_on(kernel, never)

    with pytest.raises(PermissionError, match="not on Sundays"):
        await router.call(SHOP, ("hat",))
    assert kernel.sent == []
    assert router.statistics().endpoints[0].error == 1


async def test_proceeding_again_calls_again(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 3))

    @middleware("call")
    async def twice(call: Call, proceed: Proceed) -> Any:
        return await proceed(call), await proceed(call)

    router = router_on(kernel, twice)

    assert await router.call(SHOP, ("hat",)) == ("hat", "hat")
    assert [sent.attempt for sent in kernel.sent] == [1, 2]
    assert router.statistics().endpoints[0].calls == 1


@pytest.mark.parametrize("kind", ["call", "attempt"])
async def test_proceeding_twice_at_once_keeps_the_books(
    kind: str, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 6))

    @middleware(kind)
    async def both(call: Call, proceed: Proceed) -> Any:
        results = []

        async def one() -> None:
            results.append(await proceed(call))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
        return results

    router = router_on(kernel, both)

    assert await router.call(SHOP, ("hat",)) == ["hat", "hat"]
    assert sum(instance.in_flight for instance in router.statistics().instances) == 0
    router.check()


async def test_attempts_made_at_once_go_where_each_was_picked_to_go(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 3))

    @middleware("call")
    async def both(call: Call, proceed: Proceed) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proceed, call)
            nursery.start_soon(proceed, call)

    @middleware("attempt")
    async def slowly(call: Call, proceed: Proceed) -> Any:
        await trio.sleep(0.1)
        return await proceed(call)

    await router_on(kernel, both, slowly).call(SHOP, ("hat",))

    assert len({sent.node for sent in kernel.sent}) == 2


async def test_middleware_sees_the_error_at_the_deadline_and_may_answer(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 2))

    async def late(sent: Sent) -> Reply:
        await trio.sleep_until(sent.deadline + 0.009)
        raise UnavailableError("late", reason="deadline")

    kernel.default = late

    @middleware("call")
    async def fallback(call: Call, proceed: Proceed) -> Any:
        try:
            return await proceed(call)
        except UnavailableError:
            return "stale"

    router = router_on(kernel, fallback)

    assert await router.call(SHOP, ("hat",), timeout=1.0) == "stale"


@pytest.mark.parametrize(("kind", "error"), [("call", "Unavailable"), ("attempt", "Uncertain")])
async def test_middleware_that_does_not_end_is_ended_at_the_deadline(
    kind: str, error: str, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 2))

    @middleware(kind)
    async def stuck(call: Call, proceed: Proceed) -> Any:
        await trio.sleep_forever()

    router = router_on(kernel, stuck)
    began = trio.current_time()

    with pytest.raises(Exception, match="middleware did not end") as caught:
        await router.call(SHOP, ("hat",), timeout=1.0)

    assert type(caught.value).__name__ == f"{error}Error"
    assert trio.current_time() - began <= 1.021
    router.check()


async def test_the_breaker_sees_what_middleware_hides(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(refused)

    @middleware("attempt")
    async def hide(call: Call, proceed: Proceed) -> Any:
        try:
            return await proceed(call)
        except UnavailableError:
            return "fine"

    router = router_on(kernel, hide)
    for _ in range(5):
        assert await router.call(SHOP, ("hat",)) == "fine"

    assert router.statistics().instances[0].breakers == {"shop.buy": "open"}
