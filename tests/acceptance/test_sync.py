"""Locks and the group they stand on, on whole nodes in the simulated world."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from microos.errors import LeaseLostError, NoQuorumError, UnavailableError
from microos.settings import RaftSettings, Settings
from microos.sim.cluster import Cluster, run_cluster

pytestmark = pytest.mark.sim


class Resource:
    """A store that compares fencing tokens, and notices two owners at once."""

    def __init__(self) -> None:
        self.highest = 0
        self.inside = 0
        self.writes: list[int] = []
        self.refused = 0

    def enter(self, token: int) -> None:
        self.inside += 1
        assert self.inside == 1, "two owners at once"
        assert token > self.highest, "tokens must rise strictly"
        self.highest = token
        self.writes.append(token)

    def leave(self) -> None:
        self.inside -= 1


async def sections(cluster: Cluster, number: int, count: int, resource: Resource) -> None:
    for _ in range(count):
        async with cluster[number].sync.lock("ledger", wait=10_000.0) as lease:
            resource.enter(lease.token)
            await cluster.sleep(0.001)
            resource.leave()


@pytest.mark.slow
@pytest.mark.criterion("SYNC-1")
def test_a_hundred_clients_on_five_nodes_never_hold_the_lock_together() -> None:
    resource = Resource()

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        async with trio.open_nursery() as nursery:
            for client in range(100):
                nursery.start_soon(sections, cluster, client % 5, 100, resource)

    run_cluster(scenario, seed=1)

    assert len(resource.writes) == 100 * 100
    assert resource.writes == sorted(set(resource.writes))


def holding(
    cluster: Cluster, number: int, held: trio.Event, *, ttl: float = 2.0
) -> Callable[[], Awaitable[None]]:
    """Return a client that holds the lock until its node dies or it is cancelled."""

    async def hold() -> None:
        with pytest.raises((LeaseLostError, trio.Cancelled)):
            async with cluster[number].sync.lock("ledger", ttl=ttl):
                held.set()
                await trio.sleep_forever()

    return hold


@pytest.mark.criterion("SYNC-3")
@pytest.mark.parametrize("seed", range(4))
def test_a_crashed_owners_lock_passes_on_within_its_ttl_and_two_elections(seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        owner = seed % 5
        held = trio.Event()
        cluster.start_soon(holding(cluster, owner, held))
        await held.wait()
        cluster.crash(owner, silent=seed % 2 == 1)
        crashed = cluster.now

        async with cluster[(owner + 1) % 5].sync.lock("ledger", ttl=2.0, wait=60.0):
            waited = cluster.now - crashed

        assert waited <= 2.0 + 2 * cluster.bounds.E

    run_cluster(scenario, seed=seed)


@pytest.mark.criterion("SYNC-3")
def test_a_released_lock_passes_on_within_a_round_trip() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        passed: list[float] = []

        async def second() -> None:
            async with cluster[1].sync.lock("ledger", wait=60.0):
                passed.append(cluster.now)

        async with trio.open_nursery() as nursery:
            async with cluster[0].sync.lock("ledger"):
                nursery.start_soon(second)
                await cluster.sleep(1.0)
                released = cluster.now

        # One round trip to the leader, one to the followers, and two syncs.
        assert passed[0] - released < 0.05

    run_cluster(scenario, seed=3)


@pytest.mark.criterion("SYNC-4")
@pytest.mark.parametrize("seed", range(6))
def test_a_partitioned_owner_is_cancelled_before_the_other_side_acquires(seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        owner = cluster.leader() if seed % 2 else (cluster.leader() + 1) % 5
        others = [n for n in range(5) if n != owner]
        lost: list[float] = []
        held = trio.Event()

        async def hold() -> None:
            with pytest.raises(LeaseLostError):
                async with cluster[owner].sync.lock("ledger", ttl=2.0):
                    held.set()
                    try:
                        await trio.sleep_forever()
                    finally:
                        lost.append(cluster.now)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await held.wait()
            cluster.partition([owner], others)
            async with cluster[others[0]].sync.lock("ledger", ttl=2.0, wait=60.0) as lease:
                assert lost
                assert lost[0] < cluster.now
                cluster.heal()
                # The old owner's late release frees nobody's lock.
                await cluster.sleep(3.0)
                lease.check()

    run_cluster(scenario, seed=seed)


@pytest.mark.criterion("SYNC-5")
def test_waiting_is_by_the_clock_and_in_order() -> None:
    order: list[int] = []

    async def wait_in_line(cluster: Cluster, place: int) -> None:
        async with cluster[place % 5].sync.lock("ledger", wait=60.0):
            order.append(place)

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        tick = cluster.bounds.tick
        async with trio.open_nursery() as nursery:
            async with cluster[0].sync.lock("ledger"):
                with pytest.raises(UnavailableError) as taken:
                    async with cluster[1].sync.lock("ledger", wait=0):
                        pass
                begun = cluster.now
                with pytest.raises(UnavailableError) as late:
                    async with cluster[2].sync.lock("ledger", wait=1.5):
                        pass
                waited = cluster.now - begun
                for place in range(6):
                    nursery.start_soon(wait_in_line, cluster, place)
                    await cluster.sleep(0.1)
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_after, cluster, scope, 0.5)
                    async with cluster[3].sync.lock("ledger", wait=60.0):
                        order.append(-1)
        await cluster.sleep(0.5)

        assert taken.value.reason == "taken"
        assert late.value.reason == "deadline"
        assert abs(waited - 1.5) <= tick
        assert order == list(range(6))
        assert cluster[4].sync.owner("ledger") is None

    run_cluster(scenario, seed=5)


async def cancel_after(cluster: Cluster, scope: trio.CancelScope, seconds: float) -> None:
    await cluster.sleep(seconds)
    scope.cancel()


@pytest.mark.criterion("SYNC-7")
def test_a_late_release_frees_nobodys_lock() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        held = trio.Event()
        cluster.start_soon(holding(cluster, 0, held, ttl=1.0))
        await held.wait()
        cluster.pause(0, 3.0)

        async with cluster[1].sync.lock("ledger", ttl=1.0, wait=30.0) as lease:
            await cluster.sleep(5.0)  # The first owner has come back and given back what it had.
            lease.check()
            assert cluster[2].sync.owner("ledger") == lease.token

    run_cluster(scenario, seed=7)


@pytest.mark.criterion("SYNC-12")
def test_a_minority_gone_is_not_missed_and_a_majority_gone_is_said() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster[0].config.set("ledger", {"total": 1})
        cluster.crash(3)
        cluster.crash(4)
        await cluster[1].config.set("ledger.total", 2, timeout=20.0)
        async with cluster[2].sync.lock("ledger", wait=20.0):
            pass

        cluster.crash(2)
        # What a leader took in before it noticed is uncertain, and said to be; then it is no.
        await cluster.sleep(2 * cluster.bounds.E)
        begun = cluster.now
        with pytest.raises(NoQuorumError):
            await cluster[0].config.set("ledger.total", 3, timeout=2.0)
        with pytest.raises(NoQuorumError):
            async with cluster[1].sync.lock("ledger", wait=2.0):
                pass
        assert cluster.now - begun <= 4.0 + 2 * cluster.bounds.tick
        assert cluster[0].config.get("ledger.total") == 2

        for number in (2, 3, 4):
            cluster.restart(number)
        await cluster.ready()
        for number in range(5):
            state = await cluster[number].config.read_latest("ledger", timeout=10.0)
            assert state.value in ({"total": 2}, {"total": 3})

    run_cluster(scenario, seed=12)


@pytest.mark.criterion("SYNC-13")
def test_a_voter_dead_for_good_is_replaced_and_one_more_may_die() -> None:
    settings = settings_with(voters=3, dead_after=3.0)

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster.wait_until(lambda: len(voters(cluster, 0)) == 3, 30.0, "three vote")
        first = cluster.leader()
        cluster.crash(first)
        rest = [n for n in range(4) if n != first]

        def replaced() -> bool:
            # On all of them: whoever leads has what is not committed yet, and may take it along.
            seen = [voters(cluster, number) for number in rest]
            return all(len(now) == 3 and f"n{first}" not in now for now in seen)

        bounds = cluster.bounds
        took = await cluster.wait_until(replaced, 60.0, "the dead voter was replaced")
        assert took <= 3.0 + bounds.S + 10 * bounds.E

        second = cluster.leader()
        cluster.crash(second)
        survivor = next(n for n in rest if n != second)
        await cluster[survivor].config.set("ledger", 1, timeout=20.0)

    run_cluster(scenario, 4, seed=13, settings=settings)


def voters(cluster: Cluster, number: int) -> tuple[str, ...]:
    return cluster[number].statistics().voters


def settings_with(**raft: float) -> Settings:
    local = Settings.local()
    changed: RaftSettings = dataclasses.replace(local.raft, **raft)  # type: ignore[arg-type]
    return dataclasses.replace(local, raft=changed)


@pytest.mark.criterion("SYNC-15")
@pytest.mark.parametrize("seed", range(4))
def test_two_halves_started_apart_never_both_accept_writes(seed: int) -> None:
    async def write(cluster: Cluster, number: int, done: list[int]) -> None:
        try:
            await cluster[number].config.set("side", number, timeout=20.0)
        except UnavailableError:
            return
        done.append(number)

    async def scenario(cluster: Cluster) -> None:
        done: list[int] = []
        cluster.partition([0, 1, 2], [3, 4, 5])
        await cluster.wait_until(lambda: len(cluster.nodes) == 6, 10.0, "all have opened")
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(partial(write, cluster, number, done))
        sides = {number // 3 for number in done}
        cluster.heal()
        await cluster.ready(60.0)

        assert len(sides) <= 1
        assert len({n.statistics().cluster for n in cluster.nodes}) == 1

    run_cluster(scenario, 6, seed=seed, seeds=5 if seed % 2 else 6)
