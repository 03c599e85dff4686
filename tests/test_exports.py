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

LIST = Path(__file__).with_name("exports.txt")
DEAR = {"trio", "asyncio", "ssl", "cryptography", "starlette", "anycorn", "httpx2", "rich", "click"}
FACADE_MAX = 30


def loaded_by(code: str) -> set[str]:
    """Return the modules a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
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
