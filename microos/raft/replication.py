"""How a leader makes its followers' logs equal to its own, and how a follower lets it.

    leader    … 4 5 5 5 6 6 │             previous = where it believes the logs to meet
    follower  … 4 5 5 4 4   │             rejected: "try (4, term 5)", one probe per term

What is to be sent to whom is only marked while messages are taken in, and the
appends are made once per turn: proposals, answers and a moved commit index of one
turn become one message per follower.

An entry is committed when a majority has it *and* it is of the leader's own term;
older ones are committed by what follows them (figure 8 of the paper).

Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm"
(2014), §5.3, §5.4.2; dissertation, §3.5, §3.6.2, §10.2.1; etcd-io/raft, raft.go.
"""

from __future__ import annotations

from microos.raft.configuration import voters
from microos.raft.entry import Configuration, Entry
from microos.raft.log import Log, size_of
from microos.raft.messages import Append, AppendAnswer, Snapshot
from microos.raft.notes import Note, ProbeStarted, SnapshotStarted
from microos.raft.progress import Progress, State, Window
from microos.raft.quorum import Outcome, joint_outcome, joint_reached
from microos.settings import RaftSettings
from microos.types import Index, NodeId, Term


class Replication:
    """All followers of one leader, from its election to its end."""

    def __init__(
        self,
        id: NodeId,
        log: Log,
        configuration: Configuration,
        *,
        term: Term,
        settings: RaftSettings,
        notes: list[Note],
    ) -> None:
        self._id = id
        self._log = log
        self._term = term
        self._settings = settings
        self._notes = notes
        self._wanted: dict[NodeId, bool] = {}
        self._removed: dict[NodeId, Progress] = {}
        self.progress: dict[NodeId, Progress] = {}
        self.switch(configuration, active=False)
        self.acknowledge_own()

    def switch(self, configuration: Configuration, *, active: bool) -> None:
        """Follow a change of the configuration: newcomers are probed, the removed forgotten.

        Who is removed is told the commit index once more: it learns that it may go.

        Args:
            active: Whether newcomers count as heard until the next check of the quorum.
        """
        before, self.progress = self.progress, {}
        for node in configuration.members():
            known = before.get(node)
            if known is None:
                known = Progress(
                    Index(max(self._log.last_index, 1)) if before else self._next(),
                    window=Window(self._settings.inflight_max, self._settings.inflight_bytes_max),
                    active=active,
                )
                self._wanted[node] = True
            self.progress[node] = known
        self._removed |= {n: p for n, p in before.items() if n not in self.progress}
        self._removed.pop(self._id, None)
        self._wanted = {
            node: empty for node, empty in self._wanted.items() if node in self.progress
        }
        self._wanted.pop(self._id, None)

    def _next(self) -> Index:
        return Index(self._log.last_index + 1)

    # Sending.

    def want(self, node: NodeId, *, empty: bool) -> None:
        """Have what `node` lacks sent this turn; with `empty`, an append in any case."""
        if node != self._id:
            self._wanted[node] = self._wanted.get(node, False) or empty

    def want_all(self) -> None:
        for node in self.progress:
            self.want(node, empty=True)

    @property
    def has_wants(self) -> bool:
        """Whether anybody is to be sent anything this turn."""
        return bool(self._wanted)

    def tell_commit(self) -> None:
        """Have the moved commit index sent: at once where nothing is under way.

        Who has entries under way learns of it with its next append, which its answer brings
        about: under load a commit costs no message of its own.
        """
        for node, progress in self.progress.items():
            self.want(node, empty=not len(progress.window))

    def appends(self, commit: Index) -> list[tuple[NodeId, Append | Snapshot]]:
        """Return this turn's messages to followers, and count them as sent."""
        out: list[tuple[NodeId, Append | Snapshot]] = []
        for node, empty in self._wanted.items():
            message = self._next_for(node, commit, empty=empty)
            while message is not None:
                out.append((node, message))
                message = self._next_for(node, commit, empty=False)
        self._wanted.clear()
        for node, progress in self._removed.items():
            previous = Index(progress.next - 1)
            previous_term = self._log.term(previous)
            if previous_term is not None and not progress.is_paused:
                out.append((node, Append(self._term, previous, previous_term, commit, ())))
        self._removed.clear()
        return out

    def _next_for(self, node: NodeId, commit: Index, *, empty: bool) -> Append | Snapshot | None:
        progress = self.progress[node]
        if progress.is_paused:
            return None
        previous = Index(progress.next - 1)
        previous_term = self._log.term(previous)
        if previous_term is None:
            return self._snapshot_for(node, progress)

        entries: tuple[Entry, ...] = ()
        if progress.next <= self._log.last_index and not progress.window.full:
            entries = self._log.slice(
                progress.next,
                self._log.last_index,
                bytes_max=self._settings.append_bytes_max,
                count_max=self._settings.append_entries_max,
            )
        if not entries and not empty:
            return None
        size = sum(map(size_of, entries))
        progress.sent(Index(previous + len(entries)), len(entries), size, commit)
        return Append(self._term, previous, previous_term, commit, entries)

    def _snapshot_for(self, node: NodeId, progress: Progress) -> Snapshot | None:
        mark = self._log.mark
        # Nobody is listening: the data would be sent for nothing.
        if mark is None or not progress.active:
            return None
        progress.become_snapshot(mark.index)
        self._notes.append(SnapshotStarted(node, mark.index))
        return Snapshot(self._term, mark)

    # Answers.

    def answered(self, node: NodeId, answer: AppendAnswer, commit: Index) -> bool:
        """Take in a follower's answer; return whether the commit index may move by it."""
        progress = self.progress.get(node)
        if progress is None:
            return False
        progress.active = True
        if answer.reject:
            self._rejected(node, progress, answer)
            return False
        # What we do not have nobody can have acknowledged.
        if answer.index > self._log.last_index:
            return False
        # An answer to a probe opens replication even if it acknowledges nothing new.
        news = progress.acknowledge(answer.index)
        if not news and not (progress.state is State.PROBE and answer.index == progress.match):
            return False
        if progress.state is State.REPLICATE:
            progress.window.free(answer.index)
            progress.paused = False
        elif progress.state is State.PROBE or progress.match + 1 >= self._log.first_index:
            progress.become_replicate()
        self.want(node, empty=progress.can_move_commit(commit))
        return True

    def _rejected(self, node: NodeId, progress: Progress, answer: AppendAnswer) -> None:
        hint = answer.hint_index
        if answer.hint_term:
            hint, _ = self._log.newest_not_above(hint, answer.hint_term)
        replicated = progress.state is State.REPLICATE
        if progress.reject(answer.index, hint):
            if replicated:
                self._notes.append(ProbeStarted(node, progress.next))
            self.want(node, empty=True)

    def heard(self, node: NodeId) -> None:
        """Take in the answer to a heartbeat."""
        progress = self.progress.get(node)
        if progress is None:
            return
        progress.active = True
        progress.paused = False
        if progress.match < self._log.last_index or progress.state is State.PROBE:
            self.want(node, empty=True)

    def unreachable(self, node: NodeId) -> None:
        """Stop sending ahead to `node`: what is on the way is probably lost."""
        progress = self.progress.get(node)
        if progress is not None and progress.state is State.REPLICATE:
            progress.become_probe()
            self._notes.append(ProbeStarted(node, progress.next))

    def snapshot_sent(self, node: NodeId, ok: bool) -> None:
        """Take note that a transfer has ended; wait for an answer before the next message."""
        progress = self.progress.get(node)
        if progress is None or progress.state is not State.SNAPSHOT:
            return
        if not ok:
            progress.snapshot = Index(0)
        progress.become_probe()
        progress.paused = True
        self._notes.append(ProbeStarted(node, progress.next))

    # What follows from all answers.

    def acknowledge_own(self) -> None:
        """Count the leader itself, as far as its own log is durable and no further."""
        own = self.progress.get(self._id)
        if own is not None:
            own.acknowledge(self._log.stable)

    def committed(self, configuration: Configuration) -> Index | None:
        """Return the largest index that is committed by counting now; None if none is."""
        match = {node: progress.match for node, progress in self.progress.items()}
        index = Index(joint_reached(configuration, match))
        return index if self._log.term(index) == self._term else None

    def hears_quorum(self, configuration: Configuration) -> bool:
        """Return whether majorities were heard since the last call, and begin anew."""
        votes = {
            node: node == self._id or self.progress[node].active for node in voters(configuration)
        }
        for progress in self.progress.values():
            progress.active = False
        return joint_outcome(configuration, votes) is Outcome.WON

    def has_everything(self, node: NodeId) -> bool:
        progress = self.progress.get(node)
        return progress is not None and progress.match == self._log.last_index

    def best_heir(self, configuration: Configuration) -> NodeId | None:
        """Return the active voter that is furthest, the first of equals; None if there is none."""
        heirs = [
            (-self.progress[node].match, node)
            for node in voters(configuration)
            if node != self._id and self.progress[node].active
        ]
        return min(heirs)[1] if heirs else None

    def check(self, configuration: Configuration) -> None:
        assert tuple(self.progress) == configuration.members()
        for node, progress in self.progress.items():
            progress.check()
            assert progress.match <= self._log.last_index
            if node == self._id:
                assert progress.match <= self._log.stable


def follow(log: Log, append: Append, commit: Index) -> tuple[AppendAnswer, Index | None]:
    """Take over a leader's entries into `log`; return the answer, and where the log was cut.

    Args:
        log: The follower's; changed unless the answer rejects.
        append: Of the follower's own term.
        commit: The follower's commit index.

    Source:
        AppendEntries, receiver implementation (paper, figure 2).
    """
    if append.previous_index < commit:
        # Late or repeated. What is committed is equal everywhere; say so, look no further.
        return AppendAnswer(append.term, commit), None
    if log.term(append.previous_index) == append.previous_term:
        cut = log.merge(append.entries, commit)
        return AppendAnswer(append.term, Index(append.previous_index + len(append.entries))), cut
    hint, term = log.newest_not_above(append.previous_index, append.previous_term)
    rejected = AppendAnswer(
        append.term, append.previous_index, reject=True, hint_index=hint, hint_term=term
    )
    return rejected, None
