"""Routing on whole nodes in the simulated world: whom calls go to, and whom not any more."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio

from microos.errors import (
    CircuitOpenError,
    MicroosError,
    UnavailableError,
    UncertainError,
)
from microos.router.breaker import BreakerMoved
from microos.router.budget import RESERVE
from microos.router.policy import Breaker, Policy, Retry, RoundRobin
from microos.sim.cluster import Cluster, run_cluster
from tests.acceptance.work import AGAIN, ONCE, Calls, Work, doubt, hang, names, refuse

pytestmark = pytest.mark.sim

TICK = 0.01
"""A deadline on the data plane is rounded up to this [s]."""

TRIP = 0.05
"""There and back takes less, with certainty enough for fixed seeds [s]."""

MOMENT = 0.001
"""Beyond what rounding costs [s]."""


# Picking.


@pytest.mark.slow
@pytest.mark.criterion("ROUT-1")
def test_picking_leaves_no_trace_in_the_world() -> None:
    def traced(*, picking: bool) -> tuple[str, int]:
        picked: dict[str, None] = {}
        frames = [0]

        async def scenario(cluster: Cluster) -> None:
            work = Work(0, 1, 2, 3, 4)
            await work.known(cluster)
            endpoint = cluster[0].router._endpoint(AGAIN.name)
            counted = cluster.count_frames()
            for number in range(100):
                if picking:
                    found = endpoint.choose(float(number), tried={}, drained={})
                    assert found is not None
                    picked[found.node] = None
                await cluster.sleep(0.01)
            frames[0] = counted.total()

        cluster = run_cluster(scenario, 5, seed=1, services=Work(0, 1, 2, 3, 4))
        assert len(picked) == (5 if picking else 0)
        return cluster.world.trace_hash(), frames[0]

    # Not a frame more, not a task step more: the two worlds are one and the same.
    assert traced(picking=True) == traced(picking=False)


@pytest.mark.slow
@pytest.mark.criterion("ROUT-1")
@pytest.mark.parametrize("silent", [False, True], ids=["reset", "silent"])
@pytest.mark.parametrize("victim", range(1, 5))
def test_picks_go_on_without_delay_whoever_else_crashes(victim: int, silent: bool) -> None:
    work = Work(1, 2, 3)
    calls, over = Calls(), trio.Event()
    crashed = [0.0]

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        async with trio.open_nursery() as nursery:
            # A deadline for those that a machine which vanishes has taken with it.
            make = partial(calls.make, cluster, lambda: (0,), rate=100, until=over, timeout=1.0)
            nursery.start_soon(make)
            await cluster.sleep(2.0)
            crashed[0] = cluster.now
            cluster.crash(victim, silent=silent)
            await cluster.sleep(4.0)
            over.set()
        elsewhere = {run.id for run in work.runs if run.machine != victim}
        assert len(elsewhere) > 350

    run_cluster(scenario, 5, seed=2, services=work)

    def slowest(begun_after: float, begun_before: float) -> float:
        pairs = zip(calls.begun, calls.took, strict=True)
        return max(took for begun, took in pairs if begun_after <= begun < begun_before)

    if not silent or victim not in work.machines:
        assert calls.errors == []
        assert slowest(crashed[0], crashed[0] + 4.0) <= TRIP
    else:
        # What had been sent there has got no answer; what was not, has felt nothing.
        assert all(isinstance(error, UncertainError) for *_, error in calls.errors)
        assert len(calls.errors) <= 20
        assert slowest(crashed[0], crashed[0] + 4.0) <= TRIP


# Trying again.

RATE = 50.0
"""Calls per second."""


@pytest.mark.slow
@pytest.mark.criterion("ROUT-7", "RPC-5")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_when_every_call_fails_the_extra_load_stays_within_the_budget(share: float) -> None:
    work = Work(1, 2, 3)
    work.does = dict.fromkeys((1, 2, 3), refuse)
    calls, over = Calls(), trio.Event()

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        cluster[0].router.apply("*", Policy(retry=Retry(budget=share), breaker=None))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(calls.make, cluster, lambda: (0,), rate=RATE, until=over))
            await cluster.sleep(30.0)
            over.set()

        made = len(calls.errors)
        assert made >= 1400
        assert all(isinstance(error, UnavailableError) for *_, error in calls.errors)
        # In any nine seconds: the budget is kept in slots of one second, of the last ten.
        for begin in range(21):
            since = work.runs[0].begun + begin
            repeated = [r for r in work.runs if r.call.attempt > 1 and 0 <= r.begun - since < 9.0]
            assert len(repeated) <= RESERVE + share * (10 * RATE + 1)
        (figures,) = cluster[0].router.statistics().endpoints
        assert figures.retries == len(work.runs) - made > 0
        # Every repetition went to an instance that had not been asked yet.
        for id in range(made):
            machines = [run.machine for run in work.of(id)]
            assert len(set(machines)) == len(machines)

    run_cluster(scenario, 4, seed=3, services=work)


@pytest.mark.slow
@pytest.mark.criterion("ROUT-7")
def test_no_repetition_outlives_the_deadline() -> None:
    work = Work(1, 2, 3)

    async def dawdle(id: int) -> None:
        await trio.sleep(0.09)
        await (refuse if id % 2 else doubt)(id)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        retry = Retry(attempts=100, budget=1.0)
        cluster[0].router.apply("*", Policy(retry=retry, breaker=None))
        for does in (refuse, dawdle, hang):
            work.does = dict.fromkeys((1, 2, 3), does)
            for id in range(10):
                begun = cluster.now
                with pytest.raises((UnavailableError, UncertainError)):
                    await cluster[0].call(AGAIN, id, timeout=0.25)
                assert cluster.now - begun <= 0.25 + TICK
                await cluster.sleep(0.05)
                assert all(run.ended <= begun + 0.25 + TICK for run in work.runs)
        assert any(run.call.attempt > 3 for run in work.runs)

    run_cluster(scenario, 4, seed=4, services=work)


# Breakers.


@pytest.mark.slow
@pytest.mark.criterion("ROUT-6")
def test_a_breaker_opens_at_its_threshold_probes_and_closes() -> None:
    work = Work(1)
    breaker = Breaker(consecutive=4, cooldown=2.0, probes=2)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        node = cluster[0]
        node.router.apply("*", Policy(retry=None, breaker=breaker))

        def states() -> dict[str, str]:
            (instance,) = node.router.statistics().instances
            return dict(instance.breakers)

        def moves() -> list[tuple[str, str, str, float]]:
            found = [n.what for n in cluster.notes if isinstance(n.what, BreakerMoved)]
            return [(m.endpoint, m.before, m.after, m.wait) for m in found]

        async def outcome(remote: Any, id: int) -> object:
            begun = cluster.now
            try:
                return await node.call(remote, id)
            except CircuitOpenError as error:
                refused = error
            except UnavailableError as error:
                return error.reason
            assert (cluster.now, refused.reason) == (begun, "open")
            return refused.facts["retry_after"]

        # Three failures and a success are not four failures in a row.
        work.does[1] = refuse
        assert [await outcome(ONCE, id) for id in range(3)] == ["taken"] * 3
        del work.does[1]
        assert await outcome(ONCE, 3) == (1, 3)
        work.does[1] = refuse
        assert [await outcome(ONCE, id) for id in range(4, 8)] == ["taken"] * 4
        assert moves()[0][:3] == (ONCE.name, "closed", "open")

        # Open: nothing is sent. It is open for this endpoint only.
        frames = cluster.count_frames()
        wait = await outcome(ONCE, 8)
        assert isinstance(wait, float)
        assert 1.0 <= wait <= 3.0
        assert len(work.runs) == 8
        assert frames[(node.name, "rpc")] == 0
        del work.does[1]
        assert await outcome(AGAIN, 9) == (1, 9)
        assert states() == {ONCE.name: "open", AGAIN.name: "closed"}

        # Half-open: of many calls at once, two get through; one fails, and it opens again.
        waits = [moves()[0][3]]
        for turn in range(1, 4):
            await cluster.sleep(waits[-1] + MOMENT)
            work.does[1] = tardy_refusal
            results: list[object] = []

            async def ask(id: int, results: list[object] = results) -> None:
                results.append(await outcome(ONCE, id))

            async with trio.open_nursery() as nursery:
                for id in range(10):
                    nursery.start_soon(ask, 100 * turn + id)
            assert len(work.of(*range(100 * turn, 100 * turn + 10))) == 2
            assert results.count("taken") == 2
            assert moves()[-1][:3] == (ONCE.name, "half_open", "open")
            waits.append(moves()[-1][3])
        # Each wait is longer than the one before: 2 s times two each time, ± 50 %.
        for turn, wait in enumerate(waits):
            assert 0.5 <= wait / (2.0 * 2.0**turn) <= 1.5

        # Three successes close it.
        await cluster.sleep(waits[-1] + MOMENT)
        del work.does[1]
        for id in range(3):
            assert states()[ONCE.name] == ("open" if id == 0 else "half_open")
            assert await outcome(ONCE, 1000 + id) == (1, 1000 + id)
        assert moves()[-1] == (ONCE.name, "half_open", "closed", 0.0)
        assert all(note.node == 0 for note in cluster.notes if isinstance(note.what, BreakerMoved))

    run_cluster(scenario, 2, seed=5, services=work)


async def tardy_refusal(id: int) -> None:
    """Refuse after a while, so that calls meet."""
    await trio.sleep(0.1)
    await refuse(id)


@pytest.mark.slow
@pytest.mark.criterion("ROUT-6")
def test_the_last_well_instance_is_never_put_out() -> None:
    work = Work(1, 2, 3, 4)
    calls, over = Calls(), trio.Event()

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        work.does = dict.fromkeys((1, 2, 3), refuse)
        retry, breaker = Retry(attempts=4, budget=1.0), Breaker(consecutive=2)
        cluster[0].router.apply("*", Policy(retry=retry, breaker=breaker))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(calls.make, cluster, lambda: (0,), rate=RATE, until=over))
            await cluster.sleep(10.0)
            over.set()
        assert calls.errors == []
        last = [run for run in work.runs if run.machine == 4]
        assert len(last) == len(calls.took) >= 450
        opened = [n.what for n in cluster.notes if isinstance(n.what, BreakerMoved)]
        assert cluster[4].id not in {moved.node for moved in opened}
        assert {moved.node for moved in opened} == {cluster[n].id for n in (1, 2, 3)}

    run_cluster(scenario, 5, seed=6, services=work)


# How a call ends when instances come, go, or are not there.


@pytest.mark.slow
@pytest.mark.criterion("ROUT-18")
def test_a_call_outlives_the_change_of_all_instances_amid_its_retries() -> None:
    work = Work(1, 2, 3)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        await cluster.wait_until(lambda: names(cluster, 0) == {"n1", "n2"}, 1.0)
        cluster[0].router.apply("*", Policy(retry=Retry(attempts=100, budget=1.0), breaker=None))
        for id in range(100, 200):  # They earn the budget.
            await cluster[0].call(AGAIN, id)
        work.does = dict.fromkeys((1, 2, 3), refuse)
        answers: list[tuple[int, int]] = []

        async def call() -> None:
            answers.append(await cluster[0].call(AGAIN, 1, timeout=60.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            cluster.start(3)
            await cluster.wait_until(lambda: "n3" in names(cluster, 0), 10.0)
            await cluster.leave(1)
            await cluster.leave(2)
            assert answers == []
            del work.does[3]

        assert answers == [(3, 1)]
        assert {run.machine for run in work.of(1)} == {1, 2, 3}

    run_cluster(scenario, 4, seed=7, first=3, services=work)


@pytest.mark.slow
@pytest.mark.criterion("ROUT-18")
def test_how_a_call_ends_with_one_instance_none_and_none_any_more() -> None:
    work = Work(1)

    async def ending(cluster: Cluster) -> str:
        try:
            await cluster[0].call(AGAIN, 1, timeout=2.0)
        except MicroosError as error:
            return f"{type(error).__name__} {error.reason}"
        return "success"

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        begun = cluster.now
        assert await ending(cluster) == "NoMemberError unknown_service"
        assert cluster.now == begun

        cluster.start(1)
        await cluster.wait_until(lambda: names(cluster, 0) == {"n1"}, 10.0)
        assert await ending(cluster) == "success"

        cluster[0].router.apply("*", Policy(retry=None))
        work.does[1] = refuse
        for _ in range(5):
            assert await ending(cluster) == "UnavailableError taken"
        begun = cluster.now
        assert await ending(cluster) == "CircuitOpenError open"
        assert cluster.now == begun

        await cluster.leave(1)
        await cluster.wait_until(lambda: names(cluster, 0) == set(), 10.0)
        begun = cluster.now
        assert await ending(cluster) == "NoMemberError none_usable"
        assert cluster.now == begun

    async def machines(cluster: Cluster) -> None:
        for number in (0, 2, 3):
            cluster.start(number)
        await scenario(cluster)

    run_cluster(machines, 4, seed=8, first=0, services=work)


@pytest.mark.slow
@pytest.mark.criterion("ROUT-18")
def test_with_the_breakers_of_all_instances_open_a_call_ends_at_once() -> None:
    work = Work(1, 2, 3)
    work.does = dict.fromkeys((1, 2, 3), refuse)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        cluster[0].router.apply("*", Policy(pick=RoundRobin(), retry=None))
        for id in range(15):
            with pytest.raises(UnavailableError, match="nothing done"):
                await cluster[0].call(ONCE, id)
        begun, ran = cluster.now, len(work.runs)
        with pytest.raises(CircuitOpenError) as refused:
            await cluster[0].call(ONCE, 15)
        assert (cluster.now, len(work.runs)) == (begun, ran)
        after = refused.value.facts["retry_after"]
        assert isinstance(after, float)
        assert 0.0 < after <= 1.5

        work.does = {}
        await cluster.sleep(after + MOMENT)
        assert (await cluster[0].call(ONCE, 16))[1] == 16

    run_cluster(scenario, 4, seed=9, services=work)
