"""Calls between whole nodes in the simulated world: what arrives, what comes back, what ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

import microos
from microos import limits
from microos.errors import (
    ConflictError,
    LeaseLostError,
    LimitError,
    MicroosError,
    NoMemberError,
    NoQuorumError,
    OverloadedError,
    RejectedError,
    RemoteError,
    UnauthorizedError,
    UnavailableError,
    UncertainError,
)
from microos.net.link import PROBE_WAIT, SILENCE
from microos.net.notes import LinkLost
from microos.router.middleware import Call
from microos.router.policy import Policy, Retry, RoundRobin
from microos.service.current import current_call
from microos.service.service import Service
from microos.service.serving import HandlerCall, HandlerFailed
from microos.settings import RpcSettings, Settings
from microos.sim.cluster import Cluster, run_cluster
from microos.sim.machine import PORT
from microos.types import BootId
from tests.acceptance.work import AGAIN, ONCE, Calls, Work, doubt, hang, names, refuse, rest

pytestmark = pytest.mark.sim

TICK = 0.01
"""A deadline on the data plane is rounded up to this [s]."""

TRIP = 0.05
"""There and back takes less, with certainty enough for fixed seeds [s]."""


# Bodies.

BACK = microos.remote("mirror.back", returns=tuple[str, bytes], idempotent=True)
SWALLOW = microos.remote("mirror.swallow", returns=int, idempotent=True)
GROW = microos.remote("mirror.grow", returns=bytes, idempotent=True)


def mirror(number: int) -> tuple[Service, ...]:
    service = Service("mirror")

    @service.rpc(idempotent=True)
    async def back(body: bytes) -> tuple[str, bytes]:
        return f"n{number}", body

    @service.rpc(idempotent=True)
    async def swallow(body: bytes) -> int:
        return len(body)

    @service.rpc(idempotent=True)
    async def grow(size: int) -> bytes:
        return b"\xa5" * size

    return (service,)


EDGE = limits.RPC_CHUNK - 8
"""From here on arguments, and soon results, need a second frame."""

SIZES = (0, 1, *range(EDGE, EDGE + 12), 2 * limits.RPC_CHUNK, limits.MIB)


async def chained(cluster: Cluster) -> None:
    """Start three nodes, each of which is told of the one before it, and of nobody else."""
    for number in range(3):
        before = () if number == 0 else (f"{cluster.machines[number - 1].ip}:{PORT}",)
        cluster.start(number, seeds=before)
        await cluster.machines[number].opened.wait()
        await cluster.ready()
    everybody = {"n0", "n1", "n2"}
    await cluster.wait_until(
        lambda: all(names(cluster, n, "mirror") == everybody for n in range(3)), 10.0
    )


def lost(cluster: Cluster) -> list[LinkLost]:
    return [note.what for note in cluster.notes if isinstance(note.what, LinkLost)]


@pytest.mark.slow
@pytest.mark.criterion("RPC-1")
def test_bodies_of_every_size_come_back_from_nodes_that_share_no_seed() -> None:
    async def scenario(cluster: Cluster) -> None:
        await chained(cluster)
        for caller in (0, 2):
            cluster[caller].router.apply("mirror.*", Policy(pick=RoundRobin()))
        for size in SIZES:
            body = bytes([size % 251]) * size
            for caller in (0, 2):
                answers = [await cluster[caller].call(BACK, body) for _ in range(3)]
                assert sorted(answers) == [("n0", body), ("n1", body), ("n2", body)]

    cluster = run_cluster(scenario, 3, seed=1, first=0, services=mirror)

    assert lost(cluster) == []


def test_calls_and_answers_of_one_turn_travel_together_and_one_alone_leaves_at_once() -> None:
    def only_the_second(number: int) -> tuple[Service, ...]:
        return mirror(number) if number == 1 else ()

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster.wait_until(lambda: names(cluster, 0, "mirror") == {"n1"}, 5.0)
        await cluster[0].call(BACK, b"")
        handed = [0, 0]
        for number in (0, 1):
            calls = cluster[number]._lifecycle.calls

            def count(*what: Any, number: int = number, send: Any = calls._send) -> int:
                handed[number] += 1
                return int(send(*what))

            calls._send = count

        begun = cluster.now
        assert await cluster[0].call(BACK, b"alone") == ("n1", b"alone")
        alone = cluster.now - begun
        got: list[bytes] = []

        async def ask(number: int) -> None:
            got.append((await cluster[0].call(BACK, b"%d" % number))[1])

        assert handed == [1, 1]
        begun = cluster.now
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(ask, number)
        taken = cluster.now - begun

        assert sorted(got) == sorted(b"%d" % number for number in range(64))
        assert max(handed) <= 64 // 2
        assert taken < 20 * alone

    run_cluster(scenario, 3, seed=2, services=only_the_second)


@pytest.mark.slow
@pytest.mark.criterion("RPC-1")
def test_a_body_above_the_limit_is_refused_and_the_link_lives_on() -> None:
    def only_the_third(number: int) -> tuple[Service, ...]:
        return mirror(number) if number == 2 else ()

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        node = cluster[0]
        await cluster.wait_until(lambda: names(cluster, 0, "mirror") == {"n2"}, 5.0)
        # What the limit counts is the encoded body: five bytes more than the bytes in it.
        assert await node.call(SWALLOW, bytes(limits.RPC_BODY_MAX - 6)) == limits.RPC_BODY_MAX - 6
        assert len(await node.call(GROW, limits.RPC_BODY_MAX - 5)) == limits.RPC_BODY_MAX - 5
        for remote, argument in (
            (SWALLOW, bytes(limits.RPC_BODY_MAX - 5)),
            (SWALLOW, bytes(8 * limits.MIB)),
            (GROW, limits.RPC_BODY_MAX - 4),
            (GROW, 8 * limits.MIB),
        ):
            with pytest.raises(LimitError) as refused:
                await node.call(remote, argument)
            assert refused.value.reason == "size"
            assert await node.call(SWALLOW, b"small") == 5

    cluster = run_cluster(scenario, 3, seed=2, services=only_the_third)

    assert lost(cluster) == []


# Time.


HOPS: list[tuple[str, float, float, float]] = []


def hops(number: int) -> tuple[Service, ...]:
    """Serve one hop of three, each of which takes 200 ms and calls the next."""
    if not 1 <= number <= 3:
        return ()
    service = Service(f"hop{number}")
    onward = microos.remote(f"hop{number + 1}.go", returns=str, idempotent=True)

    @service.rpc(idempotent=True)
    async def go() -> str:
        clock = microos.current_node()._lifecycle.runtime.clock
        left = current_call().deadline - clock.now()
        begun = trio.current_time()
        try:
            await trio.sleep(0.2)
            return "the end" if number == 3 else await microos.current_node().call(onward)
        finally:
            HOPS.append((service.name, left, begun, trio.current_time()))

    return (service,)


@pytest.mark.slow
@pytest.mark.criterion("RPC-2")
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_three_hops_share_half_a_second_and_end_with_it(seed: int) -> None:
    HOPS.clear()
    first = microos.remote("hop1.go", returns=str, idempotent=True)

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster.wait_until(
            lambda: all(len(n.discovery.services()) == 3 for n in cluster.nodes), 5.0
        )
        begun = cluster.now

        with pytest.raises(UncertainError) as raised:
            await cluster[0].call(first, timeout=0.5)

        assert raised.value.reason == "deadline"
        assert cluster.now <= begun + 0.5 + TICK
        await cluster.sleep(5.0)  # Nothing goes on, and nothing begins again.
        left = {name: left for name, left, _, _ in HOPS}
        assert sorted(left) == ["hop1", "hop2", "hop3"]
        assert len(HOPS) == 3
        assert 0.4 < left["hop1"] <= 0.5
        assert 0.2 < left["hop2"] <= 0.3
        assert 0.0 < left["hop3"] <= 0.1
        assert all(ended <= begun + 0.5 + TICK for *_, ended in HOPS)
        assert all(node.router.statistics().endpoints[0].retries == 0 for node in cluster.nodes[:3])

    run_cluster(scenario, 4, seed=seed, services=hops)


@pytest.mark.slow
def test_a_cancelled_call_cancels_its_handler_within_a_round_trip() -> None:
    work = Work(1)
    work.does[1] = hang

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        with trio.move_on_after(0.5):
            await cluster[0].call(ONCE, 7)
        cancelled = cluster.now
        await cluster.sleep(TRIP)

        (run,) = work.of(7)
        assert cancelled <= run.ended <= cancelled + TRIP
        assert [q.size for q in cluster[0].statistics().queues if q.name == "calls.pending"] == [0]
        assert [q.size for q in cluster[1].statistics().queues if q.name == "calls.running"] == [0]

    run_cluster(scenario, 2, seed=6, services=work)


# What goes around calls.


@pytest.mark.slow
@pytest.mark.criterion("RPC-4")
def test_each_kind_of_middleware_runs_in_its_place_and_order() -> None:
    work = Work(1, 2)
    seen: list[str] = []

    def place(call: Call | HandlerCall) -> str:
        if isinstance(call, HandlerCall):
            return f"handler {call.attempt}"
        return "call" if call.instance is None else f"attempt {call.attempt} {call.instance.name}"

    def spy(name: str, *kinds: str) -> Callable[..., Any]:
        async def watching(call: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
            if call.endpoint != AGAIN.name:
                return await proceed(call)
            where = place(call)
            seen.append(f"{name} > {where}")
            try:
                return await proceed(call)
            finally:
                seen.append(f"{name} < {where.partition(' ')[0]}")

        return microos.middleware(*kinds)(watching) if kinds else watching

    chain = [
        spy("A"), spy("B"), spy("C", "call"), spy("D", "attempt"), spy("E", "handler"),
    ]  # fmt: skip

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        cluster[0].router.apply("work.*", Policy(pick=RoundRobin()))
        first = min((1, 2), key=lambda number: cluster[number].id)
        second = 3 - first
        work.does[first] = refuse

        await cluster[0].call(AGAIN, 1)

        handler = ["A > handler {0}", "B > handler {0}", "E > handler {0}",
                   "E < handler", "B < handler", "A < handler"]  # fmt: skip
        attempt = ["A > attempt {0} n{1}", "B > attempt {0} n{1}", "D > attempt {0} n{1}",
                   *handler, "D < attempt", "B < attempt", "A < attempt"]  # fmt: skip
        assert seen == [
            "A > call", "B > call", "C > call",
            *(line.format(1, first) for line in attempt),
            *(line.format(2, second) for line in attempt),
            "C < call", "B < call", "A < call",
        ]  # fmt: skip

    run_cluster(scenario, 3, seed=7, services=work, middleware=chain)


@pytest.mark.slow
@pytest.mark.criterion("RPC-4")
def test_middleware_may_raise_answer_early_and_change_metadata() -> None:
    work = Work(1)

    @microos.middleware("call")
    async def at_the_caller(call: Call, proceed: Callable[[Call], Awaitable[Any]]) -> Any:
        if call.arguments == (13,):
            raise RejectedError("not thirteen", reason="bad_request", number=13)
        if call.arguments == (0,):
            return (-1, 0)
        call.metadata["tenant"] = f"t{call.arguments[0]}"
        return await proceed(call)

    @microos.middleware("attempt")
    async def at_each_attempt(call: Call, proceed: Callable[[Call], Awaitable[Any]]) -> Any:
        assert call.instance is not None
        call.metadata["to"] = call.instance.name
        return await proceed(call)

    @microos.middleware("handler")
    async def at_the_callee(
        call: HandlerCall, proceed: Callable[[HandlerCall], Awaitable[Any]]
    ) -> Any:
        if call.arguments == (14,):
            raise ConflictError("fourteen is there", reason="exists", number=14)
        if call.arguments == (1,):
            return (-2, 1)
        call.metadata["seen"] = call.metadata["tenant"].upper()
        return await proceed(call)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        node = cluster[0]
        with pytest.raises(RejectedError, match="not thirteen") as ours:
            await node.call(ONCE, 13)
        with pytest.raises(ConflictError, match="fourteen is there") as theirs:
            await node.call(ONCE, 14)

        assert (ours.value.reason, ours.value.facts) == ("bad_request", {"number": 13})
        assert (theirs.value.reason, theirs.value.facts) == ("exists", {"number": 14})
        assert await node.call(ONCE, 0) == (-1, 0)
        assert await node.call(ONCE, 1) == (-2, 1)
        assert work.runs == []
        assert await node.call(ONCE, 2) == (1, 2)
        (run,) = work.runs
        assert dict(run.call.metadata) == {"tenant": "t2", "to": "n1", "seen": "T2"}

    run_cluster(
        scenario, 2, seed=8, services=work,
        middleware=[at_the_caller, at_each_attempt, at_the_callee],
    )  # fmt: skip


# Trying again.


@pytest.mark.slow
@pytest.mark.criterion("RPC-5")
def test_each_attempt_goes_to_another_instance_after_a_growing_random_pause() -> None:
    work = Work(1, 2, 3)
    work.does = dict.fromkeys((1, 2, 3), refuse)
    pauses: list[float] = []

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        cluster[0].router.apply("*", Policy(retry=Retry(attempts=3, budget=1.0), breaker=None))
        for id in range(10):
            with pytest.raises(UnavailableError, match=f"nothing done of {id}"):
                await cluster[0].call(ONCE, id)
            runs = work.of(id)
            assert sorted(run.machine for run in runs) == [1, 2, 3]
            assert [run.call.attempt for run in runs] == [1, 2, 3]
            # The first repetition leaves at once, the second after a while by chance.
            assert runs[1].begun - runs[0].ended <= TRIP
            pauses.append(runs[2].begun - runs[1].ended)

    run_cluster(scenario, 4, seed=9, services=work)

    assert max(pauses) <= 0.05 + TRIP
    assert max(pauses) - min(pauses) > 0.02
    assert len(set(pauses)) == len(pauses)


@pytest.mark.slow
@pytest.mark.criterion("RPC-5", "ROUT-7")
def test_only_what_cannot_have_happened_or_may_happen_twice_is_tried_again() -> None:
    work = Work(1, 2, 3)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        cluster[0].router.apply("*", Policy(pick=RoundRobin(), breaker=None))
        order = sorted((1, 2, 3), key=lambda number: cluster[number].id)

        work.does = dict.fromkeys(order, doubt)
        for remote, id, runs in ((ONCE, 1, 1), (AGAIN, 2, 3)):
            with pytest.raises(UncertainError) as raised:
                await cluster[0].call(remote, id)
            assert raised.value.reason == "connection_lost"
            assert len(work.of(id)) == runs

        async def fail(id: int) -> None:
            raise ValueError(id)

        work.does = dict.fromkeys(order, fail)
        for remote, id in ((ONCE, 3), (AGAIN, 4)):
            with pytest.raises(RemoteError):
                await cluster[0].call(remote, id)
            assert len(work.of(id)) == 1

    run_cluster(scenario, 4, seed=10, services=work)


@pytest.mark.slow
@pytest.mark.criterion("RPC-5", "ROUT-7")
@pytest.mark.parametrize("silent", [False, True], ids=["reset", "silent"])
def test_a_crash_amid_a_call_is_repeated_only_if_that_does_no_harm(silent: bool) -> None:
    work = Work(1, 2)
    work.does = dict.fromkeys((1, 2), rest)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        cluster[0].router.apply("*", Policy(pick=RoundRobin()))
        answers: dict[int, object] = {}

        async def call(remote: Any, id: int) -> None:
            try:
                answers[id] = await cluster[0].call(remote, id, timeout=60.0)
            except UncertainError as error:
                answers[id] = error.reason

        async with trio.open_nursery() as nursery:
            for id in range(4):
                nursery.start_soon(call, AGAIN if id % 4 < 2 else ONCE, id)
            await cluster.sleep(0.05)
            victim = {run.id: run.machine for run in work.runs}
            assert sorted(victim.values()) == [1, 1, 2, 2]
            cluster.crash(1, silent=silent)
            crashed = cluster.now

        for id in (2, 3):
            assert answers[id] == ("connection_lost" if victim[id] == 1 else (2, id))
            assert len(work.of(id)) == 1
        for id in (0, 1):
            assert answers[id] == (2, id)
        # A machine that says nothing more is waited for until the others hold it dead.
        bounds = cluster.bounds
        assert cluster.now <= crashed + (bounds.S + bounds.T + bounds.G if silent else 0.0) + 1.0

    run_cluster(scenario, 3, seed=11, services=work)


# What went wrong there.


class OddError(Exception):
    """Of the user's own."""


