"""Faults: what they are, how a plan of them is written down, and how each undoes itself.

Every fault carries its own end (`for_ns`), so any subset of a plan is a plan, and none
outlives the quiet tail. A plan names nodes by number; -1 is whoever leads at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from microos.sim.network import SimulatedNetwork
from microos.sim.world import FAULT, World

LEADER = -1


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """One line of a plan."""

    at_ns: int
    kind: str
    what: dict[str, int | list[int]] = {}

    def number(self, name: str, default: int = 0) -> int:
        value = self.what.get(name, default)
        assert isinstance(value, int)
        return value

    def numbers(self, name: str) -> list[int]:
        value = self.what.get(name, [])
        assert isinstance(value, list)
        return value


class Cluster(Protocol):
    """What faults are done to; both layers have one."""

    world: World
    network: SimulatedNetwork

    def names(self) -> Sequence[str]: ...
    def leader(self) -> int | None: ...
    def crash(self, node: int, *, silent: bool) -> None: ...
    def start(self, node: int) -> None: ...
    def pause(self, node: int) -> None: ...
    def resume(self, node: int) -> None: ...
    def slow(self, node: int, delay: int) -> None: ...
    def disk(self, node: int, kind: str, on: bool) -> None: ...
    def turn_wall(self, node: int, jump: int) -> None: ...
    def transfer(self, to: int) -> None: ...
    def change(self, node: int, number: int) -> None: ...


class Faults:
    """Does a plan to a cluster, and writes down what was really done.

    Args:
        end_ns: The quiet tail begins: nothing starts from here on.
    """

    def __init__(self, cluster: Cluster, end_ns: int, note: Callable[[Fault], None]) -> None:
        self._cluster = cluster
        self._end = end_ns
        self._note = note
        self.done: list[Fault] = []
        """Everything that happened, triggered faults included: a plan by itself."""

    def plan(self, faults: Sequence[Fault]) -> None:
        """Put a plan on the heap."""
        for fault in faults:
            self._cluster.world.at(fault.at_ns, lambda fault=fault: self.do(fault), FAULT)  # type: ignore[misc]

    def trigger(self, fault: Fault) -> None:
        """Do a fault that an event has called for, at its own time, as a line of the plan."""
        self.plan((fault,))

    def do(self, fault: Fault) -> None:
        """Let it begin, and plan its end."""
        if self._cluster.world.now >= self._end:
            return
        self.done.append(fault)
        self._note(fault)
        self._cluster.world.trace("fault", fault.kind, str(fault.what))
        undo = self._begin(fault)
        if undo is not None:
            ends = self._cluster.world.now + fault.number("for_ns")
            self._cluster.world.at(ends, undo, FAULT)

    def _begin(self, fault: Fault) -> Callable[[], None] | None:
        cluster = self._cluster
        node = fault.number("node")
        if node == LEADER:
            found = cluster.leader()
            if found is None:
                return None
            node = found
        match fault.kind:
            case "cut":
                return self._cut([(fault.number("from"), fault.number("to"))])
            case "partition":
                return self._cut(self._between(fault.numbers("side")))
            case "isolate":
                pairs = self._between([node])
                one_way = fault.number("one_way")
                if one_way:
                    pairs = [pair for pair in pairs if pair[one_way - 1] == node]
                return self._cut(pairs)
            case "bridge":
                side = fault.numbers("side")
                return self._cut([p for p in self._between(side) if node not in p])
            case "clog":
                names = cluster.names()
                until = min(self._end, cluster.world.now + fault.number("for_ns"))
                for other in range(len(names)):
                    if other != node:
                        cluster.network.clog(names[node], names[other], until)
                return None
            case "crash":
                cluster.crash(node, silent=bool(fault.number("silent")))
                return lambda: cluster.start(node)
            case "pause":
                cluster.pause(node)
                return lambda: cluster.resume(node)
            case "slow":
                cluster.slow(node, fault.number("delay_ns"))
                return lambda: cluster.slow(node, 0)
            case "stall" | "full":
                cluster.disk(node, fault.kind, True)
                return lambda: cluster.disk(node, fault.kind, False)
            case "sync_error":
                cluster.disk(node, fault.kind, True)
                return None
            case "wall":
                cluster.turn_wall(node, fault.number("jump_ns"))
            case "transfer":
                cluster.transfer(fault.number("to"))
            case "change":
                cluster.change(node, fault.number("number"))
            case _:
                raise ValueError(f"expected a known kind of fault, found {fault.kind!r}")
        return None

    def _between(self, side: Sequence[int]) -> list[tuple[int, int]]:
        others = [n for n in range(len(self._cluster.names())) if n not in side]
        return [pair for a in side for b in others for pair in ((a, b), (b, a))]

    def _cut(self, pairs: Sequence[tuple[int, int]]) -> Callable[[], None]:
        network, names = self._cluster.network, self._cluster.names()
        for a, b in pairs:
            network.cut(names[a], names[b])

        def undo() -> None:
            for a, b in pairs:
                network.mend(names[a], names[b])

        return undo
