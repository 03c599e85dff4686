"""What the cluster agrees on, on whole nodes in the simulated world."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from microos.config.config import State
from microos.errors import ConflictError
from microos.sim.cluster import Cluster, run_cluster

pytestmark = pytest.mark.sim


class Follower:
    """Watches one path on one node; keeps what it was given, and when."""

    def __init__(self, cluster: Cluster, number: int, path: str) -> None:
        self.cluster = cluster
        self.number = number
        self.path = path
        self.seen: list[tuple[float, State]] = []

    async def run(self) -> None:
        async with self.cluster[self.number].config.watch(self.path) as states:
            async for state in states:
                self.seen.append((self.cluster.now, state))


def follow(cluster: Cluster, path: str) -> list[Follower]:
    followers = [Follower(cluster, m.number, path) for m in cluster.machines if m.running]
    for follower in followers:
        cluster.start_soon(follower.run)
    return followers


@pytest.mark.slow
@pytest.mark.criterion("CONF-3")
def test_a_change_anywhere_is_yielded_everywhere_within_three_heartbeats() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        followers = follow(cluster, "limits.rate")
        await cluster.sleep(0.1)
        bound = 3 * cluster.settings.raft.heartbeat_interval
        for number in range(5):
            begun = cluster.now
            await cluster[number].config.set("limits.rate", number)
            await cluster.sleep(bound)
            for follower in followers:
                at, state = follower.seen[-1]
                assert state.value == number
                assert at - begun <= bound
            await cluster.sleep(0.25)

        # The first state, and each change once.
        assert [len(f.seen) for f in followers] == [6] * 5

    run_cluster(scenario, seed=3)


IDLE = {
    # Probes, and the exchange of tables that is their safety net.
    "gossip.Ping",
    "gossip.Ack",
    "gossip",
    "raft.Heartbeat",
    "raft.HeartbeatAnswer",
    # Comparisons of copies.
    "rpc",
    # Keep-alives of links, and of the session that carried the set.
    "link",
    "session",
}


@pytest.mark.slow
@pytest.mark.criterion("CONF-3")
def test_an_idle_cluster_polls_for_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        follow(cluster, "limits")
        await cluster[0].config.set("limits", {"rate": 1})
        await cluster.sleep(10.0)
        indexes = [node.statistics().raft_last_index for node in cluster.nodes]
        counted = cluster.count_frames()
        await cluster.sleep(60.0)

        kinds: Counter[str] = Counter()
        for (_, kind), count in counted.items():
            kinds[kind] += count
        assert set(kinds) <= IDLE, set(kinds) - IDLE
        raft, bounds = cluster.settings.raft, cluster.bounds
        rounds = 60.0 / raft.heartbeat_interval
        assert kinds["raft.Heartbeat"] <= 4 * (rounds + 60)
        assert kinds["raft.HeartbeatAnswer"] <= 4 * (rounds + 60)
        assert kinds["gossip.Ping"] <= 5 * (60.0 / bounds.T) * 1.1
        assert kinds["gossip"] <= 2 * 5
        # One keep-alive of the one session each third of its ttl, and its answer.
        assert kinds["session"] <= 2 * (60.0 / (cluster.settings.sync.command_ttl / 3) + 1)
        # Owners compare their copies of the store, a question and an answer each time.
        compare = cluster.settings.kv.compare_interval
        assert kinds["rpc"] <= 2 * 5 * (60.0 / (0.75 * compare) + 1)
        # And nothing went into the log.
        assert [node.statistics().raft_last_index for node in cluster.nodes] == indexes

    run_cluster(scenario, seed=4)


@pytest.mark.slow
@pytest.mark.criterion("CONF-4")
def test_a_slow_watcher_skips_and_ends_on_the_newest() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        versions: list[int] = []
        async with cluster[3].config.watch("limits") as states, trio.open_nursery() as nursery:

            async def write() -> None:
                for value in range(100):
                    await cluster[1].config.set("limits", value)

            nursery.start_soon(write)
            async for state in states:
                versions.append(state.version)
                if state.version == 100:
                    break
                await cluster.sleep(0.05)

        assert versions == sorted(set(versions))
        assert len(versions) < 100
        assert cluster[3].config.read("limits") == State(99, 100, state.revision)

    run_cluster(scenario, seed=5)


@pytest.mark.slow
@pytest.mark.criterion("CONF-5")
def test_changes_of_different_places_both_survive_and_a_stale_one_changes_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster[0].config.set("limits", {"rate": 1, "burst": 1})
        async with trio.open_nursery() as nursery:
            for number, place in ((1, "rate"), (2, "burst"), (3, "window.seconds"), (4, "kept")):
                for value in (2, 3):
                    nursery.start_soon(cluster[number].config.set, f"limits.{place}", value)
        state = await cluster[0].config.read_latest("limits")
        assert state.version == 9
        assert state.value.keys() == {"rate", "burst", "window", "kept"}

        with pytest.raises(ConflictError) as stale:
            await cluster[2].config.set("limits.rate", 100, if_version=8)
        with pytest.raises(ConflictError):
            await cluster[2].config.set("limits", {}, if_version=0)
        with pytest.raises(ConflictError):
            await cluster[2].config.delete("limits", if_version=8)

        assert stale.value.reason == "version"
        for node in cluster.nodes:
            assert await node.config.read_latest("limits") == state
        assert await cluster[2].config.set("limits.rate", 100, if_version=9) == 10

    run_cluster(scenario, seed=6)


@pytest.mark.slow
@pytest.mark.criterion("CONF-11")
@pytest.mark.parametrize("seed", range(2))
def test_a_leader_crashed_amidst_a_thousand_sets_costs_and_doubles_none(seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        writer = (cluster.leader() + 1) % 5
        crashes = {250: True, 500: False, 750: True} if seed % 2 else {500: True}
        down: list[int] = []

        async def crash_in_the_midst_of(number: int) -> None:
            # While the set of that number is on its way: seeds differ in where.
            await cluster.sleep(0.0005 * (number + seed * 7 % 20 + 1) % 0.006)
            leader = cluster.leader()
            if leader != writer:
                down.append(leader)
                cluster.crash(leader, silent=crashes[number])

        versions: list[int] = []
        for number in range(1000):
            if number in crashes:
                cluster.start_soon(lambda number=number: crash_in_the_midst_of(number))  # type: ignore[misc]
            versions.append(await cluster[writer].config.set("counter", number, timeout=60.0))
            if down and number % 100 == 99:
                cluster.restart(down.pop())

        assert versions == list(range(1, 1001))
        await cluster.ready()
        for node in cluster.nodes:
            state = await node.config.read_latest("counter", timeout=10.0)
            assert (state.value, state.version) == (999, 1000)
            audit = [r for r in node.config._machine.audit() if r.name == "counter"]
            assert [record.version for record in audit] == versions
            assert len({record.revision for record in audit}) == 1000
            assert node.config._machine.first_broken() is None

    run_cluster(scenario, seed=seed)


@pytest.mark.slow
@pytest.mark.criterion("CONF-13")
def test_what_was_committed_is_there_after_all_nodes_were_off_at_once() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        before = await cluster[0].config.set("ledger", {"total": 7})
        for number in range(5):
            cluster.crash(number)
        await cluster.sleep(5.0)

        cluster.restart(2)
        await cluster.wait_until(lambda: len(cluster.nodes) == 1, 5.0)
        await cluster.sleep(5.0)
        alone = cluster[2]
        assert not alone.statistics().ready
        assert alone.statistics().reason
        for number in (0, 1, 3, 4):
            cluster.restart(number)
        await cluster.ready()

        for node in cluster.nodes:
            state = await node.config.read_latest("ledger")
            assert (state.value, state.version) == ({"total": 7}, before)

    run_cluster(scenario, seed=13)
