"""Five nodes on this machine: they form a cluster, and it survives the death of its leader.

    python examples/cluster.py [--nodes N] [--json] [--keep]

Every node is a `microos-node` process of its own with a data directory of its own. This
program only starts them, asks them over their ports, and kills one with SIGKILL while a
stream of writes is under way:

    writes   ──1──2──3──…──n─ ✗ ─ n again ──n+1──…──▶      each tried until acknowledged,
                       leader ✗ new leader    ✓ back        through whatever node answers

At the end every acknowledged write must be on every node, once. Exit status 0: it all
held; 1: something did not, and the last lines say which node's log to read.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any, Self, TypeVar

from microos.control.client import Client, Stream
from microos.errors import MicroosError, UnavailableError

CLUSTER = "demo"
PROGRAM = Path(sys.executable).with_name("microos-node")

PATIENCE = 30.0
"""Longest wait for anything that should take a moment [s]."""

WRITES_BEFORE = 100
WRITES_AFTER = 100
"""Acknowledged writes before the leader is killed, and after."""

T = TypeVar("T")


class FailedError(Exception):
    """Something that should hold does not."""

    def __init__(self, what: str, node: Node | None = None) -> None:
        super().__init__(what)
        self.node = node


# The processes.


class Node:
    """One `microos-node` process, over all its starts."""

    def __init__(self, name: str, port: int, seeds: str, folder: Path) -> None:
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self.log = folder / f"{name}.log"
        self._command: list[str | Path] = [
            PROGRAM,
            "--name",
            name,
            "--bind",
            self.address,
            "--join",
            seeds,
        ]
        self._command += ["--cluster", CLUSTER, "--data-dir", folder / name]
        self._command += ["--service", f"echo-{name}=1.0"]
        self._process: subprocess.Popen[bytes] | None = None
        self.wanted = False
        """It should be running."""

    def start(self) -> None:
        self.wanted = True
        with _uninterrupted(), self.log.open("ab") as log:
            # A group of its own, so that Ctrl-C reaches this program alone, which then ends it.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def status_of_end(self) -> int | None:
        """Return how it ended; None while it runs or before it ever did."""
        return self._process.poll() if self._process is not None else None

    def signal(self, number: signal.Signals) -> None:
        self.wanted = False
        if self._process is not None:
            self._process.send_signal(number)

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
    """All nodes of the demo; a block at whose end none of them runs."""

    def __init__(self, count: int, folder: Path) -> None:
        ports = list(itertools.islice(_free_ports(), count))
        # Not all are seeds: the others join what the seeds have founded.
        seeds = ",".join(f"127.0.0.1:{port}" for port in ports[:3])
        self.nodes = [Node(f"n{i}", port, seeds, folder) for i, port in enumerate(ports, 1)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _uninterrupted():
            # Their data goes with them, and all at once have nobody to hand over to.
            for node in self.nodes:
                node.signal(signal.SIGKILL)
            for node in self.nodes:
                node.wait()

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.wanted]

    @property
    def voters_wanted(self) -> int:
        return 3 if len(self.nodes) < 5 else 5

    def leader(self) -> Node | None:
        """Return the leader, if all running nodes name the same."""
        named = {node.ask("status")["leader"] for node in self.running}
        return next((node for node in self.running if named == {node.name}), None)

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
            time.sleep(0.01)


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


# What is shown.


@dataclass
class Row:
    """One thing that was done, and how long it took."""

    what: str
    seconds: float = 0.0
    detail: str = ""
    done: bool = False


@dataclass
class Screen:
    """Plain lines, one when something is done. `say` is what prints them."""

    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def step(self, what: str) -> Iterator[Row]:
        """Time the block as one row; `row.detail` may be set in it."""
        row = Row(what)
        self.rows.append(row)
        self.changed()
        began = time.monotonic()
        yield row
        self.finish(row, time.monotonic() - began)

    def add(self, what: str, seconds: float, detail: str) -> None:
        """Show something that was timed elsewhere."""
        row = Row(what, detail=detail)
        self.rows.append(row)
        self.finish(row, seconds)

    def finish(self, row: Row, seconds: float) -> None:
        row.seconds, row.done = seconds, True
        self.say(f"{row.seconds:7.2f} s  {row.what}: {row.detail}")
        self.changed()

    def changed(self) -> None:
        """Show what is new; a line is enough here."""

    def table(self) -> str:
        """Return all that was done, as text."""
        width = max((len(row.what) for row in self.rows), default=0)
        lines = [f"{row.what:<{width}}  {row.seconds:6.2f} s  {row.detail}" for row in self.rows]
        return "\n".join(["", f"{'what':<{width}}    took   found", *lines])


def live_view(cluster: Cluster, screen: Screen) -> AbstractContextManager[object]:
    """Return a block that shows cluster and steps on the terminal while they change."""
    from rich.console import Group  # only here: plain lines need no rich
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def one(node: Node) -> list[str]:
        try:
            status = node.ask("status", timeout=0.3)
        except MicroosError as error:
            ended = node.status_of_end()
            return [
                node.name,
                "killed" if ended == -signal.SIGKILL else str(error)[:40],
                "",
                "",
                "",
            ]
        alive = f"{status['members_alive']} alive, {status['members_dead']} dead"
        applied = str(status["raft_applied_index"])
        return [node.name, status["role"], alive, f"{status['raft_term']}", applied]

    def picture() -> Group:
        nodes = Table("node", "role", "sees", "term", "applied", box=None, padding=(0, 2))
        for node in cluster.nodes:
            nodes.add_row(*one(node))
        steps = Text("\n").join(
            Text(f"{row.seconds:7.2f} s  {row.what}: {row.detail}", style="green")
            if row.done
            else Text(f"     …     {row.what}", style="bold")
            for row in screen.rows
        )
        return Group(Text("microos: a cluster on one machine\n", style="bold"), nodes, "", steps)

    return Live(get_renderable=picture, refresh_per_second=4, transient=True)


# The steps.


def form(cluster: Cluster, screen: Screen) -> None:
    count = len(cluster.nodes)
    with screen.step("the cluster forms") as row:
        for node in cluster.nodes:
            node.start()

        def whole(node: Node) -> bool:
            status = node.ask("status")
            voters = len(status["voters"])
            alive = status["members_alive"]
            return bool(status["leader"]) and (alive, voters) == (count, cluster.voters_wanted)

        cluster.wait(whole, f"{count} alive, a leader, {cluster.voters_wanted} voters")
        leader = _agreed_leader(cluster)
        row.detail = f"{count} alive, {cluster.voters_wanted} voters, leader {leader.name}"


def _agreed_leader(cluster: Cluster) -> Node:
    """Wait until all name one leader; return it."""
    return cluster.wait_once(cluster.leader, "all name one leader")


def discover(cluster: Cluster, screen: Screen) -> None:
    wanted = {f"echo-{node.name}" for node in cluster.nodes}
    with screen.step("services are found") as row:
        cluster.wait(
            lambda node: {found["service"] for found in node.ask("services")} >= wanted,
            f"the services {', '.join(sorted(wanted))} are known",
        )
        row.detail = f"{len(wanted)} services, each announced on one node, known on all"


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


class Writer(threading.Thread):
    """Writes one number after the other, each until it is acknowledged by some node.

    The number of a write is also the version it makes, so trying again is harmless:
    what did happen although nobody could say so is found, not done twice.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__(name="writer", daemon=True)
        self._turn = itertools.cycle(nodes)
        self._stop_asked = threading.Event()
        self.acknowledged: list[float] = []
        """When write 1, 2, … was acknowledged [s]."""
        self.tries = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                self._write(len(self.acknowledged) + 1)
        except BaseException as error:  # handed to the one who waits for this thread
            self.error = error

    def _write(self, number: int) -> None:
        until = time.monotonic() + PATIENCE
        path = f"ledger.w{number:05}"
        for node in self._turn:
            self.tries += 1
            try:
                node.ask("config.set", path=path, value=number, if_version=number - 1)
            except UnavailableError:
                pass  # Nothing happened.
            except MicroosError:
                # It may have happened: then it is there, or somebody else's is, which is wrong.
                with contextlib.suppress(MicroosError):
                    if node.ask("config.get", path=path, latest=True)["value"] == number:
                        break
            else:
                break
            if time.monotonic() > until:
                raise FailedError(f"write {number} was not acknowledged in {PATIENCE:g} s", node)
        self.acknowledged.append(time.monotonic())

    def stop(self) -> int:
        """End it; return how many writes were acknowledged."""
        self._stop_asked.set()
        self.join(2 * PATIENCE)
        if self.error is not None:
            raise self.error
        return len(self.acknowledged)


