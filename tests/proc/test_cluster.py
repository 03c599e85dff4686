"""Five real nodes that share one life: found, agree, lose some, and are whole again.

The same promises as in the simulated world, smaller, over real sockets and real files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Lock

import pytest

from microos.errors import NoQuorumError, UnavailableError
from tests.proc.processes import Process, Processes, eventually, persistently, set_once

pytestmark = [pytest.mark.proc, pytest.mark.slow, pytest.mark.xdist_group("proc")]

TTL = 2.0
"""Of locks whose owner is killed: at least 2 E of the local preset [s]."""

TWO_ELECTIONS = 0.6
"""2 E of the local preset [s]."""


@contextmanager
def held(node: Process, name: str, *, ttl: float = 15.0, wait: float = 30.0) -> Iterator[int]:
    """Hold a lock through `node` while the block runs; yields the fencing token."""
    with node.client() as client, client.stream("lock", name=name, ttl=ttl, wait=wait) as grants:
        yield int(next(grants)["token"])


class Resource:
    """What a lock protects: it takes note of who is inside, and in which order they came."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self.tokens: list[int] = []
        self.together = 0
        """How often somebody came in while another was inside."""

    @contextmanager
    def use(self, token: int) -> Iterator[None]:
        with self._lock:
            self.together += self._inside
            self._inside += 1
            self.tokens.append(token)
        yield
        with self._lock:
            self._inside -= 1


@pytest.mark.criterion("DISC-1")
def test_a_service_of_one_node_is_known_on_all(cluster: Processes) -> None:
    wanted = {f"from-{node.name}" for node in cluster.all}

    for node in cluster.all:
        eventually(partial(knows, node, wanted), f"{node} knows {wanted}")


def knows(node: Process, services: set[str]) -> bool:
    return services <= set(node.services())


@pytest.mark.criterion("DISC-1")
def test_a_service_announced_later_is_known_on_all(cluster: Processes) -> None:
    late = cluster.all[4]
    late.kill()

    late.start("--service", "late=2.0")

    for node in cluster.all:
        found = eventually(partial(node.ask, "instances", service="late"), f"{node} knows late")
        assert [(i["name"], i["version"]) for i in found] == [("e", "2.0")]


@pytest.mark.criterion("CONF-3")
def test_a_set_reaches_the_watch_of_every_node(cluster: Processes) -> None:
    with ExitStack() as stack:
        watches = []
        for node in cluster.all:
            client = stack.enter_context(node.client())
            watches.append(stack.enter_context(client.stream("config.watch", path="seen")))
            next(watches[-1])

        version = cluster.all[2].set("seen", "by all")

        for watch in watches:
            state = next(state for state in watch if state["version"] >= version)
            assert state["value"] == "by all"


@pytest.mark.criterion("SYNC-1")
def test_a_lock_never_has_two_owners(cluster: Processes) -> None:
    resource = Resource()

    def work(node: Process) -> None:
        for _ in range(10):
            with held(node, "resource", wait=120.0) as token, resource.use(token):
                pass

    with ThreadPoolExecutor(20) as clients:
        for done in [clients.submit(work, cluster.all[n % 5]) for n in range(20)]:
            done.result()

    assert resource.together == 0
    assert len(resource.tokens) == 200
    assert resource.tokens == sorted(set(resource.tokens))


@pytest.mark.criterion("SYNC-3")
def test_the_next_has_the_lock_after_its_owner_was_killed(cluster: Processes) -> None:
    owner, heir, *_ = cluster.followers()
    with ExitStack() as stack:
        client = stack.enter_context(owner.client())
        first = next(client.stream("lock", name="inherited", ttl=TTL, wait=30.0))["token"]
        began = time.monotonic()

        owner.kill()
        wait = 10 * (TTL + TWO_ELECTIONS)
        second = stack.enter_context(held(heir, "inherited", ttl=TTL, wait=wait))
        took = time.monotonic() - began

    assert second > first
    # The lease outlived its owner by what was left of it when it was last renewed.
    assert took > TTL / 3


@pytest.mark.criterion("SYNC-3")
def test_the_next_has_the_lock_after_its_owner_let_go(cluster: Processes) -> None:
    owner, heir, *_ = cluster.all
    with ThreadPoolExecutor(1) as other, ExitStack() as stack:
        with held(owner, "passed", ttl=60.0) as first:
            waiting = other.submit(stack.enter_context, held(heir, "passed", ttl=60.0, wait=30.0))
            with pytest.raises(UnavailableError) as refused, held(heir, "passed", wait=0.0):
                pass

        second = waiting.result()

    assert refused.value.reason == "taken"
    assert second > first