async def odd(id: int) -> None:
    raise OddError(f"odd: {id}")


@pytest.mark.slow
@pytest.mark.criterion("RPC-7")
@pytest.mark.parametrize("told", [False, True], ids=["discreet", "telling"])
def test_a_handler_that_raises_tells_its_caller_what_and_where_to_look(told: bool) -> None:
    work = Work(1)
    settings = Settings.local(rpc=RpcSettings(remote_traceback=told))

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        work.does[1] = odd

        with pytest.raises(RemoteError, match="OddError: odd: 5") as raised:
            await cluster[0].call(ONCE, 5)

        facts = raised.value.facts
        (note,) = [n for n in cluster.notes if isinstance(n.what, HandlerFailed)]
        failed = note.what
        assert isinstance(failed, HandlerFailed)
        assert raised.value.reason == "handler"
        assert facts["type"] == f"{OddError.__module__}.OddError"
        assert (note.node, failed.endpoint, failed.id) == (1, "work.once", facts["id"])
        assert "in odd" in failed.traceback
        assert set(facts) == {"type", "id"} | ({"traceback"} if told else set())
        assert not told or "in odd" in str(facts["traceback"])
        # The node lives on, and so does the service.
        del work.does[1]
        assert await cluster[0].call(ONCE, 6) == (1, 6)
        assert cluster[1].statistics().ready

    cluster = run_cluster(scenario, 2, seed=12, settings=settings, services=work)

    assert lost(cluster) == []


