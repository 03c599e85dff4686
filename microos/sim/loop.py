"""Runs trio inside a world: virtual time, repeatable order, every task step in the trace."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable

import trio

from microos.sim.clock import WorldClock
from microos.sim.schedule import repeatable
from microos.sim.world import World


class Steps(trio.abc.Instrument):
    """Hashes the name of every task stepped, together with the time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1
        self._world.trace("step", task.name)


def simulate(world: World, main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` to its end on the world's time, or to the world's first failure.

    Effects: the garbage collector rests meanwhile, since finalisers have no place in a replay.
    """
    clock = WorldClock(world)
    clock.blocked = _blocked

    async def guarded() -> None:
        try:
            with clock.scope:
                await main()
        finally:
            clock.over = True

    collecting = gc.isenabled()
    gc.disable()
    try:
        with repeatable(str(world.seed)):
            trio.run(guarded, clock=clock, instruments=[Steps(world)])
    except (Exception, trio.TrioInternalError) as error:
        if world.failure is None:
            world.fail("simulator", "run", repr(error))
    finally:
        if collecting:
            gc.enable()


def _blocked() -> str:
    """Name the tasks that are left, outermost first."""
    names: list[str] = []
    todo = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop(0)
        if task is not None:
            names.append(task.name.rpartition(".")[2])
            todo.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return ", ".join(sorted(names)[:50])
