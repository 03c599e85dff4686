"""The store between real processes: put on one, read on all; killed, joined and left meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.proc.processes import PATIENCE, eventually, free_port

pytestmark = [pytest.mark.proc, pytest.mark.slow, pytest.mark.xdist_group("proc")]

PROGRAM = Path(__file__).with_name("store_node.py")


class StoreNode:
    """One process of `store_node.py`."""

    def __init__(self, name: str, port: int, seeds: str, *kind: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, PROGRAM, name, f"127.0.0.1:{port}", seeds, *kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        assert self._read() == {"ready": self.name}

    def tell(self, *request: object) -> None:
        """Ask without waiting for the answer, which `answer` gives."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        return self._read()

    def ask(self, *request: object) -> Any:
        self.tell(*request)
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        watchdog = threading.Timer(2 * PATIENCE, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        assert line, f"{self.name} is gone"
        return json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def leave(self) -> None:
        """Let it leave in order, and wait until it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(2 * PATIENCE) == 0
        self._end()

    def _end(self) -> None:
        self._process.wait(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None


class Store:
    """Some nodes; a block at whose end none of them runs."""

    def __init__(self) -> None:
        self.nodes: dict[str, StoreNode] = {}
        self._ports = [free_port() for _ in range(6)]
        assert len(set(self._ports)) == 6
        self._seeds = ",".join(f"127.0.0.1:{port}" for port in self._ports[:3])

    def start(self, name: str, *kind: str) -> StoreNode:
        port = self._ports[len(self.nodes)]
        self.nodes[name] = StoreNode(name, port, self._seeds, *kind)
        return self.nodes[name]

    def end(self) -> None:
        for node in self.nodes.values():
            if node.runs:
                node.kill()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    try:
        yield store
    finally:
        store.end()


def formed(store: Store, *names: str) -> list[StoreNode]:
    nodes = [store.start(name) for name in names]
    for node in nodes:
        node.wait_ready()
    return nodes


@pytest.mark.criterion("KV-1")
def test_what_one_process_puts_every_other_gets_until_it_is_deleted(store: Store) -> None:
    nodes = formed(store, "a", "b", "c", "d")
    nodes.append(store.start("e", "client"))
    nodes[4].wait_ready()
    eventually(lambda: all(n.ask("owned") for n in nodes[:4]), "four nodes own slots")
    values = {f"key {n}": n for n in range(20)}

    nodes[0].ask("put", values)
    assert [node.ask("get", list(values)) for node in nodes] == [list(values.values())] * 5

    nodes[4].ask("delete", list(values)[:10])
    rest = [None] * 10 + list(range(10, 20))
    assert [node.ask("get", list(values)) for node in nodes] == [rest] * 5
    assert nodes[4].ask("owned") == 0


@pytest.mark.criterion("KV-3")
def test_joins_kills_and_leaves_hide_and_lose_no_key(store: Store) -> None:
    a, b, c, d = formed(store, "a", "b", "c", "d")
    values = {f"key {n}": n for n in range(400)}
    assert all(isinstance(version, int) for version in a.ask("put", values))
    keys, expected = list(values), list(values.values())

    joiner = store.start("e")
    joiner.tell("get", keys)
    for _ in range(8):
        for node in (a, b, c, d):
            assert node.ask("get", keys) == expected
    joiner.wait_ready()
    assert joiner.answer() == expected
    eventually(lambda: joiner.ask("owned") > 400, "the joiner owns its share")

    b.kill()
    for node in (a, c, d, joiner):
        assert eventually(partial(read, node, keys), f"{node.name} answers") == expected

    d.leave()
    for node in (a, c, joiner):
        assert eventually(partial(read, node, keys), f"{node.name} answers") == expected


def read(node: StoreNode, keys: list[str]) -> list[object] | None:
    """Return what is there; None if a read came to an error."""
    found: list[object] = node.ask("get", keys)
    return None if any(isinstance(one, str) for one in found) else found
