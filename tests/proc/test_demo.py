"""The demo itself: it holds, and however it ends, nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proc.processes import eventually

pytestmark = [pytest.mark.proc, pytest.mark.slow, pytest.mark.xdist_group("proc")]

DEMO = Path(__file__).parents[2] / "examples" / "cluster.py"

LONGEST = 240.0
"""Far beyond what the demo takes, so that a slow machine fails nothing [s]."""


PROMISED = (
    "the cluster forms",
    "the shop opens, its services are found",
    "config reaches all nodes",
    "a lock passes from holder to waiters",
    "a node is killed, calls and writes go on",
    "a node joins, calls and writes go on",
    "the killed node comes back, the store is whole",
    "the leader is killed, calls and writes go on",
    "the killed leader comes back",
    "no call has failed",
    "no acknowledged write is lost",
    "no order is lost, none is sold twice",
)


def begin(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, DEMO, *options],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo that runs."""
    with begin(tmp_path) as process:
        yield process
        process.kill()


def nodes_of(folder: Path) -> list[int]:
    """Return the ids of the processes that were started with data under `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue  # It ended meanwhile, or is another user's.
        if b"MICROOS_DATA_DIR=" + os.fsencode(folder) in environment:
            found.append(int(process.name))
    return sorted(found)


def test_the_demo_holds(tmp_path: Path) -> None:
    with begin(tmp_path, "--json") as process:
        told, errors = process.communicate(timeout=LONGEST)

    assert process.returncode == 0, errors
    rows = [json.loads(line) for line in told.splitlines()]
    shown = [row["what"] for row in rows]
    assert [what for what in PROMISED if what not in shown] == []
    assert all(row["seconds"] >= 0 and row["found"] for row in rows)
    assert nodes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, demo: subprocess.Popen[str]) -> None:
    eventually(lambda: len(nodes_of(tmp_path)) == 5, "five nodes have been started")

    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=LONGEST)

    assert demo.returncode == 130
    assert nodes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_fails_names_the_log(tmp_path: Path, demo: subprocess.Popen[str]) -> None:
    eventually(lambda: len(nodes_of(tmp_path)) == 5, "five nodes have been started")

    os.kill(nodes_of(tmp_path)[-1], signal.SIGKILL)
    _, errors = demo.communicate(timeout=LONGEST)

    assert demo.returncode == 1
    (folder,) = tmp_path.iterdir()
    assert any(str(log) in errors for log in folder.glob("*.log"))
    assert nodes_of(tmp_path) == []
