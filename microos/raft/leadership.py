"""What only a leader does: it takes in proposals, is heard by all, and lets another lead.

    propose, change ──▶ log ──▶ followers (replication.py)
    heartbeats      ──▶ all, at each interval
    quorum check    ──▶ majorities were heard within E/2, or it stops leading
    transfer        ──▶ the target catches up, and is told to stand at once

Source: Ongaro, dissertation, §3.6.2, §3.10, §4.3, §6.2; etcd-io/raft, raft.go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from microos.codec import encode
from microos.raft import configuration as configurations
from microos.raft.entry import Change, Configuration, Entry, Kind
from microos.raft.log import Log
from microos.raft.messages import Heartbeat
from microos.raft.notes import Note
from microos.raft.proposal import Dropped, Proposed, Refused
from microos.raft.replication import Replication
from microos.settings import RaftSettings
from microos.types import Index, NodeId, Term


class Leadership:
    """What only a leader has, from its election to its end."""

    def __init__(
        self,
        id: NodeId,
        log: Log,
        configuration: Configuration,
        *,
        term: Term,
        settings: RaftSettings,
        notes: list[Note],
        now: float,
    ) -> None:
        self._id = id
        self._log = log
        self._term = term
        self._settings = settings
        self._elected = now
        self._time = log.last_time
        self.replication = Replication(
            id, log, configuration, term=term, settings=settings, notes=notes
        )
        self.heartbeat_deadline = now + settings.heartbeat_interval
        self.quorum_deadline = now + settings.election_timeout_max / 2
        self.transferee: NodeId | None = None
        self.pending_change = log.last_index
        """No change of the configuration before this index is applied."""
        self.uncommitted_bytes = 0

    # The log.

    def begin(self, now: float) -> None:
        """Append an entry of the own term, so that earlier ones can be committed (§3.6.2)."""
        self._append(Kind.EMPTY, [b""], now)

    def propose(self, data: Sequence[bytes], now: float) -> Proposed | Dropped:
        """Append commands, unless too much is uncommitted or another is to lead."""
        if self.transferee is not None:
            return Dropped("transfer", self.transferee)
        size = sum(map(len, data))
        # One batch always fits, or a bound below its size would refuse it for ever.
        if self.uncommitted_bytes and (
            self.uncommitted_bytes + size > self._settings.uncommitted_bytes_max
        ):
            return Dropped("uncommitted", self._id)
        return self._append(Kind.COMMAND, data, now)

    def change(
        self, change: Change, configuration: Configuration, *, applied: Index, now: float
    ) -> Proposed | Dropped | Refused:
        """Append what `change` makes of `configuration`; one change at a time.

        Args:
            change: As wanted.
            configuration: As applied.
            applied: What the machines have applied.
            now: Own clock [s].
        """
        if self.transferee is not None:
            return Dropped("transfer", self.transferee)
        if applied < self.pending_change:
            return Refused("pending")
        refusal = configurations.refusal(configuration, change)
        if refusal:
            return Refused(refusal)
        return self._append_configuration(configurations.changed(configuration, change), now)

    def leave_joint(self, configuration: Configuration, *, applied: Index, now: float) -> None:
        """Append the end of a joint change that is applied, if there is one."""
        if configurations.is_joint(configuration) and applied >= self.pending_change:
            self._append_configuration(configurations.left(configuration), now)

    def _append_configuration(self, configuration: Configuration, now: float) -> Proposed:
        self.pending_change = Index(self._log.last_index + 1)
        return self._append(Kind.CONFIGURATION, [encode(configuration)], now)

    def _append(self, kind: Kind, data: Sequence[bytes], now: float) -> Proposed:
        time = max(self._log_time(now), self._log.last_time)
        first = Index(self._log.last_index + 1)
        self._log.append(
            [
                Entry(self._term, Index(first + at), time, int(kind), each)
                for at, each in enumerate(data)
            ]
        )
        self.uncommitted_bytes += sum(map(len, data))
        self.replication.want_all()
        return Proposed(self._term, first, self._log.last_index)

    def _log_time(self, now: float) -> int:
        """Return the time to stamp entries with [µs]: the log's own, driven by our clock."""
        return self._time + int(max(0.0, now - self._elected) * 1e6)

    # Being heard, and hearing.

    def heartbeats(self, commit: Index, round: int, now: float) -> list[tuple[NodeId, Heartbeat]]:
        """Return a heartbeat for everybody else, and set the time of the next.

        Args:
            commit: Own commit index.
            round: Number of the newest round of reads.
            now: Own clock [s].
        """
        self._next_heartbeat(now)
        return [
            # Beyond what it has acknowledged it may hold entries that are not ours.
            (node, Heartbeat(self._term, min(progress.match, commit), round))
            for node, progress in self.replication.progress.items()
            if node != self._id
        ]

    def _next_heartbeat(self, now: float, *, at_most: float = math.inf) -> None:
        """Set the time of the next heartbeat; who is alone has no need to wake its host often."""
        alone = len(self.replication.progress) == 1
        wait = self._settings.election_timeout_max / 2 if alone else 0.0
        wait = max(wait, self._settings.heartbeat_interval)
        self.heartbeat_deadline = min(at_most, now + wait)

    def has_quorum(self, configuration: Configuration, *, late: float, now: float) -> bool:
        """Return False if it is time to look and majorities were not heard; give up a transfer.

        Args:
            configuration: As applied.
            late: How long we were away [s].
            now: Own clock [s].
        """
        # While we were away answers could not be asked for, nor heard.
        self.quorum_deadline += late
        if now < self.quorum_deadline:
            return True
        self.quorum_deadline = now + self._settings.election_timeout_max / 2
        heard = self.replication.hears_quorum(configuration)
        if self._settings.check_quorum and not heard:
            return False
        self.transferee = None
        return True

    # Who leads next, and who takes part.

    def start_transfer(self, to: NodeId, configuration: Configuration, now: float) -> bool:
        """Take no more proposals and bring `to` up to date; return whether it may stand now."""
        if to in (self._id, self.transferee):
            return False
        if not configurations.is_voter(configuration, to):
            return False
        self.transferee = to
        self.quorum_deadline = now + self._settings.election_timeout_max / 2
        if self.replication.has_everything(to):
            return True
        self.replication.want(to, empty=True)
        return False

    def switch(self, configuration: Configuration, now: float) -> None:
        """Follow a change of the configuration."""
        self.replication.switch(configuration, active=True)
        if self.transferee is not None and not configurations.is_voter(
            configuration, self.transferee
        ):
            self.transferee = None
        self._next_heartbeat(now, at_most=self.heartbeat_deadline)

    def check(self, configuration: Configuration) -> None:
        self.replication.check(configuration)
        assert self._log.last_term == self._term
        assert self._log.pending is None
