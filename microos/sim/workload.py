"""What users do with a node of layer `node`: config, locks, services; and what came of it.

Each value written is unique, so the log says where a write took effect. Outcomes follow
the error tree: unavailable means nothing happened, uncertain stays open to the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import msgspec
import trio

from microos._open import Node
from microos.errors import LeaseLostError, MicroosError, RejectedError, UnavailableError
from microos.sim.process import Process
from microos.sim.swarm import Config
from microos.sim.world import exponential
from microos.sync.lock import Lease

TIMEOUT_RATIO = 8
"""How long an operation may take, in election timeouts."""


class Operation(msgspec.Struct):
    """One line of the history."""

    kind: str
    """`set`, `read`, `lock`."""
    client: str
    name: str
    called_ns: int
    value: str = ""
    returned_ns: int | None = None
    outcome: str = "unknown"
    """`ok`, `refused`, `unavailable`; unknown stays open to the end."""
    version: int = 0
    revision: int = 0
    token: int = 0


class Holding(msgspec.Struct):
    """A lock block that runs now."""

    client: str
    name: str
    lease: Lease
    process: Process


class Users:
    """The users of one node.

    Args:
        history: Of the whole world; added to.
        holdings: Of the whole world: the lock blocks that run now.
    """

    def __init__(
        self,
        node: Node,
        process: Process,
        drawn: Config,
        history: list[Operation],
        holdings: dict[int, Holding],
        stop_ns: int,
    ) -> None:
        self._node = node
        self._process = process
        self._drawn = drawn
        self._history = history
        self._holdings = holdings
        self._stop = stop_ns
        self._world = process.world
        self._chance: Random = process.random("users")
        self._timeout = TIMEOUT_RATIO * drawn.raft.election_timeout_max
        self._written = 0

    async def run(self) -> None:
        """Announce a service, then do one thing after another until the stop."""
        self._node.discovery.announce("sim", version=str(self._process.boot))
        async with trio.open_nursery() as nursery:
            for number in range(self._drawn.clients):
                nursery.start_soon(self._client, number)

    async def _client(self, number: int) -> None:
        client = f"{self._process.name}.{self._process.boot}.{number}"
        while True:
            await self._think()
            if self._world.now >= self._stop:
                return
            dice = self._chance.randrange(10)
            name = f"k{self._chance.randrange(self._drawn.keys)}"
            if dice < 4:
                await self._set(client, name)
            elif dice < 7:
                await self._read(client, name)
            else:
                await self._lock(client, f"l{self._chance.randrange(self._drawn.locks)}")

    async def _set(self, client: str, name: str) -> None:
        self._written += 1
        value = f"{client}.{self._written}"
        known = self._node.config.read(name).version if self._chance.random() < 0.5 else None
        operation = self._begin(Operation("set", client, name, self._world.now, value))

        async def act() -> None:
            operation.version = await self._node.config.set(
                name, value, if_version=known, timeout=self._timeout
            )

        await self._judge(operation, act)

    async def _read(self, client: str, name: str) -> None:
        operation = self._begin(Operation("read", client, name, self._world.now))

        async def act() -> None:
            state = await self._node.config.read_latest(name, timeout=self._timeout)
            operation.value = state.value or ""
            operation.version, operation.revision = state.version, state.revision

        await self._judge(operation, act)

    async def _lock(self, client: str, name: str) -> None:
        operation = self._begin(Operation("lock", client, name, self._world.now))
        wait = self._chance.choice((0.0, self._timeout))

        async def act() -> None:
            async with self._node.sync.lock(name, wait=wait, ttl=self._drawn.ttl) as lease:
                operation.token = lease.token
                number = len(self._history)
                while number in self._holdings:
                    number += 1
                self._holdings[number] = Holding(client, name, lease, self._process)
                try:
                    await self._think()
                finally:
                    del self._holdings[number]

        await self._judge(operation, act)

    def _begin(self, operation: Operation) -> Operation:
        self._history.append(operation)
        return operation

    async def _judge(self, operation: Operation, act: Callable[[], Awaitable[None]]) -> None:
        """Do it and write down what came of it."""
        try:
            await act()
            operation.outcome = "ok"
        except UnavailableError:
            operation.outcome = "unavailable"
        except RejectedError:
            operation.outcome = "refused"
        except LeaseLostError:
            operation.outcome = "lost"
            self._world.sometimes("user.lease_lost")
        except MicroosError:
            return
        operation.returned_ns = self._world.now
        self._world.trace("answer", operation.client, f"{operation.kind} {operation.outcome}")
        self._world.sometimes(f"user.{operation.kind}.{operation.outcome}")

    async def _think(self) -> None:
        delay = exponential(self._chance.getrandbits(64), self._drawn.think_ns) / 1e9
        clock = self._process.clock
        await clock.sleep_until(clock.now() + delay)
