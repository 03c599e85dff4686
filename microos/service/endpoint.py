"""One function that can be called from anywhere: its name, its flags, and both halves of it.

    caller's half   encode(arguments) ──bytes──▶ arguments(body) ──▶ handler    callee's half
                    decode(body)      ◀──bytes── result(value)   ◀──

The caller's half is the router's `Contract`. The callee's half checks: arguments
are converted to their declared types before the handler runs, the result before
it leaves.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from microos import limits
from microos.codec import FOREIGN, Decoder
from microos.errors import RejectedError
from microos.hashing import xxh3
from microos.service import types


class Endpoint:
    """A declared handler; immutable. The flags are those of `Service.rpc`.

    Raises:
        TypeError: Not a function that can be an endpoint.
        ValueError: The name is too long, or the timeout is not positive.
    """

    def __init__(
        self,
        service: str,
        handler: types.Handler,
        *,
        scope: str | None = None,
        idempotent: bool = False,
        timeout: float | None = None,
        public: bool = False,
        internal: bool = False,
    ) -> None:
        self.function: str = getattr(handler, "__name__", repr(handler))
        self.name = f"{service}.{self.function}"
        self.parameters, self.returns = types.signature(self.name, handler)
        checked_name(self.name)
        self.handler = handler
        self.scope = scope
        self.idempotent = idempotent
        self.timeout = checked_timeout(self.name, timeout)
        self.public = public
        self.internal = internal
        self.schema = types.json(types.schema(self.name, self.parameters, self.returns))
        """What it takes and gives, as JSON; equal types give equal bytes."""
        self.schema_hash = xxh3(self.schema)
        self._required = sum(each.required for each in self.parameters)
        self._arguments = msgspec.msgpack.Decoder(types.array_of(self.parameters))
        self._result: Decoder[Any] = Decoder(self.returns)

    def __repr__(self) -> str:
        return f"<Endpoint {self.name}>"

    # The caller's half.

    def encode(self, arguments: tuple[Any, ...]) -> bytes:
        """Return the body of a call with these arguments.

        Raises:
            TypeError: Too few or too many, or one that cannot travel.
        """
        if not self._required <= len(arguments) <= len(self.parameters):
            least, most = self._required, len(self.parameters)
            wanted = f"{least}" if least == most else f"{least}..{most}"
            raise TypeError(f"{self.name}: expected {wanted} arguments, found {len(arguments)}")
        return types.packed(arguments, self.name)

    def decode(self, body: bytes) -> Any:
        """Return the result in the body of an answer.

        Raises:
            RemoteProtocolError: It is not of the declared type.
        """
        return self._result(body)

    # The callee's half.

    def arguments(self, body: bytes) -> tuple[Any, ...]:
        """Return the arguments in the body of a call; what lacks is left to the defaults.

        Raises:
            RejectedError: `bad_request`: they do not fit; fact `path` says where, as `$[0].id`.
        """
        try:
            given = msgspec.structs.astuple(self._arguments.decode(body))
        except FOREIGN as error:
            what, _, path = str(error).partition(" - at `")
            raise RejectedError(
                f"{self.name}: the arguments do not fit: {error}; call it as it is declared",
                reason="bad_request",
                endpoint=self.name,
                path=path.removesuffix("`") or "$",
                fault=what,
            ) from error
        while given and given[-1] is msgspec.UNSET:
            given = given[:-1]
        return given

    def result(self, value: Any) -> bytes:
        """Return the body of the answer `value`.

        Raises:
            TypeError: It is not what the handler declares to return.

        Cost:
            Less than the encoding itself; a value of a subclass is cut to the declared type.
        """
        try:
            value = msgspec.convert(value, self.returns, from_attributes=True)
        except msgspec.ValidationError as error:
            raise TypeError(
                f"{self.name}: the result is not of its declared type: {error}"
            ) from error
        return types.packed(value, self.name)


def checked_name(name: str) -> str:
    """Return `name` if it can be an endpoint's.

    Raises:
        ValueError: Not `service.function`, or too long.
    """
    service, _, function = name.rpartition(".")
    if not service or not function or len(name) > limits.ENDPOINT_TEXT:
        raise ValueError(
            f"expected a name as service.function of at most {limits.ENDPOINT_TEXT} characters, "
            f"found {name!r}"
        )
    return name


def checked_timeout(name: str, timeout: float | None) -> float | None:
    """Return `timeout` if a call can have it [s].

    Raises:
        ValueError: Not positive.
    """
    if timeout is not None and (math.isnan(timeout) or timeout <= 0):
        raise ValueError(f"{name}: expected a timeout above 0 s, or inf, found {timeout}")
    return timeout
