"""One machine of layer `cores`: what outlives its processes, and what a process asks of it."""

from __future__ import annotations

import errno
import traceback
from random import Random
from typing import Protocol

from microos.raft.messages import Snapshot
from microos.sim.clock import Line
from microos.sim.columns import Columns
from microos.sim.errand import Delay
from microos.sim.gate import Gate
from microos.sim.network import SimulatedNetwork
from microos.sim.swarm import Config
from microos.sim.world import MILLISECOND, World, exponential
from microos.storage.memory import MemoryDisk
from microos.types import NodeId

STALL_STEP = 10 * MILLISECOND
SYNC_RARE_FACTOR = 50


def node_id(number: int) -> NodeId:
    """Return the id of the node called `n<number>`."""
    return NodeId(f"{number:032x}")


def node_name(id: NodeId) -> str:
    return f"n{int(id, 16)}"


class Surroundings(Protocol):
    """The cluster, as a host sees it."""

    world: World
    network: SimulatedNetwork
    columns: Columns
    config: Config

    def deliver(self, to: NodeId, data: bytes, sender: NodeId) -> None: ...
    def deliver_snapshot(
        self, to: NodeId, data: bytes, message: Snapshot, sender: NodeId
    ) -> bool: ...
    def is_up(self, node: NodeId) -> bool: ...
    def restart(self, number: int) -> None: ...
    def trigger(self, number: int, point: str) -> None: ...
    def noted(self, host: Host, source: str, what: object) -> None: ...


class Host:
    """A machine with its clock, its disk and its name; processes come and go."""

    def __init__(self, cluster: Surroundings, number: int, line: Line) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.name = f"n{number}"
        self.id = node_id(number)
        self.line = line
        self.platter = MemoryDisk()
        self.platter.before = self._before
        self.gate = Gate(self.world)
        self.gate.dead = True
        self.boot = 0
        self.silent = False
        """The machine is gone, not the process alone: nothing there refuses."""
        self.remembered: object = None
        """What gossip has asked to be kept for the next boot."""
        self.stalled = False
        self.sync_fails = False
        self._doomed = False
        self._disk_chance = self.world.random(f"{self.name}/disk")
        self._crash_chance = self.world.random(f"{self.name}/crash")

    # Processes.

    def start(self) -> None:
        """Begin the next boot."""
        assert self.gate.dead
        self.boot += 1
        self.gate = Gate(self.world)
        self.silent = False
        self._doomed = False
        self.note("process", "Started")

    def crash(self, *, silent: bool = False) -> None:
        """End the process; half of the time the machine loses its power as well."""
        self.silent = silent
        self.note("process", "Crashed")
        self.gate.kill()
        if self._doomed or self._crash_chance.random() < 0.5:
            self.platter.crash(self._crash_chance)
        else:
            self.platter.kill()
        self.sync_fails = False

    def is_running(self, boot: int) -> bool:
        return self.boot == boot and not self.gate.dead

    def random(self, consumer: str) -> Random:
        """Return the stream of chance of one consumer of this boot."""
        return self.world.random(f"{self.name}/{self.boot}/{consumer}")

    # What a process does.

    def note(self, source: str, what: object) -> None:
        self.cluster.columns.add(self.name, self.boot, source, what)
        kind = what.partition(" ")[0] if isinstance(what, str) else type(what).__name__
        self.world.sometimes(f"{source}.{kind}")
        self.world.trace("note", self.name, kind)
        self.cluster.noted(self, source, what)

    def send(self, node: NodeId, data: bytes) -> bool:
        """Send one frame; False if there is no link, because nobody is up there."""
        cluster = self.cluster
        if not cluster.is_up(node):
            return False
        for delay, copy in cluster.network.datagram(self.name, node_name(node), data):
            if copy is data:
                self.world.after(delay, lambda: cluster.deliver(node, data, self.id))
            else:
                self.world.sometimes("net.checksum")  # A frame with a flipped bit is no frame.
        return True

    def distance(self, node: NodeId) -> tuple[int, int] | None:
        """Return the time there and back [ns], None if there is no way now."""
        there = self.cluster.network.segment(self.name, node_name(node))
        back = self.cluster.network.segment(node_name(node), self.name)
        return None if there is None or back is None else (there, back)

    def delay(self, ns: int) -> Delay:
        return Delay(ns)

    def trigger(self, point: str) -> None:
        """Say that something happened at which a crash would be unpleasant."""
        self.cluster.trigger(self.number, point)

    def failed(self, error: Exception) -> None:
        """An exception left the process: the world has failed."""
        text = "".join(traceback.format_exception(error))
        self.world.fail("exception", f"{self.name}.{type(error).__name__}", text)

    # The disk.

    def disk_is_bad(self) -> bool:
        return self._doomed

    async def _before(self, operation: str, name: str) -> None:
        """What the disk does before it does what it is asked to."""
        config = self.cluster.config
        while self.stalled:
            await Delay(STALL_STEP)
        if operation not in ("sync", "syncdir"):
            return
        self.trigger("sync")
        bits = self._disk_chance.getrandbits(64)
        delay = config.sync_ns // 4 + exponential(bits, config.sync_ns)
        if config.sync_rare and bits & 255 == 0:
            delay *= SYNC_RARE_FACTOR
        if self.world.now < config.tail_ns:
            delay = min(delay, config.tail_ns - self.world.now)
        await Delay(delay)
        if self.sync_fails:
            self.sync_fails = False
            self._doomed = True
            raise OSError(errno.EIO, "input/output error", name)
        self.world.trace("sync", self.name, name)
