"""What goes on while nodes die and come: writes and calls, one after the other, counted.

Each is tried through the nodes in turn until it is acknowledged. All of them may be done
twice: a write of the config names the version it makes, a write of the store its value, and
an order is placed once whoever asks how often.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from demo.processes import PATIENCE, Cluster, FailedError, Node
from microos.errors import MicroosError, UnavailableError

PAUSE = 0.02
"""Between two of a stream: two cores carry everything here, and nodes must be heard [s]."""

ITEMS = ("book", "pen", "lamp")
FILLED = 100_000
PRICE_CENTS = 250


class Stream(threading.Thread):
    """One thing after the other, numbered from 1, each until it is acknowledged."""

    def __init__(
        self, what: str, cluster: Cluster, do: Callable[[Node, int], None], *, strict: bool
    ) -> None:
        """Make it; `start` begins.

        Args:
            what: What is done, e.g. `order`.
            do: Does one through a node; an error of ours means: not acknowledged.
            strict: A node that lives must not fail in it at all.
        """
        super().__init__(name=what, daemon=True)
        self.what = what
        self._do = do
        self._strict = strict
        self._turn = self._nodes(cluster)
        self._stop_asked = threading.Event()
        self.acknowledged: list[float] = []
        """When 1, 2, … was acknowledged [s]."""
        self.tries = 0
        self.through: dict[str, int] = {}
        """How many were acknowledged by each node."""
        self.error: BaseException | None = None

    @staticmethod
    def _nodes(cluster: Cluster) -> Iterator[Node]:
        for node in itertools.cycle(cluster.all):
            if node.asked:
                yield node

    def run(self) -> None:
        try:
            while not self._stop_asked.wait(PAUSE):
                self._until_acknowledged(len(self.acknowledged) + 1)
        except BaseException as error:  # handed to the one who waits for this thread
            self.error = error

    def _until_acknowledged(self, number: int) -> None:
        until = time.monotonic() + PATIENCE
        for node in self._turn:
            self.tries += 1
            start = node.starts
            try:
                self._do(node, number)
            except MicroosError as error:
                # A node that was killed meanwhile has an excuse, and its client asks another.
                if self._strict and node.asked and node.starts == start:
                    raise FailedError(f"{self.what} {number} failed: {error}", node) from error
            else:
                break
            if time.monotonic() > until:
                raise FailedError(f"{self.what} {number} was not acknowledged in time", node)
        self.acknowledged.append(time.monotonic())
        self.through[node.name] = self.through.get(node.name, 0) + 1

    @property
    def count(self) -> int:
        return len(self.acknowledged)

    def has(self, count: int) -> bool:
        """Whether `count` are acknowledged, or never will be."""
        return self.count >= count or self.error is not None

    def stop(self) -> None:
        """End after the one under way."""
        self._stop_asked.set()

    def longest_gap(self, since: float) -> float:
        """Return the longest time from one to the next from `since` on [s]."""
        late = [since, *(at for at in self.acknowledged if at > since)]
        return max((b - a for a, b in itertools.pairwise(late)), default=0.0)


class Traffic:
    """All streams."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.ledger = Stream("write of the config", cluster, _write_config, strict=False)
        self.store = Stream("write of the store", cluster, _write_store, strict=False)
        self.orders = Stream("order", cluster, _place_order, strict=True)
        self.streams = (self.ledger, self.store, self.orders)

    def start(self) -> None:
        """Fill the shelves, and begin."""
        node = self._cluster.running[0]
        for item in ITEMS:
            node.ask(
                "call",
                endpoint="stock.fill",
                arguments=[item, FILLED, PRICE_CENTS],
                idempotent=True,
            )
        for stream in self.streams:
            stream.start()

    def go_on(self, count: int) -> None:
        """Wait until each stream has `count` more acknowledged.

        Raises:
            FailedError: One has failed.
        """
        goals = [(stream, stream.count + count) for stream in self.streams]
        for stream, goal in goals:
            self._cluster.wait_once(partial(stream.has, goal), f"{stream.what} {goal} is there")
            _raise(stream)

    def stop(self) -> None:
        """End all streams. Raises what one has failed with."""
        for stream in self.streams:
            stream.stop()
        for stream in self.streams:
            stream.join(2 * PATIENCE)
            _raise(stream)


def _raise(stream: Stream) -> None:
    if stream.error is not None:
        raise stream.error


def _write_config(node: Node, number: int) -> None:
    path = f"ledger.w{number:05}"
    try:
        node.ask("config.set", path=path, value=number, if_version=number - 1)
    except UnavailableError:
        raise  # Nothing happened.
    except MicroosError:
        # It may have happened: then it is there, or somebody else's is, which is wrong.
        if node.ask("config.get", path=path, latest=True)["value"] != number:
            raise


def _write_store(node: Node, number: int) -> None:
    """Read what the node before has written, then write the next."""
    if number > 1:
        found = node.ask("kv.get", bucket="ledger", key=f"w{number - 1:05}")["value"]
        if found != number - 1:
            raise FailedError(f"write {number - 1} of the store is lost: found {found}", node)
    node.ask("kv.put", bucket="ledger", key=f"w{number:05}", value=number)


def order(number: int) -> dict[str, object]:
    """Return the order of that number, as it is placed and found."""
    item = ITEMS[number % len(ITEMS)]
    return {"id": f"o-{number}", "item": item, "count": 1 + number % 3, "card": "4711"}


def count_of(number: int) -> int:
    """Return how many of an item the order of that number is about."""
    return 1 + number % 3


def _place_order(node: Node, number: int) -> None:
    receipt = node.ask("call", endpoint="orders.place", arguments=[order(number)], idempotent=True)
    wanted = {"order_id": f"o-{number}", "charged_cents": PRICE_CENTS * count_of(number)}
    if receipt != wanted:
        raise FailedError(f"order {number}: expected {wanted}, found {receipt}", node)
