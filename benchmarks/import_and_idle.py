"""What a node costs that does nothing: the time to open it, and the processor while it idles.

    python benchmarks/import_and_idle.py [--quick] [--json] [--save]

| claim | what | budget |
|---|---|---|
| `import.open_over_trio_ms` | from trio imported to a solo node opened, best of ten | 60 ms |
| `idle.cpu_percent_per_node` | five processes, `lan` preset, mean over nodes | 1 % of a core |

There is no peer for these; `ratio` is ours ÷ budget, and lower is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.proc.processes import Processes

TRIES = 10
NODES = 5
SETTLE = 10.0
"""After the cluster is whole: its last changes have been spread [s]."""

RESULT = Path(__file__).parent / "results" / "import_and_idle.txt"

OPENING = """
import time
import trio
began = time.perf_counter()
import microos
microos.open
imported = time.perf_counter()
async def main():
    async with microos.open(settings=microos.Settings.local()):
        opened = time.perf_counter()
        print((imported - began) * 1000, (opened - began) * 1000)
trio.run(main)
"""
"""A solo node in memory, opened by a program that has trio already."""


class Figure(msgspec.Struct, frozen=True):
    """One claim beside its budget."""

    claim: str
    ours: float
    budget: float
    unit: str
    detail: str


def opening() -> Figure:
    """Open a node in fresh interpreters; the best of them is what the code itself costs."""
    imports, opens = [], []
    with tempfile.TemporaryDirectory() as cache:
        # Compiled once, as an installed package is; the first try pays for it and is no best.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(TRIES):
            told = subprocess.run(
                [sys.executable, "-c", OPENING],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            imports.append(float(told[0]))
            opens.append(float(told[1]))
    detail = f"{min(imports):.1f} ms of it imports; worst of {TRIES}: {max(opens):.0f} ms"
    return Figure("import.open_over_trio_ms", min(opens), 60.0, "ms", detail)


def idle(seconds: float, say: Callable[[str], None]) -> Figure:
    """Watch a cluster that nobody asks anything."""
    with (
        tempfile.TemporaryDirectory(prefix="microos-bench-") as folder,
        Processes(Path(folder)) as nodes,
    ):
        nodes.form(NODES, "--preset", "lan")
        say(f"{NODES} nodes are one cluster; settling for {SETTLE:g} s, idle for {seconds:g} s")
        time.sleep(SETTLE)
        before = [processor_time(node.pid) for node in nodes.all]
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        after = [processor_time(node.pid) for node in nodes.all]
        assert len(nodes.running) == NODES, nodes.tails()
    each = [100 * (b - a) / took for a, b in zip(before, after, strict=True)]
    detail = "each " + " ".join(f"{percent:.2f}" for percent in sorted(each)) + " %"
    return Figure("idle.cpu_percent_per_node", sum(each) / NODES, 1.0, "%", detail)


def processor_time(pid: int) -> float:
    """Return how long a process has kept a processor busy, user and system [s]."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} at the start, Python {platform.python_version()}, no seed"
    )


def table(figures: list[Figure]) -> str:
    head = f"{'claim':<27} {'ours':>9} {'budget':>9} {'ratio':>6}   detail"
    lines = [
        f"{one.claim:<27} {one.ours:>6.2f} {one.unit:<2} {one.budget:>6.2f} {one.unit:<2} "
        f"{one.ours / one.budget:>6.2f}   {one.detail}"
        for one in figures
    ]
    return "\n".join([head, *lines])


def as_json(one: Figure) -> str:
    return json.dumps(
        {
            "claim": one.claim,
            "ours": round(one.ours, 3),
            "peer": one.budget,
            "ratio": round(one.ours / one.budget, 3),
            "better": "lower",
            "unit": one.unit,
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="What a node costs that does nothing.")
    parser.add_argument("--quick", action="store_true", help="idle for 10 s; else 30 s")
    parser.add_argument("--json", action="store_true", help="one JSON line per claim")
    parser.add_argument("--save", action="store_true", help=f"keep the table in {RESULT.name}")
    options = parser.parse_args()
    about = machine()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    figures = [opening(), idle(10.0 if options.quick else 30.0, say)]
    text = f"{about}\n\n{table(figures)}\n"
    print("\n".join(map(as_json, figures)) if options.json else f"\n{text}")
    if options.save:
        RESULT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
