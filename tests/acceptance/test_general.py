"""What holds for every part, on whole nodes in the simulated world."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from functools import partial

import pytest
import trio

from microos import limits, wire
from microos.codec import encode
from microos.control.messages import Request
from microos.errors import LeaseLostError
from microos.gossip.notes import Died, Suspected
from microos.hashing import label_hash
from microos.raft.notes import BecameLeader
from microos.settings import Settings
from microos.sim.cluster import Cluster, run_cluster
from microos.types import parse_address
from microos.wire import Channel

pytestmark = pytest.mark.sim

HOUR = 3600.0


@pytest.mark.slow
@pytest.mark.criterion("GEN-6")
@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_a_wall_clock_that_jumps_an_hour_changes_nothing(jump: float) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        cluster[0].discovery.announce("orders")
        async with trio.open_nursery() as nursery:
            held = trio.Event()

            async def hold() -> None:
                async with cluster[1].sync.lock("ledger", ttl=2.0) as lease:
                    held.set()
                    while True:
                        await cluster.sleep(0.1)
                        lease.check()

            nursery.start_soon(hold)
            await held.wait()
            await cluster.sleep(0.5)  # Until everybody has applied the grant.
            before = [
                {m.node: (m.state, m.incarnation) for m in n.members()} for n in cluster.nodes
            ]
            terms = [node.statistics().raft_term for node in cluster.nodes]
            leader, token = cluster.leader(), cluster[2].sync.owner("ledger")
            begun = cluster.now
            versions: list[int] = []
            for number in range(5):
                cluster.shift_wall_clock(number, jump)
                versions += [await node.config.set("ledger", number) for node in cluster.nodes]
                await cluster.sleep(3.0)  # More than a ttl, and than S of a wrong suspicion.
            assert cluster[3].sync.owner("ledger") == token is not None
            nursery.cancel_scope.cancel()

        assert versions == list(range(1, 26))
        assert cluster.leader() == leader
        assert [node.statistics().raft_term for node in cluster.nodes] == terms
        for node, members in zip(cluster.nodes, before, strict=True):
            assert {m.node: (m.state, m.incarnation) for m in node.members()} == members
        wrong = [n for n in cluster.notes if isinstance(n.what, Died | Suspected | BecameLeader)]
        assert [n for n in wrong if n.at > begun] == []

    run_cluster(scenario, seed=6)


@pytest.mark.slow
@pytest.mark.criterion("GEN-6")
def test_a_lease_ends_at_the_same_moment_whatever_the_wall_clocks_show() -> None:
    def passed_on(jump: float) -> float:
        at: list[float] = []

        async def scenario(cluster: Cluster) -> None:
            await cluster.ready()
            held = trio.Event()

            async def hold() -> None:
                with suppress(LeaseLostError):
                    async with cluster[0].sync.lock("ledger", ttl=2.0):
                        held.set()
                        await trio.sleep_forever()

            cluster.start_soon(hold)
            await held.wait()
            for number in range(5):
                cluster.shift_wall_clock(number, jump * (-1) ** number)
            cluster.crash(0, silent=True)
            begun = cluster.now
            async with cluster[1].sync.lock("ledger", ttl=2.0, wait=60.0):
                at.append(cluster.now - begun)

        run_cluster(scenario, seed=7)
        return at[0]

    right = passed_on(0.0)

    assert abs(passed_on(HOUR) - right) <= 0.01
    assert abs(passed_on(-HOUR) - right) <= 0.01


def unhurried() -> Settings:
    """Return settings with which an hour is cheap: everything a hundred times slower."""
    wan = Settings.wan()
    gossip = dataclasses.replace(
        wan.gossip, probe_interval=60.0, gossip_interval=5.0, reconnect_interval=60.0
    )
    raft = dataclasses.replace(
        wan.raft, election_timeout_max=100.0, heartbeat_interval=10.0, dead_after=2000.0
    )
    sync = dataclasses.replace(wan.sync, ttl=600.0, command_ttl=1200.0)
    return dataclasses.replace(wan, gossip=gossip, raft=raft, sync=sync)


def overfull(cluster: Cluster) -> list[str]:
    """Return every queue of every node that is longer than it may be."""
    return [
        f"{node.name} {queue.name}: {queue.size} of {queue.bound}"
        for node in cluster.nodes
        for queue in node.statistics().queues
        if queue.size > queue.bound
    ]


@pytest.mark.slow
@pytest.mark.criterion("GEN-13")
def test_a_consumer_stalled_for_an_hour_makes_no_queue_longer_than_its_bound() -> None:
    async def stall_in_config(cluster: Cluster, versions: list[int]) -> None:
        async with cluster[1].config.watch("limits") as states:
            versions.append((await anext(states)).version)
            await cluster.sleep(HOUR)
            versions.append((await anext(states)).version)

    async def stall_in_discovery(cluster: Cluster, labels: list[str]) -> None:
        async with cluster[1].discovery.watch("orders") as states:
            await anext(states)
            await cluster.sleep(HOUR)
            labels.append((await anext(states))[0].labels["number"])

    async def stall_in_control(cluster: Cluster) -> None:
        """Ask node 1 for every change, and read nothing."""
        stream = await cluster.stranger().dial(parse_address(cluster[1].address))
        ask = Request(1, "config.watch", HOUR, {"path": "limits"})
        label = label_hash(cluster.settings.cluster)
        await stream.send_all(
            wire.pack_preface(label, wire.FLAG_CONTROL)
            + wire.pack_frame(Channel.CONTROL, encode(ask))
        )
        await cluster.sleep(HOUR)

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready(3000.0)
        await cluster[0].config.set("limits", {"number": -1}, timeout=600.0)
        cluster[0].discovery.announce("orders", labels={"number": "-1"})
        await cluster.sleep(60.0)
        versions: list[int] = []
        labels: list[str] = []
        clients: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stall_in_config, cluster, versions)
            nursery.start_soon(stall_in_discovery, cluster, labels)
            nursery.start_soon(stall_in_control, cluster)
            begun = cluster.now
            for number in range(120):
                # Large enough that what the client does not read soon fills every buffer.
                value = {"number": number, "ballast": "x" * 20_000}
                await cluster[number % 3].config.set("limits", value, timeout=600.0)
                cluster[0].discovery.announce("orders", labels={"number": str(number)})
                await cluster.sleep(HOUR / 121)
                assert overfull(cluster) == []
                sizes = {q.name: q.size for q in cluster[1].statistics().queues}
                clients.append(sizes["control.clients"])
            assert cluster.now - begun < HOUR + 60.0

        # Both skipped to the newest; the client that did not read was cut off.
        assert versions == [1, 121]
        assert labels == ["119"]
        assert (clients[0], clients[-1]) == (1, 0)

    run_cluster(scenario, 3, seed=13, settings=unhurried(), within=3 * HOUR)


@pytest.mark.slow
@pytest.mark.criterion("GEN-13")
def test_every_queue_is_listed_with_bound_policy_and_drops() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.wait_until(lambda: len(cluster.nodes) == 3, 1.0)
        early = {queue.name for queue in cluster[0].statistics().queues}
        await cluster.ready()
        async with cluster[0].config.watch("limits"), cluster[0].discovery.watch("orders"):
            for node in cluster.nodes:
                await node.config.set("limits", 1)
            queues = {queue.name: queue for queue in cluster[0].statistics().queues}

        assert "founding.inbox" in early
        assert {name.partition(".")[0] for name in queues} == {
            "calls", "config", "consensus", "control", "discovery", "founding", "gossip", "kv",
            "links", "snapshots", "sync",
        }  # fmt: skip
        assert queues["config.watches"].bound == queues["config.watches"].size == 1
        assert queues["discovery.watches"].bound == 1
        assert queues["links.n1"].bound == limits.LINK_OUTBOX_FRAMES
        for queue in queues.values():
            assert 0 <= queue.size <= queue.bound
            assert queue.policy in ("refuse", "drop_newest", "drop_oldest", "latest")
            assert queue.drops >= 0

    run_cluster(scenario, 3, seed=14)


@pytest.mark.slow
@pytest.mark.criterion("GEN-13")
def test_a_node_that_cannot_write_takes_in_no_more_than_its_bounds() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        follower = (cluster.leader() + 1) % 3
        cluster.disk(follower, stalled=True)

        async def write(number: int) -> None:
            for count in range(50):
                await cluster[cluster.leader()].config.set(f"d{number}", count, timeout=60.0)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(partial(write, number))
            for _ in range(20):
                await cluster.sleep(0.1)
                assert overfull(cluster) == []
        cluster.disk(follower, stalled=False)

        await cluster.ready()
        ahead = max(node.statistics().raft_applied_index for node in cluster.nodes)
        await cluster.wait_until(
            lambda: cluster[follower].statistics().raft_applied_index >= ahead, 30.0, "caught up"
        )

    run_cluster(scenario, 3, seed=15)
