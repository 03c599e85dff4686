"""Who was held to be dead is not forgotten, as whole nodes note it.

Invariant `gossip.forgotten`: who holds a member to be dead knows it again when it returns,
as `Refuted` or `Restarted`, and never meets it as a stranger that has `Joined`, before half
of the tombstone's time is over. A dead member that is forgotten too early comes back by old
news, over and over, and nobody calls it after a split has healed.
"""

from __future__ import annotations

from microos.gossip.notes import Died, Joined, Left, Refuted, Restarted
from microos.sim.world import SECOND, World
from microos.types import NodeId


class MembershipChecker:
    """The invariants of one world.

    Args:
        lifetime: Of a tombstone [s].
    """

    def __init__(self, world: World, lifetime: float) -> None:
        self._world = world
        self._lifetime = int(lifetime * SECOND)
        self._dead: dict[tuple[str, int, NodeId], int] = {}
        """(who, its boot, whom it holds to be dead): since when [ns]."""

    def noted(self, name: str, boot: int, note: object) -> None:
        """Look at one note of one process."""
        match note:
            case Died(node):
                self._dead[name, boot, node] = self._world.now
            case Refuted(node) | Restarted(node) | Left(node):
                self._dead.pop((name, boot, node), None)
            case Joined(node):
                since = self._dead.pop((name, boot, node), None)
                # Half: clocks drift, and news of a death may have been on its way for long.
                if since is not None and self._world.now - since < self._lifetime // 2:
                    self._world.fail(
                        "safety",
                        "gossip.forgotten",
                        f"{name} held {node} to be dead and meets it as a stranger",
                    )
