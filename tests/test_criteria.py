"""The record of criteria: nothing counts as proved that no passing test has proved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.criteria import Criterion, Record, is_current, kinds_of, merge, read, report, status

pytest_plugins = ["pytester"]

BOTH = Criterion("X-1", ("sim", "proc"), "something")


def record(outcome: str, *kinds: str, test: str = "tests/test_x.py::test_x") -> Record:
    return Record(test, ("X-1",), kinds, outcome)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], ("none", ("sim", "proc"))),
        ([record("skipped", "sim")], ("skip", ("sim", "proc"))),
        ([record("passed", "sim")], ("part", ("proc",))),
        ([record("passed", "sim"), record("skipped", "proc")], ("part", ("proc",))),
        ([record("passed", "sim"), record("passed", "proc")], ("pass", ())),
        ([record("passed", "sim"), record("failed", "sim")], ("fail", ("proc",))),
        ([record("passed", "unit", "static")], ("none", ("sim", "proc"))),
    ],
)
def test_every_kind_asked_for_needs_a_passing_test(
    records: list[Record], expected: tuple[str, tuple[str, ...]]
) -> None:
    assert status(BOTH, records) == expected


def test_a_test_without_a_cluster_is_unit_and_static() -> None:
    assert kinds_of(["slow", "criterion"], by_property=False) == ("static", "unit")
    assert kinds_of([], by_property=True) == ("prop", "static", "unit")
    assert kinds_of(["sim"], by_property=True) == ("prop", "sim")


def test_the_newest_outcome_of_each_test_is_kept(tmp_path: Path) -> None:
    other = record("passed", "proc", test="tests/test_x.py::test_y")
    merge(tmp_path, [record("failed", "sim"), other])
    merge(tmp_path, [record("passed", "sim")])

    assert read(tmp_path / "tests.test_x.json") == [record("passed", "sim"), other]


def test_a_test_that_is_gone_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("async def test_x(world: World) -> None: ...\n")

    assert is_current(record("passed", test="test_x.py::test_x[a::b-1]"), tmp_path)
    assert is_current(record("passed", test="test_x.py::TestX::test_x"), tmp_path)
    assert not is_current(record("passed", test="test_x.py::test_y"), tmp_path)
    assert not is_current(record("passed", test="test_z.py::test_x"), tmp_path)


def test_the_report_has_a_line_per_criterion_and_totals() -> None:
    two = [BOTH, Criterion("X-2", ("unit",), "another")]

    assert report(two, [record("passed", "sim")]) == [
        "X-1 part tests/test_x.py::test_x (no proc)",
        "X-2 none",
        "2 criteria: 0 pass, 1 part, 0 fail, 0 skip, 1 none",
    ]


def test_an_unknown_id_fails_the_collection(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile("import pytest\n@pytest.mark.criterion('KV-99')\ndef test_x(): pass\n")

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:trio")

    result.stderr.fnmatch_lines(["*expected ids of tests/criteria.txt, found KV-99*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
