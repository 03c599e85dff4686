"""A node with a service as a process of its own, told what to do by lines on its input.

    python -m tests.proc.worker OPTIONS OF microos-node
    > ["call", 7]
    < {"result": ["c", 7]}
    > ["body", 100000000]
    < {"error": "LimitError", "reason": "size", "message": "..."}

It serves `work` where `--service work` says so. One line is done after the other; the
steady calls of `begin` go on meanwhile. SIGTERM lets it leave. Only core dependencies
can be imported here.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

from tests.core import only_core

only_core()

import microos  # noqa: E402
from microos import limits  # noqa: E402
from microos.cli.node import _told_by, parser  # noqa: E402
from microos.errors import MicroosError  # noqa: E402
from microos.keyring import parse_keys  # noqa: E402
from microos.ring.ring import seed_of, slot_of  # noqa: E402

AGAIN = microos.remote("work.again", returns=tuple[str, int], idempotent=True)
BACK = microos.remote("work.back", returns=bytes, idempotent=True)


def work(name: str) -> microos.Service:
    service = microos.Service("work")

    @service.rpc(idempotent=True)
    async def again(id: int) -> tuple[str, int]:
        return name, id

    @service.rpc(idempotent=True)
    async def back(body: bytes) -> bytes:
        return body

    return service


class Worker:
    """What can be asked for, by its name: every public method."""

    def __init__(self, node: microos.Node, nursery: trio.Nursery) -> None:
        self._node = node
        self._nursery = nursery
        self._steady = trio.CancelScope()
        self._under_way = 0
        self._idle = trio.Event()
        self._made = 0
        self._errors: list[str] = []

    async def ready(self) -> bool:
        await self._node.wait_ready(30.0)
        return True

    async def instances(self) -> list[str]:
        return sorted(instance.name for instance in self._node.discovery.instances("work"))

    async def call(self, id: int, timeout: float = 5.0) -> tuple[str, int]:
        return await self._node.call(AGAIN, id, timeout=timeout)

    async def body(self, size: int) -> bool:
        sent = bytes([size % 251]) * size
        return await self._node.call(BACK, sent) == sent

    async def limit(self) -> int:
        return limits.RPC_BODY_MAX

    async def put(self, key: str, value: int) -> int:
        return await self._node.kv.bucket("items", int).put(key, value)

    async def get(self, key: str) -> int | None:
        return await self._node.kv.bucket("items", int).get(key)

    async def owner(self, key: str) -> str:
        """Return the name of the first owner of a key."""
        ring, _ = self._node._lifecycle.ring()
        owner = ring.current(slot_of(seed_of("items"), key.encode()))[0].node
        return next(member.name for member in self._node.members() if member.node == owner)

    async def keys(self, secret: str) -> bool:
        """Seal by other keys from now on."""
        keyring = self._node._lifecycle._keyring
        assert keyring is not None
        keyring.replace(parse_keys(secret))
        return True

    # Steady calls.

    async def begin(self, rate: float) -> bool:
        """Call `work` that often a second, whether or not others have ended."""
        self._steady = trio.CancelScope()
        self._nursery.start_soon(self._call_steadily, self._steady, 1.0 / rate)
        return True

    async def _call_steadily(self, scope: trio.CancelScope, pause: float) -> None:
        with scope:
            while True:
                self._made += 1
                self._under_way += 1
                self._nursery.start_soon(self._one, self._made)
                await trio.sleep(pause)

    async def _one(self, id: int) -> None:
        try:
            _, answered = await self._node.call(AGAIN, id)
            assert answered == id
        except MicroosError as error:
            self._errors.append(f"{type(error).__name__} {error.reason}: {error}")
        finally:
            self._under_way -= 1
            self._idle.set()

    async def made(self) -> int:
        """Return how many steady calls have been begun so far."""
        return self._made

    async def end(self) -> list[Any]:
        """Begin no more, wait for the last; return how many there were, and all errors."""
        self._steady.cancel()
        while self._under_way:
            self._idle = trio.Event()
            await self._idle.wait()
        return [self._made, self._errors]


async def lines() -> AsyncIterator[list[Any]]:
    """Yield what is asked, until the input ends."""
    stream = trio.lowlevel.FdStream(0)
    data = b""
    async for part in stream:
        *whole, data = (data + part).split(b"\n")
        for line in whole:
            yield json.loads(line)


async def obey(worker: Worker) -> None:
    async for verb, *arguments in lines():
        do: Callable[..., Awaitable[Any]] = getattr(worker, verb)
        try:
            answer: dict[str, Any] = {"result": await do(*arguments)}
        except MicroosError as error:
            name = type(error).__name__
            answer = {"error": name, "reason": error.reason, "message": str(error)}
        print(json.dumps(answer), flush=True)


async def main() -> None:
    options = parser().parse_args()
    settings = microos.Settings.load(options.settings, **_told_by(options))
    services = [work(settings.name)] if "work" in options.service else []
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with microos.open(*services, settings=settings) as node:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey, Worker(node, nursery))
                await anext(aiter(signals))
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
    sys.exit(0)
