"""What must hold of a gossip group whose cores the world can look into.

| invariant | how it is seen |
|---|---|
| gossip.incarnation_fell | what one process knows of another's incarnation never falls |
| gossip.accuracy | in the settled quiet tail nobody who runs is declared dead |
| gossip.completeness | who crashed for good is dead, or forgotten, for everyone at the end |
| gossip.views | at the end everyone sees everyone else alive, in the newest boot, with its record |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from microos.gossip.members import State
from microos.gossip.notes import Died
from microos.sim.rumours import Rumour
from microos.sim.world import World
from microos.types import NodeId


class GossipChecker:
    """The checks of one group.

    Args:
        rumours: The members that run now.
    """

    def __init__(self, world: World, rumours: Callable[[], Sequence[Rumour]]) -> None:
        self._world = world
        self._rumours = rumours
        self._known: dict[tuple[NodeId, int, NodeId], int] = {}
        self.settled_ns: int | None = None
        """From when on nobody has a reason to be suspected."""

    def noted(self, name: str, note: object) -> None:
        """Look at one note of one process."""
        if isinstance(note, Died) and self.settled_ns is not None:
            for rumour in self._rumours():
                running = rumour.host.id == note.node and rumour.boot == note.boot
                if running and self._world.now >= self.settled_ns:
                    self._fail("accuracy", f"{name} holds {rumour.host.name} to be dead: {note}")

    def sample(self) -> None:
        """Look at everybody's table: incarnations never fall."""
        for rumour in self._rumours():
            for member in rumour.gossip.members():
                key = (rumour.host.id, rumour.host.boot, member.node)
                before = self._known.get(key, 0)
                if member.incarnation < before:
                    self._fail("incarnation_fell", f"{rumour.host.name}: {before}, now {member}")
                self._known[key] = member.incarnation

    def final(self, gone: Sequence[NodeId]) -> None:
        """Everyone has the same, true view.

        Args:
            gone: Members that crashed for good.
        """
        rumours = self._rumours()
        running = {r.host.id: (r.boot, _record(r), State.ALIVE) for r in rumours}
        for rumour in rumours:
            rumour.gossip.check()
            seen = {m.node: m for m in rumour.gossip.members()}
            for node in gone:
                if node in seen and seen[node].state in (State.ALIVE, State.SUSPECT):
                    detail = f"{rumour.host.name} has {seen[node]}"
                    self._fail("completeness", detail, kind="liveness")
            for node, wanted in running.items():
                member = seen.get(node)
                if member is None or (member.boot, member.record, member.state) != wanted:
                    self._fail("views", f"{rumour.host.name} has {member}", kind="liveness")

    def _fail(self, invariant: str, detail: str, *, kind: str = "safety") -> None:
        self._world.fail(kind, f"gossip.{invariant}", detail)


def _record(rumour: Rumour) -> bytes:
    return next(m.record for m in rumour.gossip.members() if m.node == rumour.host.id)
