"""What must hold of whole nodes: one log, one history, one owner.

The world looks into the nodes, since it owns them: with each `Committed` note it reads
the entries behind it. The first node to commit an index decides it; an oracle applies it
at that instant; every node has to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from microos._open import Node
from microos.config.machine import NUMBER as CONFIG
from microos.config.machine import ConfigMachine
from microos.config.messages import Changed
from microos.errors import StorageError
from microos.node.ownership import OwnershipMachine
from microos.raft.composite import Machines
from microos.raft.core import Raft
from microos.raft.entry import Entry
from microos.raft.notes import BecameLeader, Committed
from microos.ring.keeper import Keeper
from microos.settings import GossipSettings
from microos.sim.checkers.kv import KvChecker
from microos.sim.checkers.membership import MembershipChecker
from microos.sim.checkers.raft import newest_before
from microos.sim.process import Process
from microos.sim.workload import Holding, Operation
from microos.sim.world import World
from microos.storage.recovery import PREFIX, SUFFIX, recover
from microos.sync.machine import NUMBER as SYNC
from microos.sync.machine import LockMachine
from microos.sync.messages import Grant
from microos.types import Index, Term, unpacked


def raft_of(node: Node) -> Raft | None:
    """Return the core of a node, None before it takes part."""
    consensus = node._lifecycle._consensus
    return None if consensus is None else consensus._raft


def keeper_of(node: Node) -> Keeper | None:
    """Return the store of a node, None before it has one."""
    return node.kv._keeping._keeper


class NodesChecker:
    """The invariants of one world of nodes."""

    def __init__(
        self, world: World, holdings: Callable[[], list[Holding]], gossip: GossipSettings
    ) -> None:
        self._world = world
        self._gossip = MembershipChecker(world, gossip.reconnect_timeout)
        self._holdings = holdings
        self.ring = OwnershipMachine()
        self.kv: KvChecker | None = None
        self.oracle: Machines | None = None
        self.committed: dict[Index, Entry] = {}
        self.last_index = Index(0)
        self._seen: dict[tuple[str, int], Index] = {}
        self._leaders: dict[Term, str] = {}
        self._clusters: dict[str, None] = {}
        self._digests: dict[Index, int] = {}
        self._written: dict[str, tuple[Index, int]] = {}
        """Each value: where it was written, and the version it made."""
        self._documents: dict[tuple[str, int], tuple[str, int]] = {}
        """Each (name, version): the value and the revision."""
        self._tokens: dict[str, int] = {}
        self._grants: dict[tuple[str, int], None] = {}

    def _fail(self, kind: str, invariant: str, detail: str) -> None:
        self._world.fail(kind, invariant, detail)

    # As it happens.

    def noted(self, process: Process, node: Node, source: str, note: object) -> None:
        if source == "node" and type(note).__name__ == "Founded":
            self._clusters[getattr(note, "cluster", "")] = None
            if len(self._clusters) > 1:
                self._fail("safety", "founding.two_clusters", ", ".join(self._clusters))
        if source == "gossip":
            self._gossip.noted(process.name, process.boot, note)
        raft = raft_of(node)
        if raft is None or source != "raft":
            return
        if isinstance(note, BecameLeader):
            self._elected(process.name, raft, note.term)
        elif isinstance(note, Committed):
            self._follow(process, node, raft, note.index)

    def _elected(self, name: str, raft: Raft, term: Term) -> None:
        before = self._leaders.setdefault(term, name)
        if before != name:
            self._fail("safety", "raft.two_leaders", f"term {term}: {before} and {name}")
        last = newest_before(term, self.committed, self.last_index)
        if last in self.committed and raft.log.first_index <= last:
            wanted, found = self.committed[last].term, raft.log.term(last)
            if wanted != found:
                self._fail(
                    "safety",
                    "raft.leader_completeness",
                    f"{name} leads term {term} without ({last}, {wanted}): {found}",
                )

    def _follow(self, process: Process, node: Node, raft: Raft, commit: Index) -> None:
        key = (process.name, process.boot)
        first = max(raft.log.first_index, self._seen.get(key, 0) + 1)
        if self.oracle is None:
            self._begin(node, raft)
        for entry in raft.log.slice(Index(first), commit) if first <= commit else ():
            known = self.committed.get(entry.index)
            if known is None:
                self._commit(process.name, entry)
            elif known != entry:
                detail = f"{process.name}: {entry}, others: {known}"
                self._fail("safety", "raft.state_machine_safety", detail)
        self._seen[key] = commit

    def _begin(self, node: Node, raft: Raft) -> None:
        """Begin the oracle as the founders begin: with the founding as its snapshot."""
        mark = raft.log.mark
        assert mark is not None and mark.index == 1, "the first commit is a founder's"
        identity = node._lifecycle._files.identity
        self.oracle = Machines(identity.epoch, (LockMachine(), ConfigMachine(), self.ring))
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
        if self.kv is not None:
            self.kv.moved(self.ring.state)
        for machine, event in done.events:
            if machine == CONFIG and isinstance(event, Changed):
                self._changed(entry.index, event)
            elif machine == SYNC and isinstance(event, Grant):
                self._granted(event)

    def _changed(self, index: Index, event: Changed) -> None:
        value = "" if event.document is None else str(msgspec.msgpack.decode(event.document))
        if value in self._written:
            self._fail("safety", "exactly_once", f"{value} written again at {index}")
        self._written[value] = (index, event.version)
        self._documents[event.name, event.version] = (value, event.revision)

    def _granted(self, grant: Grant) -> None:
        """Tokens rise; no running owner before it still believes in its own."""
        if grant.token <= self._tokens.get(grant.name, 0):
            self._fail("safety", "sync.token", f"{grant} after {self._tokens[grant.name]}")
        self._tokens[grant.name] = grant.token
        self._grants[grant.name, grant.token] = None
        for holding in self._holdings():
            session = holding.lease._session
            sure = session.deadline > holding.process.clock.now() and not session._ended
            running = not holding.process.gate.dead and not holding.process.gate.paused
            earlier = holding.name == grant.name and holding.lease.token < grant.token
            if earlier and sure and running and not holding.lease._revoked:
                self._fail("safety", "sync.lost_after_grant", f"{holding} beside {grant}")

    def crashed(self, name: str, node: Node, files: Mapping[str, bytes]) -> None:
        """What its storage has told a core to be durable is on the disk after its end.

        Args:
            files: What a restart would read.
        """
        raft = raft_of(node)
        if raft is None or raft.log.pending is not None:
            return
        segments = {f: b for f, b in files.items() if f.startswith(PREFIX) and f.endswith(SUFFIX)}
        try:
            found = recover(segments, node._lifecycle._files.identity)
        except StorageError as error:
            self._fail("safety", "storage.damaged", f"{name}: {error}")
            return
        covered = 0 if found.mark is None else found.mark.index
        terms = {entry.index: entry.term for entry in found.entries}
        for index in range(max(covered + 1, raft.log.first_index), raft.log.stable + 1):
            promised = raft.log.term(Index(index))
            if terms.get(Index(index)) != promised:
                detail = f"{name} has {terms.get(Index(index))} at {index}, promised {promised}"
                self._fail("safety", "storage.entry_lost", detail)
                return
        if covered < raft.log.first_index - 1:
            detail = f"{name} has {covered}, promised {raft.log.first_index - 1}"
            self._fail("safety", "storage.snapshot_lost", detail)
        hard, wanted = found.hard_state, raft._writes.handed
        if not raft._writes.batches and (hard.term, hard.vote) != (wanted.term, wanted.vote):
            self._fail("safety", "storage.vote_lost", f"{name} has {hard}, promised {wanted}")

    # At the end.

    def agrees(self, name: str, node: Node) -> None:
        """A node's state is what the log makes of it."""
        state = node.state()
        if state is not None and self._digests.get(Index(state[0]), state[1]) != state[1]:
            self._fail("safety", "digest", f"{name} differs at {state[0]}")

    def final(self, history: list[Operation]) -> None:
        """Judge the history by the log."""
        placed: list[tuple[Operation, str, int]] = []
        for operation in history:
            if operation.kind == "set":
                self._set(operation, placed)
            elif operation.outcome == "ok" and operation.kind == "read":
                self._read(operation, placed)
            elif operation.token:
                if (operation.name, operation.token) not in self._grants:
                    self._fail("linearizability", "lock.token", f"{operation} is not in the log")
                placed.append((operation, operation.name, operation.token))
        self._real_time(placed)

    def _set(self, operation: Operation, placed: list[tuple[Operation, str, int]]) -> None:
        written = self._written.get(operation.value)
        if operation.outcome == "ok":
            if written is None or written[1] != operation.version:
                self._fail("linearizability", "set.result", f"{operation}, the log: {written}")
                return
            placed.append((operation, operation.name, written[0]))
        elif operation.outcome in ("refused", "unavailable") and written is not None:
            self._fail("linearizability", "set.no_effect", f"{operation}, the log: {written}")

    def _read(self, operation: Operation, placed: list[tuple[Operation, str, int]]) -> None:
        found = self._documents.get((operation.name, operation.version), ("", 0))
        if found != (operation.value, operation.revision):
            self._fail("linearizability", "read.value", f"{operation}, the log: {found}")
        placed.append((operation, operation.name, unpacked(operation.revision)[1]))

    def _real_time(self, placed: list[tuple[Operation, str, int]]) -> None:
        """Per name, nothing stands before what had been answered before it was asked."""
        returned = sorted(
            (o.returned_ns, name, place) for o, name, place in placed if o.returned_ns is not None
        )
        highest: dict[str, int] = {}
        at = 0
        for operation, name, place in sorted(placed, key=lambda p: p[0].called_ns):
            while at < len(returned) and returned[at][0] < operation.called_ns:
                _, other, reached = returned[at]
                highest[other] = max(highest.get(other, 0), reached)
                at += 1
            if place < highest.get(name, 0):
                self._fail(
                    "linearizability",
                    "real_time",
                    f"{operation} stands at {place}, {highest[name]} had been answered before",
                )
