"""The demo's processes: nodes with data directories of their own, started, asked and killed."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any, Self, TypeVar

from microos.control.client import Client
from microos.errors import MicroosError

CLUSTER = "demo"
NODE = (str(Path(sys.executable).with_name("microos-node")),)
SHOP = (sys.executable, str(Path(__file__).parents[1] / "shop.py"))

SHOPS = (("orders", "payments"), ("payments", "stock"), ("stock", "orders"))
"""What each process of the shop serves: whichever one dies, no service is without an instance."""

PATIENCE = 30.0
"""Longest wait for anything that should take a moment [s]."""

T = TypeVar("T")


class FailedError(Exception):
    """Something that should hold does not."""

    def __init__(self, what: str, node: Node | None = None) -> None:
        super().__init__(what)
        self.node = node


class Node:
    """One process that is a node, over all its starts."""

    def __init__(self, name: str, port: int, seeds: str, folder: Path, *command: str) -> None:
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self.log = folder / f"{name}.log"
        self._command = [*command, "--join", seeds]
        self._environment = {
            "MICROOS_NAME": name,
            "MICROOS_BIND": self.address,
            "MICROOS_CLUSTER": CLUSTER,
            "MICROOS_DATA_DIR": str(folder / name),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.wanted = False
        """It should be running."""
        self.asked = False
        """It is whole, so that everything asked of it should work."""

    def start(self) -> None:
        self.starts += 1
        self.wanted = True
        with _uninterrupted(), self.log.open("ab") as log:
            # A group of its own, so that Ctrl-C reaches this program alone, which then ends it.
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def kill(self) -> None:
        """SIGKILL, without waiting for anything."""
        self.wanted = self.asked = False
        if self._process is not None:
            self._process.kill()

    def status_of_end(self) -> int | None:
        """Return how it ended; None while it runs or before it ever did."""
        return self._process.poll() if self._process is not None else None

    def wait(self) -> None:
        """Wait until it has ended."""
        if self._process is not None:
            self._process.wait(PATIENCE)

    def connect(self, timeout: float = 5.0) -> Client:
        return Client(self.address, cluster=CLUSTER, timeout=timeout)

    def ask(self, verb: str, *, timeout: float = 5.0, **arguments: Any) -> Any:
        """Return the node's answer to one question."""
        with self.connect(timeout) as client:
            return client.call(verb, **arguments)

    def state_of(self, other: Node) -> str:
        """Return what this node believes of another: `alive`, `suspect`, `dead`, `left` or ``."""
        known = {member["name"]: member["state"] for member in self.ask("members")}
        return str(known.get(other.name, ""))


class Cluster:
    """All processes of the demo; a block at whose end none of them runs."""

    def __init__(self, count: int, folder: Path) -> None:
        ports = _free_ports()
        own = list(itertools.islice(ports, count))
        # Not all are seeds: the others join what the seeds have founded.
        seeds = ",".join(f"127.0.0.1:{port}" for port in own[:3])
        self.nodes = [Node(f"n{i}", port, seeds, folder, *NODE) for i, port in enumerate(own, 1)]
        served = [*SHOPS, ("orders", "payments", "stock")]
        shops = [
            Node(
                f"s{i}",
                next(ports),
                seeds,
                folder,
                *SHOP,
                *(option for name in names for option in ("--service", name)),
            )
            for i, names in enumerate(served, 1)
        ]
        self.shops, self.newcomer = shops[:-1], shops[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _uninterrupted():
            # Their data goes with them, and all at once have nobody to hand over to.
            for node in self.all:
                node.kill()
            for node in self.all:
                node.wait()

    @property
    def all(self) -> list[Node]:
        return [*self.nodes, *self.shops, self.newcomer]

    @property
    def running(self) -> list[Node]:
        return [node for node in self.all if node.wanted]

    @property
    def voters_wanted(self) -> int:
        return 3 if len(self.nodes) < 5 else 5

    def leader(self) -> Node | None:
        """Return the leader, if all running nodes name the same."""
        named = {node.ask("status")["leader"] for node in self.running}
        return next((node for node in self.running if named == {node.name}), None)

    def is_whole(self, node: Node) -> bool:
        """Whether a node sees all that run alive, and the store whole on exactly these."""
        status = node.ask("status")
        if not status["ready"] or status["store"]["filling"]:
            return False
        ring = node.ask("ring")
        members = [member["name"] for member in ring["members"]]
        return (
            sorted(members) == sorted(other.name for other in self.running)
            and not ring["joint"]
            and all(node.state_of(other) == "alive" for other in self.running)
        )

    def until_whole(self) -> None:
        """Wait until all that run are one cluster; from then on everything asked should work."""
        self.wait(self.is_whole, "all are alive, each has its part of the store")
        for node in self.running:
            node.asked = True

    def wait(
        self, condition: Callable[[Node], object], what: str, nodes: Sequence[Node] = ()
    ) -> None:
        """Wait until `condition(node)` is truthy for all running nodes, or for those given.

        Raises:
            FailedError: It did not become so, or a node that should run has ended.
        """
        for node in nodes or self.running:
            self.wait_once(partial(condition, node), what, node)

    def wait_once(
        self, condition: Callable[[], T | None], what: str, node: Node | None = None
    ) -> T:
        """Wait until `condition()` is truthy and return it; errors as `wait`."""
        until = time.monotonic() + PATIENCE
        while True:
            last = ""
            try:
                if found := condition():
                    return found
            except MicroosError as error:
                last = f" ({error})"
            for other in self.running:
                if other.status_of_end() is not None:
                    raise FailedError(f"ended with status {other.status_of_end()}", other)
            if time.monotonic() > until:
                raise FailedError(f"not within {PATIENCE:g} s: {what}{last}", node)
            time.sleep(0.02)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep back Ctrl-C and SIGTERM while the block runs: no process may be begun and forgotten."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _free_ports() -> Iterator[int]:
    """Yield ports free for datagrams and streams, outside the range given to clients."""
    for port in SystemRandom().sample(range(15_000, 30_000), 15_000):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
