"""`microos` as a process, against a served node: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from microos.net.system import SystemNetwork
from tests.control.nodes import FakeNode, serving

pytestmark = [pytest.mark.proc, pytest.mark.slow]

MAIN = "from microos.cli import main; main()"

Ended = subprocess.CompletedProcess[bytes]
Run = Callable[..., Awaitable[Ended]]


async def microos(*arguments: str, code: str = MAIN, **variables: str) -> Ended:
    """Run `microos`; its environment has nothing of ours but `variables`."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MICROOS_")}
    return await trio.run_process(
        [sys.executable, "-c", code, *arguments],
        env={**plain, **variables},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


async def test_every_verb_prints_data() -> None:
    node = FakeNode()
    printed: list[Any] = []
    async with serving(node, SystemNetwork()) as address:
        ask = partial(microos, MICROOS_NODE=str(address))
        for line in (
            "config set orders.limits 7",
            "config set name --text 7",
            "config set name other --if-version 1",
            "config list",
            "config get orders.limits",
            "config get name --latest",
            "config delete name",
            "config watch orders.limits --count 1",
            "members",
            "status",
            "services",
            "services orders",
            "call orders.place o-1 2 --idempotent",
            "kv put carts ann [1] --ttl 9 --if-absent",
            "kv put carts bob --text 7 --one",
            "kv get carts ann",
            "kv get carts nobody",
            "kv del carts ann --if-version 1267650600228229401496703205377",
            "ring show --slots",
            "ring gone b --yes",
        ):
            ended = await ask(*line.split(), "--json")
            assert (ended.returncode, ended.stderr) == (0, b""), line
            printed.append(json.loads(ended.stdout))

    assert printed[:3] == [
        {"path": "orders.limits", "version": 1},
        {"path": "name", "version": 1},
        {"path": "name", "version": 2},
    ]
    assert printed[3] == ["name", "orders.limits"]
    assert printed[4] == {"path": "orders.limits", "value": 7, "version": 1, "revision": 7}
    assert printed[5] == {"path": "name", "value": "other", "version": 2, "revision": 7}
    assert printed[7] == printed[4]
    members, status, services, instances, called, put, _, got, nothing, gone = printed[8:18]
    assert [(m["name"], m["state"], m["address"]) for m in members] == [
        ("a", "alive", "127.0.0.1:7946"),
        ("b", "dead", "127.0.0.1:7946"),
    ]
    assert (status["ready"], status["queues"][0]["name"]) == (True, "outbox")
    assert services == [
        {"service": "orders", "instances": 1, "endpoints": ["place"]},
        {"service": "stock", "instances": 1, "endpoints": ["place"]},
    ]
    assert instances[0]["labels"] == {"zone": "[x]"}
    assert called == ["o-1", 2]
    assert node.calls == [("orders.place", True, ("o-1", 2), 5.0)]
    version = str((1 << 100) + 1)
    assert put == gone | {"version": version}
    assert got == {"bucket": "carts", "key": "ann", "value": [1], "version": version, "expires": 9}
    assert (nothing["value"], nothing["version"]) == (None, "0")
    assert node.kv.buckets["carts"].items["bob"].value == "7"
    ring, word = printed[18:]
    assert (ring["epoch"], len(ring["slots"])) == (3, 1024)
    assert (word, node.kv.gone) == ({"node": "b", "owners": 1}, ["b"])


async def test_people_get_tables_and_plain_values() -> None:
    async with serving(FakeNode(), SystemNetwork()) as address:
        ask = partial(microos, MICROOS_NODE=str(address))
        members = (await ask("members")).stdout.decode()
        status = (await ask("status")).stdout.decode()
        changed = (await ask("config", "set", "a", '{"b": 1}')).stdout
        value = (await ask("config", "get", "a")).stdout
        services = (await ask("services")).stdout.decode()
        called = (await ask("call", "orders.place", "{", "null", "--", "-1")).stdout
        absent = await ask("kv", "get", "carts", "ann")
        written = (await ask("kv", "put", "carts", "ann", "[1]")).stdout
        kept = (await ask("kv", "get", "carts", "ann")).stdout
        ring = (await ask("ring", "show", "--slots")).stdout.decode().split()
        gone = (await ask("ring", "gone", "b", "--yes")).stdout

    assert members.split()[:6] == ["NAME", "ADDRESS", "STATE", "SECONDS", "NODE", "LABELS"]
    assert "zone=[x]" in members
    assert "foreign=2" in status
    assert "retries=8" in status
    assert "ring_epoch=5" in status
    assert (changed, value) == (b"a is at version 1\n", b'{"b":1}\n')
    assert services.split()[:6] == ["SERVICE", "INSTANCES", "ENDPOINTS", "orders", "1", "place"]
    assert called == b'["{",null,-1]\n'
    assert (absent.returncode, absent.stdout) == (0, b"")
    assert written == b"carts ann is at version 1267650600228229401496703205377\n"
    assert kept == b"[1]\n"
    assert ring[ring.index("SLOT") + 3 :][:3] == ["0", "a", "b"]
    assert "left" in ring
    assert gone == b"b is gone: 1 owners\n"


async def test_the_exit_code_says_what_to_do_next() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    async with serving(FakeNode(), SystemNetwork()) as address:
        node = str(address)
        conflict = await microos("config", "set", "a", "1", "--if-version", "3", "--node", node)
        foreign = await microos("members", "--node", node, "--cluster", "other")
        raised = await microos("call", "orders.refuse", "--node", node)
        taken = await microos("kv", "put", "b", "k", "1", "--if-version", "3", "--node", node)
        too_big = await microos("kv", "put", "b", "k", "9" * 30, "--node", node)
        unsure = await microos("ring", "gone", "b", "--node", node)
    absent = await microos("members", "--node", nobody)
    usage = await microos("fly")
    both = await microos("kv", "del", "b", "k", "--if-version", "3", "--one")
    contradiction = await microos("kv", "put", "b", "k", "1", "--if-absent", "--if-version", "3")
    number = await microos("members", MICROOS_TIMEOUT="soon")

    assert (conflict.returncode, conflict.stdout) == (5, b"")
    assert conflict.stderr == b"microos: expected version 3, found 0\n"
    assert (foreign.returncode, absent.returncode) == (5, 3)
    assert absent.stderr.startswith(f"microos: no node answers at {nobody}".encode())
    assert absent.stderr.count(b"\n") == 1
    assert (raised.returncode, taken.returncode, too_big.returncode) == (1, 5, 5)
    assert b"KeyError" in raised.stderr
    assert b"MessagePack" in too_big.stderr
    assert b"--yes" in unsure.stderr
    wrong = (usage, number, both, contradiction, unsure)
    assert [ended.returncode for ended in wrong] == [2] * 5


async def test_a_missing_extra_is_named() -> None:
    code = f"import sys; sys.modules['click'] = None; {MAIN}"

    ended = await microos("members", code=code)

    assert ended.returncode == 2
    assert ended.stderr == b'the command line needs click: pip install "microos[cli]"\n'


async def test_a_command_runs_while_the_lock_is_held() -> None:
    node = FakeNode()
    async with serving(node, SystemNetwork()) as address:
        ended = await microos(
            *("lock", "x", "--json", "--node", str(address), "--", "sh", "-c"),
            'echo "token $MICROOS_FENCING_TOKEN"; exit 7',
        )
        held = dict(node.sync.owned)

    assert (ended.returncode, ended.stdout) == (7, b"token 1\n")
    assert json.loads(ended.stderr) == {"name": "x", "token": 1}
    assert held == {}


async def test_a_lock_that_is_taken_runs_nothing() -> None:
    node = FakeNode()
    async with serving(node, SystemNetwork()) as address, node.sync.lock("x", ttl=1.0, wait=0.0):
        ended = await microos("lock", "x", "--wait=0", "--node", str(address), "--", "echo", "hi")

    assert (ended.returncode, ended.stdout) == (3, b"")


async def test_a_command_that_cannot_run_gives_the_lock_back() -> None:
    node = FakeNode()
    async with serving(node, SystemNetwork()) as address:
        ended = await microos("lock", "x", "--node", str(address), "--", "/no/such/command")

        assert ended.returncode == 127
        assert ended.stderr == b"microos: cannot run /no/such/command: No such file or directory\n"
        assert node.sync.owned == {}


async def _started(address: str) -> trio.Process:
    """Start a command under a lock and wait until it runs."""
    script = "trap 'exit 9' TERM; echo; while :; do sleep 0.05; done"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", MAIN, "lock", "x", "--node", address, "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with trio.fail_after(30.0):
        assert await process.stdout.receive_some(1) == b"\n"
    return process


async def _ended(process: trio.Process) -> int:
    with trio.fail_after(30.0):
        code = await process.wait()
    assert process.stdout is not None
    await process.stdout.aclose()
    return code


async def test_a_lost_lock_ends_the_command() -> None:
    node = FakeNode()
    async with serving(node, SystemNetwork()) as address:
        process = await _started(str(address))
        node.sync.lose("x")

        assert await _ended(process) == 1


async def test_a_signal_reaches_the_command() -> None:
    async with serving(FakeNode(), SystemNetwork()) as address:
        process = await _started(str(address))
        process.send_signal(signal.SIGTERM)

        assert await _ended(process) == 9