@pytest.mark.slow
@pytest.mark.criterion("RPC-7")
def test_errors_of_ours_arrive_as_they_were_raised() -> None:
    raised: list[MicroosError] = [
        UnavailableError("not now", reason="taken"),
        OverloadedError("too much", reason="rate_limit", retry_after=1.5),
        NoQuorumError("too few", reason="voters", found=2, wanted=3),
        UncertainError("who knows", reason="connection_lost"),
        RejectedError("no", reason="bad_request", path="$[0].id"),
        UnauthorizedError("not you", reason="forbidden", identity="ann"),
        ConflictError("there", reason="exists", key=b"k", number=7, half=0.5, yes=True, no=None),
        LimitError("too big", reason="size", size=12),
        RemoteError("further down", reason="handler", id="abc"),
        LeaseLostError("gone", reason="expired"),
    ]
    work = Work(1)

    async def fail(id: int) -> None:
        raise raised[id]

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        cluster[0].router.apply("*", Policy(retry=None, breaker=None))
        work.does[1] = fail
        for id, wanted in enumerate(raised):
            with pytest.raises(MicroosError) as found:
                await cluster[0].call(ONCE, id)
            assert type(found.value) is type(wanted)
            assert str(found.value) == str(wanted)
            assert found.value.reason == wanted.reason
            assert found.value.facts == wanted.facts
        assert not [n for n in cluster.notes if isinstance(n.what, HandlerFailed)]

    run_cluster(scenario, 2, seed=13, services=work)


