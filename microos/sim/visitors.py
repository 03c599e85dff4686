"""What users do with store and services of a node of layer `node`, and what came of it.

The same histories as in layer `cores` (`customers.py`), judged by the same checkers; here
they are made through the public face: `node.kv.bucket(...)` and `node.call(...)`.

| endpoint | what it does |
|---|---|
| `shop.echo` | answers by the number of the call and its own name |
| `shop.refuse` | raises, with the number of the call in the text |
| `shop.slow` | the same as echo, after a time that may be longer than the caller waits |
"""

from __future__ import annotations

import trio

from microos._open import Node
from microos.errors import ConflictError, MicroosError, RemoteError, UnavailableError
from microos.kv.bucket import Bucket, Item
from microos.service.remote import remote
from microos.service.service import Service
from microos.sim.customers import BUCKET, PATIENT, CallJudge, CallOperation, KvJudge, KvOperation
from microos.sim.process import Process
from microos.sim.swarm import Store
from microos.sim.world import MILLISECOND, SECOND, exponential

THINK_MIN = 100 * MILLISECOND
"""Whole nodes cost more: their users think longer."""

ECHO = remote("shop.echo", returns=list[int], idempotent=False)
SLOW = remote("shop.slow", returns=list[int], idempotent=False)
REFUSE = remote("shop.refuse", returns=int, idempotent=False)


class Refused(Exception):
    """What an endpoint raises on purpose."""


def service_of(process: Process, number: int, judge: CallJudge) -> Service:
    """Return the service that one process offers.

    Args:
        number: Of the node: answers say who answers.
    """
    shop = Service("shop")

    @shop.rpc
    async def echo(call: int) -> list[int]:
        judge.handled(call, "")
        return [call, number]

    @shop.rpc
    async def refuse(call: int) -> int:
        judge.handled(call, "")
        raise Refused(f"call {call}")

    @shop.rpc
    async def slow(call: int, wait_ms: int) -> list[int]:
        judge.handled(call, "")
        await process.clock.sleep_until(process.clock.now() + wait_ms / 1000.0)
        return [call, number]

    return shop


