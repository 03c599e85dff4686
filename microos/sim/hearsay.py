"""Who is up, as members believe it in worlds of layer `cores` without gossip: late, and wrong.

Every observer looks at every other now and then. Whom it cannot reach it holds to be suspect
after a while, then dead; now and then it holds somebody to be dead for no reason at all. A
restart is noticed with the next look. In the quiet tail nothing is believed without reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from microos.ring.planner import View
from microos.sim.host import Host
from microos.sim.world import SECOND, World
from microos.types import BootId, Incarnation

LOOK_EVERY = SECOND // 4
PPM = 1_000_000


def boot_of(host: Host) -> BootId:
    """Return the boot id of the process that runs on a host, or ran last."""
    return BootId(host.number + 1 << 32 | host.boot)


class _Belief:
    __slots__ = ("boot", "heard_ns", "since", "state")

    def __init__(self) -> None:
        self.boot = 0
        self.state = ""
        self.since = 0.0
        self.heard_ns = 0


class Hearsay:
    """What everybody believes of everybody.

    Args:
        dead_after_ns: Who is silent for so long is dead [ns].
        wrong_ppm: Chance of a wrong belief with each look.
        is_quiet: Whether the quiet tail has begun.
    """

    def __init__(
        self,
        world: World,
        hosts: Sequence[Host],
        *,
        dead_after_ns: int,
        wrong_ppm: int,
        is_quiet: Callable[[], bool],
    ) -> None:
        self._world = world
        self._hosts = hosts
        self._dead_after = dead_after_ns
        self._wrong = wrong_ppm
        self._is_quiet = is_quiet
        self._chance = world.random("hearsay")
        self._beliefs: dict[tuple[int, int], _Belief] = {}
        world.after(LOOK_EVERY, self._look)

    def forget(self, number: int) -> None:
        """A new process of this number begins with what it sees at once."""
        for other in self._hosts:
            self._beliefs[number, other.number] = _Belief()
            self._look_at(self._hosts[number], other)

    def views(self, number: int) -> tuple[View, ...]:
        """Return what one observer believes of all it has ever seen."""
        found = []
        for host in self._hosts:
            belief = self._beliefs.get((number, host.number))
            if belief is not None and belief.state:
                boot, incarnation = BootId(belief.boot), Incarnation(belief.boot & 0xFFFF)
                found.append(
                    View(host.id, boot, incarnation, belief.state, belief.since)  # type: ignore[arg-type]
                )
        return tuple(found)

    def _look(self) -> None:
        for observer in self._hosts:
            if not observer.gate.dead and not observer.gate.paused:
                for other in self._hosts:
                    self._look_at(observer, other)
        self._world.after(LOOK_EVERY, self._look)

    def _look_at(self, observer: Host, other: Host) -> None:
        belief = self._beliefs[observer.number, other.number]
        if self._can_hear(observer, other):
            belief.heard_ns = self._world.now
            belief.boot = boot_of(other)
            state = "alive"
            if observer is not other and self._wrong and not self._is_quiet():
                state = "dead" if self._chance.randrange(PPM) < self._wrong else "alive"
        elif not belief.state:
            return
        else:
            silent = self._world.now - belief.heard_ns
            if silent >= self._dead_after:
                state = "dead"
            else:
                state = "suspect" if 4 * silent >= self._dead_after else belief.state
        if state != belief.state:
            belief.state, belief.since = state, observer.line.now()

    def _can_hear(self, observer: Host, other: Host) -> bool:
        if observer is other:
            return True
        network = observer.cluster.network
        cut = network.is_cut(observer.name, other.name) or network.is_cut(other.name, observer.name)
        return not (cut or other.gate.dead or other.gate.paused)