def kill_the_leader(cluster: Cluster, screen: Screen) -> None:
    writer = Writer(cluster.nodes)
    with screen.step("writes are under way") as row:
        writer.start()
        _until_written(cluster, writer, WRITES_BEFORE)
        victim = _agreed_leader(cluster)
        row.detail = f"{WRITES_BEFORE} acknowledged, one after the other, through all nodes in turn"

    with screen.step("the leader is killed, writes go on") as row:
        killed = time.monotonic()
        before = len(writer.acknowledged)
        victim.signal(signal.SIGKILL)
        detected, elected, leader = _replaced(cluster, victim, killed)
        _until_written(cluster, writer, before + WRITES_AFTER)
        count = writer.stop()
        gap = max(b - a for a, b in itertools.pairwise(writer.acknowledged[before - 1 :]))
        row.detail = f"SIGKILL to {victim.name}, {writer.tries - count} tries of {count} repeated"
    screen.add("  its death is known on all others", detected, "seen dead by gossip")
    screen.add("  a new leader is named by all", elected, leader.name)
    screen.add("  longest wait for an acknowledgement", gap, "kill and election in between")

    with screen.step("no acknowledged write is lost") as row:
        cluster.wait(lambda node: _has_all(node, count), f"all {count} writes are there, once")
        row.detail = f"{count} of {count} on each of {len(cluster.running)} nodes, each once"

    with screen.step("the killed node comes back") as row:
        victim.start()
        others = [node for node in cluster.running if node is not victim]
        cluster.wait(lambda node: node.state_of(victim) == "alive", "it is seen alive", others)
        goal = leader.ask("status")["raft_commit_index"]

        def caught_up(node: Node) -> bool:
            status = node.ask("status")
            return bool(status["ready"] and status["raft_applied_index"] >= goal)

        cluster.wait(caught_up, f"it has applied the log up to {goal}", [victim])
        cluster.wait(lambda node: _has_all(node, count), "it has all writes", [victim])
        row.detail = f"{victim.name} alive on all, log applied up to {goal}, all writes there"


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


