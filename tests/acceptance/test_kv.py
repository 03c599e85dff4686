"""The store on whole nodes in the simulated world: what is put is there, whoever asks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import trio

from microos import limits
from microos.errors import ConflictError, NoQuorumError, UncertainError
from microos.kv.bucket import Bucket
from microos.ring.entry import is_tombstone, number_of, version_of
from microos.ring.keeper import Keeper
from microos.ring.ring import seed_of, slot_of
from microos.ring.store import name_of
from microos.settings import KvSettings, RingSettings, Settings
from microos.sim.cluster import Cluster, run_cluster

pytestmark = pytest.mark.sim

REPLICAS = 3


def settings_with(*, kv: dict[str, Any] | None = None, **ring: Any) -> Settings:
    local = Settings.local()
    kept: KvSettings = dataclasses.replace(local.kv, **(kv or {}))
    placed: RingSettings = dataclasses.replace(local.ring, **ring)
    return dataclasses.replace(local, kv=kept, ring=placed)


async def ready(cluster: Cluster) -> None:
    """Wait until every running node is whole and so are its copies, in one settled ring epoch."""
    await cluster.ready()
    taking = {n.id for n in cluster.nodes if n._lifecycle.settings.ring.participate}

    def settled() -> bool:
        found = [keeper_of(cluster, m.number) for m in cluster.machines if m.running]
        return all(
            {member.node for member in keeper.ring.members} == taking
            and keeper.ring.revision == found[0].ring.revision
            and not any(len(chain) == 2 for chain in keeper.ring.chains)
            and not keeper.upkeep.filling
            for keeper in found
        )

    await cluster.wait_until(settled, 60.0, "the ring was settled")


def keeper_of(cluster: Cluster, number: int) -> Keeper:
    return cluster[number].kv._keeping.keeper


def bucket(cluster: Cluster, number: int, name: str = "things", **options: Any) -> Bucket[int]:
    return cluster[number].kv.bucket(name, int, **options)


def owners(cluster: Cluster, key: str, name: str = "things") -> list[int]:
    """Return the machines that own a key, best first, as the first running node has it."""
    ids = {node.id: number for number, node in numbered(cluster).items()}
    ring = next(iter(numbered(cluster).values())).kv._keeping.keeper.ring
    return [
        ids[o.node] for o in ring.current(slot_of(seed_of(name), key.encode())) if o.node in ids
    ]


def numbered(cluster: Cluster) -> dict[int, Any]:
    return {m.number: m.node for m in cluster.machines if m.running and m.node is not None}


def copies(cluster: Cluster, key: str, name: str = "things") -> list[bytes | None]:
    """Return what each running owner of a key keeps."""
    slot, full = slot_of(seed_of(name), key.encode()), name_of(name, key.encode())
    found = []
    for number in owners(cluster, key, name):
        keeper = keeper_of(cluster, number)
        found.append(keeper.replica.store.get(slot, full, int(now_of(cluster, number) * 1000.0)))
    return found


def now_of(cluster: Cluster, number: int) -> float:
    return cluster[number]._lifecycle.runtime.clock.now()


# KV-1


@pytest.mark.criterion("KV-1")
@pytest.mark.parametrize("consistency", ["quorum", "one"])
def test_what_one_node_puts_every_node_gets_until_it_is_deleted(consistency: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        keys = [f"key {n}" for n in range(10)]
        everyone = range(5)
        for value, key in enumerate(keys):
            await bucket(cluster, 0).put(key, value)

        for number in everyone:
            things = bucket(cluster, number, consistency=consistency)
            assert [await things.get(key) for key in keys] == list(range(10))
        assert any(0 not in owners(cluster, key) for key in keys)
        assert any(0 in owners(cluster, key) for key in keys)

        for key in keys:
            await bucket(cluster, 0).delete(key)
        await cluster.sleep(0.1)
        for number in everyone:
            things = bucket(cluster, number, consistency=consistency)
            assert [await things.get(key) for key in keys] == [None] * 10
            assert not await things.exists(keys[0])

    run_cluster(scenario, seed=1)


@pytest.mark.criterion("KV-1")
def test_a_client_only_node_puts_gets_and_deletes() -> None:
    async def scenario(cluster: Cluster) -> None:
        cluster.start(4, ring=dataclasses.replace(cluster.settings.ring, participate=False))
        await ready(cluster)
        client = bucket(cluster, 4)
        assert keeper_of(cluster, 4).ring.slots_of(keeper_of(cluster, 4).me) == ()

        await client.put("a", 1)
        version = await client.put("b", 2, if_absent=True)
        assert [await bucket(cluster, n).get("a") for n in range(5)] == [1] * 5
        assert await client.put("b", 3, if_version=version) > version
        assert await client.get("b") == 3
        await client.delete("a")
        assert [await bucket(cluster, n).get("a") for n in range(5)] == [None] * 5
        assert len(keeper_of(cluster, 4).replica.store) == 0

    run_cluster(scenario, 5, first=4, seed=2)


# KV-2


@pytest.mark.criterion("KV-2")
@pytest.mark.parametrize("victim", range(3))
def test_any_one_crash_after_the_acknowledgement_leaves_the_value(victim: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        await bucket(cluster, 0).put("k", 7)
        cluster.crash(owners(cluster, "k")[victim], silent=victim == 1)

        for machine in cluster.machines:
            if machine.running:
                assert await bucket(cluster, machine.number).get("k") == 7

    run_cluster(scenario, seed=20 + victim)


@pytest.mark.criterion("KV-2")
@pytest.mark.parametrize("seed", range(2))
def test_two_crashes_at_once_give_the_value_or_no_quorum(seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        first, second, survivor = owners(cluster, "k")
        await bucket(cluster, survivor).put("k", 6)
        await bucket(cluster, survivor).put("k", 7)
        cluster.crash(first)
        cluster.crash(second)
        rest = [m.number for m in cluster.machines if m.running]

        refused: list[str] = []
        for _ in range(5):
            for number in rest:
                try:
                    assert await bucket(cluster, number).get("k", timeout=0.5) == 7
                except NoQuorumError as error:
                    refused.append(error.reason)
        assert set(refused) == {"replicas"}
        things = bucket(cluster, rest[0], consistency="one")
        assert await things.get("k") == 7

        # Their successors are other owners: what the survivor has is what there is.
        cluster.restart(first)
        cluster.restart(second)
        await cluster.sleep(1.0)
        found: list[int | None] = []
        while len(found) < 5:
            try:
                found.append(await bucket(cluster, rest[0]).get("k", timeout=0.5))
            except NoQuorumError:
                await cluster.sleep(0.5)
        assert found == [7] * 5

    run_cluster(scenario, seed=30 + seed)


# KV-3


def pulled(cluster: Cluster) -> int:
    return sum(node.kv.statistics().bytes_pulled for node in cluster.nodes)


@pytest.mark.slow
@pytest.mark.criterion("KV-3")
def test_a_joiner_under_load_takes_its_share_and_hides_no_key() -> None:
    count, rate = 10_000, 128 * 1024
    keys = [f"key {n:05d}" for n in range(count)]
    size = 24 + len(name_of("things", keys[0].encode())) + len(b"\xcd\x00\x00")

    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(fill, cluster, number, keys)
        before = pulled(cluster)
        cluster.start(5)
        seen: list[tuple[float, int]] = []
        reads = 0
        is_over = False

        async def read(number: int) -> None:
            nonlocal reads
            at = number * 997
            while not is_over:
                at = (at + 7919) % count
                assert await bucket(cluster, number).get(keys[at]) in (at, at + count)
                reads += 1
                await cluster.sleep(0.002)

        async def write(number: int) -> None:
            at = number
            while not is_over:
                at = (at + 4999) % count
                await bucket(cluster, number).put(keys[at], at + count)
                await cluster.sleep(0.02)

        async def watch() -> None:
            while not is_over:
                if cluster.machines[5].opened.is_set():
                    seen.append((cluster.now, cluster[5].kv.statistics().bytes_pulled))
                await cluster.sleep(0.1)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(read, number)
                nursery.start_soon(write, number)
            nursery.start_soon(watch)
            await cluster.sleep(1.0)
            await ready(cluster)
            is_over = True
        moved = pulled(cluster) - before

        assert reads > 1000
        assert moved / size <= 1.3 * count * REPLICAS / 6
        assert len(keeper_of(cluster, 5).replica.store) > 0.7 * count * REPLICAS / 6
        for (one, a), (other, b) in zip(seen, seen[20:], strict=False):
            assert b - a <= rate * (other - one) + 2 * limits.KV_PAGE_BYTES
        for number in range(0, count, 97):
            assert await bucket(cluster, 5).get(keys[number]) in (number, number + count)

    run_cluster(scenario, 6, first=5, seed=40, settings=settings_with(kv={"transfer_rate": rate}))


async def fill(cluster: Cluster, number: int, keys: list[str]) -> None:
    """Put this node's part of the keys, a hundred at a time."""
    mine = range(number, len(keys), 5)
    things = bucket(cluster, number)
    for begin in range(0, len(mine), 100):
        async with trio.open_nursery() as nursery:
            for value in mine[begin : begin + 100]:
                nursery.start_soon(things.put, keys[value], value)


