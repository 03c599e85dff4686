"""The scenes of the demo, in order; what holds after each is its row in the table."""

from __future__ import annotations

import contextlib
import time

from demo.processes import PATIENCE, Cluster, FailedError, Node
from demo.screen import Screen
from demo.traffic import FILLED, ITEMS, Traffic, count_of, order
from microos.control.client import Stream
from microos.errors import UnavailableError

BEFORE = 40
AFTER = 30
"""How many of each are acknowledged before something is done to the cluster, and after."""


def form(cluster: Cluster, screen: Screen) -> None:
    count = len(cluster.nodes)
    with screen.step("the cluster forms") as row:
        for node in cluster.nodes:
            node.start()

        def formed(node: Node) -> bool:
            status = node.ask("status")
            voters = len(status["voters"])
            alive = status["members_alive"]
            return bool(status["leader"]) and (alive, voters) == (count, cluster.voters_wanted)

        cluster.wait(formed, f"{count} alive, a leader, {cluster.voters_wanted} voters")
        leader = _agreed_leader(cluster)
        row.detail = f"{count} alive, {cluster.voters_wanted} voters, leader {leader.name}"


def _agreed_leader(cluster: Cluster) -> Node:
    """Wait until all name one leader; return it."""
    return cluster.wait_once(cluster.leader, "all name one leader")


def open_the_shop(cluster: Cluster, screen: Screen) -> None:
    wanted = {"orders": 2, "payments": 2, "stock": 2}
    with screen.step("the shop opens, its services are found") as row:
        for node in cluster.shops:
            node.start()

        def found(node: Node) -> bool:
            known = node.ask("services")
            return {each["service"]: each["instances"] for each in known} == wanted

        cluster.wait(found, f"{len(wanted)} services are known, two instances each")
        row.detail = f"3 services, two instances each, known on all {len(cluster.running)} nodes"
    with screen.step("the store is whole") as row:
        cluster.until_whole()
        ring = cluster.nodes[0].ask("ring")
        copies = [member["copies"] for member in ring["members"]]
        row.detail = (
            f"three copies of 1024 slots on {len(copies)} nodes, {min(copies)}..{max(copies)} each"
        )


def configure(cluster: Cluster, screen: Screen) -> None:
    writer = cluster.nodes[-1]
    with screen.step("config reaches all nodes") as row:
        value = {"per_minute": 600}
        version = writer.ask("config.set", path="orders.limits", value=value)["version"]
        cluster.wait(
            lambda node: node.ask("config.get", path="orders.limits")["value"] == value,
            "the value set elsewhere is there",
        )
        row.detail = f"orders.limits version {version}, set on {writer.name}, read on all"


def pass_the_lock(cluster: Cluster, screen: Screen) -> None:
    """Three owners in a row on three nodes; each asks before the one before it has let go."""
    owners = cluster.nodes[:3]
    with screen.step("a lock passes from holder to waiters") as row, contextlib.ExitStack() as all:
        held = _ask_for_the_lock(owners[0], all)
        tokens, waits = [_granted(held, owners[0])], []
        for node in owners[1:]:
            waiting = _ask_for_the_lock(node, all)
            _must_be_taken(cluster.nodes[-1])
            released = time.monotonic()
            held.close()
            tokens.append(_granted(waiting, node))
            waits.append(time.monotonic() - released)
            held = waiting
        if tokens != sorted(set(tokens)):
            raise FailedError(f"fencing tokens do not rise: {tokens}", owners[-1])
        names = " → ".join(node.name for node in owners)
        rising = " < ".join(map(str, tokens))
        handed = max(waits) * 1000
        row.detail = f"{names}, tokens {rising}, handed over in {handed:.0f} ms"


def _ask_for_the_lock(node: Node, block: contextlib.ExitStack) -> Stream:
    """Begin to wait for it; the end of the block drops the connection and with it the lock."""
    client = block.enter_context(node.connect())
    return client.stream("lock", name="ledger", ttl=5.0, wait=PATIENCE)


def _granted(stream: Stream, node: Node) -> int:
    for item in stream:
        return int(item["token"])
    raise FailedError("the lock was not granted", node)


def _must_be_taken(node: Node) -> None:
    with node.connect() as client:
        try:
            token = _granted(client.stream("lock", name="ledger", wait=0.0), node)
        except UnavailableError as error:
            if error.reason != "taken":
                raise
        else:
            raise FailedError(f"a lock that is held was given away under token {token}", node)


def live_through_it_all(cluster: Cluster, screen: Screen) -> None:
    """One is killed, one joins, the killed one comes back, the leader is killed: it all goes on."""
    traffic = Traffic(cluster)
    with screen.step("calls and writes are under way") as row:
        traffic.start()
        traffic.go_on(BEFORE)
        row.detail = "orders placed, the store and the config written, through all nodes in turn"
    _kill_a_shop(cluster, screen, traffic)
    _kill_the_leader(cluster, screen, traffic)
    traffic.stop()
    _nothing_has_failed(cluster, screen, traffic)
    _nothing_is_lost(cluster, screen, traffic)


