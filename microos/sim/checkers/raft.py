"""What must always hold of a raft group (raft.md 12.1), checked at each event in O(1).

The checker stands outside: it sees every batch handed to storage and reported durable,
every message sent, every note, every entry applied, and what each recovery found. The
first member to apply an entry makes it *committed* for good; a second set of machines,
the oracle, applies it at that instant, and every member has to agree with the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from microos.raft.composite import Done, Machines
from microos.raft.core import Raft
from microos.raft.election import Role
from microos.raft.entry import Entry, HardState, Persist, SnapshotMark
from microos.raft.messages import AppendAnswer, Message, Vote, VoteAnswer
from microos.raft.notes import BecameLeader, Committed, Note
from microos.sim.host import Host
from microos.sim.world import World
from microos.storage.wal import Loaded
from microos.types import Index, NodeId, Term

DIGEST_EVERY = 16


class _Durable:
    """What storage has promised one member to have."""

    def __init__(self) -> None:
        self.hard = HardState()
        self.offset = 0
        """Entries up to it are in the snapshot."""
        self.terms: list[Term] = []
        self.pending: list[Persist] = []
        """Handed out, not yet reported: they may be there or not."""

    @property
    def last(self) -> int:
        return self.offset + len(self.terms)

    def term(self, index: int) -> Term | None:
        if self.offset < index <= self.last:
            return self.terms[index - self.offset - 1]
        return None

    def handed_term(self, index: int) -> Term | None:
        """Return the term at `index` once all that was handed out is durable; None: unknown."""
        for batch in reversed(self.pending):
            if batch.entries and index >= batch.entries[0].index:
                at = index - batch.entries[0].index
                return batch.entries[at].term if at < len(batch.entries) else None
            if batch.snapshot is not None:
                return batch.snapshot.term if index == batch.snapshot.index else None
        return self.term(index)

    def take(self, batch: Persist) -> None:
        if batch.snapshot is not None:
            self.offset, self.terms = batch.snapshot.index, []
        if batch.entries:
            first = batch.entries[0].index
            assert first <= self.last + 1
            del self.terms[max(0, first - self.offset - 1) :]
            for entry in batch.entries:
                if entry.index > self.offset:
                    self.terms.append(entry.term)
        if batch.hard_state is not None:
            self.hard = batch.hard_state


class RaftChecker:
    """The invariants of one group over one world.

    Args:
        oracle: Machines that begin as the founders' do.
        told: Called with each entry when it is first applied anywhere, and what it came to.
    """

    def __init__(
        self, world: World, oracle: Machines, told: Callable[[Entry, Done], None] | None = None
    ) -> None:
        self._world = world
        self.oracle = oracle
        self._told = told
        self.committed: dict[Index, Entry] = {}
        """Every entry that any member has applied."""
        self.last_index = Index(0)
        self._dones: dict[Index, Done] = {}
        self._digests: dict[Index, int] = {}
        self._founding: SnapshotMark | None = None
        self._leaders: dict[Term, NodeId] = {}
        self._votes: dict[tuple[NodeId, Term], NodeId] = {}
        self._entries: dict[tuple[Index, Term], tuple[Term, Entry]] = {}
        self._durable: dict[NodeId, _Durable] = {}
        self._terms: dict[NodeId, Term] = {}

    def _fail(self, invariant: str, detail: str) -> None:
        self._world.fail("safety", f"raft.{invariant}", detail)

    def durable_of(self, host: Host) -> _Durable:
        return self._durable.setdefault(host.id, _Durable())

    # Storage.

    def founded(self, host: Host, mark: SnapshotMark, hard: HardState) -> None:
        """A founder's log begins."""
        durable = self.durable_of(host)
        durable.offset, durable.hard = mark.index, hard
        if self._founding is None:
            self._founding = mark
            self.oracle.begin(mark)
            self.last_index = mark.index
            self._digests[mark.index] = self.oracle.digest()
        assert self._founding == mark

    def handed(self, host: Host, batch: Persist) -> None:
        """Log matching (3): an (index, term) names one entry and what precedes it."""
        durable = self.durable_of(host)
        previous = durable.handed_term(batch.entries[0].index - 1) if batch.entries else None
        durable.pending.append(batch)
        for entry in batch.entries:
            if previous is not None:
                key = (entry.index, entry.term)
                known = self._entries.setdefault(key, (previous, entry))
                if known != (previous, entry):
                    self._fail("log_matching", f"{host.name} has {entry} where others {known[1]}")
            previous = entry.term

    def durable(self, host: Host, batch: Persist) -> None:
        """Storage has reported a batch durable."""
        durable = self.durable_of(host)
        assert durable.pending and durable.pending[0] is batch
        durable.pending.pop(0)
        durable.take(batch)

    def compacted(self, host: Host, mark: SnapshotMark) -> None:
        """A snapshot of the member's own covers the log up to `mark`."""
        durable = self.durable_of(host)
        if mark.index > durable.offset:
            del durable.terms[: mark.index - durable.offset]
            durable.offset = mark.index

    def recovered(self, host: Host, found: Loaded) -> None:
        """Nothing that was reported durable is missing after a restart (2, 6, 7, 11)."""
        durable = self.durable_of(host)
        mark = found.mark.index if found.mark is not None else 0
        if mark < durable.offset:
            self._fail("snapshot_lost", f"{host.name} recovered {mark} of {durable.offset}")
        terms = {entry.index: entry.term for entry in found.entries}
        cut = min((b.entries[0].index for b in durable.pending if b.entries), default=None)
        replaced = any(b.snapshot is not None for b in durable.pending)
        for index in range(mark + 1, durable.last + 1):
            if replaced or (cut is not None and index >= cut):
                break
            if terms.get(Index(index)) != durable.term(index):
                self._fail(
                    "entry_lost",
                    f"{host.name} recovered {terms.get(Index(index))} at {index}, "
                    f"promised {durable.term(index)}",
                )
        hard, promised = found.hard_state, durable.hard
        if hard.term < promised.term:
            self._fail("vote_lost", f"{host.name} recovered {hard}, promised {promised}")
        if hard.term == promised.term and promised.vote not in ("", hard.vote):
            self._fail("vote_changed", f"{host.name} recovered {hard}, promised {promised}")
        # From here on what was found is what is durable; a term never promised may be forgotten.
        self._terms[host.id] = hard.term
        durable.pending.clear()
        durable.hard = hard
        durable.offset = mark
        durable.terms = [e.term for e in found.entries if e.index > mark]

    # Messages and notes.

    def sent(self, host: Host, to: NodeId, message: Message) -> None:
        """No answer leaves before what it promises is durable (7), no one votes twice (6)."""
        if to == host.id:
            self._fail("message_to_oneself", f"{host.name} sends {message}")
        if isinstance(message, VoteAnswer) and message.granted:
            self._voted(host, message.term, to)
        elif isinstance(message, Vote):
            self._voted(host, message.term, host.id)
        elif isinstance(message, AppendAnswer) and not message.reject:
            durable = self.durable_of(host)
            if message.index > durable.last:
                self._fail(
                    "durability",
                    f"{host.name} acknowledges {message.index}, durable are {durable.last}",
                )

    def _voted(self, host: Host, term: Term, candidate: NodeId) -> None:
        before = self._votes.setdefault((host.id, term), candidate)
        if before != candidate:
            self._fail("voted_twice", f"{host.name} in term {term}: {before}, then {candidate}")
        hard = self.durable_of(host).hard
        if hard.term < term or (hard.term == term and hard.vote != candidate):
            self._fail("durability", f"{host.name} votes in {term}, durable is {hard}")

    def noted(self, host: Host, raft: Raft, note: Note) -> None:
        if raft.term < self._terms.get(host.id, 0):
            self._fail("term_fell", f"{host.name}: {self._terms[host.id]} to {raft.term}")
        self._terms[host.id] = raft.term
        if isinstance(note, BecameLeader):
            self._elected(host, raft, note.term)
        elif isinstance(note, Committed) and raft.role is Role.LEADER:
            self._on_majorities(raft, note.index)

    def _elected(self, host: Host, raft: Raft, term: Term) -> None:
        """One leader per term (1); it has every committed entry (4)."""
        before = self._leaders.setdefault(term, host.id)
        if before != host.id:
            self._fail("two_leaders", f"term {term}: {before} and {host.id}")
        last = newest_before(term, self.committed, self.last_index)
        if last in self.committed:
            found = raft.log.term(last)
            wanted = self.committed[last].term
            if found != wanted and raft.log.first_index <= last:
                self._fail(
                    "leader_completeness",
                    f"{host.name} leads term {term} without ({last}, {wanted}): {found}",
                )

    def _on_majorities(self, raft: Raft, index: Index) -> None:
        """What a leader commits is on the platters of a majority, of both if joint (7)."""
        term = raft.log.term(index)
        configuration = raft.status().configuration
        for voters in (configuration.voters, configuration.outgoing):
            holders = [n for n in voters if self._holds(n, index, term)]
            if voters and 2 * len(holders) <= len(voters):
                self._fail("durability", f"{index} is committed, durable at {holders} only")

    def _holds(self, node: NodeId, index: Index, term: Term | None) -> bool:
        durable = self._durable.get(node)
        if durable is None:
            return False
        return index <= durable.offset or durable.term(index) == term

    # Applying.

    def applied(self, host: Host, machines: Machines, entry: Entry, done: Done) -> None:
        """All apply the same entry at each index (5), with the same result (21)."""
        known = self.committed.get(entry.index)
        if known is None:
            self._commit(host, entry)
        elif known != entry:
            self._fail("state_machine_safety", f"{host.name} applies {entry}, others {known}")
            return
        if self._dones[entry.index] != done:
            self._fail(
                "machines_differ",
                f"{host.name} at {entry.index}: {done}, others {self._dones[entry.index]}",
            )
        if entry.index % DIGEST_EVERY == 0:
            self._same_digest(host, machines)

    def _commit(self, host: Host, entry: Entry) -> None:
        if entry.index != self.last_index + 1:
            self._fail(
                "gap", f"{host.name} applies {entry.index} first, the last was {self.last_index}"
            )
            return
        self.committed[entry.index] = entry
        self.last_index = entry.index
        done = self.oracle.apply(entry)
        self._dones[entry.index] = done
        if entry.index % DIGEST_EVERY == 0:
            self._digests[entry.index] = self.oracle.digest()
        if self._told is not None:
            self._told(entry, done)

    def restored(self, host: Host, machines: Machines) -> None:
        """A restored snapshot is the state that the log makes (23)."""
        if machines.applied % DIGEST_EVERY == 0:
            self._same_digest(host, machines)

    def _same_digest(self, host: Host, machines: Machines) -> None:
        wanted = self._digests.get(machines.applied)
        if wanted is not None and wanted != machines.digest():
            self._fail("digest", f"{host.name} differs at {machines.applied}")

    def final(self, host: Host, machines: Machines) -> None:
        """At the end of a quiet tail a member that has applied everything equals the oracle."""
        machines.check()
        if machines.applied == self.oracle.applied and machines.digest() != self.oracle.digest():
            self._fail("digest", f"{host.name} differs at the end, {machines.applied}")


def newest_before(term: Term, committed: Mapping[Index, Entry], last: Index) -> Index:
    """Return the newest committed index whose entry is of an earlier term; 0 if there is none.

    A leader owes no more: who wins late, with votes that were long on the way, may find later
    terms led and committed already.
    """
    while last in committed and committed[last].term >= term:
        last = Index(last - 1)
    return last if last in committed else Index(0)