@pytest.mark.criterion("KV-3")
def test_graceful_leaves_lose_nothing_though_one_owner_is_left() -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        await bucket(cluster, 0).put("early", -1)
        await fill(cluster, 0, keys)
        await cluster.leave(1)
        await cluster.wait_until(lambda: len(owners(cluster, "early")) == 1, 20.0, "one is left")
        assert await all_of(cluster, 0, keys) == expected

        # The last copy of each goes on to a node that has just come.
        cluster.start(2)
        await cluster.wait_until(cluster.machines[2].opened.is_set, 10.0, "it has opened")
        await cluster.sleep(0.5)
        await cluster.leave(0)
        assert owners(cluster, "early") == [2]
        assert await all_of(cluster, 2, keys) == expected
        assert await bucket(cluster, 2).get("early") == -1

    keys = [f"key {n}" for n in range(500)]
    expected = {key: n for n, key in enumerate(keys) if n % 5 == 0}
    run_cluster(scenario, 3, first=2, seed=41, seeds=1)


async def all_of(cluster: Cluster, number: int, keys: list[str]) -> dict[str, int]:
    things = bucket(cluster, number)
    found = {key: await things.get(key) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.criterion("KV-3")
def test_five_leave_one_by_one_under_load_and_nothing_is_lost() -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        await fill(cluster, 0, keys)
        for leaver in range(4):
            await cluster.leave(leaver)
            assert await all_of(cluster, 4, keys) == expected

    keys = [f"key {n}" for n in range(300)]
    expected = {key: n for n, key in enumerate(keys) if n % 5 == 0}
    run_cluster(scenario, seed=42)


# KV-4


@pytest.mark.criterion("KV-4")
@pytest.mark.parametrize("seed", range(3))
def test_every_key_has_all_its_copies_again_after_a_crash(seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        keys = [f"key {n}" for n in range(500)]
        for number in range(5):
            await fill(cluster, number, keys)
        victim = seed
        watcher = 4
        cluster.crash(victim, silent=seed == 1)
        epoch = keeper_of(cluster, watcher).ring.number
        await cluster.wait_until(
            lambda: keeper_of(cluster, watcher).ring.number > epoch, 60.0, "the node was replaced"
        )

        def whole() -> bool:
            return all(
                len(found) == REPLICAS and all(entry is not None for entry in found)
                for found in (copies(cluster, key) for key in keys)
            )

        took = await cluster.wait_until(whole, 60.0, "every key had its copies")
        assert took <= 30 * cluster.bounds.T

        # So the next crash finds them, too.
        cluster.crash((victim + 1) % 5)
        for n in range(0, 500, 7):
            assert await bucket(cluster, watcher).get(keys[n]) == n

    run_cluster(scenario, seed=50 + seed)


# KV-6


@pytest.mark.criterion("KV-6")
@pytest.mark.parametrize("ttl", [0.05, 1.0])
def test_a_value_ends_everywhere_within_a_tick_of_its_time(ttl: float) -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        cluster.shift_wall_clock(1, 3600.0)
        cluster.shift_wall_clock(2, -3600.0)
        tick, way = cluster.bounds.tick, 0.02
        begun = cluster.now
        await bucket(cluster, 0).put("k", 7, ttl=ttl)
        put = cluster.now

        while cluster.now < put + ttl + 0.1:
            for number in range(5):
                for consistency in ("quorum", "one"):
                    asked = cluster.now
                    item = await bucket(cluster, number, consistency=consistency).read("k")
                    if item is None:
                        assert cluster.now > begun + ttl - tick
                    else:
                        assert item.value == 7
                        assert asked < put + ttl + tick
                        assert item.expires is not None
                        assert abs(begun + ttl - cluster.now - item.expires) < tick + way
            await cluster.sleep(0.005)
        assert all(entry is not None and is_tombstone(entry) for entry in copies(cluster, "k"))
        assert not await bucket(cluster, 3).exists("k")

    run_cluster(scenario, seed=60)


def check_copies(cluster: Cluster, keys: list[str], end: float, *, slack: float = 0.0) -> None:
    """Assert that no present owner, nor anybody who was one, has a value beyond its end."""
    tick = cluster.bounds.tick
    for key in keys:
        slot, name = slot_of(seed_of("things"), key.encode()), name_of("things", key.encode())
        for number in numbered(cluster):
            store = keeper_of(cluster, number).replica.store
            entry = store.get(slot, name, int(now_of(cluster, number) * 1000.0))
            if entry is not None and not is_tombstone(entry):
                assert cluster.now < end + tick + slack
            elif entry is not None:
                assert cluster.now > end - 0.05


@pytest.mark.criterion("KV-6")
@pytest.mark.parametrize("seed", range(2))
def test_times_are_kept_over_transfer_and_repair(seed: int) -> None:
    keys = [f"key {n}" for n in range(60)]

    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        cluster.shift_wall_clock(seed, 3600.0)
        cluster.shift_wall_clock(3 - seed, -3600.0)
        # One node misses the puts and has them from repair; one comes later and from transfer.
        cluster.partition([4], [0, 1, 2, 3, 5])
        lone = keeper_of(cluster, 4).me
        await cluster.wait_until(
            lambda: not any(keeper_of(cluster, n).is_up(lone) for n in range(4)), 20.0, "it is dead"
        )
        begun = cluster.now
        ttl = 12.0
        async with trio.open_nursery() as nursery:
            for value, key in enumerate(keys):
                nursery.start_soon(put_with, bucket(cluster, value % 4), key, value, ttl)
        slack = cluster.now - begun
        await cluster.sleep(1.0)
        cluster.heal()
        cluster.start(5)
        while cluster.now < begun + ttl + 1.0:
            check_copies(cluster, keys, begun + ttl, slack=slack)
            await cluster.sleep(0.05)
            if begun + ttl - 2.0 < cluster.now < begun + ttl - 1.0:
                assert keeper_of(cluster, 5).ring.slots_of(keeper_of(cluster, 5).me)
                assert await bucket(cluster, 4).get(keys[seed]) == seed
                for key in keys:
                    assert all(entry is not None for entry in copies(cluster, key))
        for number in range(6):
            things = bucket(cluster, number, consistency="one")
            assert [await things.get(key) for key in keys] == [None] * len(keys)

    settings = settings_with(replace_after=60.0)
    run_cluster(scenario, 6, first=5, seed=62 + seed, settings=settings)


async def put_with(things: Bucket[int], key: str, value: int, ttl: float) -> None:
    await things.put(key, value, ttl=ttl)


@pytest.mark.slow
@pytest.mark.criterion("KV-6")
def test_an_hour_is_an_hour_though_wall_clocks_jump() -> None:
    hour = 3600.0
    wan = Settings.wan()
    settings = dataclasses.replace(wan, kv=dataclasses.replace(wan.kv, compare_interval=60.0))

    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        begun = cluster.now
        await bucket(cluster, 0).put("k", 7, ttl=hour)
        cluster.shift_wall_clock(0, hour)
        cluster.shift_wall_clock(1, -hour)
        await cluster.sleep(hour / 2)
        cluster.start(2)
        await cluster.sleep(hour / 4)
        item = await bucket(cluster, 2).read("k")
        assert item is not None
        assert abs(begun + hour - cluster.now - (item.expires or 0.0)) < 0.1

        await cluster.sleep(begun + hour - 0.05 - cluster.now)
        assert [await bucket(cluster, n).get("k", consistency="one") for n in range(3)] == [7] * 3
        await cluster.sleep(begun + hour + 0.1 - cluster.now)
        assert [await bucket(cluster, n).get("k", consistency="one") for n in range(3)] == [
            None
        ] * 3
        assert all(entry is not None and is_tombstone(entry) for entry in copies(cluster, "k"))

    run_cluster(scenario, 3, first=2, seeds=1, seed=64, settings=settings, within=2 * hour)


# KV-7


@pytest.mark.criterion("KV-7")
@pytest.mark.parametrize("away", [1.5, 15.0])
def test_a_replica_that_missed_a_delete_brings_nothing_back(away: float) -> None:
    """It returns while it is an owner still, or after others have taken its place."""

    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        keys = [f"key {n}" for n in range(40)]
        await fill(cluster, 0, keys)
        await fill(cluster, 1, keys)
        written = [n for n in range(40) if n % 5 < 2]
        lost = owners(cluster, keys[0])[0]
        others = [n for n in range(5) if n != lost]
        cluster.partition([lost], others)
        await cluster.sleep(0.3)
        for n in written:
            await persistently(cluster, bucket(cluster, others[n % 4]), keys[n])
        stale = bucket(cluster, lost, consistency="one")
        assert await stale.get(keys[0]) == 0
        await cluster.sleep(away)
        cluster.heal()

        healed = cluster.now
        while cluster.now < healed + 30 * cluster.bounds.T:
            for n in written[:4]:
                assert await bucket(cluster, others[n % 4]).get(keys[n], timeout=10.0) is None
            await cluster.sleep(0.25)
        for number in range(5):
            for consistency in ("quorum", "one"):
                things = bucket(cluster, number, consistency=consistency)
                assert [await things.get(keys[n]) for n in written] == [None] * len(written)
        for n in written:
            found = copies(cluster, keys[n])
            assert len({version_of(entry) for entry in found}) == 1
            assert all(entry is not None and is_tombstone(entry) for entry in found)

    run_cluster(scenario, seed=70)


async def persistently(cluster: Cluster, things: Bucket[int], key: str) -> None:
    """Delete a key, again if the outcome is not known."""
    while True:
        try:
            await things.delete(key, timeout=2.0)
        except (NoQuorumError, UncertainError):
            await cluster.sleep(0.1)
        else:
            return


@pytest.mark.criterion("KV-7")
def test_a_delete_while_its_slot_moves_is_not_undone() -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        keys = [f"key {n}" for n in range(400)]
        for number in range(5):
            await fill(cluster, number, keys)
        cluster.start(5)
        watched = keeper_of(cluster, 0)
        joint: dict[str, None] = {}
        for key in keys:
            slot = slot_of(seed_of("things"), key.encode())
            if not joint:
                await cluster.wait_until(
                    lambda: any(len(chain) == 2 for chain in watched.ring.chains), 30.0, "it joins"
                )
            if len(watched.ring.chains[slot]) == 2:
                joint[key] = None
                await bucket(cluster, 3).delete(key)
        assert joint
        await ready(cluster)
        await cluster.sleep(10 * cluster.bounds.T)

        for number in range(6):
            things = bucket(cluster, number, consistency="one")
            assert [await things.get(key) for key in joint] == [None] * len(joint)

    settings = settings_with(kv={"transfer_rate": 64 * 1024})
    run_cluster(scenario, 6, first=5, seed=71, settings=settings)


# KV-8


@pytest.mark.criterion("KV-8")
@pytest.mark.parametrize("lasts", [2.0, 12.0])
def test_both_sides_of_a_partition_agree_on_the_highest_version(lasts: float) -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        keys = [f"key {n}" for n in range(40)]
        written: dict[str, dict[int, int]] = {key: {} for key in keys}
        uncertain: dict[str, dict[int, int]] = {key: {} for key in keys}

        async def write(number: int) -> None:
            things = bucket(cluster, number, consistency="one")
            for at, key in enumerate(keys):
                value = 100 * at + number
                try:
                    written[key][await things.put(key, value, timeout=1.0)] = value
                except UncertainError as error:
                    uncertain[key][number_of_fact(error)] = value
                except NoQuorumError:
                    pass  # No owner of it is on this side.

        cluster.partition([0, 1, 2], [3, 4])
        await cluster.sleep(0.5)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(write, number)
        assert all(written.values())
        assert any({v % 100 for v in found.values()} >= {0, 3} for found in written.values())
        await cluster.sleep(lasts)
        cluster.heal()
        await ready(cluster)
        await cluster.sleep(30 * cluster.bounds.T)

        for key, found in written.items():
            kept = {number_of(version_of(entry)) for entry in copies(cluster, key)}
            [highest] = kept
            # What was not acknowledged may have been kept, too.
            assert highest == max(found) or (highest > max(found) and highest in uncertain[key])
            for number in range(5):
                item = await bucket(cluster, number, consistency="one").read(key)
                assert item is not None
                value = {**found, **uncertain[key]}[highest]
                assert (item.version, item.value) == (highest, value)

    run_cluster(scenario, seed=80)


def number_of_fact(error: UncertainError) -> int:
    version = error.facts["version"]
    assert isinstance(version, int)
    return version


# KV-10


@pytest.mark.criterion("KV-10")
@pytest.mark.parametrize("seed", range(3))
def test_one_of_twenty_clients_takes_an_absent_key(seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await ready(cluster)
        won: list[tuple[int, int]] = []
        lost: list[ConflictError] = []

        async def take(client: int) -> None:
            try:
                version = await bucket(cluster, client % 5).put("k", client, if_absent=True)
            except ConflictError as error:
                lost.append(error)
            else:
                won.append((client, version))

        async with trio.open_nursery() as nursery:
            for client in range(20):
                nursery.start_soon(take, client)

        [(client, version)] = won
        assert len(lost) == 19
        assert {error.reason for error in lost} == {"exists"}
        assert {error.facts["version"] for error in lost} == {version}
        for number in range(5):
            assert await bucket(cluster, number).get("k") == client

    run_cluster(scenario, seed=100 + seed)