@pytest.mark.criterion("CONF-11")
def test_a_leader_killed_amid_sets_makes_none_twice(cluster: Processes) -> None:
    before = cluster.all[0].read("versions")["version"]
    wanted = 200

    for number in range(1, wanted + 1):
        if number == wanted // 2:
            cluster.leader().kill()
        nodes = cluster.running
        node = nodes[number % len(nodes)]
        attempt = partial(set_once, node, "versions", number, before + number, timeout=2.0)
        eventually(attempt, f"set {number} through {node} is acknowledged")

    for node in cluster.running:
        state = persistently(partial(node.read, "versions"), f"{node} reads")
        assert (state["value"], state["version"]) == (wanted, before + wanted)


@pytest.mark.criterion("SYNC-12")
def test_three_of_five_go_on_and_two_do_not(cluster: Processes) -> None:
    first, second, third, *survivors = [cluster.leader(), *cluster.followers()]

    first.kill()
    second.kill()
    witness = survivors[0]
    eventually(lambda: witness.set("outlives", "two"), "three of five set a value")
    persistently(lambda: take_and_give_back(witness), "three of five grant a lock")

    third.kill()
    for node in survivors:
        eventually(partial(is_leaderless, node), f"{node} knows that it is cut off")
        for operation in (
            partial(node.set, "outlives", "nobody", timeout=1.0),
            partial(node.read, "outlives", timeout=1.0),
            partial(take_and_give_back, node, wait=1.0),
        ):
            began = time.monotonic()
            with pytest.raises(NoQuorumError):
                operation()
            assert time.monotonic() - began < 10.0
        assert node.read("outlives", latest=False)["value"] == "two"

    for node in (first, second, third):
        node.start()
    cluster.whole()
    assert [node.read("outlives")["value"] for node in cluster.all] == ["two"] * 5


def is_leaderless(node: Process) -> bool:
    return not node.status()["leader"]


def take_and_give_back(node: Process, *, wait: float = 5.0) -> None:
    with held(node, "brief", wait=wait):
        pass


@pytest.mark.criterion("DISC-8")
def test_a_seed_that_restarts_is_found_again(cluster: Processes) -> None:
    seed, *others = cluster.all
    pids = [node.pid for node in others]

    seed.kill()
    seed.start()

    cluster.whole()
    assert [node.pid for node in others if node.runs] == pids


@pytest.mark.criterion("DISC-8")
def test_the_cluster_is_whole_after_all_seeds_restart(cluster: Processes) -> None:
    seeds, others = cluster.all[:3], cluster.all[3:]
    pids = [node.pid for node in others]

    for node in seeds:
        node.kill()
    for node in seeds:
        node.start()

    cluster.whole()
    assert [node.pid for node in others if node.runs] == pids


def test_a_terminated_leader_has_left(cluster: Processes) -> None:
    leader, witness, *_ = [cluster.leader(), *cluster.followers()]
    witness.set("kept", 1)

    status = leader.terminate()

    assert status == 0
    for node in cluster.running:
        assert eventually(partial(gone, node, leader), f"{node} sees it gone") == "left"
    assert persistently(partial(witness.read, "kept"), "the others go on")["value"] == 1


def test_a_killed_node_is_dead(cluster: Processes) -> None:
    victim, *others = cluster.followers()

    victim.kill()

    for node in others:
        assert eventually(partial(gone, node, victim), f"{node} sees it gone") == "dead"


def gone(node: Process, other: Process) -> str:
    """Return how `other` is gone in the eyes of `node`; nothing while it is not."""
    state = node.states()[other.name]
    return state if state in ("dead", "left") else ""


def test_a_suspended_node_is_taken_back(cluster: Processes) -> None:
    victim, witness, *_ = cluster.followers()

    with victim.suspended():
        eventually(lambda: witness.states()[victim.name] != "alive", "its silence is noticed")
        assert persistently(lambda: witness.set("meanwhile", True), "the others go on")

    cluster.whole()
    assert victim.read("meanwhile")["value"] is True


@pytest.mark.criterion("CONF-13")
def test_what_was_committed_outlives_all_processes(cluster: Processes) -> None:
    version = cluster.all[0].set("durable", {"yes": True})
    for node in cluster.all:
        node.kill()

    alone = cluster.all[1]
    alone.start()
    state = persistently(lambda: alone.read("durable", latest=False), "it reads what it knew")
    status = alone.status()

    assert not status["ready"]
    assert state["value"] in ({"yes": True}, None)
    for node in cluster.all:
        if node is not alone:
            node.start()
    cluster.whole()
    for node in cluster.all:
        found = node.read("durable")
        assert (found["value"], found["version"]) == ({"yes": True}, version)


def test_a_client_that_goes_away_gives_its_lock_back(cluster: Processes) -> None:
    owner, heir, *_ = cluster.all
    client = owner.client()
    first = next(client.stream("lock", name="dropped", ttl=60.0, wait=30.0))["token"]

    client.close()

    with held(heir, "dropped", wait=30.0) as second:
        assert second > first
