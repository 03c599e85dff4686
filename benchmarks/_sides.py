"""What all comparisons with a peer share: sides that take turns, rounds, medians, the table.

A side is a system under load: its servers run all the time, its client is a process that
takes orders on its standard input. Each line `IN_FLIGHT SECONDS` is answered by one line, a
`Round` as JSON. Sides take turns round by round, so what else the machine does meets all
of them alike; only ratios of one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import _picture
import msgspec
from _picture import RESULTS

SEED = 1


Work = Callable[[int], Awaitable[object]]
"""Does operation number n once."""


class Round(msgspec.Struct, frozen=True):
    """What one round of one side came to."""

    per_second: float
    p50_ms: float
    p99_ms: float


class Side(Protocol):
    """One system, ready to be measured."""

    name: str

    def round(self, in_flight: int, seconds: float) -> Round: ...


class Claim(msgspec.Struct, frozen=True):
    """Two sides and how many operations are in flight."""

    name: str
    ours: str
    peer: str
    in_flight: int


class Figures(msgspec.Struct, frozen=True):
    """One claim: both sides, the medians over all rounds."""

    claim: Claim
    ours: Round
    peer: Round

    @property
    def ratio(self) -> float:
        return self.ours.per_second / self.peer.per_second


def summed_up(latencies: list[float], seconds: float) -> Round:
    """Return the round that these latencies [s] make."""
    ordered = sorted(latencies)
    at = [ordered[int(share * (len(ordered) - 1))] * 1000 for share in (0.5, 0.99)]
    return Round(len(ordered) / seconds, *at)


def median_of(rounds: list[Round]) -> Round:
    return Round(
        statistics.median(r.per_second for r in rounds),
        statistics.median(r.p50_ms for r in rounds),
        statistics.median(r.p99_ms for r in rounds),
    )


# In the client's process.


async def keep_doing(
    work: Work, first: int, step: int, until: float, latencies: list[float]
) -> None:
    """Do number `first`, `first + step`, … until the time is up."""
    number = first
    began = time.perf_counter()
    while began < until:
        await work(number)
        now = time.perf_counter()
        latencies.append(now - began)
        began = now
        number += step


def printed(done: Round) -> None:
    print(msgspec.json.encode(done).decode(), flush=True)


async def take_orders_under_trio(work: Work) -> None:
    """Work as ordered on the standard input until it ends."""
    import trio  # only here: the sides of other libraries do without

    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        in_flight, seconds = line.split()
        latencies: list[float] = []
        began = time.perf_counter()
        until = began + float(seconds)
        async with trio.open_nursery() as nursery:
            for first in range(int(in_flight)):
                nursery.start_soon(keep_doing, work, first, int(in_flight), until, latencies)
        printed(summed_up(latencies, time.perf_counter() - began))


async def take_orders_under_asyncio(work: Work) -> None:
    """The same for a client of asyncio."""
    import asyncio  # only here: ours does without

    while line := await asyncio.to_thread(sys.stdin.readline):
        in_flight, seconds = line.split()
        latencies: list[float] = []
        began = time.perf_counter()
        until = began + float(seconds)
        steps = int(in_flight)
        await asyncio.gather(*(keep_doing(work, n, steps, until, latencies) for n in range(steps)))
        printed(summed_up(latencies, time.perf_counter() - began))


# In the process that compares.


class Worker:
    """A side whose client is a process that takes orders."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._process = process

    def round(self, in_flight: int, seconds: float) -> Round:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{in_flight} {seconds}\n".encode())
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"expected a round of {self.name}, found the end of its client")
        return msgspec.json.decode(line, type=Round)


