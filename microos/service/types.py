"""Types are the contract: what a handler's hints say, checked, described and put into bytes.

    async def place(order: Order, count: int = 1) -> Receipt

    parameters   order: Order, count: int = 1      each positional, each with its type
    arguments    [{"id": ..., "total": ...}, 2]    a MessagePack array; trailing defaults may lack
    result       {"order_id": ...}                 MessagePack
    schema       {"arguments": {array of Order, integer}, "returns": ..., "$defs": ...}   JSON

A type that msgspec can describe as JSON schema can be told apart, decoded and
explained, so that one question answers all others. Structs, dataclasses, the
built-in types, dates, decimals and their unions pass; a class of one's own that is
none of these, a union of two dataclasses, and whatever has no type, do not.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, get_origin, get_type_hints

import msgspec

from microos.codec import encode

Handler = Callable[..., Any]
STREAMS = (AsyncGenerator, AsyncIterable, AsyncIterator)
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
UNSENDABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""All that encoding a value of the user may raise."""

_json = msgspec.json.Encoder(order="deterministic")
_unordered = msgspec.msgpack.Encoder()


class Parameter(msgspec.Struct, frozen=True):
    """One argument of an endpoint."""

    name: str
    kind: Any
    """Its annotation, resolved."""

    default: Any = msgspec.NODEFAULT

    @property
    def required(self) -> bool:
        return self.default is msgspec.NODEFAULT


def signature(name: str, handler: Handler) -> tuple[tuple[Parameter, ...], Any]:
    """Return (parameters, type of the result) of a handler, or say why it cannot be one.

    Raises:
        TypeError: Not a coroutine function, or a parameter that is untyped or not positional.
    """
    if inspect.isasyncgenfunction(handler):
        raise _no_streams(name, "an async generator")
    if not (inspect.isfunction(handler) and inspect.iscoroutinefunction(handler)):
        raise TypeError(f"{name}: expected an `async def` function, found {handler!r}")
    try:
        hints = get_type_hints(handler, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise TypeError(
            f"{name}: expected types that are known when it is declared, found {error}; "
            "define them above it, at module level"
        ) from error
    parameters = inspect.signature(handler).parameters.values()
    for each in parameters:
        if each.kind not in POSITIONAL:
            raise TypeError(
                f"{name}: expected positional parameters only, found `{each}`; "
                "arguments travel as an array, so take it as one of those, or as a dataclass"
            )
    for what in (*(each.name for each in parameters), "return"):
        if what not in hints:
            raise TypeError(
                f"{name}: expected every parameter and the result to have a type, found none for "
                f"`{what}`; annotate it, types are the contract"
            )
        if get_origin(hints[what]) in STREAMS or hints[what] in STREAMS:
            raise _no_streams(name, f"{hints[what]} as `{what}`")
    return tuple(
        Parameter(
            each.name,
            hints[each.name],
            msgspec.NODEFAULT if each.default is each.empty else each.default,
        )
        for each in parameters
    ), hints["return"]


def _no_streams(name: str, found: str) -> TypeError:
    return TypeError(f"{name}: found {found}, but streams are not built yet; return a list for now")


def described(kinds: Iterable[Any], where: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return (JSON schema of each type, the definitions they refer to); recursive types end.

    Raises:
        TypeError: A type that msgspec cannot tell apart or cannot decode.
    """
    try:
        schemas, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    except (TypeError, NameError) as error:
        raise TypeError(
            f"{where}: expected types that msgspec can tell apart and decode, found "
            f"{' '.join(str(error).split())}; use dataclasses, msgspec Structs and built-in types"
        ) from error
    return list(schemas), definitions


def schema(name: str, parameters: tuple[Parameter, ...], returns: Any) -> dict[str, Any]:
    """Return what an endpoint takes and gives: two JSON schemas with common definitions.

    Raises:
        TypeError: A type or a default that cannot travel.
    """
    kinds = (*(each.kind for each in parameters), returns)
    (*items, result), definitions = described(kinds, name)
    for parameter, item in zip(parameters, items, strict=True):
        item["title"] = parameter.name
        if not parameter.required:
            try:
                item["default"] = msgspec.to_builtins(parameter.default, str_keys=True)
            except UNSENDABLE as error:
                raise TypeError(
                    f"{name}: expected a default of `{parameter.name}` that can be written as "
                    f"JSON, found {error}"
                ) from error
    arguments = {
        "type": "array",
        "prefixItems": items,
        "minItems": sum(each.required for each in parameters),
        "maxItems": len(parameters),
    }
    return {"title": name, "arguments": arguments, "returns": result, "$defs": definitions}


def json(value: Any) -> bytes:
    """Return a value as JSON; equal values give equal bytes."""
    return _json.encode(value)


def array_of(parameters: tuple[Parameter, ...]) -> type[msgspec.Struct]:
    """Return the type of an endpoint's arguments: an array of exactly these, UNSET if it lacks."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        (f"argument_{index}", each.kind)
        if each.required
        else (f"argument_{index}", each.kind, msgspec.UNSET)
        for index, each in enumerate(parameters)
    ]
    return msgspec.defstruct(
        "arguments", fields, frozen=True, array_like=True, forbid_unknown_fields=True
    )


def packed(value: Any, where: str) -> bytes:
    """Return a value of the user as MessagePack; equal values give equal bytes.

    Maps whose keys are not text keep the order of insertion, and so do sets beside them.

    Raises:
        TypeError: The value cannot travel.
    """
    try:
        try:
            return encode(value)
        except TypeError:
            return _unordered.encode(value)
    except UNSENDABLE as error:
        raise TypeError(
            f"{where}: expected a value that MessagePack can carry, found {error}; "
            "use dataclasses, msgspec Structs and built-in types"
        ) from error