@pytest.mark.slow
@pytest.mark.criterion("RPC-7")
def test_what_nobody_serves_and_what_does_not_fit_is_refused() -> None:
    work = Work(1)
    tries: list[tuple[Any, tuple[object, ...], type[MicroosError], str]] = [
        (microos.remote("nobody.once", returns=int), (1,), NoMemberError, "unknown_service"),
        (microos.remote("work.never", returns=int), (1,), RejectedError, "unknown_endpoint"),
        (ONCE, ("text",), RejectedError, "bad_request"),
        (ONCE, (), RejectedError, "bad_request"),
        (ONCE, (1, 2), RejectedError, "bad_request"),
    ]

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        for remote, arguments, error, reason in tries:
            begun = cluster.now
            with pytest.raises(error) as refused:
                await cluster[0].call(remote, *arguments)
            assert type(refused.value) is error
            assert refused.value.reason == reason
            assert cluster.now - begun <= TRIP
        assert work.runs == []
        assert await cluster[0].call(ONCE, 1) == (1, 1)

    cluster = run_cluster(scenario, 2, seed=14, services=work)

    assert lost(cluster) == []


# Restarts, and connections that only seem to be there.


@pytest.mark.slow
@pytest.mark.criterion("RPC-9")
@pytest.mark.parametrize("silent", [False, True], ids=["reset", "silent"])
@pytest.mark.parametrize("seed", [15, 110, 204])
def test_a_restarted_node_is_reached_without_an_error(seed: int, silent: bool) -> None:
    work = Work(1)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)

        def boot() -> BootId:
            return next(m.boot for m in cluster[0].members() if m.name == "n1")

        for id in range(4):
            assert await cluster[0].call(AGAIN, id) == (1, id)
            before = boot()
            cluster.crash(1, silent=silent)
            cluster.restart(1)
            await cluster.wait_until(
                partial(lambda before: boot() != before, before), 5.0, "n0 has heard"
            )
        assert await cluster[0].call(AGAIN, 4) == (1, 4)

    run_cluster(scenario, 3, seed=seed, services=work)


