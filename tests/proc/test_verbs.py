"""Every verb on calls, store and ring once, as it is typed, against real nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proc.processes import CLUSTER, PATIENCE, Process, Processes, eventually, free_port

pytestmark = [pytest.mark.proc, pytest.mark.slow, pytest.mark.xdist_group("proc")]

PROGRAM = Path(sys.executable).with_name("microos")
SHOP = Path(__file__).parents[2] / "examples" / "shop.py"

Ended = subprocess.CompletedProcess[str]
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def shop(lone: Process) -> Iterator[str]:
    """A second node, which is the shop; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    told = {"MICROOS_BIND": address, "MICROOS_CLUSTER": CLUSTER, "MICROOS_NAME": "shop"}
    with subprocess.Popen(
        [sys.executable, SHOP, "--join", lone.address],
        env={**os.environ, **told},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            # Settled: while owners change, a refused write may give a value another version.
            eventually(
                lambda: (len(lone.ring()["members"]), lone.ring()["joint"]) == (2, 0),
                "both are in the ring",
            )
            eventually(lambda: len(lone.services()) == 3, "the shop is known")
            yield address
        finally:
            process.kill()


@pytest.fixture(params=["the node", "the shop"])
def microos(request: pytest.FixtureRequest, lone: Process, shop: str) -> Run:
    """`microos`, asking one node, then the other."""
    node = lone.address if request.param == "the node" else shop

    def run(*arguments: str) -> Ended:
        return subprocess.run(
            [PROGRAM, *arguments],
            env={**os.environ, "MICROOS_NODE": node, "MICROOS_CLUSTER": CLUSTER},
            text=True,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


def data(ended: Ended) -> Any:
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


def test_a_service_is_called_and_its_refusal_is_told(microos: Run) -> None:
    assert data(microos("call", "stock.fill", "book", "5", "250", "--idempotent")) <= 5
    order = {"id": "o-1", "item": "book", "count": 2, "card": "4711"}

    receipt = data(microos("call", "orders.place", json.dumps(order), "--idempotent"))
    too_many = microos("call", "stock.take", "book", "o-2", "9")
    wrong = microos("call", "stock.take", "1", "2", "x")
    unknown = microos("call", "stock.burn")
    nobody = microos("call", "nobody.knows", "--timeout", "1")

    assert receipt == {"order_id": "o-1", "charged_cents": 500}
    assert data(microos("call", "orders.find", "o-1")) == order
    assert data(microos("call", "stock.left", "book")) == 3
    assert (too_many.returncode, "expected 9 of 'book', found 3" in too_many.stderr) == (5, True)
    assert (wrong.returncode, "$[0]" in wrong.stderr) == (5, True)
    assert (unknown.returncode, nobody.returncode) == (5, 3)


def test_the_store_is_read_and_written(microos: Run) -> None:
    put = data(microos("kv", "put", "carts", "ann", '["book"]', "--ttl", "3600", "--json"))
    got = data(microos("kv", "get", "carts", "ann", "--json"))
    taken = microos("kv", "put", "carts", "ann", "1", "--if-absent")
    over = microos("kv", "put", "carts", "ann", "[]", "--if-version", put["version"], "--json")
    stale = microos("kv", "del", "carts", "ann", "--if-version", put["version"])

    assert (got["value"], got["version"]) == (["book"], put["version"])
    assert 3500 < got["expires"] <= 3600
    assert (taken.returncode, stale.returncode) == (5, 5)
    assert int(data(over)["version"]) > int(put["version"])
    assert data(microos("kv", "get", "carts", "ann", "--one")) == []
    assert microos("kv", "del", "carts", "ann").returncode == 0
    absent = microos("kv", "get", "carts", "ann")
    assert (absent.returncode, absent.stdout) == (0, "")
    assert data(microos("kv", "get", "carts", "ann", "--json"))["version"] == "0"


def test_what_there_is_is_shown(microos: Run) -> None:
    microos("call", "stock.left", "book")
    services = data(microos("services", "--json"))
    status = data(microos("status", "--json"))
    ring = data(microos("ring", "show", "--slots", "--json"))

    assert {each["service"]: each["endpoints"] for each in services} == {
        "orders": ["find", "place"],
        "payments": ["charge"],
        "stock": ["fill", "left", "take"],
    }
    assert status["calls"]["success"] >= 1
    assert status["store"]["ring_epoch"] == ring["epoch"]
    assert [(each["copies"], each["weight"]) for each in ring["members"]] == [(1024, 1)] * 2
    assert {len(chain[0]) for chain in ring["slots"]} == {2}


def test_a_node_that_lives_is_not_declared_gone(microos: Run) -> None:
    alive = microos("ring", "gone", "shop", "--yes")
    unsure = microos("ring", "gone", "shop")

    assert (alive.returncode, "alive" in alive.stderr) == (5, True)
    assert (unsure.returncode, "--yes" in unsure.stderr) == (2, True)


def test_the_ring_goes_on_without_those_declared_gone(nodes: Processes) -> None:
    a, *rest = nodes.form(5)
    eventually(lambda: len(a.ring()["members"]) == 5, "all are in the ring")
    eventually(lambda: not a.ring()["joint"], "it is settled")
    dead = rest[:2]
    for node in dead:
        node.kill()
    for node in dead:
        eventually(lambda node=node: a.states()[node.name] == "dead", f"{node} is seen dead")  # type: ignore[misc]

    words = [a.ask("ring.gone", node=node.name) for node in dead]

    assert words == [{"node": node.name, "owners": 1} for node in dead]
    gone = {each["name"]: each["gone"] for each in a.ring()["former"]}
    assert gone == {node.name: "word" for node in dead}
