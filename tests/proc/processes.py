"""Real nodes on loopback: started, asked, stopped, killed, and in any case cleaned up.

    with Processes(folder) as nodes:
        a, b, c = nodes.form(3)
        a.kill()
        eventually(lambda: b.state_of(a) == "dead", "b sees a dead")

Nothing here waits a fixed time: everything is a condition looked at again and again
until it holds, with a deadline far beyond what it should take.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self, TypeVar

from microos.control.client import Client
from microos.errors import MicroosError, UnavailableError

PROGRAM = Path(sys.executable).with_name("microos-node")

PATIENCE = 30.0
"""Deadline of a condition: an order of magnitude beyond what it takes on a quiet machine [s]."""

POLL = 0.02
"""Between two looks at a condition [s]."""

CLUSTER = "proc"

QUICK = {"MICROOS_RAFT__QUIET": "0.5"}
"""Settings of all nodes here: the seeds listen for an older cluster only briefly."""

TAIL = 40
"""Lines of a log that are shown when a test fails."""

T = TypeVar("T")


def eventually(condition: Callable[[], T], what: str, *, timeout: float = PATIENCE) -> T:
    """Wait until `condition()` is truthy and return it; an error of ours means not yet.

    Raises:
        AssertionError: Not within `timeout` [s]; says what was waited for and seen last.
    """
    until = time.monotonic() + timeout
    while True:
        seen: object
        try:
            found = seen = condition()
            if found:
                return found
        except MicroosError as error:
            seen = error
        assert time.monotonic() < until, f"not within {timeout:g} s: {what}; last seen: {seen!r}"
        time.sleep(POLL)


def persistently(attempt: Callable[[], T], what: str, *, timeout: float = PATIENCE) -> T:
    """Return what `attempt()` returns once it raises nothing of ours any more."""
    return eventually(lambda: (attempt(),), what, timeout=timeout)[0]


_PORTS = random.SystemRandom().sample(range(15_000, 30_000), 15_000)
"""In the order in which this process of the suite tries them: none twice."""


def free_port() -> int:
    """Return a port free for datagrams and streams, outside the range given to clients."""
    while True:
        port = _PORTS.pop()
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def run_node(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a `microos-node` that is expected to end by itself."""
    return subprocess.run(
        [PROGRAM, *arguments],
        env={**os.environ, **(environment or {})},
        text=True,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


class Process:
    """One `microos-node`, over all its starts."""

    def __init__(
        self,
        name: str,
        port: int,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self.data = folder / name
        self.log = folder / f"{name}.log"
        self._arguments = arguments
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Process {self.name} {self.address} {'runs' if self.runs else 'is gone'}>"

    # Living and dying.

    def start(self, *arguments: str) -> None:
        """Start it, on the data it left behind if it ran before."""
        assert not self.runs, f"{self.name} runs already"
        options = ["--name", self.name, "--bind", self.address, *self._arguments]
        with self.log.open("ab") as log:
            self._process = self._spawn([*options, "--data-dir", self.data, *arguments], log)

    def _spawn(self, options: Sequence[str | Path], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [PROGRAM, *options],
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """SIGTERM; return the exit status."""
        self._signal(signal.SIGTERM)
        return self.wait()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let it stand still (SIGSTOP) while the block runs."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until it has ended; return the exit status."""
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        """Make sure that it is gone, whatever state it is in."""
        if self.runs:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    # Asking it.

    def client(self, timeout: float = 5.0) -> Client:
        """Return a connection to it: a block."""
        return Client(self.address, cluster=CLUSTER, timeout=timeout)

    def ask(self, verb: str, *, timeout: float = 5.0, **arguments: Any) -> Any:
        """Return its answer to one question, over a connection of its own."""
        with self.client(timeout) as client:
            return client.call(verb, **arguments)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")
        return found

    def states(self) -> dict[str, str]:
        """Return the states of all members by name, as it sees them."""
        return {member["name"]: member["state"] for member in self.ask("members")}

    def services(self) -> list[str]:
        return [found["service"] for found in self.ask("services")]

    def ring(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("ring")
        return found

    def set(
        self, path: str, value: object, *, if_version: int | None = None, timeout: float = 5.0
    ) -> int:
        """Set a config value; return the document's version."""
        answer = self.ask(
            "config.set", path=path, value=value, if_version=if_version, timeout=timeout
        )
        return int(answer["version"])

    def read(self, path: str, *, latest: bool = True, timeout: float = 5.0) -> dict[str, Any]:
        """Return a config state; `latest` asks a majority first."""
        found: dict[str, Any] = self.ask("config.get", path=path, latest=latest, timeout=timeout)
        return found

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


class Processes:
    """Some nodes of one cluster; a block at whose end none of them runs."""

    kind: ClassVar[type[Process]] = Process

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self._environment = {**QUICK, **environment}
        self._nodes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            print(self.tails())  # A failure within the block: pytest shows what was printed.
        for node in self._nodes.values():
            node.end()

    @property
    def all(self) -> tuple[Process, ...]:
        return tuple(self._nodes.values())

    @property
    def running(self) -> tuple[Process, ...]:
        return tuple(node for node in self.all if node.runs)

    def make(
        self, count: int, *more: str, seeds: int = 3, services: bool = False
    ) -> tuple[Process, ...]:
        """Return `count` nodes `a`, `b`, ... that know each other's addresses; none is started.

        Args:
            more: Options of all of them.
            seeds: So many of the first are the seeds of all.
            services: Each announces a service `from-<name>`.
        """
        ports = [free_port() for _ in range(count)]
        join = ",".join(f"127.0.0.1:{port}" for port in ports[:seeds])
        for name, port in zip("abcdefgh", ports, strict=False):
            service = ("--service", f"from-{name}=1.0") if services else ()
            self.add(name, port, join, *more, *service)
        return self.all

    def add(self, name: str, port: int, join: str, *more: str) -> Process:
        """Return one more node, not started."""
        arguments = ["--cluster", CLUSTER, "--join", join, *more]
        node = self.kind(name, port, self.folder, arguments, self._environment)
        self._nodes[name] = node
        return node

    def form(
        self, count: int, *more: str, seeds: int = 3, services: bool = False
    ) -> tuple[Process, ...]:
        """Start `count` nodes and wait until they are one cluster. Arguments as `make`."""
        for node in self.make(count, *more, seeds=seeds, services=services):
            node.start()
        self.whole()
        return self.all

    def whole(self, voters: int | None = None) -> None:
        """Wait until the running nodes agree: all alive, all ready, one leader, all voters."""
        running = self.running
        names = sorted(node.name for node in running)
        wanted = voters if voters is not None else {1: 1, 2: 1, 3: 3, 4: 3}.get(len(names), 5)
        for node in running:
            eventually(partial(self._is_whole, node, names, wanted), f"{node} is whole")
        self.leader()

    @staticmethod
    def _is_whole(node: Process, names: list[str], voters: int) -> bool:
        status = node.status()
        alive = sorted(name for name, state in node.states().items() if state == "alive")
        found = [name for name in status["voters"] if name in names]
        return bool(status["ready"] and status["leader"] and alive == names) and (
            len(found) == len(status["voters"]) == voters
        )

    def leader(self) -> Process:
        """Return the leader once all running nodes agree on it."""

        def agreed() -> Process | None:
            found = [(s["leader"], s["raft_term"]) for s in map(Process.status, self.running)]
            name = found[0][0] if len(set(found)) == 1 else ""
            return self._nodes.get(name)

        return eventually(agreed, "all running nodes name one leader") or self.all[0]

    def followers(self) -> tuple[Process, ...]:
        leader = self.leader()
        return tuple(node for node in self.running if node is not leader)

    def tails(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(
            f"--- {node.log} ({'runs' if node.runs else 'is gone'})\n"
            + "\n".join(node.log_text().splitlines()[-TAIL:])
            for node in self.all
        )


def set_once(node: Process, path: str, value: object, version: int, *, timeout: float) -> bool:
    """Try to make `value` the `version`th of the document at `path`; return whether it is.

    The version makes trying again harmless: a set that did happen, although nobody
    could say so, is recognised by its value and not done twice.
    """
    try:
        return node.set(path, value, if_version=version - 1, timeout=timeout) == version
    except UnavailableError:
        return False
    except MicroosError:
        found = node.read(path, timeout=timeout)
        return bool(found["version"] == version and found["value"] == value)
