"""What befalls whole nodes: restarts, snapshots, bad disks, strangers, leaving."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from functools import partial

import pytest
import trio

from microos.config.config import State
from microos.errors import LeaseLostError, LimitError, MicroosError, UnavailableError
from microos.gossip import members
from microos.gossip.notes import Died
from microos.net.notes import Foreign
from microos.node.files import Quarantined
from microos.node.lifecycle import StorageFailed
from microos.raft.notes import SnapshotRestored
from microos.settings import RaftSettings, Settings
from microos.sim.cluster import Cluster, run_cluster
from microos.sim.machine import PORT
from microos.sim.process import Process
from microos.types import Address

pytestmark = [pytest.mark.sim, pytest.mark.slow]


def settings_with(**raft: float) -> Settings:
    local = Settings.local()
    changed: RaftSettings = dataclasses.replace(local.raft, **raft)  # type: ignore[arg-type]
    return dataclasses.replace(local, raft=changed)


SHORT_LOG = {"snapshot_after_entries": 20, "trailing_entries": 5}


# Snapshots.


@pytest.mark.parametrize("seed", range(4))
def test_a_node_that_lags_is_caught_up_by_a_snapshot_and_its_watches_and_locks_learn(
    seed: int,
) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        lagging = (cluster.leader() + 1) % 3
        others = [n for n in range(3) if n != lagging]
        seen: list[State] = []
        lost = trio.Event()

        async def watch() -> None:
            async with cluster[lagging].config.watch("counter") as states:
                async for state in states:
                    seen.append(state)  # noqa: PERF401 — each as it comes

        async def hold() -> None:
            with suppress(LeaseLostError):
                async with cluster[lagging].sync.lock("ledger", ttl=1.0):
                    await trio.sleep_forever()
            lost.set()

        cluster.start_soon(watch)
        cluster.start_soon(hold)
        await cluster.sleep(0.5)
        cluster.partition([lagging], others)
        await cluster.sleep(20.0)  # Until the connections, and what was under way, are given up.
        async with cluster[others[0]].sync.lock("ledger", ttl=1.0, wait=30.0) as lease:
            assert lost.is_set()
            for value in range(60):
                await cluster[others[0]].config.set("counter", value, timeout=20.0)
            cluster.heal()
            await cluster.wait_until(lambda: seen[-1].version == 60, 20.0, "the watch saw it")
            assert cluster[lagging].sync.owner("ledger") == lease.token

        restored = [n for n in cluster.notes if isinstance(n.what, SnapshotRestored)]
        assert [n.node for n in restored] == [lagging]
        assert len(seen) < 60
        await cluster[lagging].config.set("counter", 60)
        states = {node.state() for node in cluster.nodes}
        await cluster.sleep(1.0)
        assert len(states) <= 2  # One may be an entry behind, none is ahead.

    run_cluster(scenario, 3, seed=seed, settings=settings_with(**SHORT_LOG))


def test_a_node_restarts_from_a_snapshot_and_a_short_log() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for value in range(70):
            await cluster[0].config.set(f"d{value % 7}", {"value": value})
        for number in range(3):
            cluster.crash(number)
        await cluster.sleep(1.0)
        for number in range(3):
            cluster.restart(number)
        await cluster.ready()

        for node in cluster.nodes:
            await node.config.read_latest("d0")
            assert [node.config.get(f"d{k}.value") for k in range(7)] == list(range(63, 70))
        names = cluster.machines[0].platter.seen()
        assert sum(name.startswith("snap-") for name in names) == 1

    run_cluster(scenario, 3, seed=5, settings=settings_with(**SHORT_LOG))


def test_a_snapshot_that_finds_a_full_disk_is_taken_later() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        lagging = (cluster.leader() + 1) % 3
        others = [n for n in range(3) if n != lagging]
        cluster.partition([lagging], others)
        await cluster.sleep(20.0)
        for value in range(60):
            await cluster[others[0]].config.set("counter", value, timeout=20.0)
        cluster.disk(lagging, full=True)
        cluster.heal()
        await cluster.sleep(10.0)
        for value in range(60, 120):
            await cluster[others[0]].config.set("counter", value)
        await cluster.sleep(10.0)
        assert cluster[lagging].statistics().storage in ("ok", "full")

        cluster.disk(lagging, full=False)
        await cluster.wait_until(
            lambda: cluster[lagging].config.get("counter") == 119, 30.0, "caught up"
        )
        await cluster[lagging].config.set("counter", 120)
        assert [n for n in cluster.notes if isinstance(n.what, SnapshotRestored)]

    run_cluster(scenario, 3, seed=6, settings=settings_with(**SHORT_LOG))


# Bad disks.


def first_log(cluster: Cluster, number: int) -> str:
    return next(n for n in sorted(cluster.machines[number].platter.seen()) if n.startswith("wal-"))


def test_a_damaged_log_is_set_aside_and_the_node_comes_back_under_a_new_id() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for value in range(30):
            await cluster[0].config.set("counter", value)
        victim = (cluster.leader() + 1) % 3
        before = cluster[victim].id
        cluster.crash(victim)
        platter, name = cluster.machines[victim].platter, first_log(cluster, victim)
        middle = len(platter.seen()[name].rstrip(b"\0")) // 2
        platter.corrupt(name, middle, platter.seen()[name][middle] ^ 0x55)
        cluster.restart(victim)

        back = cluster.machines[victim]
        await cluster.wait_until(lambda: back.node is not None, 5.0, "it opened")
        assert cluster[victim].id != before
        assert "set aside" in cluster[victim].statistics().reason
        quarantined = [n.what for n in cluster.notes if isinstance(n.what, Quarantined)]
        assert len(quarantined) == 1
        assert any(name.startswith("quarantine-1-wal-") for name in platter.seen())
        await cluster.ready(60.0)
        await cluster.wait_until(
            lambda: cluster[victim].name in cluster[victim].statistics().voters, 60.0, "it votes"
        )
        assert before not in cluster[victim].statistics().voters
        assert (await cluster[victim].config.read_latest("counter")).value == 29
        assert cluster[victim].statistics().reason == ""

    run_cluster(scenario, 3, seed=7, settings=settings_with(dead_after=5.0))


def test_a_full_disk_refuses_writes_keeps_reading_and_recovers() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster[0].config.set("ledger", "before")
        for number in range(3):
            cluster.disk(number, full=True)
        refused: list[MicroosError] = []
        # What is left of the log's own room is used up first.
        ballast = "x" * 900_000
        for value in range(40):
            try:
                await cluster[value % 3].config.set(f"d{value}", ballast, timeout=2.0)
            except MicroosError as error:
                refused.append(error)
            if len(refused) == 6:
                break
        said = [error for error in refused if isinstance(error, LimitError)]
        assert said
        assert "disk" in str(said[-1])
        for node in cluster.nodes:
            assert node.config.get("ledger") == "before"
        full = [n for n in cluster.nodes if n.statistics().storage == "full"]
        assert full
        assert all("full" in n.statistics().reason for n in full)

        for number in range(3):
            cluster.disk(number, full=False)
        await cluster.wait_until(
            lambda: all(n.statistics().storage == "ok" for n in cluster.nodes), 10.0, "room again"
        )
        await cluster[1].config.set("ledger", "after", timeout=20.0)
        for node in cluster.nodes:
            assert (await node.config.read_latest("ledger")).value == "after"
        assert not [n for n in cluster.notes if isinstance(n.what, StorageFailed)]

    run_cluster(scenario, 3, seed=8)


@pytest.mark.parametrize("leads", [True, False])
def test_a_failed_sync_ends_the_member_and_the_others_go_on(leads: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        victim = cluster.leader() if leads else (cluster.leader() + 1) % 3
        other = (victim + 1) % 3
        failed: list[str] = []

        async def wait_failed() -> None:
            failed.append(await cluster[victim].wait_failed())

        cluster.start_soon(wait_failed)
        cluster.disk(victim, broken=True)
        await cluster[other].config.set("ledger", 1, timeout=20.0)
        await cluster.wait_until(lambda: bool(failed), 5.0, "it said so")

        (note,) = [n for n in cluster.notes if isinstance(n.what, StorageFailed)]
        assert note.node == victim
        assert "input/output error" in failed[0]
        assert cluster[victim].statistics().storage == "failed"
        with pytest.raises(UnavailableError) as refused:
            await cluster[victim].config.set("ledger", 2, timeout=2.0)
        assert refused.value.reason == "storage"
        await cluster[other].config.set("ledger", 3, timeout=20.0)
        cluster.disk(victim, broken=False)
        cluster.crash(victim)
        cluster.restart(victim)
        await cluster.ready()
        assert (await cluster[victim].config.read_latest("ledger")).value == 3

    run_cluster(scenario, 3, seed=9)


# Strangers.


def test_a_node_with_another_label_never_joins_and_both_sides_count_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        cluster.start(3, cluster="elsewhere", bootstrap="join")
        await cluster.sleep(30.0)

        assert all(len(cluster[number].members()) == 3 for number in range(3))
        assert [m.name for m in cluster[3].members()] == ["n3"]
        assert cluster[3].statistics().counters["links.wrong_cluster"] > 0
        seeds = [cluster[number].statistics().counters for number in range(3)]
        assert sum(counters["links.wrong_cluster"] for counters in seeds) > 0
        # Counted each time, noted once a minute.
        noted = [n for n in cluster.notes if isinstance(n.what, Foreign) and n.node < 3]
        assert 0 < len(noted) <= 3

    run_cluster(scenario, 4, seed=10, first=3)


def test_two_clusters_founded_apart_never_merge() -> None:
    async def scenario(cluster: Cluster) -> None:
        addresses = cluster.seeds
        for number in range(6):
            seeds = addresses[:3] if number < 3 else addresses[3:]
            cluster.start(number, seeds=seeds)
        sides = [range(3), range(3, 6)]
        await cluster.wait_until(
            lambda: len(cluster.nodes) == 6 and all(n.statistics().ready for n in cluster.nodes),
            20.0,
            "two clusters",
        )
        await cluster[0].config.set("side", "first")
        await cluster[3].config.set("side", "second")

        # One of each side is told of the other side, and comes back.
        for number in (2, 5):
            cluster.crash(number)
            cluster.start(number, seeds=addresses)
        await cluster.sleep(20.0)

        for side, value in zip(sides, ("first", "second"), strict=True):
            for number in side:
                names = sorted(m.name for m in cluster[number].members())
                assert names == [f"n{other}" for other in side]
                assert (await cluster[number].config.read_latest("side")).value == value
        assert len({node.statistics().cluster for node in cluster.nodes}) == 2
        assert all(cluster[n].statistics().counters["links.rejected"] > 0 for n in (2, 5))

    run_cluster(scenario, 6, seed=11, seeds=6, first=0)


# Leaving.


@pytest.mark.parametrize("seed", range(3))
def test_whoever_leaves_is_left_never_dead_and_three_may_become_one(seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster[0].config.set("ledger", 0)
        stays = seed % 3
        for count, number in enumerate(n for n in range(3) if n != stays):
            begun = cluster.now
            await cluster.leave(number)
            assert cluster.now - begun < 5.0
            await cluster[stays].config.set("ledger", count + 1, timeout=20.0)

        await cluster.wait_until(
            lambda: cluster[stays].statistics().voters == (f"n{stays}",), 20.0, "it votes alone"
        )
        await cluster[stays].config.set("ledger", 3)
        states = {m.name: m.state for m in cluster[stays].members()}
        assert states.pop(f"n{stays}") == members.State.ALIVE
        assert set(states.values()) == {members.State.LEFT}
        assert not [n for n in cluster.notes if isinstance(n.what, Died)]

    run_cluster(scenario, 3, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_when_all_leave_at_once_none_waits_to_hand_over_to_the_others(seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for node in cluster.nodes:
            await node.kv.wait_ready()
        await cluster[0].kv.bucket("things", int).put("k", 1)
        begun = cluster.now
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(cluster.leave, number)
        assert cluster.now - begun < 3.0

    run_cluster(scenario, 3, seed=seed)


def test_a_voter_that_leaves_is_replaced_at_once() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster.wait_until(lambda: len(cluster[0].statistics().voters) == 3, 30.0)
        for _ in range(2):
            leaver = cluster.leader()
            await cluster.leave(leaver)
            rest = [n for n in range(5) if cluster.machines[n].running]

            def replaced(rest: list[int] = rest, leaver: int = leaver) -> bool:
                voters = cluster[rest[0]].statistics().voters
                return len(voters) == 3 and f"n{leaver}" not in voters

            await cluster.wait_until(replaced, 10 * cluster.bounds.E, "the leaver was replaced")
        crashed = cluster.leader()
        cluster.crash(crashed)
        survivor = next(n for n in rest if n != crashed)
        await cluster[survivor].config.set("ledger", 1, timeout=20.0)

    run_cluster(scenario, 5, seed=12, settings=settings_with(voters=3))


# Starting, and starting again.


def test_all_nodes_restarted_at_once_keep_config_and_tokens_rise() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        tokens: list[int] = []

        async def hold(number: int) -> None:
            with suppress(LeaseLostError, MicroosError):
                async with cluster[number].sync.lock("ledger", ttl=1.0, wait=60.0) as lease:
                    tokens.append(lease.token)
                    await cluster[number].config.set("holder", len(tokens))
                    await trio.sleep_forever()

        for life in range(4):
            cluster.start_soon(partial(hold, life % 3))
            await cluster.wait_until(lambda: len(tokens) == life + 1, 30.0, "it has the lock")  # noqa: B023
            await cluster.sleep(0.5)
            for number in range(3):
                cluster.crash(number, silent=bool(life % 2))
            await cluster.sleep(0.2)
            for number in range(3):
                cluster.restart(number)
            await cluster.ready()
            assert (await cluster[0].config.read_latest("holder")).value == life + 1

        assert tokens == sorted(set(tokens))

    run_cluster(scenario, 3, seed=13)


def test_a_port_that_is_taken_is_said_with_what_to_do() -> None:
    said: list[UnavailableError] = []

    async def scenario(cluster: Cluster) -> None:
        await cluster.wait_until(lambda: len(cluster.nodes) == 3, 1.0)
        host = cluster.stranger("squatter")
        await host.listen(Address("10.0.0.4", PORT))

        async def start() -> None:
            machine = cluster.machines[3]
            try:
                await machine.live(machine_process(cluster, 3))
            except UnavailableError as error:
                said.append(error)

        cluster.start_soon(start)
        await cluster.wait_until(lambda: bool(said), 1.0, "it was refused")

    run_cluster(scenario, 4, seed=14, first=3)

    assert said[0].reason == "bind"
    assert f"10.0.0.4:{PORT}" in str(said[0])
    assert "choose another" in str(said[0])


def machine_process(cluster: Cluster, number: int) -> Process:
    machine = cluster.machines[number]
    return Process(
        cluster.world, machine.name, 1, line=machine.line, hub=cluster.hub, ip=machine.ip
    )


def test_a_node_whose_seeds_are_silent_keeps_trying_and_says_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.wait_until(lambda: len(cluster.nodes) == 1, 1.0)
        await cluster.sleep(120.0)
        alone = cluster[0].statistics()
        assert not alone.ready
        assert "not founded" in alone.reason
        assert all(seed in alone.reason for seed in cluster.seeds)

        cluster.start(1)
        await cluster.ready()
        assert cluster[0].statistics().reason == ""

    run_cluster(scenario, 3, seed=15, first=1)


def test_names_that_do_not_resolve_yet_found_nothing_alone() -> None:
    seeds = tuple(f"host{number}:{PORT}" for number in range(3))

    async def scenario(cluster: Cluster) -> None:
        # The first machine's own name is all that can be resolved.
        cluster.hub.names["host0"] = ("10.0.0.1",)
        for number in range(3):
            cluster.start(number, seeds=seeds)
        await cluster.sleep(30.0)
        assert not any(node.statistics().ready for node in cluster.nodes)

        cluster.hub.names["host1"] = ("10.0.0.2",)
        cluster.hub.names["host2"] = ("10.0.0.3",)
        await cluster.ready(30.0)
        assert len({node.statistics().cluster for node in cluster.nodes}) == 1

    run_cluster(scenario, 3, seed=16, first=0)


def test_one_name_as_the_only_seed_founds_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        # Every node is told the same name, which means another machine at each.
        cluster.hub.names["nodes"] = ("10.0.0.1",)
        cluster.start(0, seeds=(f"nodes:{PORT}",))
        cluster.start(1, seeds=(f"nodes:{PORT}",))
        await cluster.sleep(30.0)
        assert not any(node.statistics().ready for node in cluster.nodes)
        assert all("one name founds none" in n.statistics().reason for n in cluster.nodes)

        cluster.start(2, seeds=(f"nodes:{PORT}",), bootstrap="solo")

        await cluster.ready(60.0)
        assert len({node.statistics().cluster for node in cluster.nodes}) == 1

    run_cluster(scenario, 3, seed=17, first=0)


def test_a_lease_is_lost_the_moment_its_time_is_up_though_elections_are_slow() -> None:
    late: list[float] = []

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready(120.0)
        owner = (cluster.leader() + 1) % 3
        # Its long session is there first, and is what the node waits for.
        await cluster[owner].config.set("ledger", 1, timeout=60.0)
        await cluster.sleep(30.0)
        ends: list[float] = []

        async def hold() -> None:
            with suppress(LeaseLostError):
                async with cluster[owner].sync.lock("ledger", ttl=12.0):
                    session = next(s for t, s in sessions.items() if t == 12.0)
                    try:
                        while True:
                            ends[:] = [session.deadline]
                            await cluster.sleep(0.1)
                    finally:
                        late.append(cluster.machines[owner].line.now() - ends[0])

        lifecycle = cluster[owner]._lifecycle
        assert lifecycle._sessions is not None
        sessions = lifecycle._sessions._own
        cluster.start_soon(hold)
        await cluster.sleep(5.0)
        cluster.partition([owner], [n for n in range(3) if n != owner])
        await cluster.wait_until(lambda: bool(late), 60.0, "it was lost")

    run_cluster(scenario, 3, seed=18, settings=Settings.wan())

    assert 0.0 <= late[0] < 0.001
