"""Which acceptance criteria the last runs have proved: recorded by tests/conftest.py, shown here.

    python tests/criteria.py            one line per id, totals last

`tests/criteria.txt` has one line per criterion: id | kinds of proof it asks for | title.
`build/criteria/<test file>.json` has what its tests came to: test -> ids, kinds, outcome.
A criterion is passed when every kind it asks for has a passing test and no test of it
fails; with some of the kinds only it is partly passed, and the missing ones are named.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "criteria.txt"
RECORDS = ROOT / "build" / "criteria"


class Criterion(msgspec.Struct, frozen=True):
    """One line of the list."""

    id: str
    kinds: tuple[str, ...]
    title: str


class Record(msgspec.Struct, frozen=True):
    """What one test came to in its last run."""

    test: str
    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    outcome: str
    """`passed`, `failed` or `skipped`."""


def criteria(text: str) -> dict[str, Criterion]:
    """Return the criteria listed, by id, in order."""
    found: dict[str, Criterion] = {}
    for line in text.splitlines():
        id, kinds, title = (part.strip() for part in line.split("|", 2))
        assert id not in found, f"tests/criteria.txt lists {id} twice"
        found[id] = Criterion(id, tuple(kinds.split()), title)
    return found


def kinds_of(markers: Iterable[str], *, by_property: bool) -> tuple[str, ...]:
    """Return which kinds of proof a test is, by its markers; without a cluster, unit and static."""
    marked = set(markers)
    kinds = {"sim", "proc", "srv", "bench"} & marked or {"static", "unit"}
    return tuple(sorted(kinds | ({"prop"} if by_property or "prop" in marked else set())))


def merge(records: Path, new: Iterable[Record]) -> None:
    """Add what has run to what is known: one file per test file, newest outcome of each test."""
    by_file: dict[str, dict[str, Record]] = {}
    for record in new:
        by_file.setdefault(record.test.partition("::")[0], {})[record.test] = record
    records.mkdir(parents=True, exist_ok=True)
    for test_file, ran in by_file.items():
        path = records / (test_file.removesuffix(".py").replace("/", ".") + ".json")
        known = {record.test: record for record in read(path)}
        aside = path.with_suffix(".tmp")
        aside.write_bytes(msgspec.json.format(msgspec.json.encode([*(known | ran).values()])))
        aside.replace(path)


def read(path: Path) -> list[Record]:
    """Return the records in a file; none if there is no such file."""
    return msgspec.json.decode(path.read_bytes(), type=list[Record]) if path.exists() else []


def is_current(record: Record, root: Path) -> bool:
    """Return whether the test still exists: a record outlives a test that was renamed."""
    test_file, _, rest = record.test.partition("::")
    name = rest.partition("[")[0].rpartition("::")[2] or rest.partition("[")[0]
    path = root / test_file
    return path.exists() and f"def {name}(" in path.read_text(encoding="utf-8")


def status(criterion: Criterion, records: Iterable[Record]) -> tuple[str, tuple[str, ...]]:
    """Return (`pass`, `part`, `fail`, `skip` or `none`, kinds that no test has passed)."""
    mine = [record for record in records if criterion.id in record.ids]
    passed = {kind for record in mine if record.outcome == "passed" for kind in record.kinds}
    missing = tuple(kind for kind in criterion.kinds if kind not in passed)
    if any(record.outcome == "failed" for record in mine):
        return "fail", missing
    if not missing:
        return "pass", ()
    if len(missing) < len(criterion.kinds):
        return "part", missing
    return ("skip" if any(record.outcome == "skipped" for record in mine) else "none"), missing


def report(listed: Iterable[Criterion], records: Iterable[Record]) -> list[str]:
    """Return one line per criterion, and one with the totals."""
    known = list(records)
    lines: list[str] = []
    totals: Counter[str] = Counter()
    for criterion in listed:
        word, missing = status(criterion, known)
        totals[word] += 1
        tests = sorted({r.test.partition("[")[0] for r in known if criterion.id in r.ids})
        line = f"{criterion.id} {word} {' '.join(tests)}".rstrip()
        lines.append(f"{line} (no {', '.join(missing)})" if word == "part" else line)
    words = ("pass", "part", "fail", "skip", "none")
    counts = ", ".join(f"{totals[word]} {word}" for word in words)
    return [*lines, f"{len(lines)} criteria: {counts}"]


def main() -> None:
    """Print what is recorded."""
    listed = criteria(LIST.read_text(encoding="utf-8"))
    records = [record for path in sorted(RECORDS.glob("*.json")) for record in read(path)]
    current = [record for record in records if is_current(record, ROOT)]
    sys.stdout.write("\n".join(report(listed.values(), current)) + "\n")


if __name__ == "__main__":
    main()