class Visitors:
    """The users of one node.

    Args:
        kv_judge: Told of each operation of the store when it begins and ends.
        call_judge: The same for calls.
    """

    def __init__(
        self,
        node: Node,
        process: Process,
        store: Store,
        *,
        kv_judge: KvJudge,
        call_judge: CallJudge,
        stop_ns: int,
    ) -> None:
        self._node = node
        self._process = process
        self._store = store
        self._kv = kv_judge
        self._calls = call_judge
        self._stop = stop_ns
        self._world = process.world
        self._chance = process.random("visitors")
        self._bucket: Bucket[int] = node.kv.bucket(BUCKET, int)
        self._known: dict[bytes, int] = {}

    async def run(self) -> None:
        """Do one thing after another until the stop."""
        async with trio.open_nursery() as nursery:
            for number in range(self._store.clients):
                nursery.start_soon(self._client, number)
            if self._store.call_ns:
                nursery.start_soon(self._caller)

    # The store.

    async def _client(self, number: int) -> None:
        client = f"{self._process.name}.{self._process.boot}.{number}"
        while True:
            await self._think(self._store.think_ns)
            if self._world.now >= self._stop:
                return
            await self._do(client)

    async def _do(self, client: str) -> None:
        kind, dice = self._chance.choice(b"ppppaaaao"), self._chance.randrange(10)
        key = b"%c%d" % (kind, self._chance.randrange(self._store.keys))
        timeout = self._chance.choice((PATIENT, 2.0))
        number = len(self._kv.history)
        operation = KvOperation(number, "get", key, client, self._world.now, timeout)
        known = self._known.get(key, 0)
        if dice >= 4:
            deletes = dice == 9 and (known or kind != ord("a"))
            operation.kind = "delete" if deletes else "put"
        operation.one = kind == ord("o")
        if kind == ord("a") and dice >= 4:
            operation.condition = 0 if dice == 8 else known
        elif dice == 8:
            operation.left_ms = self._chance.randrange(100, 3000)
        self._kv.history.append(operation)
        self._kv.began(operation)
        await self._judge(operation)

    async def _judge(self, operation: KvOperation) -> None:
        """Do it, and write down what came of it."""
        try:
            await self._act(operation)
            operation.outcome = "ok"
            operation.shown = operation.version
            gone = operation.is_gone or operation.kind == "delete"
            self._known[operation.key] = 0 if gone else operation.version
        except MicroosError as error:
            operation.error = f"{type(error).__name__}: {error}"
            operation.outcome = "uncertain"
            if isinstance(error, ConflictError):
                operation.outcome = "conflict"
                found = error.facts.get("version", 0)
                assert isinstance(found, int)
                self._known[operation.key] = found
            elif isinstance(error, UnavailableError):
                operation.outcome = "unavailable"
        operation.ended_ns = self._world.now
        what = f"{operation.kind} {operation.outcome}"
        self._world.sometimes(f"kv.{what}")
        self._world.trace("kv", operation.client, what, operation.version.to_bytes(16, "big"))
        self._kv.ended(operation)

    async def _act(self, operation: KvOperation) -> None:
        bucket, key, timeout = self._bucket, operation.key, operation.timeout
        level = "one" if operation.one else None
        match operation.kind:
            case "get":
                item = await bucket.read(key, consistency=level, timeout=timeout)  # type: ignore[arg-type]
                self._note(operation, item)
            case "put":
                operation.version = await bucket.put(
                    key,
                    operation.number,
                    ttl=operation.left_ms / 1000.0 or None,
                    if_version=operation.condition,
                    consistency=level,  # type: ignore[arg-type]
                    timeout=timeout,
                )
            case _:
                operation.version = await bucket.delete(
                    key,
                    if_version=operation.condition,
                    consistency=level,  # type: ignore[arg-type]
                    timeout=timeout,
                )

    def _note(self, operation: KvOperation, item: Item[int] | None) -> None:
        operation.is_gone = item is None
        if item is not None:
            operation.version, operation.found = item.version, item.value

    # Calls.

    async def _caller(self) -> None:
        while True:
            await self._think(self._store.call_ns)
            if self._world.now >= self._stop:
                return
            await self._call()

    async def _call(self) -> None:
        timeout = self._chance.choice((0.1, PATIENT, 2.0))
        caller = f"{self._process.name}.{self._process.boot}"
        number = len(self._calls.history)
        operation = CallOperation(number, caller, "", self._world.now, timeout)
        self._calls.history.append(operation)
        answer: list[int] | None = None
        try:
            match self._chance.randrange(4):
                case 0:
                    wait = int(timeout * 1500.0 * self._chance.random())
                    answer = await self._node.call(SLOW, number, wait, timeout=timeout)
                case 1:
                    await self._node.call(REFUSE, number, timeout=timeout)
                case _:
                    answer = await self._node.call(ECHO, number, timeout=timeout)
            operation.outcome = "ok"
        except RemoteError as error:
            operation.outcome = "refused"
            if f"call {number}" not in str(error):
                self._world.fail("safety", "rpc.answer", f"{operation} was answered with {error}")
        except UnavailableError as error:
            operation.outcome, operation.error = "unavailable", f"{type(error).__name__}: {error}"
        except MicroosError as error:
            operation.outcome, operation.error = "uncertain", f"{type(error).__name__}: {error}"
        operation.ended_ns = self._world.now
        self._world.sometimes(f"call.{operation.outcome}")
        self._world.trace("call", caller, operation.outcome)
        self._calls.ended(operation, None)
        if answer is not None and answer[0] != number:
            self._world.fail("safety", "rpc.answer", f"{operation} was answered with {answer}")

    async def _think(self, mean_ns: int) -> None:
        delay = exponential(self._chance.getrandbits(64), max(mean_ns, THINK_MIN)) / SECOND
        clock = self._process.clock
        await clock.sleep_until(clock.now() + delay)
