"""What the simulator needs of trio's inside; if trio moves it, this says so on the day."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio._core._run as internals

from microos.sim.clock import WorldClock
from microos.sim.loop import simulate
from microos.sim.world import SECOND, World

ROOT = Path(__file__).parents[1]


async def reference(seen: list[str]) -> None:
    """Thirty tasks, timeouts and channels."""
    send, receive = trio.open_memory_channel[int](5)

    async def produce(number: int) -> None:
        for i in range(10):
            await trio.sleep(number % 7 * 0.1)
            await send.send(number * 100 + i)

    async def consume(number: int) -> None:
        for _ in range(10):
            with trio.move_on_after(0.35):
                seen.append(f"{number}:{await receive.receive()}")
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(15):
            nursery.start_soon(produce, number)
            nursery.start_soon(consume, number)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()


def digest(seed: int) -> str:
    seen: list[str] = []
    simulate(World(seed), lambda: reference(seen))
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()


def test_both_switches_exist() -> None:
    assert isinstance(internals._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(internals._r, random.Random)


@pytest.mark.slow
def test_the_reference_program_replays_in_other_processes() -> None:
    def elsewhere(hash_seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "tests.test_trio_contract", "5"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert elsewhere("1") == elsewhere("2") == digest(5)


def test_another_seed_is_another_order_of_tasks() -> None:
    assert digest(1) != digest(2)


def test_without_the_seeded_shuffle_the_test_sees_a_difference() -> None:
    """The test of the test: the default order is not repeatable."""
    seen: list[list[str]] = []
    for _ in range(8):
        one: list[str] = []
        trio.run(reference, one, clock=trio.testing.MockClock(autojump_threshold=0))
        seen.append(one)

    assert any(one != seen[0] for one in seen)


def test_the_clock_is_asked_only_when_no_task_is_runnable() -> None:
    world = World(1)
    clock = WorldClock(world)
    asked: list[int] = []

    async def main() -> None:
        world.at(SECOND, clock.scope.cancel)
        before = clock.asked
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        asked.append(clock.asked - before)
        with clock.scope:
            await trio.sleep_forever()

    trio.run(main, clock=clock)

    assert asked == [0]
    assert world.now == SECOND


if __name__ == "__main__":
    sys.stdout.write(digest(int(sys.argv[1])))
