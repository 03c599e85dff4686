"""The same seed gives the same world, bit for bit, in any process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.echo import EchoWorld

ROOT = Path(__file__).parents[2]

# Not `-m`: the names of tasks are in the trace, and would begin with `__main__`.
PROGRAM = (
    "import sys; from tests.sim.echo import EchoWorld; print(EchoWorld(int(sys.argv[1])).run())"
)


def hash_in_fresh_process(seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_a_seed_replays_bit_for_bit_whatever_the_hash_seed() -> None:
    here = EchoWorld(7).run()

    assert hash_in_fresh_process(7, "1") == here
    assert hash_in_fresh_process(7, "2") == here


@pytest.mark.slow
def test_another_seed_is_another_world() -> None:
    assert EchoWorld(1).run() != EchoWorld(2).run()


@pytest.mark.slow
def test_nodes_echo_through_bad_weather_pauses_and_crashes() -> None:
    echo = EchoWorld(3)

    echo.run()

    assert echo.seen["datagram"] > 1000
    assert echo.seen["stream"] > 50
