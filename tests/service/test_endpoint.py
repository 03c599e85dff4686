"""What may be an endpoint, and how its arguments and result are checked."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos.codec import encode
from microos.errors import RejectedError
from microos.service.endpoint import Endpoint
from tests.service.contract import Order, Receipt


@dataclass
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list)


@dataclass(frozen=True)
class Express(Order):
    hours: int = 1


def endpoint(handler: Callable[..., Any]) -> Endpoint:
    return Endpoint("shop", handler)


async def place(order: Order, count: int = 1, note: str | None = None) -> Receipt:
    raise AssertionError


async def grow(tree: Tree) -> Tree:
    raise AssertionError


async def limited(count: Annotated[int, msgspec.Meta(ge=1)]) -> list[Receipt]:
    raise AssertionError


async def nothing() -> None:
    raise AssertionError


PLACE, GROW, LIMITED, NOTHING = (endpoint(each) for each in (place, grow, limited, nothing))
ORDER = Order("o1", "visa", 3)
MAP = {"id": "o1", "card": "visa", "total_cents": 3}


# What is refused when declared.


async def untyped(order, count: int) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001
async def untold(count: int): ...  # type: ignore[no-untyped-def] # noqa: ANN201
async def many(*orders: Order) -> None: ...
async def named(**orders: Order) -> None: ...
async def keyword(order: Order, *, count: int) -> None: ...
async def either(what: Order | Receipt) -> None: ...
async def textlike(what: str | Decimal) -> None: ...
async def alien(lock: threading.Thread) -> None: ...
async def gives_alien() -> list[threading.Thread]:
    raise AssertionError


async def sentinel(count: int = object()) -> None: ...  # type: ignore[assignment]
async def unknown(order: Missing) -> None: ...  # type: ignore[name-defined] # noqa: F821
async def takes_stream(orders: AsyncIterator[Order]) -> None: ...


async def gives_stream() -> AsyncIterator[Order]:
    raise AssertionError


def plain(order: Order) -> None: ...


async def generates() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (untyped, "found none for `order`; annotate it"),
        (untold, "found none for `return`; annotate it"),
        (many, r"expected positional parameters only, found `\*orders"),
        (named, r"expected positional parameters only, found `\*\*orders"),
        (keyword, "expected positional parameters only, found `count"),
        (either, "may not contain more than one dataclass"),
        (textlike, "may not contain more than one str-like type"),
        (alien, "type <class 'threading.Thread'> is not supported"),
        (gives_alien, "type <class 'threading.Thread'> is not supported"),
        (sentinel, "expected a default of `count` that can be written as JSON"),
        (unknown, "found name 'Missing' is not defined; define them above it"),
        (takes_stream, "as `orders`, but streams are not built yet"),
        (gives_stream, "as `return`, but streams are not built yet"),
        (generates, "found an async generator, but streams are not built yet"),
        (plain, "expected an `async def` function"),
        (functools.partial(place, ORDER), "expected an `async def` function"),
        (Order, "expected an `async def` function"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused_when_declared(
    handler: Callable[..., Any], why: str
) -> None:
    with pytest.raises(TypeError, match=why):
        endpoint(handler)


def test_a_name_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 128 characters"):
        Endpoint("s" * 124, place)


# The caller's half.


@pytest.mark.parametrize("arguments", [(), (ORDER, 1, None, 4)])
def test_the_caller_is_told_of_a_wrong_count(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(
        TypeError, match=rf"shop\.place: expected 1\.\.3 arguments, found {len(arguments)}"
    ):
        PLACE.encode(arguments)
    with pytest.raises(TypeError, match="expected 0 arguments, found 1"):
        NOTHING.encode((1,))


# Arguments.


@pytest.mark.parametrize("given", [(ORDER,), (ORDER, 2), (ORDER, 2, "gift"), (ORDER, 2, None)])
def test_arguments_arrive_as_declared_and_defaults_are_left_to_the_handler(
    given: tuple[Any, ...],
) -> None:
    assert PLACE.arguments(PLACE.encode(given)) == given


def test_no_arguments_are_an_empty_array() -> None:
    assert NOTHING.arguments(NOTHING.encode(())) == ()


@pytest.mark.parametrize(
    ("value", "path", "fault"),
    [
        (({**MAP, "total_cents": "3"},), "$[0].total_cents", "Expected `int`, got `str`"),
        (({"id": "o1", "card": "visa"},), "$[0]", "Object missing required field `total_cents`"),
        ((ORDER, "2"), "$[1]", "Expected `int`, got `str`"),
        ((), "$", "Expected `array` of at least length 1, got 0"),
        ((ORDER, 2, "gift", 4), "$", "Expected `array` of at most length 3, got 4"),
        ({"order": ORDER}, "$", "Expected `array`, got `object`"),
        (None, "$", "Expected `array`, got `None`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_bad_request_that_says_where(
    value: object, path: str, fault: str
) -> None:
    with pytest.raises(RejectedError, match=r"^shop\.place: the arguments do not fit: ") as caught:
        PLACE.arguments(encode(value))

    assert caught.value.reason == "bad_request"
    assert caught.value.facts == {"endpoint": "shop.place", "path": path, "fault": fault}


def test_a_range_in_the_type_is_checked() -> None:
    with pytest.raises(RejectedError, match="Expected `int` >= 1"):
        LIMITED.arguments(LIMITED.encode((0,)))


def test_a_tree_is_rebuilt_and_one_without_end_is_refused() -> None:
    small = Tree("a", [Tree("b"), Tree("c", [Tree("d")])])
    deep = b"\x91" + b"\x82\xa4name\xa1x\xa8children\x91" * 100_000 + b"\xc0"

    assert GROW.arguments(GROW.encode((small,))) == (small,)
    with pytest.raises(RejectedError):
        GROW.arguments(deep)


@given(st.binary(max_size=64))
def test_foreign_bytes_are_arguments_or_a_bad_request(body: bytes) -> None:
    for each in (PLACE, GROW, NOTHING):
        with suppress(RejectedError):
            assert isinstance(each.arguments(body), tuple)


# Results.


@pytest.mark.parametrize(
    ("declared", "value"),
    [(PLACE, Receipt("o1", 3)), (LIMITED, [Receipt("o1", 3)]), (NOTHING, None)],
)
def test_a_result_comes_back(declared: Endpoint, value: object) -> None:
    assert declared.decode(declared.result(value)) == value


@pytest.mark.parametrize(
    ("declared", "value"),
    [(PLACE, None), (PLACE, "o1"), (PLACE, {"order_id": 3}), (LIMITED, [3]), (NOTHING, 1)],
)
def test_a_result_of_another_type_does_not_leave(declared: Endpoint, value: object) -> None:
    with pytest.raises(TypeError, match="the result is not of its declared type"):
        declared.result(value)


def test_a_result_that_cannot_travel_does_not_leave() -> None:
    with pytest.raises(TypeError, match="expected a value that MessagePack can carry"):
        PLACE.result(Receipt("o1", 2**70))


def test_a_subclass_is_cut_to_the_declared_type() -> None:
    async def cheapest() -> Order:
        raise AssertionError

    body = endpoint(cheapest).result(Express("o1", "visa", 3, hours=2))

    assert msgspec.msgpack.decode(body) == {"id": "o1", "card": "visa", "total_cents": 3}
