"""What has been committed goes to the machines: handed out in order, and counted back.

    log   1 … applied … handed … commit … last
                   └ under way ┘  └ waits: not durable here, or too much at once

Source: the rules are those of etcd-io/raft, log.go.
"""

from __future__ import annotations

from microos.raft.entry import Entry, Kind
from microos.raft.log import Log, size_of
from microos.types import Index


class Applying:
    """How far one member's machines have come, and what is on its way to them."""

    def __init__(self, log: Log, *, applied: Index, bytes_max: int) -> None:
        """Begin with nothing on its way.

        Args:
            log: The member's.
            applied: What the machines have applied.
            bytes_max: So much may be on its way; a single larger entry goes alone.
        """
        self._log = log
        self._bytes_max = bytes_max
        self._bytes = 0
        self.applied = applied
        self.handed = applied
        """Last index handed out to be applied."""

    def hand_out(self, commit: Index) -> tuple[Entry, ...]:
        """Return what may be applied: committed, durable here, and not too much at once."""
        high = min(commit, self._log.stable)
        free = self._bytes_max - self._bytes
        if self._log.pending is not None or high <= self.handed or free <= 0:
            return ()
        entries = self._log.slice(Index(self.handed + 1), high, bytes_max=free)
        # A single entry larger than the bound goes when nothing else is on its way.
        if self._bytes and size_of(entries[0]) > free:
            return ()
        self.handed = entries[-1].index
        self._bytes += sum(map(size_of, entries))
        return entries

    def done(self, index: Index) -> list[Entry]:
        """Take note that everything up to `index` is applied; return the configurations in it."""
        assert self.applied < index <= self.handed
        # A snapshot received meanwhile may have replaced the log beneath them.
        low = max(Index(self.applied + 1), self._log.first_index)
        self.applied = index
        configurations: list[Entry] = []
        for entry in self._log.slice(low, index) if low <= index else ():
            self._bytes -= size_of(entry)
            if entry.kind == Kind.CONFIGURATION:
                configurations.append(entry)
        return configurations

    def replaced(self) -> None:
        """Take note that a received snapshot has replaced the log: its entries are gone."""
        self._bytes = 0

    def restored(self, index: Index) -> None:
        """Take note that the machines stand at a received snapshot."""
        if index > self.applied:
            self.applied = index
            self.handed = max(self.handed, index)

    def has_configuration(self, commit: Index) -> bool:
        """Return whether a configuration is committed and not applied."""
        if self.applied == commit:
            return False
        unapplied = self._log.slice(Index(self.applied + 1), commit)
        return any(entry.kind == Kind.CONFIGURATION for entry in unapplied)

    def check(self, commit: Index) -> None:
        assert self.applied <= self.handed <= commit
        if self._log.pending is None:
            assert self._log.first_index <= self.applied + 1
            assert self.handed <= self._log.stable
