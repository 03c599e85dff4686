"""What must hold of whole nodes: one log, one history, one owner.

The world looks into the nodes, since it owns them: with each `Committed` note it reads
the entries behind it. The first node to commit an index decides it; an oracle applies it
at that instant; every node has to agree.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from microos._open import Node
from microos.config.machine import NUMBER as CONFIG
from microos.config.machine import ConfigMachine
from microos.config.messages import Changed
from microos.raft.composite import Machines
from microos.raft.core import Raft
from microos.raft.entry import Entry, SnapshotMark
from microos.raft.notes import BecameLeader, Committed
from microos.sim.process import Process
from microos.sim.workload import Holding, Operation
from microos.sim.world import World
from microos.sync.machine import NUMBER as SYNC
from microos.sync.machine import LockMachine
from microos.sync.messages import Grant
from microos.types import Index, Term, unpacked


def raft_of(node: Node) -> Raft | None:
    """Return the core of a node, None before it takes part."""
    consensus = node._lifecycle._consensus
    return None if consensus is None else consensus._raft


class NodesChecker:
    """The invariants of one world of nodes."""

    def __init__(self, world: World, holdings: Callable[[], list[Holding]]) -> None:
        self._world = world
        self._holdings = holdings
        self.oracle: Machines | None = None
        self.committed: dict[Index, Entry] = {}
        self.last_index = Index(0)
        self._founding: SnapshotMark | None = None
        self._leaders: dict[Term, str] = {}
        self._clusters: dict[str, None] = {}
        self._digests: dict[Index, int] = {}
        self._written: dict[str, tuple[Index, int]] = {}
        """Each value: where it was written, and the version it made."""
        self._versions: dict[str, list[tuple[Index, int, str]]] = {}
        self._tokens: dict[str, int] = {}

    def _fail(self, kind: str, invariant: str, detail: str) -> None:
        self._world.fail(kind, invariant, detail)

    # As it happens.

    def noted(self, process: Process, node: Node, source: str, note: object) -> None:
        if source == "node" and type(note).__name__ == "Founded":
            self._clusters[getattr(note, "cluster", "")] = None
            if len(self._clusters) > 1:
                self._fail("safety", "founding.two_clusters", ", ".join(self._clusters))
        raft = raft_of(node)
        if raft is None or source != "raft":
            return
        if isinstance(note, BecameLeader):
            self._elected(process.name, raft, note.term)
        elif isinstance(note, Committed):
            self._follow(process.name, node, raft, note.index)

    def _elected(self, name: str, raft: Raft, term: Term) -> None:
        before = self._leaders.setdefault(term, name)
        if before != name:
            self._fail("safety", "raft.two_leaders", f"term {term}: {before} and {name}")
        last = self.last_index
        if last in self.committed and raft.log.first_index <= last:
            wanted, found = self.committed[last].term, raft.log.term(last)
            if wanted != found:
                self._fail(
                    "safety",
                    "raft.leader_completeness",
                    f"{name} leads term {term} without ({last}, {wanted}): {found}",
                )

    def _follow(self, name: str, node: Node, raft: Raft, commit: Index) -> None:
        first = max(raft.log.first_index, self._checked(name) + 1)
        if self.oracle is None:
            self._found(node)
        for entry in raft.log.slice(Index(first), commit) if first <= commit else ():
            known = self.committed.get(entry.index)
            if known is None:
                self._commit(name, entry)
            elif known != entry:
                self._fail("safety", "raft.state_machine", f"{name}: {entry}, others: {known}")
        self._seen[name] = commit

    def _checked(self, name: str) -> int:
        return self._seen.get(name, 0)

    def _found(self, node: Node) -> None:
        """Begin the oracle as the founders begin: with the snapshot of the founding."""
        cluster = node._lifecycle._founded
        assert cluster is not None
        mark = cluster.mark()
        self.oracle = Machines(cluster.epoch, (LockMachine(), ConfigMachine()))
        self.oracle.begin(mark)
        self.last_index = mark.index

    def _commit(self, name: str, entry: Entry) -> None:
        if entry.index != self.last_index + 1:
            self._fail("safety", "raft.gap", f"{name}: {entry.index} after {self.last_index}")
            return
        assert self.oracle is not None
        self.committed[entry.index] = entry
        self.last_index = entry.index
        done = self.oracle.apply(entry)
        self._digests[entry.index] = self.oracle.digest()
        for machine, event in done.events:
            if machine == CONFIG and isinstance(event, Changed):
                self._changed(entry.index, event)
            elif machine == SYNC and isinstance(event, Grant):
                self._granted(event)