@pytest.mark.slow
@pytest.mark.criterion("RPC-9")
def test_calls_go_on_while_one_of_two_instances_restarts() -> None:
    work = Work(1, 2)
    calls, over = Calls(), trio.Event()

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(calls.make, cluster, lambda: (0,), rate=100, until=over))
            for victim in (1, 2):
                await cluster.sleep(1.0)
                cluster.crash(victim)
                await cluster.sleep(0.5)
                cluster.restart(victim)
                await work.known(cluster)
                runs = partial(runs_at, work, victim)
                more = partial(lambda runs, before: runs() > before, runs, runs())
                await cluster.wait_until(more, 20.0, "the restarted instance is called")
            over.set()

    run_cluster(scenario, 3, seed=20, services=work)

    assert calls.errors == []
    assert len(calls.took) > 200


def runs_at(work: Work, machine: int) -> int:
    return sum(run.machine == machine for run in work.runs)


@pytest.mark.slow
@pytest.mark.criterion("RPC-9")
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_a_half_open_connection_is_found(both: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        cut_at = cluster.now
        cluster.rules.cut("n1", "n0")
        if both:
            cluster.rules.cut("n0", "n1")
        one, other = cluster[1].id, cluster[0].id

        def found(at: int, of: str) -> bool:
            return any(
                note.node == at and isinstance(note.what, LinkLost) and note.what.node == of
                for note in cluster.notes
                if note.at >= cut_at
            )

        bound = SILENCE + PROBE_WAIT + 0.1
        await cluster.wait_until(
            lambda: found(0, one) and (found(1, other) or not both), bound, "the silence is noticed"
        )

    run_cluster(scenario, 3, seed=21)
