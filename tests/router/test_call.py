"""The logical call, on a kernel whose attempts are scripted, in virtual time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from microos.errors import (
    CircuitOpenError,
    MicroosError,
    NoMemberError,
    OverloadedError,
    RejectedError,
    RemoteError,
    UnavailableError,
    UncertainError,
)
from microos.gossip.members import State
from microos.router import Breaker, LeastLoad, Policy, Random, Retry, RoundRobin
from microos.router.breaker import BreakerMoved
from microos.router.budget import RESERVE
from microos.router.call import current_deadline
from microos.router.router import Router
from microos.rpc.messages import Load, Reply
from tests.router.fake import (
    LOAD,
    Endpoint,
    FakeKernel,
    Script,
    Sent,
    answers,
    draining,
    hangs,
    lost,
    node,
    raises,
    refused,
    router_on,
)

BUY = Endpoint()
LOOK = Endpoint("shop.look", idempotent=True)


async def fails(router: Router, endpoint: Endpoint = BUY, **kinds: float) -> MicroosError:
    """Return the error a call ends with."""
    with pytest.raises(MicroosError) as caught:
        await router.call(endpoint, ("hat",), timeout=kinds.get("timeout"))
    router.check()
    return caught.value


def nodes(kernel: FakeKernel) -> list[int]:
    return [int(sent.node, 16) for sent in kernel.sent]


async def test_arguments_go_out_and_the_result_comes_back(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 4))
    router = router_on(kernel)

    assert await router.call(BUY, ("hat", "7")) == "hat/7"

    (sent,) = kernel.sent
    assert (sent.endpoint, sent.body, sent.attempt) == ("shop.buy", b"hat/7", 1)
    assert sent.deadline == pytest.approx(sent.at + 5.0)


async def test_what_cannot_be_encoded_is_refused_before_anything_is_sent(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 4))

    with pytest.raises(RejectedError, match="expected text") as caught:
        await router_on(kernel).call(BUY, (3,))

    assert caught.value.reason == "bad_request"
    assert kernel.sent == []


@pytest.mark.parametrize("name", ["buy", ".buy", "shop.", ""])
async def test_a_name_without_service_or_function_is_misuse(
    name: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(ValueError, match=r"expected SERVICE\.FUNCTION"):
        await router_on(FakeKernel(range(1, 2))).call(Endpoint(name), ())


# Trying again.


async def test_a_retry_goes_to_another_instance_at_once(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 4))
    kernel.default = raises(refused)
    router = router_on(kernel)

    error = await fails(router)

    assert error.reason == "connection_refused"
    assert sorted(nodes(kernel)) == [1, 2, 3]
    assert [sent.attempt for sent in kernel.sent] == [1, 2, 3]
    first, second, third = (sent.at for sent in kernel.sent)
    assert second - first == pytest.approx(0.001)
    assert 0.001 <= third - second <= 0.051 + 1e-9
    assert router.statistics().endpoints[0].retries == 2


async def test_the_arguments_are_encoded_once(autojump_clock: MockClock) -> None:
    kernel, contract = FakeKernel(range(1, 4)), Endpoint()
    kernel.default = raises(refused)

    await fails(router_on(kernel), contract)

    assert len(kernel.sent) == 3
    assert contract.encoded == 1


@pytest.mark.parametrize(
    ("endpoint", "make", "attempts"),
    [
        (BUY, refused, 3),
        (BUY, lost, 1),
        (LOOK, lost, 3),
        (LOOK, lambda: RejectedError("no"), 1),
        (LOOK, lambda: RemoteError("raised"), 1),
        (BUY, lambda: OverloadedError("full", retry_after=-1), 1),
    ],
)
async def test_only_what_is_safe_is_repeated(
    endpoint: Endpoint, make: Callable[[], MicroosError], attempts: int, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 6))
    kernel.default = raises(make, LOAD)

    await fails(router_on(kernel), endpoint)

    assert len(kernel.sent) == attempts


async def test_the_only_instance_is_tried_again_after_a_moment(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))

    async def second_time_lucky(sent: Sent) -> Reply:
        if sent.attempt == 1:
            raise refused()
        return Reply(sent.body, LOAD)

    kernel.default = second_time_lucky

    assert await router_on(kernel).call(BUY, ("hat",)) == "hat"
    assert nodes(kernel) == [1, 1]
    assert kernel.sent[0].at < kernel.sent[1].at <= kernel.sent[0].at + 0.025


async def test_when_all_were_tried_the_one_that_answered_is_tried_again(
    autojump_clock: MockClock,
) -> None:
    for number in range(10):
        kernel = FakeKernel(range(1, 3), seed=number)
        kernel.scripts[node(1)] = raises(refused)

        async def second_time_lucky(sent: Sent) -> Reply:
            if sent.attempt < 3:
                await raises(lost, LOAD)(sent)
            return Reply(sent.body, LOAD)

        kernel.scripts[node(2)] = second_time_lucky
        call = Endpoint(idempotent=True)

        assert await router_on(kernel).call(call, ("hat",), key=str(number)) == "hat"
        assert nodes(kernel)[2] == 2


async def test_a_busy_callee_is_given_the_time_it_asks_for(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 3))
    kernel.default = raises(lambda: OverloadedError("full", retry_after=0.5), LOAD)

    error = await fails(router_on(kernel, policy=Policy(retry=Retry(attempts=2))))

    assert isinstance(error, OverloadedError)
    assert kernel.sent[1].at - kernel.sent[0].at == pytest.approx(0.501)


async def test_when_every_call_fails_the_extra_load_stays_within_the_budget(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 11))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(breaker=None))

    for _ in range(400):
        await fails(router)
        await trio.sleep(0.01)

    calls, attempts = 400, len(kernel.sent)
    assert trio.current_time() < 10.0
    assert calls + RESERVE < attempts <= calls + RESERVE + 0.1 * calls


async def test_the_budget_is_that_of_the_service(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 6))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(breaker=None, retry=Retry(budget=0.0)))

    for number in range(10):
        await fails(router, Endpoint(f"shop.f{number}"))

    assert len(kernel.sent) == 10 + RESERVE


async def test_an_instance_that_drains_is_passed_over_at_no_cost(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 6))
    for number in range(1, 5):
        kernel.scripts[node(number)] = raises(draining, Load(0, 1, 1, 1))
    router = router_on(kernel, policy=Policy(retry=None))

    for _ in range(50):
        assert await router.call(BUY, ("hat",)) == "hat"

    # Each was asked at most once: from then on they are used last.
    assert all(count == 1 for number, count in Counter(nodes(kernel)).items() if number != 5)
    assert set(router.statistics().instances[0].breakers.values()) <= {"closed"}


async def test_with_all_draining_each_is_asked_once(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 6))
    kernel.default = raises(draining)

    error = await fails(router_on(kernel))

    assert (type(error), error.reason) == (UnavailableError, "draining")
    assert sorted(nodes(kernel)) == [1, 2, 3, 4, 5]


async def test_whom_gossip_suspects_is_used_last(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 4))
    kernel.join(1, state=State.SUSPECT)
    kernel.join(2, state=State.SUSPECT)
    router = router_on(kernel)

    for _ in range(20):
        await router.call(BUY, ("hat",))
    assert set(nodes(kernel)) == {3}
    kernel.leave(3)

    assert await router.call(BUY, ("hat",)) == "hat"
    assert nodes(kernel)[-1] in (1, 2)


async def test_one_instance_that_fails_costs_no_call(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 11))
    kernel.scripts[node(4)] = raises(refused)
    router = router_on(kernel)

    for _ in range(1000):
        assert await router.call(BUY, ("hat",)) == "hat"

    assert nodes(kernel).count(4) < 10


# Deadlines.


@pytest.mark.parametrize(
    ("argument", "declared", "wanted"),
    [(None, None, 5.0), (None, 2.0, 2.0), (0.5, 2.0, 0.5), (3.0, 2.0, 3.0)],
)
async def test_the_callers_timeout_goes_before_the_endpoints(
    argument: float | None, declared: float | None, wanted: float, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 2))
    contract = Endpoint(timeout=declared)

    await router_on(kernel).call(contract, ("hat",), timeout=argument)

    assert kernel.sent[0].deadline == pytest.approx(kernel.sent[0].at + wanted)


async def test_waiting_for_ever_must_be_written_out(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))

    await router_on(kernel).call(BUY, ("hat",), timeout=math.inf)

    assert kernel.sent[0].deadline == math.inf


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan])
async def test_a_timeout_that_is_not_positive_is_misuse(
    timeout: float, autojump_clock: MockClock
) -> None:
    with pytest.raises(ValueError, match="timeout must be positive"):
        await router_on(FakeKernel(range(1, 2))).call(BUY, ("hat",), timeout=timeout)


async def test_the_deadline_is_never_passed_and_ends_the_attempts(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 6))
    kernel.default = hangs
    began = trio.current_time()

    error = await fails(router_on(kernel), LOOK, timeout=0.5)

    assert (type(error), error.reason) == (UncertainError, "deadline")
    assert len(kernel.sent) == 1
    assert trio.current_time() - began == pytest.approx(0.5)


async def test_no_pause_reaches_beyond_the_deadline(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(lambda: OverloadedError("full", retry_after=1.0), LOAD)
    began = trio.current_time()

    error = await fails(router_on(kernel), timeout=0.9)

    assert isinstance(error, OverloadedError)
    assert trio.current_time() - began == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("left", "wanted"), [(0.5, 0.475), (0.02, 0.018), (100.0, 5.0), (5.1, 4.845)]
)
async def test_within_a_handler_its_deadline_shortens_that_of_the_call(
    left: float, wanted: float, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 2))
    token = current_deadline.set(trio.current_time() + left)

    await router_on(kernel).call(BUY, ("hat",))

    current_deadline.reset(token)
    assert kernel.sent[0].deadline == pytest.approx(kernel.sent[0].at + wanted)


@pytest.mark.parametrize("left", [0.002, 0.0, -1.0])
async def test_a_handler_without_time_left_sends_nothing(
    left: float, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 2))
    token = current_deadline.set(trio.current_time() + left)

    error = await fails(router_on(kernel))

    current_deadline.reset(token)
    assert (type(error), error.reason) == (UnavailableError, "deadline")
    assert kernel.sent == []


async def test_three_hops_leave_less_each_time(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 4))
    router = router_on(kernel)

    async def hop(sent: Sent) -> Reply:
        current_deadline.set(sent.deadline)
        await trio.sleep(0.2)
        if len(kernel.sent) < 3:
            await router.call(LOOK, ("on",))
        return Reply(sent.body, LOAD)

    kernel.default = hop
    await fails_late(router, 0.5)

    left = [sent.deadline - sent.at for sent in kernel.sent]
    assert left == pytest.approx([0.5, 0.285, 0.08075])


async def fails_late(router: Router, timeout: float) -> None:
    """Call as a kernel would that ends each attempt at its deadline."""
    with trio.move_on_after(timeout):
        await router.call(LOOK, ("on",), timeout=timeout)


async def test_after_an_uncertain_attempt_the_call_stays_uncertain(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 4))

    async def script(sent: Sent) -> Reply:
        raise lost() if sent.attempt == 1 else refused()

    kernel.default = script

    error = await fails(router_on(kernel), LOOK)

    assert isinstance(error, UncertainError)
    assert len(kernel.sent) == 3


# Nobody to call.


async def test_a_service_nobody_has_seen_is_unknown(autojump_clock: MockClock) -> None:
    error = await fails(router_on(FakeKernel(range(0))))

    assert (type(error), error.reason) == (NoMemberError, "unknown_service")


@pytest.mark.parametrize("was_called", [False, True])
async def test_a_service_whose_instances_are_gone_has_none_usable(
    was_called: bool, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 2))
    router = router_on(kernel)
    if was_called:
        await router.call(BUY, ("hat",))
    kernel.leave(1)

    error = await fails(router)

    assert (type(error), error.reason) == (NoMemberError, "none_usable")


async def test_a_service_that_appears_is_called(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(0))
    router = router_on(kernel)
    await fails(router)

    kernel.join(1)

    assert await router.call(BUY, ("hat",)) == "hat"


async def test_an_instance_that_comes_during_the_retries_is_used(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))

    async def replaced(sent: Sent) -> Reply:
        kernel.leave(1)
        kernel.join(2)
        raise refused()

    kernel.scripts[node(1)] = replaced

    assert await router_on(kernel).call(BUY, ("hat",)) == "hat"
    assert nodes(kernel) == [1, 2]


@pytest.mark.parametrize(("make", "kind"), [(refused, NoMemberError), (lost, UncertainError)])
async def test_the_last_instance_may_leave_during_the_retries(
    make: Callable[[], MicroosError], kind: type[MicroosError], autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 2))

    async def leaves(sent: Sent) -> Reply:
        kernel.leave(1)
        raise make()

    kernel.default = leaves

    assert type(await fails(router_on(kernel), LOOK)) is kind


async def test_an_open_breaker_sends_nothing_and_says_when_to_come_back(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(retry=None))
    for _ in range(5):
        await fails(router)
    began, sent = trio.current_time(), len(kernel.sent)

    error = await fails(router)

    assert (type(error), error.reason) == (CircuitOpenError, "open")
    assert len(kernel.sent) == sent
    assert trio.current_time() == began
    wait = error.facts["retry_after"]
    assert isinstance(wait, float)
    assert 0.4 < wait <= 1.5
    assert [type(note) for note in kernel.notes] == [BreakerMoved]

    kernel.default = answers
    await trio.sleep(wait)
    for _ in range(3):
        assert await router.call(BUY, ("hat",)) == "hat"
    assert [note.after for note in kernel.notes if isinstance(note, BreakerMoved)] == [
        *("open", "half_open", "closed")
    ]


async def test_a_breaker_is_that_of_one_endpoint(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(retry=None))
    for _ in range(5):
        await fails(router)
    kernel.default = answers

    assert isinstance(await fails(router, BUY), CircuitOpenError)
    assert await router.call(LOOK, ("hat",)) == "hat"


async def test_half_open_lets_one_of_many_calls_through(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(retry=None))
    for _ in range(5):
        await fails(router)
    await trio.sleep(1.5)
    kernel.sent.clear()
    kernel.default = hangs

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(fails, router)

    assert len(kernel.sent) == 1


async def test_a_breaker_that_opens_during_the_retries_ends_them(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(refused)
    policy = Policy(retry=Retry(attempts=9), breaker=Breaker(consecutive=2))

    error = await fails(router_on(kernel, policy=policy))

    assert isinstance(error, CircuitOpenError)
    assert isinstance(error.__cause__, UnavailableError)
    assert len(kernel.sent) == 2


@pytest.mark.parametrize(
    ("script", "opens"),
    [
        (raises(refused), True),
        (raises(lost), True),
        (hangs, True),
        (raises(lambda: RejectedError("no"), LOAD), False),
        (raises(lambda: RemoteError("raised"), LOAD), False),
        (raises(lambda: OverloadedError("full"), LOAD), False),
        (raises(draining, LOAD), False),
        (raises(lambda: RejectedError("too big for our own link"), None), False),
    ],
)
async def test_what_the_breaker_takes_for_a_failure(
    script: Script, opens: bool, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = script
    router = router_on(kernel, policy=Policy(retry=None))

    for _ in range(6):
        await fails(router, timeout=0.1)

    state = router.statistics().instances[0].breakers["shop.buy"]
    assert state == ("open" if opens else "closed")


async def test_half_open_closes_by_any_answer_but_not_by_an_error_of_our_own(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(retry=None))
    for _ in range(5):
        await fails(router)
    await trio.sleep(1.5)

    def state() -> str:
        return router.statistics().instances[0].breakers["shop.buy"]

    kernel.default = raises(lambda: RejectedError("too big for our own link"), None)
    for _ in range(5):
        await fails(router)
    assert state() == "half_open"
    kernel.default = raises(lambda: RemoteError("raised"), LOAD)
    for _ in range(3):
        await fails(router)
    assert state() == "closed"


# Cancelling.


async def test_a_cancelled_call_leaves_nothing_behind_and_charges_nobody(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = hangs
    router = router_on(kernel)

    for _ in range(10):
        with trio.move_on_after(0.05):
            await router.call(BUY, ("hat",))

    (instance,) = router.statistics().instances
    assert instance.in_flight == 0
    assert not instance.suspect
    assert instance.breakers == {"shop.buy": "closed"}
    (endpoint,) = router.statistics().endpoints
    assert (endpoint.calls, endpoint.success, endpoint.error) == (10, 0, 0)
    router.check()


async def test_a_call_cancelled_at_its_deadline_charges_the_instance(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 3))

    async def deaf(sent: Sent) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    kernel.scripts[node(1)] = kernel.scripts[node(2)] = deaf
    router = router_on(kernel)

    with trio.move_on_after(0.05):
        await router.call(BUY, ("hat",), timeout=0.05)

    assert sum(instance.suspect for instance in router.statistics().instances) == 1


async def test_a_probe_that_is_cancelled_makes_room_for_the_next(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 2))
    kernel.default = raises(refused)
    router = router_on(kernel, policy=Policy(retry=None))
    for _ in range(5):
        await fails(router)
    await trio.sleep(1.5)
    kernel.default = hangs
    with trio.move_on_after(0.05):
        await router.call(BUY, ("hat",))
    kernel.default = answers

    assert await router.call(BUY, ("hat",)) == "hat"


# Picking.


async def test_calls_of_one_key_go_to_one_instance_while_it_can_be_used(
    autojump_clock: MockClock,
) -> None:
    kernel = FakeKernel(range(1, 11))
    router = router_on(kernel)
    for _ in range(20):
        await router.call(BUY, ("hat",), key="customer-7")
    (home,) = set(nodes(kernel))
    kernel.scripts[node(home)] = raises(refused)
    kernel.sent.clear()

    for _ in range(20):
        assert await router.call(BUY, ("hat",), key="customer-7") == "hat"

    assert nodes(kernel).count(home) == 1
    assert len(set(nodes(kernel))) == 2


async def test_keys_spread_over_the_instances(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 11))
    router = router_on(kernel)

    for number in range(300):
        await router.call(BUY, ("hat",), key=f"customer-{number}")

    assert all(10 <= count <= 60 for count in Counter(nodes(kernel)).values())
    assert len(set(nodes(kernel))) == 10


@pytest.mark.parametrize("pick", [LeastLoad(), RoundRobin(), Random()])
async def test_every_pick_uses_all_instances(
    pick: LeastLoad | RoundRobin | Random, autojump_clock: MockClock
) -> None:
    kernel = FakeKernel(range(1, 6))
    router = router_on(kernel, policy=Policy(pick=pick))

    for _ in range(200):
        await router.call(BUY, ("hat",))

    spread = Counter(nodes(kernel))
    assert all(20 <= spread[number] <= 60 for number in range(1, 6))
    if isinstance(pick, RoundRobin):
        assert set(spread.values()) == {40}


async def test_picking_sends_nothing(autojump_clock: MockClock) -> None:
    kernel = FakeKernel(range(1, 6))
    router = router_on(kernel)

    for _ in range(100):
        await router.call(BUY, ("hat",))

    assert len(kernel.sent) == 100
