"""One machine of whole nodes: what outlives its processes, and how its disk behaves."""

from __future__ import annotations

import errno
from collections.abc import Callable

import trio

from microos._open import Node
from microos.net.memory import MemoryNetwork
from microos.node.runtime import Runtime
from microos.sim.clock import Line
from microos.sim.process import Process
from microos.sim.world import MILLISECOND, World, exponential
from microos.storage.memory import MemoryDisk

PORT = 7946
STALL_STEP = 10 * MILLISECOND


class Machine:
    """Line of time, disk, address; and the process that runs on it now.

    Args:
        sync_ns: Mean time of the disk's sync [ns].
    """

    def __init__(self, world: World, number: int, line: Line, *, sync_ns: int) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number}"
        self.ip = f"10.0.0.{number + 1}"
        self.line = line
        self.sync_ns = sync_ns
        self.platter = MemoryDisk()
        self.boot = 0
        self.process: Process | None = None
        self.node: Node | None = None
        """None until the process of now has opened it."""
        self.stalled = False
        self.sync_fails = False
        self.doomed = False
        """A sync has failed: the process of now will end."""
        self.chance = world.random(f"{self.name}/disk")

    @property
    def running(self) -> bool:
        return self.process is not None and not self.process.ended and not self.process.gate.dead

    def begin(self, hub: MemoryNetwork) -> Process:
        """Return the next process, which is the machine's from now on."""
        self.boot += 1
        self.doomed = False
        self.node = None
        self.process = Process(
            self.world, self.name, self.boot, line=self.line, hub=hub, ip=self.ip
        )
        return self.process

    def runtime(self, process: Process, observe: Callable[[str, object], None]) -> Runtime:
        """Return the world as a node of that process has it."""

        async def before(operation: str, name: str) -> None:
            await self._before(process, operation, name)

        self.platter.before = before
        return Runtime(
            name=self.name,
            clock=process.clock,
            random=process.random,
            entropy=process.entropy,
            network=process.network,
            disk=self.platter.attach(),
            observe=observe,
        )

    async def _before(self, process: Process, operation: str, name: str) -> None:
        """What the disk does before it does what it is asked to."""
        while self.stalled:
            await self._wait(process, STALL_STEP)
        if operation not in ("sync", "syncdir"):
            return
        await self._wait(process, self.sync_time())
        if self.sync_fails:
            self.doomed = True
            raise OSError(errno.EIO, "input/output error", name)
        self.world.trace("sync", self.name, name)

    def sync_time(self) -> int:
        """Return how long the sync will take that begins now [ns]."""
        return self.sync_ns // 4 + exponential(self.chance.getrandbits(64), self.sync_ns)

    async def _wait(self, process: Process, delay: int) -> None:
        lot = trio.lowlevel.ParkingLot()
        self.world.after(delay, lambda: process.gate(lot.unpark_all))
        await lot.park()
