"""The caller's half of a contract: a name and a type, for those who do not import the handler.

charge = microos.remote("payments.charge", returns=Receipt, idempotent=True)

receipt = await node.call(charge, order.id, order.card, order.total_cents)
receipt = await charge(order.id, order.card, order.total_cents)     # by current_node()
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

from microos.codec import Decoder
from microos.service import types
from microos.service.current import current_node
from microos.service.endpoint import Endpoint, checked_name, checked_timeout

R = TypeVar("R")

DECLARATION = "__microos_endpoint__"
"""The attribute under which a declared handler carries its `Endpoint`."""


class Remote(Generic[R]):
    """A declared remote; immutable. Made by `remote`."""

    def __init__(
        self, name: str, returns: Any, *, idempotent: bool = False, timeout: float | None = None
    ) -> None:
        self.name = checked_name(name)
        self.returns = returns
        self.idempotent = idempotent
        self.timeout = checked_timeout(name, timeout)
        types.described((returns,), name)
        self._result: Decoder[R] = Decoder(returns)

    async def __call__(self, *arguments: Any) -> R:
        """Call it through the current node.

        Raises:
            RuntimeError: There is no such node.
            MicroosError: As `node.call`.
        """
        result: R = await current_node().call(self, *arguments)
        return result

    def __repr__(self) -> str:
        return f"<Remote {self.name}>"

    def encode(self, arguments: tuple[Any, ...]) -> bytes:
        """Return the body of a call with these arguments; the callee checks that they fit.

        Raises:
            TypeError: One cannot travel.
        """
        return types.packed(arguments, self.name)

    def decode(self, body: bytes) -> R:
        """Return the result in the body of an answer.

        Raises:
            RemoteProtocolError: It is not of the declared type.
        """
        return self._result(body)


@overload
def remote(
    name: str, *, returns: type[R], idempotent: bool = ..., timeout: float | None = ...
) -> Remote[R]: ...
@overload
def remote(
    name: str, *, returns: None, idempotent: bool = ..., timeout: float | None = ...
) -> Remote[None]: ...
@overload
def remote(
    name: str, *, returns: Any, idempotent: bool = ..., timeout: float | None = ...
) -> Remote[Any]: ...
def remote(
    name: str, *, returns: Any, idempotent: bool = False, timeout: float | None = None
) -> Remote[Any]:
    """Declare what another node serves.

    Args:
        name: `service.function`.
        returns: Type of the result. A union, as `Receipt | None`, is checked at run time
            and is `Any` to mypy, which cannot infer it.
        idempotent: Calling twice does no more than calling once, so it may be retried.
        timeout: How long a call may take [s]; None: `settings.rpc.timeout`.

    Raises:
        ValueError: Not such a name, or the timeout is not positive.
        TypeError: `returns` is nothing that msgspec can decode.
    """
    return Remote(name, returns, idempotent=idempotent, timeout=timeout)


def contract_of(callee: object) -> Remote[Any] | Endpoint:
    """Return the contract of what `node.call` was given.

    Raises:
        TypeError: Neither a remote nor a declared handler.
    """
    if isinstance(callee, Remote):
        return callee
    declared = getattr(callee, DECLARATION, None)
    if isinstance(declared, Endpoint):
        return declared
    raise TypeError(
        f"expected a remote or a declared handler, found {callee!r}; "
        'pass microos.remote("service.function", returns=...), or put @service.rpc above it'
    )
