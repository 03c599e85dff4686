"""One boot of one node on trio: its cancel scope, its gate, its clock, its sockets, its chance."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from random import Random

import trio

from microos.net.memory import MemoryHost, MemoryNetwork
from microos.sim.clock import Line, NodeClock
from microos.sim.gate import Gate
from microos.sim.world import SECOND, World

GRACE = 10 * SECOND
"""Within this time of a crash every task of the process must have ended [ns]."""


class Process:
    """From start to crash, or orderly end.

    Args:
        name: Of the node; the boot is told apart by `boot`.
        boot: 1 for the first.
    """

    def __init__(
        self, world: World, name: str, boot: int, *, line: Line, hub: MemoryNetwork, ip: str
    ) -> None:
        self.world = world
        self.name = name
        self.boot = boot
        self.ended = False
        self.gate = Gate(world)
        self.clock = NodeClock(line, self.gate.timer)
        self.network: MemoryHost = hub.host(name, ip=ip, gate=self.gate)
        self._scope = trio.CancelScope()
        self._streams: dict[str, Random] = {}
        self._entropy = self.random("entropy")

    def random(self, consumer: str) -> Random:
        """Return the stream of chance of one consumer of this boot: one, however often asked."""
        stream = self._streams.get(consumer)
        if stream is None:
            stream = self.world.random(f"{self.name}/{self.boot}/{consumer}")
            self._streams[consumer] = stream
        return stream

    def entropy(self, size: int) -> bytes:
        return self._entropy.randbytes(size)

    async def run(self, main: Callable[[Process], Awaitable[None]]) -> None:
        """Run the process; an exception that leaves it alive is a failure of the world."""
        try:
            with self._scope:
                await main(self)
        except Exception:
            if not self.gate.dead:
                self.world.fail("exception", self.name, traceback.format_exc())
        finally:
            self.ended = True
            self.crash()

    def crash(self, *, silent: bool = False) -> None:
        """End here and now: nothing it does from now on reaches anybody.

        Args:
            silent: The machine is gone, not the process: nothing refuses or resets.
        """
        if self.gate.dead:
            return
        self.network.crash(silent=silent)
        self.gate.kill()
        self._scope.cancel()
        if not self.ended:
            self.world.after(GRACE, self._check_gone)

    def _check_gone(self) -> None:
        if not self.ended:
            self.world.fail(
                "exception", self.name, f"tasks of boot {self.boot} outlive it by {GRACE} ns"
            )
