"""The keeper in its node: waiting, cancelling, leaving, and what the store says of itself."""

from __future__ import annotations

import pytest
import trio

from microos.errors import ConflictError, NoQuorumError
from microos.kv.keeping import Keeping
from microos.ring.entry import shown_version_of, version_of
from microos.ring.ring import seed_of, slot_of
from microos.ring.store import name_of
from microos.sim.cluster import Cluster, run_cluster

pytestmark = pytest.mark.sim


def keeping(cluster: Cluster, number: int) -> Keeping:
    return cluster[number].kv._keeping


def test_all_who_wait_for_a_node_to_be_ready_go_on() -> None:
    went: list[int] = []

    async def wait(cluster: Cluster, number: int) -> None:
        await cluster[0].kv.wait_ready()
        went.append(number)

    async def scenario(cluster: Cluster) -> None:
        await cluster.wait_until(lambda: len(cluster.nodes) == 3, 5.0, "all have opened")
        assert not cluster[0].kv.is_ready
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(wait, cluster, number)
                await cluster.sleep(0.05)

    run_cluster(scenario, 3, seed=1, within=60.0)

    assert sorted(went) == [0, 1, 2]


def test_a_cancelled_operation_leaves_nothing_waiting() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for node in cluster.nodes:
            await node.kv.wait_ready()
        things = cluster[0].kv.bucket("things", int)
        cluster.partition([0], [1, 2])
        for attempt in (things.delete, things.get):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt, "k")
                await cluster.sleep(0.05)
                assert cluster[0].kv.statistics().in_flight == 1
                nursery.cancel_scope.cancel()
            assert cluster[0].kv.statistics().in_flight == 0
            assert keeping(cluster, 0)._waiting == {}

        cluster.heal()
        await cluster.sleep(6.0)
        await things.put("k", 2)
        assert await things.get("k") == 2
        keeping(cluster, 0).keeper.check()

    run_cluster(scenario, 3, seed=2)


def test_operations_that_are_done_at_once_let_others_run_as_well() -> None:
    """On a lone node nothing has to be asked: a loop over keys must not stop the world."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster[0].kv.wait_ready()
        things = cluster[0].kv.bucket("things", int)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for number in range(50):
                await things.put("k", number)
                assert await things.get("k") == number
            nursery.cancel_scope.cancel()
        assert turns >= 90

    run_cluster(scenario, 1, seed=8, seeds=1)


def test_an_operation_before_the_start_is_refused() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        node = cluster[0]
        started, keeping(cluster, 0)._keeper = keeping(cluster, 0)._keeper, None
        with pytest.raises(NoQuorumError, match="not started"):
            await node.kv.bucket("things", int).get("k")
        with pytest.raises(NoQuorumError, match="not started"):
            node.kv.statistics()
        keeping(cluster, 0)._keeper = started

    run_cluster(scenario, 1, seed=3, seeds=1)


def test_the_store_says_what_it_keeps() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for node in cluster.nodes:
            await node.kv.wait_ready()
        things = cluster[0].kv.bucket("things", int)
        for number in range(20):
            await things.put(f"key {number}", number)
        await things.delete("key 0")
        await cluster.sleep(0.1)

        for node in cluster.nodes:
            said = node.kv.statistics()
            assert (said.ring_epoch, said.slots, said.joint, said.filling) == (1, 1024, 0, 0)
            assert (said.entries, said.tombstones, said.handing_over) == (20, 1, 0)
            assert 0 < said.bytes_kept < said.bytes_max
            assert said.in_flight == 0
        names = [queue.name for queue in cluster[0].statistics().queues]
        assert "kv.operations" in names

    run_cluster(scenario, 3, seed=4)


def test_what_is_put_on_a_leaving_node_is_not_lost() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for node in cluster.nodes:
            await node.kv.wait_ready()
        put: dict[str, int] = {}

        async def write() -> None:
            things = cluster[2].kv.bucket("things", int)
            for number in range(400):
                await things.put(f"key {number}", number, timeout=3.0)
                put[f"key {number}"] = number
                await cluster.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await cluster.sleep(0.5)
            begun = cluster.now
            await cluster[2].leave()
            assert cluster.now - begun < 10.0
            nursery.cancel_scope.cancel()
        cluster.checks.left[cluster[2].id] = None
        cluster.machines[2].stop.set()

        things = cluster[0].kv.bucket("things", int)
        assert len(put) > 50
        assert {key: await things.get(key) for key in put} == put

    run_cluster(scenario, 4, seed=5)


def test_operations_of_one_turn_travel_together_and_large_values_one_by_one() -> None:
    small = {f"small {number}": b"." for number in range(200)}
    large = {f"large {number}": bytes(600_000) for number in range(20)}
    wanted = small | large

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for node in cluster.nodes:
            await node.kv.wait_ready()
        things = cluster[0].kv.bucket("things", bytes)

        got: dict[str, bytes | None] = {}

        async def put(key: str) -> None:
            await things.put(key, wanted[key], timeout=20.0)

        async def get(key: str) -> None:
            got[key] = await things.get(key, timeout=20.0)

        for attempt in (put, get):
            for keys in (small, large):
                frames = cluster.count_frames()
                async with trio.open_nursery() as nursery:
                    for key in keys:
                        nursery.start_soon(attempt, key)
                if keys is small:
                    assert 0 < frames["n0", "rpc"] < len(small) // 4, frames
        assert got == wanted

        cluster.crash(1)
        cluster.crash(2)
        refused: list[str] = []

        async def fail(key: str) -> None:
            with pytest.raises(NoQuorumError):
                await things.get(key, timeout=1.0)
            refused.append(key)

        async with trio.open_nursery() as nursery:
            for key in small:
                nursery.start_soon(fail, key)
        assert len(refused) == len(small)
        assert cluster[0].kv.statistics().in_flight == 0
        owed = keeping(cluster, 0).keeper._asked.values()
        await cluster.wait_until(
            lambda: not any(generation for _, _, generation in owed), 5.0, "nothing is owed"
        )

    run_cluster(scenario, 3, seed=6)


def test_a_refused_write_while_owners_change_leaves_the_value_its_version() -> None:
    keys = [f"key {number}" for number in range(100)]
    renewed = 0

    async def scenario(cluster: Cluster) -> None:
        nonlocal renewed
        await cluster.wait_until(lambda: len(cluster.nodes) == 1, 10.0, "the first has opened")
        await cluster[0].kv.wait_ready()
        things = cluster[0].kv.bucket("things", str)
        versions = {key: await things.put(key, key) for key in keys}
        cluster.start(1)
        ring = keeping(cluster, 0).keeper
        await cluster.wait_until(lambda: ring.ring.number == 2, 20.0, "owners change")
        for key in keys:
            with pytest.raises(ConflictError) as caught:
                await things.put(key, "other", if_absent=True)
            assert caught.value.facts["version"] == versions[key]
            item = await things.read(key)
            assert item is not None
            assert (item.value, item.version) == (key, versions[key])
            slot = slot_of(seed_of("things"), key.encode())
            kept = ring.replica.store.get(slot, name_of("things", key.encode()), 0)
            assert kept is not None
            renewed += version_of(kept) != shown_version_of(kept)
            await things.put(key, "next", if_version=versions[key])
            assert await things.get(key) == "next"

    run_cluster(scenario, 2, seed=7, first=1, seeds=1)

    assert renewed, "no value was brought to a quorum by a refused write"
