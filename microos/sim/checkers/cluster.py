"""What must always hold between the whole nodes of a scenario, looked at with every note.

| invariant | how it is seen |
|---|---|
| raft.one_leader_per_term | each `BecameLeader(term)` names one process of its cluster, ever |
| raft.state_machine_safety | nodes that have applied the same index have the same digest |
| gossip.left_is_not_dead | nobody who left in order is ever noted as dead |
| gossip.forgotten | see `membership.py` |

Terms and indexes mean something within one cluster only, so each is kept with the id
of the cluster that its process has noted as its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from microos._open import Node
from microos.gossip.notes import Died
from microos.node.lifecycle import Founded
from microos.raft.notes import BecameLeader, Committed
from microos.settings import GossipSettings
from microos.sim.checkers.membership import MembershipChecker
from microos.sim.world import World


class Noted(Protocol):
    """A note, as the cluster keeps it."""

    @property
    def node(self) -> int: ...
    @property
    def boot(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def what(self) -> object: ...


class Running(Protocol):
    """A machine, as far as checkers look."""

    number: int
    node: Node | None


class ClusterChecks:
    """The checks of one world of whole nodes."""

    def __init__(self, world: World, gossip: GossipSettings) -> None:
        self._world = world
        self._gossip = MembershipChecker(world, gossip.reconnect_timeout)
        self._cluster: dict[int, str] = {}
        self._leaders: dict[tuple[str, int], tuple[int, int]] = {}
        self._digests: dict[tuple[str, int], tuple[int, int]] = {}
        self._machines: dict[int, Running] = {}
        self.left: dict[str, None] = {}
        """Ids of nodes that have left in order and not come back."""

    def watch(self, machine: Running) -> None:
        """Look at this machine's state from now on."""
        self._machines[machine.number] = machine

    def note(self, note: Noted) -> None:
        """Look at one note, and at the node that made it."""
        if note.source == "gossip":
            self._gossip.noted(f"n{note.node}", note.boot, note.what)
        match note.what:
            case Founded(cluster):
                self._cluster[note.node] = cluster
            case BecameLeader(term):
                self._lead(term, note)
            case Committed():
                self._compare(note.node)
            case Died(node) if node in self.left:
                self._world.fail("safety", "gossip.left_is_not_dead", f"n{note.node}: {node}")

    def _lead(self, term: int, note: Noted) -> None:
        who = (note.node, note.boot)
        other = self._leaders.setdefault((self._cluster[note.node], term), who)
        if other != who:
            self._world.fail(
                "safety",
                "raft.one_leader_per_term",
                f"term {term} is led by n{other[0]} and by n{note.node}",
            )

    def _compare(self, number: int) -> None:
        machine = self._machines.get(number)
        state = machine.node.state() if machine is not None and machine.node is not None else None
        if state is None:
            return
        applied, digest = state
        key = (self._cluster[number], applied)
        other = self._digests.setdefault(key, (number, digest))
        if other[1] != digest:
            self._world.fail(
                "safety",
                "raft.state_machine_safety",
                f"n{number} and n{other[0]} differ at index {applied}",
            )

    def end(self, machines: Iterable[Running]) -> None:
        """Look once more at everybody."""
        for machine in machines:
            self._compare(machine.number)