def _kill_a_shop(cluster: Cluster, screen: Screen, traffic: Traffic) -> None:
    victim, newcomer = cluster.shops[1], cluster.newcomer
    with screen.step("a node is killed, calls and writes go on") as row:
        killed = time.monotonic()
        victim.kill()
        cluster.wait(lambda node: node.state_of(victim) == "dead", f"{victim.name} is seen dead")
        detected = time.monotonic() - killed
        traffic.go_on(AFTER)
        row.detail = f"SIGKILL to {victim.name}, which served payments and stock"
    screen.add("  its death is known on all others", detected, "seen dead by gossip")
    _add_gaps(screen, traffic, killed)
    with screen.step("a node joins, calls and writes go on") as row:
        newcomer.start()
        traffic.go_on(AFTER)
        row.detail = f"{newcomer.name}, with all three services"
    with screen.step("the killed node comes back, the store is whole") as row:
        victim.start()
        cluster.until_whole()
        pulled = victim.ask("status")["store"]["bytes_pulled"]
        row.detail = f"{len(cluster.running)} nodes; {victim.name} took over {pulled} bytes"


def _add_gaps(screen: Screen, traffic: Traffic, since: float) -> None:
    for stream in traffic.streams:
        gap = stream.longest_gap(since)
        screen.add(f"  longest wait: {stream.what}", gap, "from one acknowledged to the next")


def _kill_the_leader(cluster: Cluster, screen: Screen, traffic: Traffic) -> None:
    traffic.go_on(AFTER)
    victim = _agreed_leader(cluster)
    with screen.step("the leader is killed, calls and writes go on") as row:
        killed = time.monotonic()
        victim.kill()
        detected, elected, leader = _replaced(cluster, victim, killed)
        traffic.go_on(AFTER)
        row.detail = f"SIGKILL to {victim.name}"
    screen.add("  its death is known on all others", detected, "seen dead by gossip")
    screen.add("  a new leader is named by all", elected, leader.name)
    _add_gaps(screen, traffic, killed)
    with screen.step("the killed leader comes back") as row:
        victim.start()
        goal = leader.ask("status")["raft_commit_index"]

        def caught_up(node: Node) -> bool:
            status = node.ask("status")
            return bool(status["ready"] and status["raft_applied_index"] >= goal)

        cluster.wait(caught_up, f"it has applied the log up to {goal}", [victim])
        cluster.until_whole()
        row.detail = f"{victim.name} alive on all, log applied up to {goal}, the store is whole"


def _replaced(cluster: Cluster, victim: Node, killed: float) -> tuple[float, float, Node]:
    """Wait until all know that `victim` is dead and follow another; return when, when, and whom."""
    times: dict[str, float] = {}

    def both() -> Node | None:
        leader = cluster.leader()
        if leader is not None:
            times.setdefault("elected", time.monotonic() - killed)
        if all(node.state_of(victim) == "dead" for node in cluster.running):
            times.setdefault("detected", time.monotonic() - killed)
        return leader if len(times) == 2 else None

    leader = cluster.wait_once(both, f"all know that {victim.name} is dead and who leads now")
    return times["detected"], times["elected"], leader


def _nothing_has_failed(cluster: Cluster, screen: Screen, traffic: Traffic) -> None:
    with screen.step("no call has failed") as row:
        orders = traffic.orders
        missed = {node.name for node in cluster.running} - orders.through.keys()
        if missed:
            raise FailedError(f"no call went through {', '.join(sorted(missed))}")
        routed = [each for n in cluster.running for each in n.ask("status")["endpoints"]]
        retries = sum(each["retries"] for each in routed)
        row.detail = (
            f"{orders.count} orders through {len(orders.through)} nodes, none refused by a node "
            f"that lived; retried within: {retries}"
        )


def _nothing_is_lost(cluster: Cluster, screen: Screen, traffic: Traffic) -> None:
    with screen.step("no acknowledged write is lost") as row:
        written, kept, placed = (stream.count for stream in traffic.streams)
        for node in cluster.running:
            _has_ledger(node, written)
            _has_store(node, kept)
        row.detail = (
            f"config {written}, store {kept}, each once on each of {len(cluster.running)} nodes"
        )
    with screen.step("no order is lost, none is sold twice") as row:
        _has_orders(cluster, placed)
        row.detail = f"{placed} orders found, what is left of the stock is what was not sold"


def _has_ledger(node: Node, count: int) -> None:
    """See that a linearizable read shows each of the writes of the config, made once."""
    state = node.ask("config.get", path="ledger", latest=True)
    wanted = {f"w{number:05}": number for number in range(1, count + 1)}
    if state["version"] != count or state["value"] != wanted:
        lost = len(wanted.keys() - (state["value"] or {}).keys())
        raise FailedError(f"config: {lost} of {count} lost, version {state['version']}", node)


def _has_store(node: Node, count: int) -> None:
    """See that the node reads each of the writes of the store."""
    with node.connect() as client:
        for number in range(1, count + 1):
            found = client.call("kv.get", bucket="ledger", key=f"w{number:05}")["value"]
            if found != number:
                raise FailedError(f"store: write {number} is lost, found {found}", node)


def _has_orders(cluster: Cluster, count: int) -> None:
    """See that every order is found, and that the shelves are short of exactly what was sold."""
    nodes = cluster.running
    for number in range(1, count + 1):
        node = nodes[number % len(nodes)]
        wanted = order(number)
        found = node.ask("call", endpoint="orders.find", arguments=[wanted["id"]], idempotent=True)
        if found != wanted:
            raise FailedError(f"order {number} is lost: found {found}", node)
    sold = dict.fromkeys(ITEMS, 0)
    for number in range(1, count + 1):
        sold[str(order(number)["item"])] += count_of(number)
    for item in ITEMS:
        node = nodes[0]
        left = node.ask("call", endpoint="stock.left", arguments=[item], idempotent=True)
        if left != FILLED - sold[item]:
            raise FailedError(f"{item}: sold {sold[item]} of {FILLED}, found {left} left", node)


SCENES = (form, open_the_shop, configure, pass_the_lock, live_through_it_all)
