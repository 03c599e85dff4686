"""The log as one member holds it in memory, and how much of it storage has.

             offset          stable           handed          last
    ──────────┤├───────────────┤├───────────────┤├──────────────┤
    forgotten  durable           written, not     not yet handed
                                 known durable    to storage

Everything from `offset + 1` on is in memory. What lies before is covered by the
snapshot at `mark`, which may reach further than `offset`: entries behind it are
kept for slow followers. A snapshot received from the leader replaces everything
and is `pending` until storage has it and the machines are restored from it.

Two logs that hold an entry with the same index and term are equal up to it (log
matching, dissertation §3.5): every comparison here rests on that.

Source: Ongaro, dissertation, §3.5; etcd-io/raft, log.go and log_unstable.go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from microos.raft.entry import Entry, SnapshotMark
from microos.types import Index, Term

ENTRY_OVERHEAD = 32
"""Counted for each entry beside its data, where bytes are bounded; about what it takes."""


class Log:
    """Entries from the snapshot to the last. Whoever recovers hands in what is durable."""

    def __init__(self, entries: Sequence[Entry] = (), mark: SnapshotMark | None = None) -> None:
        """Begin with what recovery has found: all of it durable.

        Args:
            entries: Without gaps. May begin before `mark`, then one entry serves as
                the memory of what precedes the rest; must not begin after `mark.index + 1`.
            mark: The newest snapshot; entries that disagree with it are not taken over.
        """
        kept = list(entries)
        before = (Index(0), Term(0), 0)
        if mark is not None:
            at = mark.index - kept[0].index if kept else 0
            if kept and at == -1:
                before = (mark.index, mark.term, mark.time)
            elif 0 <= at < len(kept) and kept[at].term == mark.term:
                if kept[0].index > 1:
                    first = kept.pop(0)
                    before = (first.index, first.term, first.time)
            else:
                assert at >= 0, "entries between the snapshot and the log are missing"
                kept, before = [], (mark.index, mark.term, mark.time)

        self.mark = mark
        self.pending: SnapshotMark | None = None
        self._offset, self._offset_term, self._offset_time = before
        self._entries: list[Entry] = []
        self._extend(kept)
        self.stable = self.handed = self.last_index
        self._pending_handed = True

    # What is in it.

    @property
    def first_index(self) -> Index:
        """Index of the oldest entry in memory, or of the next one if there is none."""
        return Index(self._offset + 1)

    @property
    def last_index(self) -> Index:
        return Index(self._offset + len(self._entries))

    @property
    def last_term(self) -> Term:
        return self._entries[-1].term if self._entries else self._offset_term

    @property
    def last_time(self) -> int:
        """Log time of the last entry [µs]."""
        return self._entries[-1].time if self._entries else self._offset_time

    def term(self, index: Index) -> Term | None:
        """Return the term of the entry at `index`; None if forgotten or not there."""
        if index == self._offset:
            return self._offset_term
        if self._offset < index <= self.last_index:
            return self._entries[index - self._offset - 1].term
        return None

    def slice(
        self, low: Index, high: Index, *, bytes_max: int = 1 << 62, count_max: int = 1 << 62
    ) -> tuple[Entry, ...]:
        """Return entries `low..high`, both included, within bounds, the first in any case.

        Cost:
            O(entries returned).
        """
        assert self._offset < low
        assert high <= self.last_index
        found: list[Entry] = []
        size = 0
        for at in range(low - self._offset - 1, high - self._offset):
            entry = self._entries[at]
            size += size_of(entry)
            if found and (size > bytes_max or len(found) >= count_max):
                break
            found.append(entry)
        return tuple(found)

    def newest_not_above(self, index: Index, term: Term) -> tuple[Index, Term]:
        """Return the last (index, term) at or before `index` whose term is at most `term`.

        Where two logs differ, one probe per term finds the place (dissertation
        §3.5, end; etcd's `findConflictByTerm`). Term 0: forgotten, nothing is known.

        Cost:
            O(log entries): terms never fall along a log.
        """
        index = min(index, self.last_index)
        if index < self._offset:
            return index, Term(0)
        count = bisect_right(
            self._entries, term, hi=index - self._offset, key=lambda entry: entry.term
        )
        if count:
            return Index(self._offset + count), self._entries[count - 1].term
        if self._offset_term <= term:
            return Index(self._offset), self._offset_term
        return Index(max(0, self._offset - 1)), Term(0)

    def is_at_least(self, last_index: Index, last_term: Term) -> bool:
        """Return whether a log that ends there is at least as new as this one (§3.6.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    # What changes it.

    def append(self, entries: Sequence[Entry]) -> None:
        """Add at the end: the leader's way."""
        self._extend(entries)

    def merge(self, entries: Sequence[Entry], commit: Index) -> Index | None:
        """Take over entries that follow one we have: the follower's way.

        Only a real conflict cuts, so that a late or repeated message never cuts
        off what a newer one has brought (§3.5; the bug is common).

        Args:
            entries: Without gaps; the one before the first is in this log.
            commit: Own commit index; a conflict at or below it cannot be.

        Returns:
            Index of the first entry cut off; None if nothing was.
        """
        for at, entry in enumerate(entries):
            own = self.term(entry.index)
            if own == entry.term:
                continue
            cut = None
            if own is not None:
                assert entry.index > commit, f"entry {entry.index} is committed and contradicted"
                cut = self._truncate(entry.index)
            self._extend(entries[at:])
            return cut
        return None

    def restore(self, mark: SnapshotMark) -> None:
        """Forget everything; the log now begins behind a snapshot that is yet to be stored."""
        self._entries.clear()
        self._offset, self._offset_term, self._offset_time = mark.index, mark.term, mark.time
        self.mark = self.pending = mark
        self.stable = self.handed = mark.index
        self._pending_handed = False

    def compact(self, mark: SnapshotMark, first: Index) -> bool:
        """Forget entries before `first`, covered by `mark`; return whether any was forgotten."""
        assert first <= mark.index + 1
        if self.mark is not None and mark.index < self.mark.index:
            return False
        self.mark = mark
        if first <= self.first_index:
            return False
        assert first - 1 <= self.stable
        before = self._entries[first - self._offset - 2]
        del self._entries[: first - self._offset - 1]
        self._offset, self._offset_term, self._offset_time = before.index, before.term, before.time
        return True

    # What storage has.

    def hand_out(self) -> tuple[tuple[Entry, ...], SnapshotMark | None]:
        """Return what storage has not been given yet, and count it as given."""
        entries = tuple(self._entries[self.handed - self._offset :])
        snapshot = None if self._pending_handed else self.pending
        self.handed = self.last_index
        self._pending_handed = True
        return entries, snapshot

    def persisted(self, index: Index, term: Term) -> None:
        """Count everything up to the entry (index, term) as durable, if it is still ours."""
        if index > self.stable and self.term(index) == term:
            assert index <= self.handed
            self.stable = index

    def restored(self, index: Index) -> bool:
        """Take note that the snapshot at `index` is stored; return whether it was awaited."""
        if self.pending is None or self.pending.index != index:
            return False
        self.pending = None
        return True

    def check(self) -> None:
        """Assert what must hold between the parts. Cost: O(1); each append asserts its own."""
        assert self._offset <= self.stable <= self.handed <= self.last_index
        assert (self._offset == 0) == (self._offset_term == 0)
        if self._offset:
            assert self.mark is not None
            assert self._offset <= self.mark.index
        if self._entries:
            assert self._entries[0].index == self._offset + 1
            assert self._entries[-1].index == self.last_index

    def _extend(self, entries: Sequence[Entry]) -> None:
        term, index = self.last_term, self.last_index
        for entry in entries:
            assert entry.index == index + 1, "a log has no gaps"
            assert entry.term >= max(term, 1), "terms never fall along a log"
            term, index = entry.term, entry.index
        self._entries.extend(entries)

    def _truncate(self, index: Index) -> Index:
        del self._entries[index - self._offset - 1 :]
        self.stable = min(self.stable, Index(index - 1))
        self.handed = min(self.handed, Index(index - 1))
        return index


def size_of(entry: Entry) -> int:
    """Return what `entry` counts where bytes are bounded."""
    return len(entry.data) + ENTRY_OVERHEAD
