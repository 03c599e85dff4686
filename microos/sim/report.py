"""One world run and what is told of it: a verdict, and for a failing one a file that replays it.

The file is a plan: it holds every value drawn and every fault that happened, triggered
ones included, so it outlives the lottery that made it.
"""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import msgspec

from microos.sim.cores import CoresWorld
from microos.sim.faults import Fault
from microos.sim.nodes import NodesWorld
from microos.sim.swarm import Config, draw
from microos.sim.world import KINDS, Failure

FOLDER = Path("sim-failures")
FORMAT = 1


class PlanFile(msgspec.Struct, kw_only=True):
    """`sim-failures/<kind>-<layer>-<seed>.json`."""

    format: int = FORMAT
    kind: str = ""
    invariant: str = ""
    detail: str = ""
    at_ns: int = 0
    commit: str = ""
    versions: dict[str, str] = {}
    layer: str
    seed: int
    nodes: int
    seconds: int
    config: Config
    plan: list[Fault]
    trace_hash: str = ""
    columns: list[str] = []


class Verdict(msgspec.Struct, kw_only=True):
    """What came of one world."""

    seed: int
    failure: Failure | None
    trace_hash: str
    events: int
    operations: int
    counts: dict[str, int]
    file: str = ""

    @property
    def exit_code(self) -> int:
        return 0 if self.failure is None else KINDS[self.failure.kind]


def run(
    config: Config, plan: list[Fault], *, frozen: bool = False, printed: bool = False
) -> Verdict:
    """Run one world of either layer; write the file of a failing one.

    Args:
        frozen: The plan comes from a file: nothing else is triggered.
        printed: Print the columns as they come.

    Effects: may write into `sim-failures/`.
    """
    original = msgspec.convert(msgspec.to_builtins(config), Config)
    world: CoresWorld | NodesWorld
    if config.layer == "cores":
        world = CoresWorld(config, plan, frozen=frozen, printed=printed)
    else:
        world = NodesWorld(config, plan, frozen=frozen, printed=printed)
    world.run()
    verdict = Verdict(
        seed=config.seed,
        failure=world.world.failure,
        trace_hash=world.world.trace_hash(),
        events=world.world.executed,
        operations=world.operations(),
        counts=world.world.counts,
    )
    if verdict.failure is not None:
        verdict.file = str(_write(original, world, verdict))
    return verdict


def run_seed(seed: int, nodes: int, seconds: int, layer: str, *, printed: bool = False) -> Verdict:
    """Draw a world and run it."""
    config, plan = draw(seed, nodes, seconds, layer)
    return run(config, plan, printed=printed)


def load(path: Path) -> PlanFile:
    """Return the plan in a file.

    Raises:
        ValueError: It is not one.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=PlanFile)
    except msgspec.DecodeError as error:
        raise ValueError(f"expected a plan in {path}, found {error}") from error
    if found.format != FORMAT:
        raise ValueError(f"expected a plan of format {FORMAT} in {path}, found {found.format}")
    return found


def _write(config: Config, world: CoresWorld | NodesWorld, verdict: Verdict) -> Path:
    failure = verdict.failure
    assert failure is not None
    found = PlanFile(
        kind=failure.kind,
        invariant=failure.invariant,
        detail=failure.detail,
        at_ns=failure.at_ns,
        commit=_commit(),
        versions={
            "python": platform.python_version(),
            "trio": version("trio"),
            "msgspec": version("msgspec"),
        },
        layer=config.layer,
        seed=config.seed,
        nodes=config.nodes,
        seconds=config.seconds,
        config=config,
        plan=world.faults.done,
        trace_hash=verdict.trace_hash,
        columns=world.columns.lines(),
    )
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{failure.kind}-{config.layer}-{config.seed}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return path


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
