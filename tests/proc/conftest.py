"""Clusters of real processes for the tests here; a failing test shows the ends of their logs."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.proc.processes import Process, Processes


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Processes]:
    """Nodes of this test alone; none is started yet."""
    with Processes(tmp_path) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Five nodes that the tests of a module share."""
    with Processes(tmp_path_factory.mktemp("five")) as nodes:
        nodes.form(5, services=True)
        yield nodes


@pytest.fixture
def cluster(five: Processes) -> Processes:
    """The shared cluster, whole again, whatever the test before did to it."""
    for node in five.all:
        if not node.runs:
            node.start()
    five.whole()
    return five


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One node, a cluster of its own, that the tests of a module share."""
    with Processes(tmp_path_factory.mktemp("lone")) as nodes:
        yield nodes.form(1)[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs to the report of a test that failed."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Processes):
                report.sections.append(("logs of the nodes", value.tails()))
            elif isinstance(value, Process):
                report.sections.append((f"log of {value.name}", value.log_text()[-8000:]))
    return report
