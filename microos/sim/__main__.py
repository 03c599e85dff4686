"""The simulator's command line.

    python -m microos.sim --seed N [--nodes N] [--seconds S] [--layer cores|node]
    python -m microos.sim --seeds A:B          many seeds over all cores, resumable
    python -m microos.sim --plan FILE          a failing world again, from its file

Exit codes are kinds of failure: 0 passed, 2 usage, 10 safety, 11 linearizability,
12 liveness, 13 exception in a node, 14 storm, 15 determinism, 16 the simulator itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from microos.sim.hunt import hunt, size_of
from microos.sim.report import Verdict, load, run, run_seed
from microos.sim.world import KINDS

SECONDS = 20


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.plan is not None:
        for name in ("seed", "seeds", "nodes", "seconds", "layer"):
            if getattr(options, name) is not None:
                parser.error(f"--{name} contradicts --plan, which says it all")
        try:
            found = load(options.plan)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return _told(run(found.config, found.plan, frozen=True, printed=options.columns), options)
    seconds = options.seconds or SECONDS
    layer = options.layer or "node"
    if options.seeds is not None:
        return hunt(options.seeds, options.nodes, seconds, layer)
    if options.seed is None:
        parser.error("expected --seed, --seeds or --plan")
    nodes = options.nodes or size_of(options.seed)
    verdict = run_seed(options.seed, nodes, seconds, layer, printed=options.columns)
    if options.twice and verdict.failure is None:
        return _again(verdict, nodes, seconds, layer)
    return _told(verdict, options)


def _told(verdict: Verdict, options: argparse.Namespace) -> int:
    failure = verdict.failure
    if failure is not None:
        print(f"{failure.kind} {failure.invariant} at {failure.at_ns / 1e9:.6f} s", file=sys.stderr)
        print(failure.detail, file=sys.stderr)
        print(f"python -m microos.sim --plan {verdict.file}", file=sys.stderr)
    else:
        print(f"passed: {verdict.events} events, {verdict.operations} operations", file=sys.stderr)
    if options.trace_hash:
        print(verdict.trace_hash)
    return verdict.exit_code


def _again(verdict: Verdict, nodes: int, seconds: int, layer: str) -> int:
    """Run the seed in a fresh process under another hash seed; the hashes must be equal."""
    command = [sys.executable, "-m", "microos.sim", "--trace-hash", "--seed", str(verdict.seed)]
    command += ["--nodes", str(nodes), "--seconds", str(seconds), "--layer", layer]
    environment = {**os.environ, "PYTHONHASHSEED": str(verdict.seed % 1000 + 1)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = done.stdout.split()[-1] if done.stdout.split() else "nothing"
    if found != verdict.trace_hash:
        print(f"expected {verdict.trace_hash} again, found {found}", file=sys.stderr)
        return KINDS["determinism"]
    print(verdict.trace_hash)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m microos.sim", description="Simulated worlds.")
    parser.add_argument("--seed", type=int, help="everything follows from it")
    parser.add_argument("--seeds", type=_range, metavar="A:B", help="run seeds A..B-1")
    parser.add_argument("--nodes", type=_positive, help="3 to 7; drawn if not given")
    parser.add_argument("--seconds", type=_positive, help=f"virtual length, {SECONDS} if not given")
    parser.add_argument("--layer", choices=("cores", "node"), help="node if not given")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="replay a failing world")
    parser.add_argument("--trace-hash", action="store_true", help="print the hash, on its own line")
    parser.add_argument("--twice", action="store_true", help="run it again elsewhere and compare")
    parser.add_argument("--columns", action="store_true", help="print what happens, line by line")
    return parser


def _range(text: str) -> range:
    begin, _, end = text.partition(":")
    if not begin.isdigit() or not end.isdigit() or int(begin) >= int(end):
        raise argparse.ArgumentTypeError(f"expected A:B with A < B, found {text!r}")
    return range(int(begin), int(end))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
