"""A service as its author writes it: declared at import, bound to a node at open.

    payments = microos.Service("payments", version="2.0.1")

    @payments.rpc(idempotent=True, timeout=2.0)
    async def charge(order_id: str, card: str, amount_cents: int) -> Receipt: ...

The function stays what it was and can be called and tested as such; that it is an
endpoint, `payments.charge`, it carries in an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, overload

from microos import limits
from microos.discovery.record import ServiceRecord
from microos.service.endpoint import Endpoint
from microos.service.remote import DECLARATION

P = ParamSpec("P")
R = TypeVar("R")


class Service:
    """A name and the endpoints under it.

    Args:
        name: 1..128 characters, with those of an endpoint's function.
        version: For people and for picking.
        labels: Small pairs of text that travel with it.
        parallel: How many of its calls truly run at once on one node. At least 1.

    Raises:
        ValueError: No name, or `parallel` below 1.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "0",
        labels: Mapping[str, str] | None = None,
        parallel: int = 1,
    ) -> None:
        if not 0 < len(name) <= limits.SERVICE_NAME_TEXT:
            raise ValueError(
                f"expected a service name of 1..{limits.SERVICE_NAME_TEXT} characters, "
                f"found {name!r}"
            )
        if parallel < 1:
            raise ValueError(f"{name}: expected parallel of at least 1, found {parallel}")
        self.name = name
        self.version = version
        self.labels: Mapping[str, str] = MappingProxyType(dict(labels or {}))
        self.parallel = parallel
        self._endpoints: dict[str, Endpoint] = {}

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """What has been declared so far, in that order."""
        return tuple(self._endpoints.values())

    @overload
    def rpc(
        self, handler: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def rpc(
        self,
        handler: None = None,
        /,
        *,
        scope: str | None = ...,
        idempotent: bool = ...,
        timeout: float | None = ...,
        public: bool = ...,
        internal: bool = ...,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]: ...
    def rpc(
        self,
        handler: Callable[..., Any] | None = None,
        /,
        *,
        scope: str | None = None,
        idempotent: bool = False,
        timeout: float | None = None,
        public: bool = False,
        internal: bool = False,
    ) -> Any:
        """Declare a handler, bare or with arguments; return the function unchanged.

        Args:
            handler: An `async def` with positional, typed parameters.
            scope: What an identity must be allowed, if anything.
            idempotent: Calling twice does no more than calling once, so it may be retried.
            timeout: How long a call may take [s]; None: `settings.rpc.timeout`.
            public: No token is asked.
            internal: Callable and not listed.

        Raises:
            TypeError: It cannot be an endpoint; the message says why.
            ValueError: There is one of that name, it is declared elsewhere already, or the
                timeout is not positive.
        """

        def declare(handler: Callable[..., Any]) -> Callable[..., Any]:
            return self._declare(
                Endpoint(
                    self.name,
                    handler,
                    scope=scope,
                    idempotent=idempotent,
                    timeout=timeout,
                    public=public,
                    internal=internal,
                )
            )

        return declare if handler is None else declare(handler)

    def _declare(self, endpoint: Endpoint) -> Callable[..., Any]:
        handler = endpoint.handler
        if endpoint.function in self._endpoints:
            raise ValueError(
                f"expected one {endpoint.name}, found a second; give one of them another name"
            )
        before = getattr(handler, DECLARATION, None)
        if before is not None:
            raise ValueError(
                f"{endpoint.name}: expected a function declared once, found it as {before.name} "
                "already; let a second function call it"
            )
        setattr(handler, DECLARATION, endpoint)
        self._endpoints[endpoint.function] = endpoint
        return handler

    def __repr__(self) -> str:
        return f"<Service {self.name} {self.version}: {', '.join(self._endpoints)}>"


def records(services: Iterable[Service]) -> tuple[ServiceRecord, ...]:
    """Return what the cluster is told of these services; internal endpoints are left out."""
    found: list[ServiceRecord] = []
    for service in services:
        listed = [each for each in service.endpoints if not each.internal]
        found.append(
            ServiceRecord(
                service.name,
                service.version,
                labels=dict(service.labels),
                endpoints=tuple(each.function for each in listed),
                schemas={each.function: each.schema for each in listed},
            )
        )
    return tuple(found)
