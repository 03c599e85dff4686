"""The public face: which names it has, and what importing it costs.

`tests/exports.txt` is the list of names, one a line; it changes only on purpose.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import microos
from tests.core import core_modules

LIST = Path(__file__).with_name("exports.txt")
DEAR = {"trio", "asyncio", "ssl", "cryptography", "starlette", "anycorn", "httpx2", "rich", "click"}
FACADE_MAX = 30

ROOT = Path(__file__).parents[1]
PLAIN = ("microos.cli.exits", "microos.cli.node", "microos.cli.printer", "microos.cli.secrets")
"""Of the command line, what `microos-node` needs: it runs without the extra `cli`."""


def loaded_by(code: str) -> set[str]:
    """Return the modules a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(ended.stdout))


def test_the_public_names_are_those_of_the_list() -> None:
    assert sorted(microos.__all__) == LIST.read_text(encoding="utf-8").split()
    assert len(microos.__all__) < FACADE_MAX


@pytest.mark.parametrize("name", microos.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    assert getattr(microos, name).__doc__


def test_an_unknown_name_is_an_error_as_of_every_module() -> None:
    with pytest.raises(AttributeError, match="module 'microos' has no attribute 'opne'"):
        microos.opne  # type: ignore[attr-defined]


def test_importing_the_face_is_cheap() -> None:
    loaded = loaded_by("import microos")

    assert not loaded & DEAR
    assert {name for name in loaded if name.startswith("microos.")} == {
        "microos.errors",
        "microos.fields",
        "microos.limits",
        "microos.settings",
        "microos.types",
    }


def test_the_node_needs_nothing_dearer_than_trio() -> None:
    loaded = loaded_by("import microos; microos.open")

    assert "trio" in loaded
    assert not loaded & (DEAR - {"trio", "ssl"})


@pytest.mark.slow
@pytest.mark.criterion("GEN-2")
def test_everything_but_the_command_line_needs_the_core_dependencies_only() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "microos").rglob("*.py")
        if path.name != "__init__.py"
    )
    dear = [name for name in modules if name.startswith("microos.cli.") and name not in PLAIN]
    core = [name for name in modules if name not in dear and not name.endswith("__main__")]

    loaded = loaded_by(
        f"from tests.core import only_core; only_core(); import importlib\n"
        f"for name in {core}: importlib.import_module(name)"
    )

    assert set(core) <= loaded
    assert "click" not in core_modules()
    assert "trio" in core_modules()
