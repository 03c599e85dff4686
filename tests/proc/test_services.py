"""Calls, store and config of real processes: far apart, restarted, sealed anew, and one gone.

The same promises as in the simulated world, smaller, over real sockets and real files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

import pytest

from microos import errors, limits
from microos.errors import LimitError
from microos.keyring import key_text
from tests.proc.processes import (
    PATIENCE,
    Process,
    Processes,
    eventually,
    free_port,
    persistently,
)
from tests.proc.test_cluster import held

pytestmark = [pytest.mark.proc, pytest.mark.slow, pytest.mark.xdist_group("proc")]

ROOT = Path(__file__).parents[2]

RATE = 20
"""Steady calls of each node a second."""


class Worker(Process):
    """A node as `tests/proc/worker.py` has it."""

    def _spawn(self, options: Sequence[str | Path], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.proc.worker", *options],
            env={**os.environ, **self._environment},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def do(self, verb: str, *arguments: object) -> Any:
        """Let it do something; return what comes of it.

        Raises:
            MicroosError: What it raised, by class and reason.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, *arguments]).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{self} has ended instead of an answer to {verb}"
        answer = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"], reason=answer["reason"])
        return answer["result"]

    def wait(self) -> int:
        status = super().wait()
        assert self._process is not None
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return status


class Workers(Processes):
    """Some of them."""

    kind: ClassVar[type[Process]] = Worker

    @property
    def them(self) -> tuple[Worker, ...]:
        return tuple(node for node in self.all if isinstance(node, Worker))

    def ready(self, *serving: str) -> None:
        """Wait until those that run are one cluster, ready, and see these serve."""
        self.whole()
        self.know(*serving)

    def know(self, *serving: str) -> None:
        """Wait until those that run are ready and see these serve; who votes is left open."""
        for worker in self.them:
            if worker.runs:
                assert worker.do("ready")
                sees = partial(lambda worker: worker.do("instances") == sorted(serving), worker)
                eventually(sees, f"{worker} sees {serving} serve")


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with Workers(tmp_path) as workers:
        yield workers


@pytest.mark.criterion("RPC-1")
def test_bodies_come_back_from_a_node_that_shares_no_seed(workers: Workers) -> None:
    ports = [free_port() for _ in range(3)]
    before = ["", *(f"127.0.0.1:{port}" for port in ports)]
    for name, port, join in zip("abc", ports, before, strict=False):
        workers.add(name, port, join, *(("--service", "work") if name == "c" else ()))
        workers.all[-1].start()
        persistently(workers.all[-1].status, f"{name} is open")
    workers.know("c")
    a, *_ = workers.them

    for size in (0, 1, *range(limits.RPC_CHUNK - 8, limits.RPC_CHUNK + 4), limits.MIB):
        assert a.do("body", size)
    lost = a.status()["counters"].get("links.lost", 0)
    for size in (limits.RPC_BODY_MAX, 4 * limits.MIB):
        with pytest.raises(LimitError) as refused:
            a.do("body", size)
        assert refused.value.reason == "size"
        assert a.do("body", 1)
    assert a.status()["counters"].get("links.lost", 0) == lost


@pytest.mark.criterion("RPC-9")
def test_a_restarted_node_is_reached_and_a_silent_one_is_found(workers: Workers) -> None:
    workers.make(3)
    workers.add("d", free_port(), ",".join(w.address for w in workers.all), "--service", "work")
    for worker in workers.all:
        worker.start()
    workers.ready("d")
    a, _, _, d = workers.them
    assert a.do("call", 1) == ["d", 1]

    d.kill()
    d.start()
    assert d.do("ready")
    for number in range(2, 20):
        assert a.do("call", number) == ["d", number]

    # Its sockets stay, and nobody is behind them: as after the loss of a machine.
    workers.ready("d")
    lost = a.status()["counters"].get("links.lost", 0)
    d._signal(signal.SIGSTOP)
    eventually(
        lambda: a.status()["counters"].get("links.lost", 0) > lost,
        "a has found that its connection is half open",
        timeout=2 * PATIENCE,
    )
    d.kill()
    d.start()
    workers.ready("d")
    assert a.do("call", 20) == ["d", 20]


