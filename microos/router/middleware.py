"""What may stand around calls and handlers: a chain, first listed outermost.

    async def timed(call: Call, proceed: Proceed) -> object:
        call.metadata["began"] = ...            before
        try:
            return await proceed(call)          the rest of the chain, and the call itself
        finally:
            ...                                 after

        call ──▶ first ──▶ second ──▶ innermost
     result ◀──       ◀──        ◀──

A middleware may change the metadata before it proceeds, answer without proceeding,
raise, or proceed more than once. It passes on the call it was given.

| kind | runs | `call.instance` |
|---|---|---|
| `call` | once per logical call, retries within it | None at first |
| `attempt` | once per attempt | the instance it goes to |
| `handler` | once per incoming call, on the callee | |

Without a mark a middleware is of every kind; `@middleware("attempt")` limits it. A
chain without middleware is the innermost function itself and costs nothing.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from microos.discovery.discovery import Instance

KINDS = ("call", "attempt", "handler")

C = TypeVar("C")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

Middleware = Callable[[C, Callable[[C], Awaitable[R]]], Awaitable[R]]


class Contract(Protocol):
    """What the router needs to know of an endpoint."""

    @property
    def name(self) -> str:
        """`service.function`; the service is what stands before the last dot."""

    @property
    def idempotent(self) -> bool:
        """Whether doing it twice is as good as once."""

    @property
    def timeout(self) -> float | None:
        """How long a call may take if the caller does not say [s]; None: the node's default."""

    def encode(self, arguments: tuple[Any, ...]) -> bytes:
        """Return the body of a call.

        Raises:
            RejectedError: `bad_request`: the arguments do not fit.
        """

    def decode(self, body: bytes) -> Any:
        """Return the result in the body of an answer.

        Raises:
            RemoteProtocolError: It is none.
        """


class Call(msgspec.Struct, eq=False):
    """One logical call, as its middleware sees it."""

    contract: Contract
    service: str
    endpoint: str
    """With its service: `payments.charge`."""
    arguments: tuple[Any, ...]
    deadline: float
    """On this node's clock [s]."""
    key: str | None = None
    """Calls of one key go to one instance while it can be used."""
    metadata: dict[str, str] = {}
    """Travels with each attempt."""
    attempt: int = 0
    """Which attempt this is, counted from 1; 0 before the first."""
    instance: Instance | None = None
    """Where this attempt goes, None before the first."""

    @property
    def idempotent(self) -> bool:
        return self.contract.idempotent


Proceed = Callable[[Call], Awaitable[Any]]
CallMiddleware = Callable[[Call, Proceed], Awaitable[Any]]


def middleware(*kinds: str) -> Callable[[F], F]:
    """Mark a middleware as one of these kinds only: `call`, `attempt`, `handler`.

    Raises:
        ValueError: No kind, or one that does not exist.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"middleware is of the kinds {', '.join(KINDS)}, found {kinds}")

    def mark(function: F) -> F:
        function.__dict__["kinds"] = kinds
        return function

    return mark


def of_kind(kind: str, middlewares: Iterable[F]) -> tuple[F, ...]:
    """Return those of a kind, in order."""
    assert kind in KINDS
    return tuple(m for m in middlewares if kind in getattr(m, "kinds", KINDS))


def compose(
    middlewares: Sequence[Middleware[C, R]], innermost: Callable[[C], Awaitable[R]]
) -> Callable[[C], Awaitable[R]]:
    """Return the chain as one function; `innermost` itself if there is no middleware."""
    for outer in reversed(middlewares):
        innermost = _around(outer, innermost)
    return innermost


def _around(
    outer: Middleware[C, R], inner: Callable[[C], Awaitable[R]]
) -> Callable[[C], Awaitable[R]]:
    def proceed(call: C) -> Awaitable[R]:
        return outer(call, inner)

    return proceed
