"""What all parts promise together, on whole nodes in the simulated world."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from microos._open import Node
from microos.errors import MicroosError
from microos.gossip.members import State
from microos.keyring import key_text
from microos.ring.ring import seed_of, slot_of
from microos.settings import Settings
from microos.sim.cluster import Captured, Cluster, run_cluster
from microos.sim.machine import PORT
from tests.acceptance.work import AGAIN, ONCE, Calls, Work, names

pytestmark = pytest.mark.sim

EVERYBODY = (0, 1, 2, 3, 4)


# No special node.

KEY = "the key"


def key_owner(cluster: Cluster) -> int:
    """Return the machine that is the first owner of the test's key."""
    ring, _ = cluster[cluster.leader()]._lifecycle.ring()
    owner = ring.current(slot_of(seed_of("smoke"), KEY.encode()))[0]
    return next(m.number for m in cluster.machines if cluster[m.number].id == owner.node)


VICTIMS: dict[str, Callable[[Cluster], int]] = {
    "first seed": lambda cluster: 3,
    "leader": Cluster.leader,
    "owner of the key": key_owner,
    "instance": lambda cluster: 4,
}


async def smoke(cluster: Cluster, machines: list[int], word: str) -> None:
    """Use every part from each of these machines; nothing is tried twice.

    Raises:
        AssertionError, MicroosError: Something of it did not do.
    """
    nodes = [cluster[machine] for machine in machines]
    for machine, node in zip(machines, nodes, strict=True):
        name = f"{word}-{machine}"
        bucket = node.kv.bucket("smoke", str)
        await bucket.put(KEY, name)
        await bucket.put(name, name)
        version = await node.config.set("smoke", name)
        async with node.sync.lock("smoke") as lease:
            lease.check()
            token = lease.token
        assert (await node.call(AGAIN, machine))[1] == machine
        for other in nodes:
            assert await other.kv.bucket("smoke", str).get(KEY) == name
            assert await other.kv.bucket("smoke", str).get(name) == name
            state = await other.config.read_latest("smoke")
            assert (state.value, state.version) == (name, version)
        async with nodes[0].sync.lock("smoke") as lease:
            assert lease.token > token
    here = {node.name for node in nodes}
    serving = {f"n{machine}" for machine in machines if machine in (2, 4)}

    def is_seen(machine: int) -> bool:
        alive = {m.name for m in cluster[machine].members() if m.state is State.ALIVE}
        return alive == here and names(cluster, machine) == serving

    bounds = cluster.bounds
    await cluster.wait_until(
        lambda: all(map(is_seen, machines)),
        bounds.S + bounds.T + bounds.G + 1.0,
        "all see who is there, and what they serve",
    )


@pytest.mark.slow
@pytest.mark.criterion("GEN-1")
@pytest.mark.parametrize("silent", [False, True], ids=["reset", "silent"])
def test_whichever_node_crashes_the_others_do_all_there_is_to_do(silent: bool) -> None:
    work = Work(2, 4)

    async def scenario(cluster: Cluster) -> None:
        seeds = tuple(f"{cluster.machines[number].ip}:{PORT}" for number in (3, 1))
        for number in EVERYBODY:
            cluster.start(number, seeds=seeds)
        await cluster.wait_until(lambda: len(cluster.nodes) == 5, 1.0)
        await work.known(cluster)
        await smoke(cluster, list(EVERYBODY), "at first")
        for role, find in VICTIMS.items():
            victim = find(cluster)
            cluster.crash(victim, silent=silent)
            await smoke(cluster, [n for n in EVERYBODY if n != victim], role)
            cluster.restart(victim)
            await cluster.machines[victim].opened.wait()
            await work.known(cluster)
        await smoke(cluster, list(EVERYBODY), "at last")

    run_cluster(scenario, 5, seed=3, first=0, services=work)


# Cancellation.


BACKGROUND = ("founding.", "gossip.", "links.", "consensus.unwritten_bytes", "consensus.inbox")
"""Beginnings of names of queues that nobody waits for, or that are never at rest for long."""


def kept(cluster: Cluster) -> dict[str, int]:
    """Return the queues in which something is that somebody waits for, or waited for."""
    return {
        f"{node.name} {queue.name}": queue.size
        for node in cluster.nodes
        for queue in node.statistics().queues
        if queue.size and not queue.name.startswith(BACKGROUND)
    }


