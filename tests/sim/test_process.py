"""A simulated process: its clock, its pauses, its death."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf

import pytest
import trio

from microos.clock import Clock
from microos.net.memory import MemoryNetwork
from microos.sim.clock import Line
from microos.sim.loop import simulate
from microos.sim.network import SimulatedNetwork, Weather
from microos.sim.process import Process
from microos.sim.world import SECOND, World
from microos.types import Address

Main = Callable[[Process], Awaitable[None]]


def simulated(
    main: Main, faults: Callable[[World, Process], None] | None = None, *, ppm: int = 0
) -> World:
    """Run one process and what befalls it; return its world."""
    world = World(1)
    hub = MemoryNetwork(SimulatedNetwork(world, Weather()))
    process = Process(world, "n0", 1, line=Line(world, ppm=ppm), hub=hub, ip="10.0.0.1")
    if faults is not None:
        faults(world, process)
    simulate(world, lambda: process.run(main))
    return world


def ring(clock: Clock, seen: list[float], *after: float) -> None:
    for delay in after:
        clock.call_at(clock.now() + delay, lambda: seen.append(clock.now()))


def test_alarms_ring_in_order_of_time_not_of_setting() -> None:
    seen: list[float] = []

    async def main(process: Process) -> None:
        ring(process.clock, seen, 3.0, 1.0, 2.0)
        await process.clock.sleep_until(10.0)

    assert simulated(main).failure is None
    assert seen == [1.0, 2.0, 3.0]


def test_an_undone_alarm_and_one_at_infinity_never_ring() -> None:
    seen: list[float] = []

    async def main(process: Process) -> None:
        process.clock.call_at(1.0, lambda: seen.append(1.0))()
        process.clock.call_at(inf, lambda: seen.append(inf))()
        await process.clock.sleep_until(5.0)

    simulated(main)

    assert seen == []


def test_a_timeout_cancels_its_block_at_its_time() -> None:
    times: list[float] = []

    async def main(process: Process) -> None:
        with process.clock.timeout_at(2.5) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        times.append(process.clock.now())

    assert simulated(main).failure is None
    assert times == [2.5]


def test_a_fast_clock_sleeps_shorter_in_true_time() -> None:
    async def main(process: Process) -> None:
        await process.clock.sleep_until(10.0)

    world = simulated(main, ppm=100_000)

    assert world.now == pytest.approx(10 * SECOND / 1.1, abs=2)


def test_a_paused_process_wakes_late_and_finds_everything_waiting() -> None:
    seen: list[float] = []

    async def main(process: Process) -> None:
        ring(process.clock, seen, 1.0, 2.0)
        await process.clock.sleep_until(3.0)
        seen.append(process.clock.now())

    def pause(world: World, process: Process) -> None:
        world.at(SECOND // 2, process.gate.pause)
        world.at(9 * SECOND, process.gate.resume)

    assert simulated(main, pause).failure is None
    assert seen == [9.0, 9.0, 9.0]


def test_a_crash_runs_the_clean_up_and_nobody_hears_it() -> None:
    seen: list[str] = []

    async def main(process: Process) -> None:
        udp = await process.network.udp(Address("", 1))
        try:
            await trio.sleep_forever()
        finally:
            udp.send(b"last words", udp.address)
            with trio.CancelScope(shield=True), process.clock.timeout_at(5.0):
                await trio.sleep_forever()
            seen.append("cleaned up")

    world = simulated(main, lambda w, p: void(w.at(SECOND, p.crash)))

    assert (seen, world.failure, world.now) == (["cleaned up"], None, 5 * SECOND)


def test_tasks_that_outlive_their_process_fail_the_world() -> None:
    async def main(process: Process) -> None:
        with trio.CancelScope(shield=True):
            await process.clock.sleep_until(60.0)

    world = simulated(main, lambda w, p: void(w.at(SECOND, p.crash)))

    assert world.failure is not None
    assert "outlive" in world.failure.detail


def test_an_exception_that_leaves_a_node_fails_the_world() -> None:
    async def main(process: Process) -> None:
        raise KeyError("lost")

    world = simulated(main)

    assert world.failure is not None
    assert (world.failure.kind, world.failure.invariant) == ("exception", "n0")


def test_a_world_in_which_nothing_can_happen_fails() -> None:
    async def main(process: Process) -> None:
        await trio.sleep_forever()

    world = simulated(main)

    assert world.failure is not None
    assert world.failure.invariant == "deadlock"


def void(_: object) -> None:
    """Drop a value, so that a lambda has none."""
