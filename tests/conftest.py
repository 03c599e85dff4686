"""For all tests: chance that repeats, and a record of which acceptance criteria were proved."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.criteria import LIST, RECORDS, Record, criteria, kinds_of, merge

# Every run sees the same examples; `--hypothesis-profile=explore` looks for new ones.
# No test fails because a machine was slow, so there are no deadlines in real time.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("suite")

PROPERTY = "criteria"
"""Under this name a test's ids and kinds travel with its report, also between processes."""

_outcomes: dict[str, Record] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note what each test proves; an id that nobody has listed is an error of the collection."""
    listed = criteria(LIST.read_text(encoding="utf-8"))
    for item in items:
        ids = tuple(id for mark in item.iter_markers("criterion") for id in mark.args)
        unknown = [id for id in ids if id not in listed]
        if unknown:
            raise pytest.UsageError(
                f"{item.nodeid}: expected ids of tests/criteria.txt, found {', '.join(unknown)}"
            )
        by_property = bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))
        kinds = kinds_of([mark.name for mark in item.iter_markers()], by_property=by_property)
        if ids:
            item.user_properties.append((PROPERTY, [list(ids), list(kinds)]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the outcome of a test that proves something; the worst of its phases counts."""
    proves = dict(report.user_properties).get(PROPERTY)
    if isinstance(proves, list) and (report.when == "call" or not report.passed):
        ids, kinds = proves
        known = _outcomes.get(report.nodeid)
        if known is None or known.outcome != "failed":
            record = Record(report.nodeid, tuple(ids), tuple(kinds), report.outcome)
            _outcomes[report.nodeid] = record


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the record, once per run: workers report to the process that started them."""
    if not hasattr(session.config, "workerinput"):
        merge(RECORDS, _outcomes.values())
