"""Many seeds over all cores, resumable: what has been run with this very source is not run again.

Each verdict is one line of `build/sim/<layer>-<seconds>s-<source>.jsonl`, where `source`
is a hash of all of `microos/`. So a long hunt may be interrupted at any time, and a
change of the code begins a new one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random

import msgspec
import xxhash

from microos.sim.report import Verdict, run_seed
from microos.sim.world import Failure

FOLDER = Path("build/sim")
WORLDS_PER_PROCESS = 50
WALL_LIMIT = 300
"""Longest time one world may take [s]."""

PROGRESS_EVERY = 5.0
"""How often a line of progress is printed [s]."""


class Job(msgspec.Struct, frozen=True):
    seed: int
    nodes: int
    seconds: int
    layer: str


def size_of(seed: int) -> int:
    """Return how many nodes the world of a seed has, if nobody says otherwise."""
    return Random(f"{seed}/size").choice((3, 3, 5, 5, 5, 7))


def hunt(seeds: range, nodes: int | None, seconds: int, layer: str) -> int:
    """Run all seeds that have not been run; return the exit code of the first failing one."""
    path = FOLDER / f"{layer}-{seconds}s-{nodes or 'any'}-{_source()}.jsonl"
    done = {verdict.seed: verdict for verdict in _read(path) if verdict.seed in seeds}
    jobs = [Job(seed, nodes or size_of(seed), seconds, layer) for seed in seeds if seed not in done]
    if done:
        print(f"{len(done)} of {len(seeds)} seeds were run before: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    for verdict in done.values():
        counts.update(verdict.counts)
    with path.open("ab") as file:
        for verdict in _progress(_run(jobs), len(jobs), seconds):
            done[verdict.seed] = verdict
            counts.update(verdict.counts)
            file.write(msgspec.json.encode(verdict) + b"\n")
            file.flush()
    return _summary(done, counts, len(seeds), seconds)


def _run(jobs: list[Job]) -> Iterable[Verdict]:
    workers = min(len(jobs), os.cpu_count() or 1)
    if workers <= 1:
        yield from map(_one, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, maxtasksperchild=WORLDS_PER_PROCESS) as pool:
        yield from pool.imap_unordered(_one, jobs)


class SpinError(BaseException):
    """A world did not end: something in it goes round and round without letting time pass."""


def _one(job: Job) -> Verdict:
    """Run one world; one that never ends is a failure of its own, with the place it is stuck in."""

    def stuck(*_: object) -> None:
        raise SpinError(f"not at its end after {WALL_LIMIT} s")

    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(WALL_LIMIT)
    try:
        return run_seed(job.seed, job.nodes, job.seconds, job.layer)
    except SpinError:
        detail = traceback.format_exc()
        failure = Failure("storm", "spin", detail, 0)
        return Verdict(
            seed=job.seed, failure=failure, trace_hash="", events=0, operations=0, counts={}
        )
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _progress(verdicts: Iterable[Verdict], total: int, seconds: int) -> Iterable[Verdict]:
    began = said = time.monotonic()
    failed = 0
    for count, verdict in enumerate(verdicts, 1):
        if verdict.failure is not None:
            failed += 1
            print(_failed(verdict), flush=True)
        now = time.monotonic()
        if now - said >= PROGRESS_EVERY or count == total:
            said = now
            pace = count * seconds / (now - began)
            print(
                f"{count:>6}/{total} seeds  {failed} failed  {pace:.0f} virtual s per s",
                flush=True,
            )
        yield verdict


def _failed(verdict: Verdict) -> str:
    failure = verdict.failure
    assert failure is not None
    detail = failure.detail.strip().splitlines()[-1][:200] if failure.detail else ""
    replay = f"--plan {verdict.file}" if verdict.file else f"--seed {verdict.seed}"
    return (
        f"seed {verdict.seed}: {failure.kind} {failure.invariant} at {failure.at_ns / 1e9:.3f} s: "
        f"{detail}\n  python -m microos.sim {replay}"
    )


def _summary(done: dict[int, Verdict], counts: Counter[str], total: int, seconds: int) -> int:
    failing = [done[seed] for seed in sorted(done) if done[seed].failure is not None]
    events = sum(verdict.events for verdict in done.values())
    operations = sum(verdict.operations for verdict in done.values())
    print(
        f"{total} worlds of {seconds} s: {len(failing)} failed; {events} events, "
        f"{operations} operations, {counts['raft.BecameLeader']} leaders elected, "
        f"{counts['process.Crashed']} crashes, {counts['ring.epoch']} ring epochs, "
        f"{_acknowledged(counts)} operations of the store done, {counts['call.ok']} calls answered"
    )
    for verdict in failing:
        print(_failed(verdict), file=sys.stderr)
    return failing[0].exit_code if failing else 0


def _acknowledged(counts: Counter[str]) -> int:
    return sum(counts[f"kv.{kind} ok"] for kind in ("get", "put", "delete"))


def _read(path: Path) -> Iterable[Verdict]:
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                yield msgspec.json.decode(line, type=Verdict)
            except msgspec.DecodeError:
                continue  # The line at which the last hunt was interrupted.


def _source() -> str:
    """Return a hash of all source files of the package."""
    root = Path(__file__).parents[1]
    found = xxhash.xxh3_64()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()
