"""A service for whole nodes that keeps a record of its runs, and does at each node as told.

work = Work(1, 2, 3)                           served by these machines
work.does[2] = refuse                          what a run at machine 2 does
run_cluster(scenario, services=work)

machine, id = await cluster[0].call(ONCE, id)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from math import inf

import msgspec
import trio

import microos
from microos.errors import MicroosError, UnavailableError, UncertainError
from microos.service.current import Call, current_call
from microos.service.service import Service
from microos.sim.cluster import Cluster

ONCE = microos.remote("work.once", returns=tuple[int, int])
AGAIN = microos.remote("work.again", returns=tuple[int, int], idempotent=True)
"""Both return (machine, id)."""


class Run(msgspec.Struct, eq=False):
    """One run of a handler."""

    machine: int
    id: int
    call: Call
    begun: float
    """World time [s]."""
    ended: float = inf


class Work:
    """The service, for `services=` of a cluster.

    Args:
        machines: Who serves it.
    """

    def __init__(self, *machines: int) -> None:
        self.machines = machines
        self.does: dict[int, Callable[[int], Awaitable[None]]] = {}
        """What a run at a machine does with its id before it returns; default nothing."""
        self.runs: list[Run] = []

    def __call__(self, machine: int) -> tuple[Service, ...]:
        if machine not in self.machines:
            return ()
        service = Service("work", version="1")

        @service.rpc
        async def once(id: int) -> tuple[int, int]:
            return await self._run(machine, id)

        @service.rpc(idempotent=True)
        async def again(id: int) -> tuple[int, int]:
            return await self._run(machine, id)

        return (service,)

    async def _run(self, machine: int, id: int) -> tuple[int, int]:
        run = Run(machine, id, current_call(), trio.current_time())
        self.runs.append(run)
        try:
            if machine in self.does:
                await self.does[machine](id)
        finally:
            run.ended = trio.current_time()
        return machine, id

    def of(self, *ids: int) -> list[Run]:
        """Return the runs of these ids, in order of their beginning."""
        return [run for run in self.runs if run.id in ids]

    async def known(self, cluster: Cluster) -> None:
        """Wait until all running nodes are one cluster, are ready, and see all instances."""
        await cluster.ready()
        for node in cluster.nodes:
            await node.wait_ready(30.0)
        await cluster.wait_until(lambda: self._is_known(cluster), 10.0, "all instances are known")

    def _is_known(self, cluster: Cluster) -> bool:
        serving = {f"n{m}" for m in self.machines if cluster.machines[m].running}
        return all(names(cluster, m.number) == serving for m in cluster.machines if m.running)


def names(cluster: Cluster, machine: int, service: str = "work") -> set[str]:
    """Return the names of the nodes that serve it, as one node sees them."""
    return {instance.name for instance in cluster[machine].discovery.instances(service)}


async def refuse(id: int) -> None:
    """Have done nothing."""
    raise UnavailableError(f"nothing done of {id}", reason="taken")


async def doubt(id: int) -> None:
    """Have done something, perhaps."""
    raise UncertainError(f"perhaps done: {id}", reason="connection_lost")


async def hang(id: int) -> None:
    """Never end."""
    await trio.sleep_forever()


async def rest(id: int) -> None:
    """Take a tenth of a second."""
    await trio.sleep(0.1)


class Calls:
    """What came of calls made at a steady rate."""

    def __init__(self) -> None:
        self.took: list[float] = []
        """Of those that were answered [s]."""
        self.begun: list[float] = []
        """World time, of those that were answered [s]."""
        self.errors: list[tuple[float, int, MicroosError]] = []
        """(world time, machine of the caller, what it raised)."""

    async def make(
        self,
        cluster: Cluster,
        callers: Callable[[], Iterable[int]],
        *,
        rate: float,
        until: trio.Event,
        timeout: float = 5.0,
    ) -> None:
        """Call `work.again` from these machines in turn until told; each answer is its own call's.

        Args:
            callers: Asked before each call.
            rate: Calls begun per second, whether or not others have ended.
        """
        number = 0
        async with trio.open_nursery() as nursery:
            while not until.is_set():
                able = list(callers())
                nursery.start_soon(self._one, cluster, able[number % len(able)], number, timeout)
                number += 1
                await cluster.sleep(1.0 / rate)

    async def _one(self, cluster: Cluster, caller: int, id: int, timeout: float) -> None:
        begun = cluster.now
        try:
            _, answered = await cluster[caller].call(AGAIN, id, timeout=timeout)
        except MicroosError as error:
            self.errors.append((begun, caller, error))
        else:
            assert answered == id
            self.begun.append(begun)
            self.took.append(cluster.now - begun)
