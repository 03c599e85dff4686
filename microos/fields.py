"""Nested frozen dataclasses as one flat table: read from texts, explained as commented TOML.

    class Raft:                                   {"raft.voters": int, ...}   kinds
        voters: Annotated[int, Meta(ge=0)] = 0    [raft]                      explained
        \"\"\"How many voters.\"\"\"                    # How many voters.
                                                  # A whole number from 0.
                                                  voters = 0

A field says its kind and range in its annotation and its meaning in the string
beneath it; everything here is made from these alone, so manual, loading and
checking cannot disagree. Knows no particular settings (`microos/settings.py` does).
"""

import ast
import dataclasses
import inspect
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

SECRET = msgspec.Meta(extra={"secret": True})
"""Marks a field whose value is never shown: not in a fault, not in an explanation."""

SPACIOUS = 1_000_000
"""A ceiling from here on only keeps nonsense out and is not worth mentioning."""


class Told(msgspec.Struct, frozen=True):
    """What some source says a field should be."""

    value: Any
    source: str
    """For messages: a file, a variable of the environment; empty if the program said it."""
    strict: bool = True
    """False: a text that stands for a number or a switch."""

    @property
    def where(self) -> str:
        return f" ({self.source})" if self.source else ""


class Fault(Exception):
    """A value that cannot be what its field wants; the message is one line."""


# The table.


def kinds(of: type) -> dict[str, Any]:
    """Return the annotation of every field by dotted name: plain fields, then each section's."""
    hints = get_type_hints(of, include_extras=True)
    found = {name: kind for name, kind in hints.items() if not dataclasses.is_dataclass(kind)}
    for name, kind in hints.items():
        if name not in found:
            found |= {f"{name}.{each}": inner for each, inner in kinds(kind).items()}
    return found


def at(value: Any, name: str) -> Any:
    """Return the field `name` (dotted) of a dataclass value."""
    for part in name.split("."):
        value = getattr(value, part)
    return value


def flat(said: Mapping[str, Any], source: str, under: str = "") -> dict[str, Told]:
    """Return nested values by dotted name; a section may be a mapping or a dataclass value."""
    told: dict[str, Told] = {}
    for key, value in said.items():
        name = f"{under}{key}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            told.update(flat(value, source, f"{name}."))
        else:
            told[name] = Told(value, source)
    return told


def replaced(value: Any, changes: Mapping[str, Any]) -> Any:
    """Return a dataclass value with fields changed, by dotted name."""
    own: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    for name, each in changes.items():
        top, dot, rest = name.partition(".")
        if dot:
            deeper.setdefault(top, {})[rest] = each
        else:
            own[top] = each
    own |= {top: replaced(getattr(value, top), inner) for top, inner in deeper.items()}
    return dataclasses.replace(value, **own)


# Checking one value.


def converted(name: str, kind: Any, told: Told) -> Any:
    """Return the value as its field's kind.

    Raises:
        Fault: It is none: the field, the source, what was wanted and what was found.
    """
    try:
        return msgspec.convert(told.value, kind, strict=told.strict, dec_hook=_as_path)
    except msgspec.ValidationError:
        found = "something else" if is_secret(kind) else repr(told.value)
        raise Fault(f"{name}{told.where}: expected {wanted(kind)}, found {found}") from None


def unknown(name: str, told: Told, names: Collection[str]) -> Fault:
    """Return the fault of a field that does not exist, with the nearest one that does."""
    from difflib import get_close_matches  # Here, because only who mistypes pays for it.

    close = get_close_matches(name, names, 1)
    advice = f"did you mean {close[0]}?" if close else "remove it"
    return Fault(f"{name}{told.where}: no such setting; {advice}")


def is_secret(kind: Any) -> bool:
    """Return whether values of this kind are never shown."""
    return get_origin(kind) is Annotated and any(meta is SECRET for meta in get_args(kind)[1:])


def wanted(kind: Any) -> str:
    """Return in words what a field of this kind may be."""
    if get_origin(kind) is Annotated:
        inner, *metas = get_args(kind)
        ranges = [text for meta in metas if (text := _range(meta))]
        return " ".join([wanted(inner), *ranges])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is UnionType:
        return " or ".join(wanted(each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each {wanted(get_args(kind)[0])}"
    return _WORDS[kind]


_WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    type(None): "nothing",
}


def _range(meta: msgspec.Meta) -> str:
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("above", meta.gt), ("from", meta.ge), ("below", meta.lt))
        if bound is not None
    ]
    if meta.le is not None and meta.le < SPACIOUS:
        bounds.append(f"up to {meta.le:g}")
    return " ".join(bounds)


def _as_path(kind: type, value: Any) -> Any:
    if isinstance(value, str | Path) and str(value).strip() and "\0" not in str(value):
        return Path(value)
    raise TypeError("not a path")


# Explaining.


def explained(value: Any) -> str:
    """Return a dataclass value as TOML, a comment above each field; None is left to the default.

    A secret is left out; the comment says whether it is set.
    """
    about = _documentation(type(value))
    lines: list[str] = []
    section = ""
    for name, kind in kinds(type(value)).items():
        top, _, field = name.rpartition(".")
        if top != section:
            section = top
            lines += ["", f"[{section}]", *_commented(about[section])]
        now = at(value, name)
        may = wanted(kind)
        lines += ["", *_commented(about[name]), f"# {may[0].upper()}{may[1:]}."]
        if now is None:
            lines.append(f"# {field} is not set")
        else:
            hidden = is_secret(kind)
            lines.append(f"# {field} is set, and hidden" if hidden else f"{field} = {_toml(now)}")
    return "\n".join(lines) + "\n"


def _documentation(of: type) -> dict[str, str]:
    """Return the string beneath each field by dotted name, and of each section its own."""
    found = dict(_strings(of))
    for name, kind in get_type_hints(of).items():
        if dataclasses.is_dataclass(kind):
            found[name] = inspect.cleandoc(kind.__doc__ or "")
            found |= {f"{name}.{field}": text for field, text in _strings(kind)}
    return found


def _strings(of: Any) -> Iterator[tuple[str, str]]:
    (tree,) = ast.parse(inspect.getsource(of)).body
    assert isinstance(tree, ast.ClassDef)
    for statement, beneath in zip(tree.body, tree.body[1:], strict=False):
        match statement, beneath:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, inspect.cleandoc(text)


def _commented(text: str) -> list[str]:
    return [f"# {line}".rstrip() for line in text.splitlines()]


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return "inf" if math.isinf(value) else repr(value)
        case tuple():
            return f"[{', '.join(_toml(each) for each in value)}]"
        case _:
            return f'"{"".join(_escaped(each) for each in str(value))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