def _until_written(cluster: Cluster, writer: Writer, count: int) -> None:
    cluster.wait_once(
        lambda: len(writer.acknowledged) >= count or not writer.is_alive(),
        f"{count} writes are acknowledged",
    )
    if writer.error is not None:
        raise writer.error


def _has_all(node: Node, count: int) -> bool:
    """Return whether a linearizable read shows each of the writes, made once."""
    state = node.ask("config.get", path="ledger", latest=True)
    wanted = {f"w{number:05}": number for number in range(1, count + 1)}
    if state["version"] != count or state["value"] != wanted:
        lost = len(wanted.keys() - (state["value"] or {}).keys())
        raise FailedError(f"{lost} of {count} lost, version {state['version']}", node)
    return True


STEPS = (form, discover, configure, pass_the_lock, kill_the_leader)


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="microos-demo-"))
    screen = Screen(_nothing if options.json else _print)
    is_live = sys.stdout.isatty() and not options.json and _has_rich()
    try:
        with Cluster(options.nodes, folder) as cluster, contextlib.ExitStack() as stack:
            if is_live:
                screen.say = _nothing
                stack.enter_context(live_view(cluster, screen))
            for step in STEPS:
                step(cluster, screen)
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        shutil.rmtree(folder)
        return 130
    except (FailedError, MicroosError) as error:
        return _failed(error, screen, folder)
    if options.json:
        for row in screen.rows:
            record = {"what": row.what.strip(), "seconds": round(row.seconds, 3)}
            print(json.dumps({**record, "found": row.detail}, ensure_ascii=False))
    else:
        print(screen.table())
    if options.keep:
        print(f"data and logs are kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return 0


def _failed(error: Exception, screen: Screen, folder: Path) -> int:
    node = error.node if isinstance(error, FailedError) else None
    step = screen.rows[-1].what.strip() if screen.rows else "start"
    where = f" on {node.name}" if node is not None else ""
    log = node.log if node is not None else folder / "*.log"
    print(f"FAILED at “{step}”{where}: {error}\nread {log} (all in {folder})", file=sys.stderr)
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A cluster on this machine that loses its leader.")
    parser.add_argument("--nodes", type=int, default=5, help="how many, 3 to 9 (default 5)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON lines")
    parser.add_argument("--keep", action="store_true", help="keep data directories and logs")
    options = parser.parse_args()
    if not 3 <= options.nodes <= 9:
        parser.error(f"--nodes: expected 3 to 9, found {options.nodes}")
    return options


def _has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


def _print(line: str) -> None:
    print(line, flush=True)


def _nothing(line: str) -> None:
    """Show nothing: something else does."""


if __name__ == "__main__":
    sys.exit(main())
