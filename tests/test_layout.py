"""The floors of the house: who may import whom, and what the cores may not touch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "microos"

# Read it as a house, ground floor last. A module may import from its own unit
# and from any floor below; never up, never sideways. A unit that is not there
# yet has its floor already.
HOUSE = """
    cli
    sim testing
    _open aio blocking
    control
    service
    config kv sync
    router
    discovery
    node
    net storage
    gossip raft ring rpc
    settings wire
    clock codec deadlines fields hashing hlc keyring
    errors limits types
"""
FLOORS = [set(line.split()) for line in reversed(HOUSE.strip().splitlines())]
FLOOR = {unit: level for level, units in enumerate(FLOORS) for unit in units}

# The cores decide; time, chance and the world are handed in.
CORES = {"gossip", "raft", "ring", "rpc"}
BANNED = {
    *("asyncio", "logging", "os", "random", "secrets", "socket"),
    *("ssl", "subprocess", "threading", "time", "trio"),
}
CORES_USE = {"codec", "deadlines", "errors", "hashing", "hlc", "limits", "settings", "types"}

# What every installation has. Any other distribution is optional.
REQUIRED = {"cryptography", "msgspec", "sortedcontainers", "trio", "xxhash"}

MODULES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem != "__init__")


def unit(path: Path) -> str:
    """Return the top unit a file belongs to: `raft` for raft/log.py, `codec` for codec.py."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def module(path: Path) -> str:
    """Return the dotted name of a file; a package's `__init__` goes by the package's name."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Yield every name the file imports, deferred and typing-only imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(name: str, modules: Collection[str]) -> str | None:
    """Return the module that `name` lives in: its longest prefix that is a file of ours."""
    parts = name.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in modules), None)


def each(paths: Collection[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def test_the_house_has_modules_on_every_floor_but_the_planned() -> None:
    built = {unit(path) for path in MODULES}

    assert set(FLOOR) - built <= {"testing", "aio", "blocking"}


@each(MODULES)
def test_imports_go_down(path: Path) -> None:
    here = unit(path)
    assert here in FLOOR, f"{here} has no floor yet"
    for name in imports(path):
        top, there, *_ = f"{name}..".split(".")
        if top == "microos":
            assert there in FLOOR, f"{path}: imports the façade ({name})"
            assert there == here or FLOOR[there] < FLOOR[here], f"{here} may not import {there}"


@each(MODULES)
def test_no_import_is_for_types_only(path: Path) -> None:
    assert "typing.TYPE_CHECKING" not in imports(path), "a circle in types is a circle in thought"


@each([path for path in MODULES if unit(path) in CORES])
def test_cores_touch_nothing(path: Path) -> None:
    names = list(imports(path))
    ours = {name.split(".")[1] for name in names if name.startswith("microos.")}

    assert not {name.split(".")[0] for name in names} & BANNED
    assert ours <= {unit(path)} | CORES_USE


def test_no_circles_within_a_unit_either() -> None:
    names = {module(path): path for path in MODULES}
    graph = {name: {home(i, names) for i in imports(path)} - {None} for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError and names the circle


def test_an_optional_distribution_has_one_importer() -> None:
    importers: dict[str, set[str]] = {}
    for path in MODULES:
        for top in {name.split(".")[0] for name in imports(path)}:
            if top not in sys.stdlib_module_names | REQUIRED | {"microos"}:
                importers.setdefault(top, set()).add(module(path))
    assert {top: names for top, names in importers.items() if len(names) > 1} == {}


@pytest.mark.parametrize(
    ("name", "importer"),
    [("ssl", "microos.net.tls"), ("cryptography.x509", "microos.net.identity")],
)
def test_what_is_trusted_is_decided_in_one_module(name: str, importer: str) -> None:
    found = {module(p) for p in MODULES if any(f"{i}.".startswith(f"{name}.") for i in imports(p))}

    assert found == {importer}


@pytest.mark.parametrize("word", ["utils", "common", "base", "misc", "manager", "helpers"])
def test_no_module_is_named_after_nothing(word: str) -> None:
    assert word not in {path.stem for path in MODULES}