@pytest.mark.criterion("RPC-12")
def test_keys_are_changed_amid_calls_and_none_is_lost(tmp_path: Path, workers: Workers) -> None:
    old, new = key_text(b"a" * 32), key_text(b"b" * 32)
    secret = tmp_path / "secret"
    secret.write_text(old)
    secret.chmod(0o600)
    workers.make(3, "--secret-file", str(secret), "--service", "work")
    for worker in workers.all:
        worker.start()
    workers.ready("a", "b", "c")
    for worker in workers.them:
        worker.do("begin", RATE)

    for keys in (f"{old},{new}", f"{new},{old}", new):
        for worker in workers.them:
            worker.do("keys", keys)
            for each in workers.them:
                seen = each.do("made")
                eventually(partial(more, each, seen + 3), f"{each} goes on calling")
    # Who has the new key only joins, and every link is dialled anew.
    secret.write_text(new)
    late = workers.add("d", free_port(), workers.all[0].address, "--secret-file", str(secret))
    late.start()
    workers.ready("a", "b", "c")
    plain = workers.add("p", free_port(), workers.all[0].address)
    plain.start()
    a = workers.all[0]
    eventually(lambda: a.status()["counters"].get("links.plain"), "a has refused p")

    for worker in workers.them[:3]:
        made, failed = worker.do("end")
        assert failed == []
        assert made > 27
    assert plain.states() == {"p": "alive"}
    assert sorted(a.states()) == ["a", "b", "c", "d"]


def more(worker: Worker, count: int) -> bool:
    return bool(worker.do("made") >= count)


@pytest.mark.criterion("GEN-14")
def test_a_rolling_restart_fails_no_call_and_loses_nothing(workers: Workers) -> None:
    workers.make(3, "--service", "work")
    for worker in workers.all:
        worker.start()
    workers.ready("a", "b", "c")
    for number in range(50):
        workers.them[number % 3].do("put", f"key-{number}", number)
    version = workers.all[0].set("limits", "as before")
    for worker in workers.them:
        worker.do("begin", RATE)

    counts: list[int] = []
    for worker in workers.them:
        made, failed = worker.do("end")
        assert failed == []
        counts.append(made)
        assert worker.terminate() == 0
        worker.start()
        workers.know("a", "b", "c")
        worker.do("begin", RATE)
    for worker in workers.them:
        made, failed = worker.do("end")
        assert failed == []
        counts.append(made)

    assert sum(counts) > 100
    for worker in workers.them:
        assert [worker.do("get", f"key-{number}") for number in range(50)] == list(range(50))
        found = worker.read("limits")
        assert (found["value"], found["version"]) == ("as before", version)


def first_seed(workers: Workers) -> Worker:
    return workers.them[0]


def leader(workers: Workers) -> Worker:
    name = workers.leader().name
    return next(worker for worker in workers.them if worker.name == name)


def key_owner(workers: Workers) -> Worker:
    name = workers.them[0].do("owner", "key")
    return next(worker for worker in workers.them if worker.name == name)


def instance(workers: Workers) -> Worker:
    return workers.them[4]


ROLES: tuple[Callable[[Workers], Worker], ...] = (first_seed, leader, key_owner, instance)


@pytest.mark.criterion("GEN-1", "GEN-2")
def test_whichever_node_is_killed_the_others_do_all_there_is_to_do(workers: Workers) -> None:
    workers.make(5, "--service", "work", seeds=2)
    for worker in workers.all:
        worker.start()
    workers.ready(*"abcde")
    ports = {int(worker.address.rpartition(":")[2]) for worker in workers.all}
    for worker in workers.them:
        assert foreign_sockets(worker.pid, ports) == []

    for number, role in enumerate(ROLES):
        victim = role(workers)
        victim.kill()
        rest = [worker for worker in workers.them if worker is not victim]
        token = 0
        for worker in rest:
            value = 10 * number + rest.index(worker)
            assert worker.do("call", value)[1] == value
            worker.do("put", "key", value)
            version = worker.set("limits", value)
            with held(worker, "ledger") as granted:
                assert granted > token
                token = granted
            for other in rest:
                assert other.do("get", "key") == value
                found = other.read("limits")
                assert (found["value"], found["version"]) == (value, version)
        left = sorted(worker.name for worker in rest)
        for worker in rest:
            sees = partial(lambda worker, left: worker.do("instances") == left, worker, left)
            eventually(sees, f"{worker} sees who is left")
            assert worker.states()[victim.name] == "dead"
        victim.start()
        workers.ready(*"abcde")


def foreign_sockets(pid: int, ports: set[int]) -> list[str]:
    """Return the sockets of a process that lead elsewhere than to these ports of loopback."""
    inodes: dict[str, None] = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        kind, _, inode = os.readlink(descriptor).partition("socket:")
        if inode and not kind:
            inodes[inode.strip("[]")] = None
    found = []
    for kind in ("tcp", "udp", "tcp6", "udp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] not in inodes:
                continue
            here, there = (address.split(":") for address in fields[1:3])
            is_unconnected = int(there[1], 16) == 0
            is_ours = int(here[1], 16) in ports or int(there[1], 16) in ports
            is_loopback = here[0] == "0100007F" and (is_unconnected or there[0] == "0100007F")
            if not (is_ours and is_loopback):
                found.append(line)
    return found
