"""Every planted bug is found, by the checker that is there for it; the code as it is passes."""

from __future__ import annotations

import importlib.util
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.sim.canaries import CANARIES, Canary, in_fresh_process, mutated

WANTED = 30
"""So many canaries at least."""


def each_canary() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)


@pytest.mark.slow
@pytest.mark.sim
@each_canary()
def test_a_planted_bug_is_found_and_sound_code_passes_the_same_world(canary: Canary) -> None:
    found = in_fresh_process(canary)

    assert any(fnmatchcase(found["cause"], wanted) for wanted in canary.dies), found
    sound = in_fresh_process(canary, "--sound", "--world", str(found["number"]))
    assert sound["cause"] == "", sound


@each_canary()
def test_the_text_of_a_canary_stands_in_its_module_once(canary: Canary) -> None:
    spec = importlib.util.find_spec(canary.module)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")

    changed = mutated(source, canary)

    assert changed != source
    compile(changed, spec.origin, "exec")


def test_a_canary_whose_text_is_gone_or_not_unique_is_an_error() -> None:
    canary = CANARIES[0]

    for source in ("", canary.text * 2):
        with pytest.raises(ValueError, match="bring the canary up to date"):
            mutated(source, canary)


def test_there_are_enough_canaries_and_each_has_a_name_of_its_own() -> None:
    assert len({canary.name for canary in CANARIES}) == len(CANARIES) >= WANTED