def tasks() -> Counter[str]:
    """Return how many tasks of each name there are."""
    found: Counter[str] = Counter()
    todo = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        assert task is not None
        found[task.name] += 1
        todo.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return found


async def _call(node: Node, id: int) -> None:
    assert (await node.call(AGAIN, id))[1] == id


async def _call_once(node: Node, id: int) -> None:
    assert (await node.call(ONCE, id))[1] == id


async def _put(node: Node, id: int) -> None:
    await node.kv.bucket("items", int).put(f"put-{id}", id)
    assert await node.kv.bucket("items", int).get(f"put-{id}") == id


async def _put_absent(node: Node, id: int) -> None:
    await node.kv.bucket("items", int).put(f"new-{id}", id, if_absent=True)


async def _delete(node: Node, id: int) -> None:
    await node.kv.bucket("items", int).delete(f"new-{id - 7}")


async def _update(node: Node, id: int) -> None:
    await node.kv.bucket("items", int).update("sum", lambda total: total + 1, initial=0)


async def _set(node: Node, id: int) -> None:
    await node.config.set(f"document-{id % 5}", id)


async def _read_latest(node: Node, id: int) -> None:
    await node.config.read_latest(f"document-{id % 5}")


async def _lock(node: Node, id: int) -> None:
    async with node.sync.lock(f"lock-{id % 4}", wait=5.0) as lease:
        await trio.sleep(0.005)
        lease.check()


async def _watch_config(node: Node, id: int) -> None:
    async with node.config.watch(f"document-{id % 5}") as states:
        await anext(states)
        await anext(states)


async def _watch_instances(node: Node, id: int) -> None:
    async with node.discovery.watch("work") as states:
        await anext(states)
        await anext(states)


async def _wait_ready(node: Node, id: int) -> None:
    await node.wait_ready(5.0)


