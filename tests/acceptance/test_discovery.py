"""Who serves what, and who is there, on whole nodes in the simulated world."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from microos.discovery.discovery import Instance
from microos.gossip.members import State
from microos.sim.cluster import Cluster, run_cluster

pytestmark = pytest.mark.sim


def serving(cluster: Cluster, number: int, service: str) -> tuple[str, ...]:
    """Return the names of the nodes that serve it, as one node sees them."""
    return tuple(sorted(i.name for i in cluster[number].discovery.instances(service)))


def everybody_sees(cluster: Cluster, service: str, *names: str) -> Callable[[], bool]:
    return lambda: all(
        serving(cluster, m.number, service) == names for m in cluster.machines if m.running
    )


@pytest.mark.slow
@pytest.mark.criterion("DISC-1")
def test_fifty_nodes_know_a_new_service_within_a_spread_and_a_second() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        cluster[31].discovery.announce("orders", version="2", endpoints=("place", "cancel"))

        seen = everybody_sees(cluster, "orders", "n31")
        await cluster.wait_until(seen, cluster.bounds.G + 1.0, "all know the service")

        for node in cluster.nodes:
            (instance,) = node.discovery.instances("orders")
            assert (instance.node, instance.version) == (cluster[31].id, "2")
            assert instance.address == cluster[31].address
            assert node.discovery.endpoints("orders") == ("cancel", "place")

    run_cluster(scenario, 50, seed=1)


@pytest.mark.slow
@pytest.mark.criterion("DISC-3")
def test_reading_leaves_no_trace_in_the_world() -> None:
    def traced(*, reading: bool) -> tuple[str, int]:
        frames = [0]

        async def scenario(cluster: Cluster) -> None:
            await cluster.ready()
            cluster[0].discovery.announce("orders", endpoints=("place",))
            counted = cluster.count_frames()
            for _ in range(100):
                for node in cluster.nodes if reading else ():
                    for service in (*node.discovery.services(), "unknown"):
                        node.discovery.instances(service)
                        node.discovery.endpoints(service)
                await cluster.sleep(0.01)
            frames[0] = counted.total()
            assert cluster[2].discovery.services() == ("orders",)

        cluster = run_cluster(scenario, 3, seed=2)
        return cluster.world.trace_hash(), frames[0]

    # Not a frame more, not a task step more: the two worlds are one and the same.
    assert traced(reading=True) == traced(reading=False)


@pytest.mark.slow
@pytest.mark.criterion("DISC-3")
def test_what_was_read_never_changes() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        cluster[0].discovery.announce("orders", labels={"zone": "a"}, endpoints=("place",))
        await cluster.wait_until(everybody_sees(cluster, "orders", "n0"), 2.0)
        discovery = cluster[2].discovery
        before = discovery.instances("orders")
        await cluster.sleep(5.0)
        assert discovery.instances("orders") is before
        assert discovery.services() == discovery.services() == ("orders",)

        with pytest.raises(AttributeError):
            before[0].version = "2"  # type: ignore[misc]
        with pytest.raises(TypeError):
            before[0].labels["zone"] = "b"  # type: ignore[index]
        said: dict[str, str] = {"zone": "b"}
        cluster[0].discovery.announce("orders", labels=said)
        await cluster.wait_until(lambda: discovery.instances("orders") is not before, 2.0)
        said["zone"] = "c"
        await cluster.sleep(1.0)

        assert [dict(i.labels) for i in before] == [{"zone": "a"}]
        assert before[0].endpoints == ("place",)
        assert dict(discovery.instances("orders")[0].labels) == {"zone": "b"}

    run_cluster(scenario, 3, seed=3)


@pytest.mark.slow
@pytest.mark.criterion("DISC-7")
def test_a_join_tells_both_sides_of_services_old_and_new() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        cluster[0].discovery.announce("before")
        await cluster.sleep(1.0)
        cluster.start(3)
        await cluster.wait_until(lambda: len(cluster.nodes) == 4, 1.0)
        cluster[3].discovery.announce("newcomer")  # Before it knows of anybody.
        joined = cluster.bounds.G + 1.0
        await cluster.wait_until(everybody_sees(cluster, "newcomer", "n3"), joined)
        await cluster.wait_until(everybody_sees(cluster, "before", "n0"), joined)

        cluster[0].discovery.announce("after")
        cluster[3].discovery.announce("newest")

        await cluster.wait_until(everybody_sees(cluster, "after", "n0"), joined)
        await cluster.wait_until(everybody_sees(cluster, "newest", "n3"), joined)
        assert cluster[3].discovery.services() == ("after", "before", "newcomer", "newest")

    run_cluster(scenario, 4, seed=7, first=3)


def whole(cluster: Cluster) -> bool:
    """Whether every running node sees all running nodes alive, and nobody else."""
    running = sorted(m.name for m in cluster.machines if m.running)
    return all(
        sorted(m.name for m in node.members() if m.state == State.ALIVE) == running
        for node in cluster.nodes
    ) and len(cluster.nodes) == len(running)


@pytest.mark.slow
@pytest.mark.criterion("DISC-8")
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("disk", [True, False])
def test_a_seed_that_comes_back_on_its_address_finds_its_cluster(silent: bool, disk: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        boots = [m.boot for m in cluster.machines]
        for number in range(3):
            cluster[number].discovery.announce("orders")
            cluster.crash(number, silent=silent)
            await cluster.sleep(1.0)
            cluster.restart(number, disk=disk or number > 0)
            await cluster.wait_until(lambda: whole(cluster), 10 * cluster.bounds.T, "whole again")
            cluster[number].discovery.announce("orders")
            # One voter at a time: the next may only go when this one votes again.
            await cluster.ready(60.0)

        assert [m.boot for m in cluster.machines] == [boots[0] + 1] * 3 + boots[3:]
        await cluster.wait_until(everybody_sees(cluster, "orders", "n0", "n1", "n2"), 2.0)
        assert len({node.statistics().cluster for node in cluster.nodes}) == 1

    run_cluster(scenario, 5, seed=8 + silent + 2 * disk)


@pytest.mark.slow
@pytest.mark.criterion("DISC-8")
@pytest.mark.parametrize("away", [0.5, 60.0])
def test_after_all_seeds_restarted_at_once_the_cluster_is_whole(away: float) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        ids = [node.id for node in cluster.nodes]
        await cluster[3].config.set("ledger", 1)
        for number in range(3):
            cluster.crash(number)
        await cluster.sleep(away)
        for number in range(3):
            cluster.restart(number)

        await cluster.wait_until(lambda: whole(cluster), 10 * cluster.bounds.T, "whole again")

        assert [m.boot for m in cluster.machines] == [2, 2, 2, 1, 1]
        assert [node.id for node in cluster.nodes] == ids
        await cluster.ready()
        state = await cluster[0].config.read_latest("ledger")
        assert state.value == 1

    run_cluster(scenario, 5, seed=11)


@pytest.mark.slow
@pytest.mark.criterion("DISC-2")
@pytest.mark.parametrize("silent", [False, True])
def test_a_crash_is_one_deletion_everywhere_and_a_leave_is_another(silent: bool) -> None:
    async def follow(cluster: Cluster, number: int, seen: list[tuple[str, ...]]) -> None:
        async with cluster[number].discovery.watch("orders") as states:
            async for state in states:
                alive = tuple(sorted(i.name for i in state if i.state == "alive"))
                if [alive] != seen[-1:]:
                    seen.append(alive)

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for number in (1, 2):
            cluster[number].discovery.announce("orders")
        await cluster.wait_until(everybody_sees(cluster, "orders", "n1", "n2"), 2.0)
        seen: list[tuple[str, ...]] = []
        cluster.start_soon(lambda: follow(cluster, 0, seen))
        await cluster.sleep(0.1)
        bounds = cluster.bounds

        cluster.crash(1, silent=silent)
        crashed = everybody_sees(cluster, "orders", "n2")
        await cluster.wait_until(crashed, bounds.S + bounds.T + bounds.G, "the dead is gone")
        await cluster.leave(2)
        await cluster.wait_until(everybody_sees(cluster, "orders"), bounds.G, "who left is gone")
        await cluster.sleep(1.0)

        assert seen == [("n1", "n2"), ("n2",), ()]
        for node in cluster.nodes:
            states = {m.name: m.state for m in node.members()}
            assert (states["n1"], states["n2"]) == (State.DEAD, State.LEFT)

    run_cluster(scenario, 5, seed=20 + silent)


@pytest.mark.slow
def test_a_watch_made_early_and_entered_late_misses_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        watch = cluster[1].discovery.watch("orders")
        cluster[0].discovery.announce("other")  # Changes the members while nobody watches yet.
        await cluster.sleep(1.0)
        seen: list[tuple[Instance, ...]] = []
        async with watch as states:
            seen.append(await anext(states))
            cluster[0].discovery.announce("orders")
            seen.append(await anext(states))

        assert [len(state) for state in seen] == [0, 1]

    run_cluster(scenario, 3, seed=4)


@pytest.mark.bench
@pytest.mark.slow
@pytest.mark.criterion("DISC-3")
def test_reading_one_of_a_thousand_services_takes_microseconds() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for number, node in enumerate(cluster.nodes):
            for service in range(250):
                node.discovery.announce(f"service-{number}-{service}")
        discovery = cluster[0].discovery
        await cluster.wait_until(lambda: len(discovery.services()) == 1000, 10.0, "all are known")

        begun = time.perf_counter()
        for service in range(1000):
            assert len(discovery.instances(f"service-{service % 4}-{service // 4}")) == 1
        took = (time.perf_counter() - begun) / 1000

        print(f"discovery.instances {took * 1e6:.2f} us of 50 us")
        assert took < 500e-6

    run_cluster(scenario, 4)
