"""Seeded worlds of both layers: they pass, they replay, and their failures become files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from microos.raft.entry import Persist, Persisted
from microos.sim import hunt
from microos.sim.__main__ import main
from microos.sim.cores import CoresWorld
from microos.sim.hunt import size_of
from microos.sim.member import Member
from microos.sim.report import load, run, run_seed
from microos.sim.swarm import draw
from tests.sim.canary_worlds import Fate, bridged, contended, emptied, moving

ROOT = Path(__file__).parents[2]
SECONDS = 16


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.criterion("SYNC-2")
@pytest.mark.sim
@pytest.mark.prop
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1012))
def test_cores_keep_their_promises_in_the_world_of(seed: int) -> None:
    verdict = run_seed(seed, size_of(seed), SECONDS, "cores")

    assert verdict.failure is None, verdict
    assert verdict.operations > 0


@pytest.mark.criterion("SYNC-2")
@pytest.mark.sim
@pytest.mark.prop
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1004))
def test_whole_nodes_keep_their_promises_in_the_world_of(seed: int) -> None:
    verdict = run_seed(seed, 3, SECONDS, "node")

    assert verdict.failure is None, verdict
    assert verdict.operations > 0


@pytest.mark.criterion("KV-8", "KV-18")
@pytest.mark.sim
@pytest.mark.prop
@pytest.mark.slow
@pytest.mark.parametrize("world", [moving, contended, emptied, bridged])
def test_a_store_whose_ring_moves_all_the_time_keeps_its_word(
    world: Callable[[int], Fate],
) -> None:
    fate = world(20)

    assert fate.cause == "", fate


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("layer", ["cores", "node"])
def test_a_world_replays_in_another_process_under_another_hash_seed(layer: str) -> None:
    here = run_seed(5, 3, SECONDS, layer).trace_hash
    command = [sys.executable, "-m", "microos.sim", "--seed", "5", "--nodes", "3", "--trace-hash"]
    command += ["--seconds", str(SECONDS), "--layer", layer]

    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines()[-1] == here


@pytest.mark.sim
@pytest.mark.slow
def test_a_plan_of_all_that_happened_is_the_same_world_without_triggers() -> None:
    """Find a seed whose triggers fired, then run what they did as a plan."""
    for seed in range(100):
        config, plan = draw(seed, 3, SECONDS, "cores")
        if config.triggers_ppm:
            break
    config.triggers_ppm = 30_000
    first = CoresWorld(msgspec.convert(msgspec.to_builtins(config), type(config)), plan)
    first.run()

    again = run(config, first.faults.done, frozen=True)

    assert len(first.faults.done) > len(plan)
    assert again.trace_hash == first.world.trace_hash()


def break_durability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let members report everything durable the moment it is handed out."""
    honest = Member._persist

    def lying(self: Member, persist: Persist) -> None:
        honest(self, persist)
        self.post(Persisted(persist.token))

    monkeypatch.setattr(Member, "_persist", lying)


@pytest.mark.sim
@pytest.mark.slow
def test_a_failing_world_leaves_a_file_that_fails_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_durability(monkeypatch)

    code = main(["--seed", "3", "--layer", "cores", "--nodes", "3", "--seconds", str(SECONDS)])
    line = capsys.readouterr().err.splitlines()[-1]
    file = load(Path(line.rpartition(" ")[2]))
    again = main(["--plan", line.rpartition(" ")[2]])

    assert code == again == 10
    assert (file.kind, file.invariant) == ("safety", "raft.durability")
    assert file.columns
    assert line == "python -m microos.sim --plan sim-failures/safety-cores-3.json"


@pytest.mark.sim
@pytest.mark.slow
def test_a_hunt_goes_on_where_it_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)

    assert hunt.hunt(range(2), 3, 12, "cores") == 0
    capsys.readouterr()
    assert hunt.hunt(range(3), 3, 12, "cores") == 0

    told = capsys.readouterr().out
    assert "2 of 3 seeds were run before" in told
    assert "3 worlds of 12 s: 0 failed" in told


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--seeds", "9"],
        ["--seed", "1", "--nodes", "0"],
        ["--plan", "absent.json"],
        ["--plan", "x.json", "--seed", "1"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)

    assert exit.value.code == 2