DEEDS: tuple[Callable[[Node, int], Awaitable[None]], ...] = (
    _call, _call_once, _put, _put_absent, _delete, _update, _set, _read_latest, _lock,
    _watch_config, _watch_instances, _wait_ready,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.prop
@pytest.mark.criterion("GEN-5")
@pytest.mark.parametrize("seed", range(5))
def test_what_is_cancelled_leaves_nothing_behind(seed: int) -> None:
    """Hundreds of deeds at once, two of three of them cancelled somewhere in their midst."""
    work = Work(0, 1, 2)
    chance = random.Random(seed)

    async def answer(id: int) -> None:
        await trio.sleep(0.01 * (id % 3))

    work.does = dict.fromkeys((0, 1, 2), answer)
    ended: Counter[str] = Counter()

    async def deed(cluster: Cluster, do: Callable[[Node, int], Awaitable[None]], id: int) -> None:
        node = cluster[chance.randrange(3)]
        bound = chance.choice((10.0, chance.uniform(0.0, 0.01), chance.uniform(0.0, 0.1)))
        with trio.move_on_after(bound) as scope:
            await do(node, id)
        ended["cancelled" if scope.cancelled_caught else "done"] += 1

    async def storm(cluster: Cluster, count: int, start: int) -> None:
        async with trio.open_nursery() as nursery:
            for id in range(start, start + count):
                nursery.start_soon(deed, cluster, DEEDS[id % len(DEEDS)], id)
                await trio.sleep(chance.expovariate(500.0))

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        await storm(cluster, 5 * len(DEEDS), 0)  # Opens sessions and links.
        await trio.sleep(20.0)
        living = tasks()

        await storm(cluster, 50 * len(DEEDS), 1000)
        await trio.sleep(20.0)

        # The nodes' own calls come and go; what is left behind stays.
        await cluster.wait_until(lambda: not kept(cluster) and tasks() <= living, 10.0)
        assert all(run.ended < trio.current_time() for run in work.runs)
        for node in cluster.nodes:
            node._lifecycle.calls.check()
            node.router.check()
            keeper = node.kv._keeping.keeper
            assert keeper.in_flight == 0
            assert {i.in_flight for i in node.router.statistics().instances} <= {0}
            for number in range(4):
                async with node.sync.lock(f"lock-{number}", wait=0.0):
                    pass
        assert min(ended["cancelled"], ended["done"]) > 100

    run_cluster(scenario, 3, seed=seed, services=work)


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope of the current task when that stops at a checkpoint for the nth time."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.left = step
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.left -= 1
            if self.left == 0:
                self._scope.cancel()


@pytest.mark.slow
@pytest.mark.prop
@pytest.mark.criterion("GEN-5")
@pytest.mark.parametrize("do", DEEDS)
def test_what_is_cancelled_at_any_of_its_checkpoints_leaves_nothing_behind(
    do: Callable[[Node, int], Awaitable[None]],
) -> None:
    """Each deed again and again: cancelled at its first checkpoint, at its second, and so on."""
    work = Work(0, 1, 2)
    steps = cancelled = 0

    async def scenario(cluster: Cluster) -> None:
        nonlocal steps, cancelled
        await work.known(cluster)
        node = cluster[0]
        for id in range(3):  # Opens sessions and links.
            with trio.move_on_after(1.0):
                await do(node, id)
        await trio.sleep(20.0)
        living = tasks()

        was_reached = True
        while was_reached:
            steps += 1
            with trio.CancelScope(deadline=trio.current_time() + 1.0) as scope:
                instrument = CancelAtStep(scope, steps)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await do(node, 1000 + steps)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            was_reached = instrument.left <= 0
            cancelled += scope.cancelled_caught and was_reached
            assert node.kv._keeping.keeper.in_flight == 0
            assert {i.in_flight for i in node.router.statistics().instances} <= {0}
            node._lifecycle.calls.check()

        await trio.sleep(20.0)
        await cluster.wait_until(lambda: not kept(cluster) and tasks() <= living, 10.0)
        for number in range(4):
            async with node.sync.lock(f"lock-{number}", wait=0.0):
                pass

    run_cluster(scenario, 3, seed=6, services=work)

    assert cancelled >= 1
    assert steps >= 2


@pytest.mark.slow
@pytest.mark.prop
@pytest.mark.criterion("GEN-5")
@pytest.mark.parametrize("seed", range(3))
def test_a_cancelled_wait_for_nodes_that_say_nothing_is_forgotten_at_once(seed: int) -> None:
    work = Work(1, 2)
    chance = random.Random(seed)

    async def deed(cluster: Cluster, do: Callable[[Node, int], Awaitable[None]], id: int) -> None:
        with trio.move_on_after(chance.uniform(0.0, 0.5)):
            await do(cluster[0], id)

    async def all_deeds(cluster: Cluster, start: int) -> None:
        async with trio.open_nursery() as nursery:
            for id in range(start, start + 3 * len(DEEDS)):
                nursery.start_soon(deed, cluster, DEEDS[id % len(DEEDS)], id)

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        await all_deeds(cluster, 0)
        await trio.sleep(20.0)
        living = tasks()

        cluster.pause(1, 1.0)
        cluster.pause(2, 1.0)
        await all_deeds(cluster, 1000)

        assert "n0 kv.operations" not in kept(cluster)
        assert {i.in_flight for i in cluster[0].router.statistics().instances} <= {0}
        await trio.sleep(20.0)
        await cluster.wait_until(lambda: not kept(cluster) and tasks() <= living, 10.0)

    run_cluster(scenario, 3, seed=seed, services=work)


@pytest.mark.slow
def test_all_who_wait_for_a_node_are_told_that_it_is_ready() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.wait_until(lambda: len(cluster.nodes) == 3, 1.0)
        begun = cluster.now
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(cluster[0].wait_ready, 30.0)
        assert cluster.now - begun < 10.0

    run_cluster(scenario, 3, seed=4)


# Sealed.

A, B = b"a" * 32, b"b" * 32


@pytest.mark.slow
@pytest.mark.criterion("GEN-8")
@pytest.mark.parametrize("secret", [key_text(A), None], ids=["sealed", "plain"])
def test_captured_calls_and_items_show_neither_names_nor_keys(secret: str | None) -> None:
    work = Work(1)
    words = [b"work.again", b"tenant-of-a-call", b"secret-bucket", b"secret-key", b"secret-value"]
    everything: list[Captured] = []

    async def tell(call: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
        call.metadata["tenant"] = "tenant-of-a-call"
        return await proceed(call)

    async def scenario(cluster: Cluster) -> None:
        captured = cluster.capture()
        await work.known(cluster)
        for id in range(20):
            await cluster[0].call(AGAIN, id)
            for node in cluster.nodes:
                bucket = node.kv.bucket("secret-bucket", str)
                await bucket.put(f"secret-key-{id}", "secret-value")
                assert await bucket.get(f"secret-key-{id}") == "secret-value"
        everything.extend(captured)

    settings = Settings.local(secret=secret)
    run_cluster(scenario, 3, seed=5, settings=settings, services=work, middleware=[tell])

    shown = [word for word in words if any(word in packet.data for packet in everything)]
    # In the clear all is there to see, which shows that this test can see.
    assert shown == ([] if secret else words)


@pytest.mark.slow
@pytest.mark.criterion("GEN-8")
def test_changing_the_key_at_a_hundred_calls_a_second_loses_none() -> None:
    work = Work(*EVERYBODY)
    calls, over = Calls(), trio.Event()

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        async with trio.open_nursery() as nursery:
            make = partial(calls.make, cluster, lambda: EVERYBODY, rate=100, until=over)
            nursery.start_soon(make)
            for keys in ((A, B), (B, A), (B,)):
                for node in cluster.nodes:
                    await cluster.sleep(0.3)
                    keyring = node._lifecycle._keyring
                    assert keyring is not None
                    keyring.replace(keys)
            await cluster.sleep(1.0)
            over.set()

    settings = Settings.local(secret=key_text(A))
    cluster = run_cluster(scenario, 5, seed=6, settings=settings, services=work)

    assert calls.errors == []
    assert len(calls.took) > 450
    # Not even at the second try.
    assert all(run.call.attempt == 1 for run in work.runs)
    assert all(
        endpoint.retries == 0
        for machine in cluster.machines
        for endpoint in cluster[machine.number].router.statistics().endpoints
    )


# Rolling restarts.


class Writes:
    """What was acknowledged of writes to store and config, made at a steady rate."""

    def __init__(self) -> None:
        self.items: dict[str, int] = {}
        self.version = 0
        """Of the config document `count`."""
        self.errors: list[tuple[float, int, str, MicroosError]] = []
        """(world time, machine, what, error)."""

    async def make(self, cluster: Cluster, able: Able, *, rate: float, until: trio.Event) -> None:
        number = 0
        while not until.is_set():
            machines = able(cluster)
            machine = machines[number % len(machines)]
            node, key = cluster[machine], f"key-{number}"
            try:
                await node.kv.bucket("items", int).put(key, number)
                self.items[key] = number
            except MicroosError as error:
                self.errors.append((cluster.now, machine, "kv", error))
            try:
                self.version = await node.config.set("count", number)
            except MicroosError as error:
                self.errors.append((cluster.now, machine, "config", error))
            number += 1
            await cluster.sleep(1.0 / rate)


class Able:
    """Who is not leaving, and has not just come back."""

    def __init__(self) -> None:
        self.leaving: set[int] = set()

    def __call__(self, cluster: Cluster) -> list[int]:
        return [m.number for m in cluster.machines if m.running and m.number not in self.leaving]


async def restarted(cluster: Cluster, able: Able, number: int) -> None:
    """Let a node leave in order, start it again, and wait until it can serve."""
    able.leaving.add(number)
    await cluster.leave(number)
    cluster.start(number)
    await cluster.machines[number].opened.wait()
    await cluster[number].wait_ready(30.0)
    able.leaving.discard(number)


@pytest.mark.slow
@pytest.mark.criterion("GEN-14")
@pytest.mark.parametrize("seed", [1])
def test_a_rolling_restart_fails_no_call_and_loses_nothing(seed: int) -> None:
    work = Work(*EVERYBODY)
    calls, writes, able, over = Calls(), Writes(), Able(), trio.Event()

    async def scenario(cluster: Cluster) -> None:
        await work.known(cluster)
        bucket = cluster[0].kv.bucket("kept", int)
        for number in range(200):
            await bucket.put(f"old-{number}", number)
        async with trio.open_nursery() as nursery:
            callers = partial(able, cluster)
            nursery.start_soon(partial(calls.make, cluster, callers, rate=100, until=over))
            nursery.start_soon(partial(writes.make, cluster, able, rate=10, until=over))
            for number in EVERYBODY:
                await cluster.sleep(0.5)
                await restarted(cluster, able, number)
            await cluster.sleep(0.5)
            over.set()

        assert calls.errors == []
        assert writes.errors == []
        assert len(calls.took) > 500
        for node in cluster.nodes:
            for number in range(200):
                assert await node.kv.bucket("kept", int).get(f"old-{number}") == number
            for key, value in writes.items.items():
                assert await node.kv.bucket("items", int).get(key) == value
            state = await node.config.read_latest("count")
            assert state.version == writes.version == state.value + 1

    run_cluster(scenario, 5, seed=seed, services=work)
