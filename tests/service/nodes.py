"""A node of one process that carries each call as bytes to its own endpoints, and no further."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, TypeVarTuple

import msgspec

from microos.service.current import closed, opened
from microos.service.remote import contract_of
from microos.service.service import Service
from microos.service.serving import Middleware, serve_endpoints

A = TypeVarTuple("A")
R = TypeVar("R")


class Contract(Protocol):
    """What the router asks of whatever is called."""

    @property
    def name(self) -> str: ...
    @property
    def idempotent(self) -> bool: ...
    @property
    def timeout(self) -> float | None: ...
    def encode(self, arguments: tuple[Any, ...]) -> bytes: ...
    def decode(self, body: bytes) -> Any: ...


class Sent(msgspec.Struct):
    """A call as it arrives."""

    endpoint: str
    body: bytes
    caller: str = "ca11e4"
    deadline: float = math.inf
    attempt: int = 1
    metadata: Mapping[str, str] = {}


class Node:
    def __init__(
        self,
        *services: Service,
        middleware: Sequence[Middleware] = (),
        remote_traceback: bool = False,
    ) -> None:
        self.notes: list[object] = []
        self.entropy = iter(range(1, 1000))
        self.served = serve_endpoints(
            services,
            node=self,
            observe=self._observe,
            entropy=lambda count: next(self.entropy).to_bytes(count, "big"),
            middleware=middleware,
            remote_traceback=remote_traceback,
        )

    def _observe(self, source: str, note: object) -> None:
        assert source == "service"
        self.notes.append(note)

    async def send(self, sent: Sent) -> bytes:
        return await self.served[sent.endpoint](sent)

    async def call(
        self,
        remote: Callable[[*A], Coroutine[Any, Any, R]],
        *args: *A,
        key: str | None = None,
        timeout: float | None = None,
    ) -> R:
        contract: Contract = contract_of(remote)
        deadline = 100.0 + (timeout or contract.timeout or 5.0)
        sent = Sent(contract.name, contract.encode(args), deadline=deadline)
        result: R = contract.decode(await self.send(sent))
        return result


@contextmanager
def open_now(*nodes: object) -> Iterator[None]:
    """Count `nodes` among the process's open ones for a while."""
    for node in nodes:
        opened(node)
    try:
        yield
    finally:
        for node in nodes:
            closed(node)
