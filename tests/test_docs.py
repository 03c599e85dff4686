"""Documentation that is made from the code is current, and links lead somewhere."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.slow
def test_the_manuals_are_current(tmp_path: Path) -> None:
    code = (
        "import runpy, pathlib, sys\n"
        f"made = runpy.run_path({str(ROOT / 'docs' / 'generate.py')!r})\n"
        "for name, text in made['MANUALS'].items():\n"
        "    pathlib.Path(sys.argv[1], name).write_text(text(), encoding='utf-8')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=tmp_path)

    for made in sorted(tmp_path.glob("*.md")):
        kept = (ROOT / "docs" / made.name).read_text(encoding="utf-8")
        assert kept == made.read_text(encoding="utf-8"), f"docs/{made.name}: run `make docs`"


def test_the_picture_of_ratios_shows_the_saved_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    picture = importlib.import_module("_picture")

    claims = picture.bars()

    assert len(claims) >= 8
    kept = (ROOT / "benchmarks" / "results" / "ratios.svg").read_text(encoding="utf-8")
    assert kept == picture.drawn(claims), "run benchmarks/_picture.py"


@pytest.mark.slow
@pytest.mark.proc
def test_the_first_program_of_the_readme_runs() -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]

    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "left: 98" in ended.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    named = re.findall(r"`((?:microos|tests|docs|examples|benchmarks)/[\w/.]+\.\w+)`", text)

    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []
