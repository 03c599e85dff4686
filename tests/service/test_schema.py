"""The schema says of the types what the code says of them, and ends where they do not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.hashing import xxh3
from microos.service.endpoint import Endpoint


@dataclass(frozen=True)
class Line:
    article: str
    cents: int


@dataclass(frozen=True)
class Basket:
    lines: list[Line]
    gift: Line | None = None
    count: int = 1


@dataclass(frozen=True)
class Tree:
    children: list[Tree]
    mother: Tree | None = None


def schema(handler: Any) -> Any:
    return msgspec.json.decode(Endpoint("shop", handler).schema)


@pytest.mark.criterion("RPC-14")
def test_nested_dataclasses_are_listed_as_they_are_declared() -> None:
    async def total(basket: Basket, discount: float = 0.5) -> dict[str, Line]:
        raise AssertionError

    line = {
        "title": "Line",
        "type": "object",
        "properties": {"article": {"type": "string"}, "cents": {"type": "integer"}},
        "required": ["article", "cents"],
    }
    basket = {
        "title": "Basket",
        "type": "object",
        "properties": {
            "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}},
            "gift": {"anyOf": [{"$ref": "#/$defs/Line"}, {"type": "null"}], "default": None},
            "count": {"type": "integer", "default": 1},
        },
        "required": ["lines"],
    }
    assert schema(total) == {
        "title": "shop.total",
        "arguments": {
            "type": "array",
            "prefixItems": [
                {"$ref": "#/$defs/Basket", "title": "basket"},
                {"type": "number", "title": "discount", "default": 0.5},
            ],
            "minItems": 1,
            "maxItems": 2,
        },
        "returns": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Line"}},
        "$defs": {"Line": line, "Basket": basket},
    }


@pytest.mark.criterion("RPC-14")
def test_a_recursive_type_ends() -> None:
    async def grow(tree: Tree) -> None:
        raise AssertionError

    tree = {"$ref": "#/$defs/Tree"}
    assert schema(grow)["$defs"] == {
        "Tree": {
            "title": "Tree",
            "type": "object",
            "properties": {
                "children": {"type": "array", "items": tree},
                "mother": {"anyOf": [tree, {"type": "null"}], "default": None},
            },
            "required": ["children"],
        }
    }


def test_the_hash_is_that_of_the_schema_and_tells_types_apart() -> None:
    async def one(line: Line) -> int:
        raise AssertionError

    before, again = Endpoint("shop", one), Endpoint("shop", one)
    one.__annotations__["return"] = float
    changed = Endpoint("shop", one)

    assert before.schema_hash == again.schema_hash == xxh3(before.schema)
    assert before.schema_hash != changed.schema_hash


# Any types, against a second description of them.

Kind = tuple[Any, ...]
PLAIN = {
    "int": {"type": "integer"},
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
}
CLASSES = 4
_runs = itertools.count()


def written(kind: Kind, prefix: str) -> str:
    """Return the annotation of a kind."""
    match kind:
        case ("class", number):
            return f"{prefix}{number}"
        case ("list", inner):
            return f"list[{written(inner, prefix)}]"
        case ("map", inner):
            return f"dict[str, {written(inner, prefix)}]"
        case ("maybe", inner):
            return f"{written(inner, prefix)} | None"
        case (name,):
            return str(name)
    raise AssertionError(kind)


def expected(kind: Kind, prefix: str) -> dict[str, Any]:
    """Return the schema of a kind."""
    match kind:
        case ("class", number):
            return {"$ref": f"#/$defs/{prefix}{number}"}
        case ("list", inner):
            return {"type": "array", "items": expected(inner, prefix)}
        case ("map", inner):
            return {"type": "object", "additionalProperties": expected(inner, prefix)}
        case ("maybe", inner):
            return {"anyOf": [expected(inner, prefix), {"type": "null"}]}
        case (name,):
            return PLAIN[name]
    raise AssertionError(kind)


def named(kind: Kind) -> set[int]:
    """Return the classes that a kind names."""
    match kind:
        case ("class", number):
            return {number}
        case (_, inner):
            return named(inner)
    return set()


sure = st.recursive(
    st.sampled_from([*((name,) for name in PLAIN), *(("class", n) for n in range(CLASSES))]),
    lambda inner: st.tuples(st.sampled_from(["list", "map"]), inner),
    max_leaves=3,
)
kinds = sure | sure.map(lambda kind: ("maybe", kind))
classes = st.lists(st.lists(kinds, max_size=4), min_size=CLASSES, max_size=CLASSES)


@contextmanager
def declared(fields: list[list[Kind]], prefix: str) -> Iterator[None]:
    """Put dataclasses with these fields into this module for a while; they may name each other."""
    for number, each in enumerate(fields):
        annotated = [(f"field_{i}", written(kind, prefix)) for i, kind in enumerate(each)]
        globals()[f"{prefix}{number}"] = make_dataclass(
            f"{prefix}{number}", annotated, namespace={"__module__": __name__}
        )
    try:
        yield
    finally:
        for number in range(len(fields)):
            del globals()[f"{prefix}{number}"]


@pytest.mark.criterion("RPC-14")
@settings(max_examples=60)
@given(classes, kinds, kinds)
def test_any_types_are_listed_as_they_are_declared(
    fields: list[list[Kind]], taken: Kind, given: Kind
) -> None:
    async def handler(argument: Any) -> Any:
        raise AssertionError

    prefix = f"Class{next(_runs)}_"
    handler.__annotations__ = {
        "argument": written(taken, prefix),
        "return": written(given, prefix),
    }
    with declared(fields, prefix):
        found = schema(handler)

    reached: set[int] = set()
    todo = named(taken) | named(given)
    while todo:
        number = todo.pop()
        reached.add(number)
        todo |= {other for kind in fields[number] for other in named(kind)} - reached
    title = {"title": "argument"}
    assert found["arguments"]["prefixItems"] == [expected(taken, prefix) | title]
    assert found["returns"] == expected(given, prefix)
    assert found["$defs"].keys() == {f"{prefix}{number}" for number in reached}
    for number in reached:
        kinds_of = {f"field_{i}": kind for i, kind in enumerate(fields[number])}
        assert found["$defs"][f"{prefix}{number}"] == {
            "title": f"{prefix}{number}",
            "type": "object",
            "properties": {name: expected(kind, prefix) for name, kind in kinds_of.items()},
            "required": [*kinds_of],
        }
