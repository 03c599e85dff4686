"""From bytes to a handler and back: what a node does with a call it was sent.

    incoming ─▶ arguments ─▶ middleware ─▶ handler ─▶ result ─▶ bytes
                    │             │           │          │
                    ▼             ▼           ▼          ▼
              bad_request    errors of our tree as they are; any other: RemoteError with
                             an id, and a note with the same id, which has the traceback

This is the border where exceptions of the user's code are caught. Cancellation is
none and passes. The chain of middleware is composed once per endpoint, when the
node opens; without any there is none to pay for.
"""

import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from microos import limits
from microos.errors import MicroosError, RemoteError
from microos.router.middleware import compose
from microos.service.current import Call, answering
from microos.service.endpoint import Endpoint
from microos.service.service import Service


class Incoming(Protocol):
    """A call as the node hands it over."""

    @property
    def body(self) -> bytes: ...
    @property
    def caller(self) -> str: ...
    @property
    def deadline(self) -> float:
        """On this node's clock [s]."""

    @property
    def attempt(self) -> int: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...


class HandlerCall(msgspec.Struct):
    """One call as middleware sees it, and may change it before it proceeds."""

    endpoint: str
    arguments: tuple[Any, ...]
    metadata: dict[str, str]
    caller: str
    deadline: float
    """On this node's clock [s]."""

    attempt: int


class HandlerFailed(msgspec.Struct, frozen=True):
    """A handler raised what is no error of ours."""

    endpoint: str
    id: str
    """The same as in the caller's `RemoteError`."""

    error: str
    """`TypeName: text`."""

    traceback: str
    """For the log of this node; it leaves only where `remote_traceback` is on."""


Proceed = Callable[[HandlerCall], Awaitable[Any]]
Middleware = Callable[[HandlerCall, Proceed], Awaitable[Any]]
"""`async def m(call, proceed): return await proceed(call)`; the first listed is outermost."""

Answering = Callable[[Incoming], Awaitable[bytes]]

ID_BYTES = 6
"""Enough to find one failure in a log."""


def serve_endpoints(
    services: Iterable[Service],
    *,
    node: Any,
    observe: Callable[[str, object], None],
    entropy: Callable[[int], bytes],
    middleware: Sequence[Middleware] = (),
    remote_traceback: bool = False,
) -> dict[str, Answering]:
    """Return what answers each endpoint of these services, by its name.

    Args:
        services: What was declared.
        node: What `current_node()` gives inside the handlers.
        observe: Told ("service", `HandlerFailed`).
        entropy: n bytes, for the ids of errors.
        middleware: Of the kind handler, outermost first.
        remote_traceback: Errors carry the traceback's text to the caller.

    Raises:
        ValueError: Two services have one name.
    """
    border = _Border(observe, entropy, remote_traceback)
    names: dict[str, None] = {}
    bound: dict[str, Answering] = {}
    for service in services:
        if service.name in names:
            raise ValueError(f"expected services of different names, found {service.name!r} twice")
        names[service.name] = None
        for endpoint in service.endpoints:
            bound[endpoint.name] = _bound(endpoint, node, border, middleware)
    return bound


def _bound(
    endpoint: Endpoint, node: Any, border: "_Border", middleware: Sequence[Middleware]
) -> Answering:
    name, handler = endpoint.name, endpoint.handler

    async def last(call: HandlerCall) -> Any:
        changed = Call(call.caller, call.deadline, call.metadata, call.attempt, name)
        with answering(node, changed):
            return await handler(*call.arguments)

    chain = compose(middleware, last) if middleware else None

    async def answer(incoming: Incoming) -> bytes:
        call = Call(incoming.caller, incoming.deadline, incoming.metadata, incoming.attempt, name)
        with answering(node, call):
            try:
                arguments = endpoint.arguments(incoming.body)
                if chain is None:
                    value = await handler(*arguments)
                else:
                    value = await chain(_handler_call(call, arguments))
                return endpoint.result(value)
            except MicroosError:
                raise
            except Exception as error:
                raise border.failed(name, error) from error

    return answer


def _handler_call(call: Call, arguments: tuple[Any, ...]) -> HandlerCall:
    return HandlerCall(
        call.endpoint, arguments, dict(call.metadata), call.caller, call.deadline, call.attempt
    )


class _Border:
    """Where an exception of the user becomes an error with an id."""

    def __init__(
        self,
        observe: Callable[[str, object], None],
        entropy: Callable[[int], bytes],
        remote_traceback: bool,
    ) -> None:
        self._observe = observe
        self._entropy = entropy
        self._remote_traceback = remote_traceback

    def failed(self, endpoint: str, error: Exception) -> RemoteError:
        """Note that a handler raised `error`; return what its caller is told."""
        id = self._entropy(ID_BYTES).hex()
        kind = type(error)
        # Its `str` is the user's code as well and may raise; `traceback` takes care of that.
        explained = traceback.TracebackException.from_exception(error)
        text = _sendable(f"{kind.__name__}: {explained}")[: limits.HANDLER_ERROR_TEXT]
        # The end says most: the innermost frame, and the error again.
        frames = _sendable("".join(explained.format()))[-limits.TRACEBACK_TEXT :]
        self._observe("service", HandlerFailed(endpoint, id, text, frames))
        facts: dict[str, object] = {"type": f"{kind.__module__}.{kind.__qualname__}", "id": id}
        if self._remote_traceback:
            facts["traceback"] = frames
        return RemoteError(f"{endpoint}: the handler raised {text}", reason="handler", **facts)


def _sendable(text: str) -> str:
    """Return `text` without what UTF-8 cannot write, e.g. the half of a pair in a file's name."""
    return text.encode(errors="replace").decode()