@contextmanager
def running(
    command: Sequence[str], folder: Path, **pipes: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its errors in `folder`; the end of the block kills it."""
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stderr=log, **{"stdout": log, **pipes})  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def worker(stack: ExitStack, folder: Path, script: str, name: str, *arguments: str) -> Worker:
    """Start `script --worker name arguments…` as the client of a side."""
    command = [sys.executable, script, "--worker", name, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return Worker(name, stack.enter_context(running(command, folder / name, **pipes)))


def server(stack: ExitStack, folder: Path, script: str, name: str, *arguments: str) -> None:
    """Start `script --worker name arguments…` as a server; it prints a line when it is ready."""
    command = [sys.executable, script, "--worker", name, *arguments]
    process = stack.enter_context(running(command, folder / name, stdout=subprocess.PIPE))
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"expected {name} to start, found its end; see {folder / name / 'log'}")


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def measure(
    claims: Sequence[Claim],
    sides: Mapping[str, Side],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[Figures]:
    """Run all claims, both sides in turns, `rounds` times `seconds`."""
    for side in sides.values():
        side.round(64, min(1.0, seconds))  # Warm: connections, code, first segments.
    found: dict[str, tuple[list[Round], list[Round]]] = {c.name: ([], []) for c in claims}
    for number in range(rounds):
        for claim in claims:
            for name, kept in zip((claim.ours, claim.peer), found[claim.name], strict=True):
                kept.append(sides[name].round(claim.in_flight, seconds))
            ours, peer = (kept[-1].per_second for kept in found[claim.name])
            say(
                f"round {number + 1}  {claim.name:<22} {claim.ours} {ours:8.0f}/s  "
                f"{claim.peer} {peer:8.0f}/s"
            )
    return [Figures(c, *(median_of(kept) for kept in found[c.name])) for c in claims]


def machine(*about: str) -> str:
    """Return what the figures were measured on."""
    load = os.getloadavg()[0]
    parts = (
        f"{platform.system()} {platform.machine()}",
        f"{os.cpu_count()} cores",
        f"load {load:.1f} at the start",
        f"Python {platform.python_version()}",
        *about,
        f"seed {SEED}",
    )
    return ", ".join(parts)


def table(found: Sequence[Figures]) -> str:
    lines = [
        f"{'claim':<22} {'ours':>12} {'peer':>12} {'ratio':>6}   "
        f"{'ours p50/p99':>18}   {'peer p50/p99':>18}   peer"
    ]
    for one in found:
        ours, peer = one.ours, one.peer
        lines.append(
            f"{one.claim.name:<22} {ours.per_second:>10.0f}/s {peer.per_second:>10.0f}/s "
            f"{one.ratio:>6.2f}   {ours.p50_ms:>7.2f}/{ours.p99_ms:>7.2f} ms   "
            f"{peer.p50_ms:>7.2f}/{peer.p99_ms:>7.2f} ms   {one.claim.peer}"
        )
    return "\n".join(lines)


def as_json(one: Figures) -> str:
    return json.dumps(
        {
            "claim": one.claim.name,
            "ours": round(one.ours.per_second, 1),
            "peer": round(one.peer.per_second, 1),
            "ratio": round(one.ratio, 3),
            "better": "higher",
            "unit": "ops/s",
        }
    )


def run(
    description: str,
    result: str,
    about: str,
    figures: Callable[[int, float, Callable[[str], None]], list[Figures]],
) -> int:
    """Read the command line, measure, print; return the exit code."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 s; else 5 of 5 s")
    parser.add_argument("--json", action="store_true", help="one JSON line per claim")
    parser.add_argument("--save", action="store_true", help=f"keep the table in results/{result}")
    options = parser.parse_args()
    rounds, seconds = (2, 2.0) if options.quick else (5, 5.0)
    found = figures(rounds, seconds, lambda line: print(line, file=sys.stderr, flush=True))
    text = f"{about}\nmedians of {rounds} rounds of {seconds:g} s\n\n{table(found)}\n"
    print("\n".join(map(as_json, found)) if options.json else f"\n{text}")
    if options.save:
        (RESULTS / result).write_text(text, encoding="utf-8")
        _picture.save()
    return 0
