"""Drives raft: messages and proposals in, durable writes and applied commands out.

One task owns the core and takes turns; everybody else leaves things in its inbox.

    frames, proposals, reads ─▶ inbox ─┐            ┌▶ persist ──▶ WAL task ─▶ Persisted ─▶ inbox
    Persisted, Applied, evidence ──────┤─ one turn ─┤▶ messages ─▶ links
    deadline ──────────────────────────┘            ├▶ committed ▶ machines ─▶ results, events
                                                    └▶ reads, notes

A turn drains the whole inbox before it looks at the clock, so a node that was
away reads its mail before it accuses anyone, and all proposals of a turn become
one batch of entries, one message per follower and one write.

The WAL task joins whatever has gathered into one write and one sync, and reports
a batch durable only after the sync that covered it has returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf

import trio

from microos import limits
from microos.codec import encode
from microos.errors import (
    LimitError,
    NoQuorumError,
    OverloadedError,
    StorageError,
    UnavailableError,
    UncertainError,
)
from microos.node.runtime import Runtime
from microos.node.snapshots import Arrived, Snapshots
from microos.node.statistics import QueueStatistics
from microos.raft.composite import Machines
from microos.raft.core import Raft
from microos.raft.effects import Effects, Event
from microos.raft.election import Role
from microos.raft.entry import (
    Applied,
    Change,
    Command,
    Entry,
    Persist,
    Persisted,
    SnapshotMark,
    SnapshotSent,
    Unreachable,
)
from microos.raft.messages import HeartbeatAnswer, Message, Snapshot, decode_message
from microos.raft.notes import BecameLeader, LeaderChanged, Note
from microos.raft.proposal import Dropped
from microos.raft.status import Status
from microos.settings import RaftSettings
from microos.storage.snapshot import drop_older, write_snapshot
from microos.storage.wal import Wal
from microos.types import Index, NodeId, SessionId, Term
from microos.wire import Channel

NOBODY = NodeId("")
"""Sender of what the node tells its own core."""

Send = Callable[[NodeId, Channel, bytes], bool]


class _Pending:
    """One command on its way to being applied here."""

    __slots__ = ("data", "done", "overloaded", "result", "retry_at", "sent")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.done = trio.Event()
        self.result: bytes | None = None
        self.sent = False
        self.overloaded = False
        self.retry_at = -inf


class _Read:
    """One read that waits for its index."""

    __slots__ = ("done", "index", "retry_at")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.index: Index | None = None
        self.retry_at = -inf


class Consensus:
    """One node's part in the raft group."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        settings: RaftSettings,
        raft: Raft,
        wal: Wal,
        machines: Machines,
        mark: SnapshotMark | None,
        snapshots: Snapshots,
        send: Send,
        on_event: Callable[[int, object], None],
        on_note: Callable[[Note], None],
    ) -> None:
        self._runtime = runtime
        self._clock = runtime.clock
        self._settings = settings
        self._raft = raft
        self._wal = wal
        self._machines = machines
        self._snapshots = snapshots
        self._send = send
        self._on_event = on_event
        self._on_note = on_note

        self._inbox: deque[tuple[Event, NodeId]] = deque()
        self._awake = trio.Event()
        self._drops = 0
        self._heard: dict[NodeId, float] = {}
        self._unwritten: list[Persist] = []
        self._unwritten_awake = trio.Event()
        self._writing: list[Persist] = []
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._reads: dict[int, _Read] = {}
        self._context = 0
        self._mark = mark
        self._arrived: dict[SnapshotMark, tuple[bytes, ...]] = {}
        """Snapshots the next turn will see; it takes one of them or none."""
        self._restoring: dict[SnapshotMark, tuple[bytes, ...]] = {}
        """Snapshots taken, until they are in their files."""
        self._compaction: tuple[SnapshotMark, Index] | None = None
        self._bytes_since_mark = 0
        self._snapshotting = False
        self._applied_moved = trio.Event()
        self._failure = ""
        self.storage = "ok"
        """`ok`, `full` (refuses writes, keeps reading) or `failed` (this member has ended)."""

    # What others ask for.

    def receive(self, body: bytes, sender: NodeId) -> None:
        """Take in one frame of the raft channel.

        Raises:
            RemoteProtocolError: The bytes are not a raft message.
        """
        message = decode_message(body)
        self._heard[sender] = self._clock.now()
        if isinstance(message, Snapshot):
            return  # Only what arrived as a whole, over the snapshot channel, is believed.
        if isinstance(message, HeartbeatAnswer) and not self._inbox and self.storage != "failed":
            # Most of an idle leader's mail: a turn of its own only if something follows from it.
            self._raft.receive(message, sender, self._clock.now())
            if self._raft.has_news:
                self._awake.set()
            return
        self.post(message, sender)

    def post(self, item: Event, sender: NodeId = NOBODY) -> None:
        """Leave something for the next turn. Raft resends what a full inbox drops."""
        if sender and len(self._inbox) >= limits.INBOX:
            self._drops += 1
            return
        self._inbox.append((item, sender))
        self._awake.set()

    def evidence(self, node: NodeId, rank: int) -> None:
        """Take note that the process of `node` is proven gone; stand for leader if it led.

        Args:
            node: The one whose process ended.
            rank: Place of this node among the voters left; keeps them from standing at once [0..].
        """
        if self._raft.leader == node:
            self._raft.forget_leader(self._clock.now())
            self._clock.call_at(self._clock.now() + 0.005 * rank, lambda: self._stand(node))

    def _stand(self, gone: NodeId) -> None:
        if self._raft.leader in (None, gone) and self.storage == "ok":
            self._raft.campaign(self._clock.now())
            self._awake.set()

    async def submit(self, command: Command, deadline: float) -> bytes:
        """Commit one command and return its result from this node's own machines.

        A command lost on the way is sent again under the same (session, sequence),
        so it is applied once.

        Args:
            command: Its (session, sequence) must be unique to this call.
            deadline: On the node's clock [s].

        Raises:
            NoQuorumError: Never sent: no leader was known.
            UncertainError: Sent and not answered in time; it may still commit.
            LimitError: The command is too big, or the disk is full.
            OverloadedError: Too much is uncommitted.
        """
        self._refuse_if_storage_is_bad()
        data = encode(command)
        if len(data) > limits.COMMAND_MAX:
            raise LimitError(
                f"expected a command of at most {limits.COMMAND_MAX} bytes, found {len(data)}; "
                "split it"
            )
        if len(self._pending) >= limits.INBOX:
            raise OverloadedError(f"{limits.INBOX} commands are waiting already; try again later")
        key = (command.session, command.sequence)
        pending = _Pending(data)
        self._pending[key] = pending
        self._awake.set()
        try:
            with self._clock.timeout_at(deadline):
                await pending.done.wait()
        finally:
            del self._pending[key]
        if pending.result is not None:
            return pending.result
        if pending.overloaded:
            raise OverloadedError(
                f"more than {self._settings.uncommitted_bytes_max} bytes are uncommitted; "
                "try again later"
            )
        if pending.sent:
            raise UncertainError(f"sent to the group and not answered in time: {self.reason()}")
        raise NoQuorumError(f"not sent: {self.reason()}")

    def _refuse_if_storage_is_bad(self) -> None:
        if self.storage == "full":
            raise LimitError(
                "the disk of this node is full: writes are refused, reads go on; make room",
                reason="quota",
            )
        if self.storage == "failed":
            raise UnavailableError(
                "this node's storage has failed and it takes no more part in the group; "
                "restart it once its disk is sound",
                reason="storage",
            )

    async def barrier(self, deadline: float) -> Index:
        """Wait until everything committed before the call is applied here; return its index.

        Source: Ongaro, dissertation §6.4 (read index).

        Raises:
            NoQuorumError: A majority did not confirm in time.
        """
        read = _Read()
        self._ask(read)
        try:
            with self._clock.timeout_at(deadline):
                await read.done.wait()
        finally:
            self._reads = {c: r for c, r in self._reads.items() if r is not read}
        if read.index is None or not read.done.is_set():
            raise NoQuorumError(f"not confirmed by a majority in time: {self.reason()}")
        return read.index

    def propose_as_leader(self, command: Command) -> bool:
        """Append a command here and now, or not at all; never forwarded."""
        proposal = self._raft.propose([encode(command)], self._clock.now(), leader_only=True)
        self._awake.set()
        return not isinstance(proposal, Dropped)

    def change(self, change: Change) -> object:
        """Propose a change of the configuration; return raft's answer."""
        outcome = self._raft.change(change, self._clock.now())
        self._awake.set()
        return outcome

    def transfer(self, to: NodeId) -> None:
        """Hand leadership to a voter, if this node has it."""
        self._raft.transfer(to, self._clock.now())
        self._awake.set()

    @property
    def waiting_reads(self) -> int:
        """How many reads wait for a majority to confirm them."""
        return len(self._reads)

    @property
    def leader(self) -> NodeId | None:
        """Whom this node follows; itself if it leads; None if it knows of nobody."""
        return self._raft.leader

    def leads(self, term: Term | None = None) -> bool:
        """Return whether this node leads, in `term` if one is given."""
        return self._raft.role is Role.LEADER and term in (None, self._raft.term)

    def last_contact(self, node: NodeId) -> float | None:
        """Return when `node` last said anything of raft, on the node's clock [s]."""
        return self._heard.get(node)

    @property
    def own_term_committed(self) -> bool:
        """Whether an entry of this leader's own term is committed."""
        return self._raft.own_term_committed

    def status(self) -> Status:
        """Return everything that can be asked of the core. Cost: O(followers)."""
        return self._raft.status()

    async def wait_applied(self) -> None:
        """Wait until something more has been applied."""
        await self._applied_moved.wait()

    def reason(self) -> str:
        """Say in one sentence why nothing can be committed, or that it can."""
        if self.storage == "full":
            return "storage full: writes are refused, reads go on; make room"
        if self.storage == "failed":
            return f"storage failed, no more part in the group: {self._failure}"
        if self._raft.leader:
            return f"leader {self._raft.leader[:8]} of term {self._raft.term} did not answer"
        voters = len(self._machines.configuration.voters)
        return f"no leader in term {self._raft.term} among {voters} voters; is the network split?"

    def queues(self) -> tuple[QueueStatistics, ...]:
        return (
            QueueStatistics(
                "consensus.inbox", len(self._inbox), limits.INBOX, "drop_newest", self._drops
            ),
            QueueStatistics("consensus.commands", len(self._pending), limits.INBOX, "refuse", 0),
            QueueStatistics("consensus.reads", len(self._reads), limits.INBOX, "refuse", 0),
            QueueStatistics(
                "consensus.unwritten_bytes",
                sum(
                    len(entry.data)
                    for batch in (*self._writing, *self._unwritten)
                    for entry in batch.entries
                ),
                # Of a leader's proposals the one bound counts, of what it sends the other.
                self._settings.uncommitted_bytes_max + self._settings.inflight_bytes_max,
                "refuse",
                0,
            ),
        )

    # The tasks.

    async def run(self) -> None:
        """Take turns until cancelled, or until the storage has failed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            self._nursery = nursery
            while self.storage != "failed":
                self._turn()
                if self._inbox:
                    await trio.lowlevel.checkpoint()
                    continue
                self._awake = trio.Event()
                with self._clock.timeout_at(min(self._raft.deadline, self._retry_deadline())):
                    await self._awake.wait()
            nursery.cancel_scope.cancel()

    async def _write(self) -> None:
        """Write what has gathered, sync once, report it durable; for ever."""
        while True:
            while not self._unwritten:
                self._unwritten_awake = trio.Event()
                await self._unwritten_awake.wait()
            batches = self._writing = self._unwritten
            self._unwritten = []
            try:
                for batch in batches:
                    if batch.snapshot is not None:
                        await self._keep(batch.snapshot)
                await self._wal.write(batches)
            except StorageError as error:
                if error.reason != "full":
                    self._end(error)
                    return
                self.storage = "full"
                self._unwritten = batches + self._unwritten
                await self._clock.sleep_until(self._clock.now() + 1.0)
                continue
            except OSError as error:
                self._end(error)
                return
            self.storage = "ok"
            self._writing = []
            for batch in batches:
                self.post(Persisted(batch.token))

    async def _keep(self, mark: SnapshotMark) -> None:
        """Write the snapshot received for `mark` to its file, before the log refers to it."""
        if mark in self._restoring:  # Else an earlier try, whose log found no room, wrote it.
            await write_snapshot(self._runtime.disk, mark, self._restoring[mark])
            del self._restoring[mark]
        self._mark = mark

    def _end(self, error: Exception) -> None:
        """End this member: nothing more is promised. Sync is never retried."""
        self.storage = "failed"
        self._failure = str(error)
        for pending in self._pending.values():
            pending.done.set()
        self._awake.set()

    # One turn.

    def _turn(self) -> None:
        now = self._clock.now()
        for _ in range(len(self._inbox)):
            item, sender = self._inbox.popleft()
            self._raft.receive(item, sender, now)
        if self._compaction is not None:
            # After the inbox: what a snapshot covers has been reported as applied by now.
            self._raft.compact(*self._compaction)
            self._compaction = None
        self._propose(now)
        self._ask_again(now)
        self._raft.wake(now)
        self._perform(self._raft.take())
        self._arrived.clear()

    def _propose(self, now: float) -> None:
        """Hand all commands that are due to raft as one batch."""
        due = [p for p in self._pending.values() if p.retry_at <= now and p.result is None]
        if not due:
            return
        outcome = self._raft.propose([p.data for p in due], now)
        dropped = outcome.reason if isinstance(outcome, Dropped) else ""
        wait = self._settings.election_timeout_max * (0.125 if dropped else 1.0)
        for pending in due:
            pending.retry_at = now + wait
            pending.sent |= not dropped
            if dropped == "uncommitted" and not pending.sent:
                pending.overloaded = True
                pending.done.set()

    def _retry_deadline(self) -> float:
        return min(
            min((p.retry_at for p in self._pending.values()), default=inf),
            min((r.retry_at for r in self._reads.values() if r.index is None), default=inf),
        )

    def _ask(self, read: _Read) -> None:
        """Ask for the read index under a fresh context: etcd#20418 reused one."""
        self._context += 1
        self._reads[self._context] = read
        read.retry_at = self._clock.now() + self._settings.election_timeout_max
        self._raft.read(self._context, self._clock.now())
        self._awake.set()

    def _ask_again(self, now: float) -> None:
        for context, read in list(self._reads.items()):
            if read.index is None and read.retry_at <= now:
                del self._reads[context]
                self._ask(read)

    def _perform(self, effects: Effects) -> None:
        if effects.persist is not None:
            self._persist(effects.persist)
        for node, message in effects.messages:
            self._dispatch(node, message)
        if effects.committed:
            self._apply(effects.committed)
        for ready in effects.reads:
            read = self._reads.get(ready.context)
            if read is not None:
                read.index = ready.index
        for context in effects.dropped:
            read = self._reads.get(context)
            if read is not None and read.index is None:
                read.retry_at = self._clock.now() + self._settings.heartbeat_interval
        self._answer_reads()
        for note in effects.notes:
            self._note(note)

    def _persist(self, persist: Persist) -> None:
        if persist.snapshot is not None:
            chunks = self._restoring[persist.snapshot] = self._arrived[persist.snapshot]
            self._machines.restore(chunks)
            self._bytes_since_mark = 0
            for machine, event in self._machines.restored():
                self._on_event(machine, event)
            self._answer_overtaken()
        self._unwritten.append(persist)
        self._unwritten_awake.set()

    def _dispatch(self, node: NodeId, message: Message) -> None:
        if isinstance(message, Snapshot):
            self._nursery.start_soon(self._transfer, node, message)
        elif not self._send(node, Channel.RAFT, encode(message)):
            self.post(Unreachable(node))

    async def _transfer(self, node: NodeId, message: Snapshot) -> None:
        ok = await self._snapshots.send(node, message)
        self.post(SnapshotSent(node, ok))

    def arrived(self, snapshot: Arrived) -> None:
        """Take in a snapshot that has arrived as a whole; without room it is refused for now."""
        if self.storage == "ok":
            self._arrived[snapshot.message.mark] = snapshot.chunks
            self.post(snapshot.message, snapshot.sender)

    def _apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            done = self._machines.apply(entry)
            self._bytes_since_mark += len(entry.data) + 32
            pending = self._pending.get((done.session, done.sequence))
            if pending is not None and done.result is not None:
                pending.result = done.result
                pending.done.set()
            for machine, event in done.events:
                self._on_event(machine, event)
        self.post(Applied(entries[-1].index))
        self._applied_moved.set()
        self._applied_moved = trio.Event()
        self._snapshot_if_due(entries[-1])

    def _answer_overtaken(self) -> None:
        """Answer commands whose application here a snapshot has overtaken."""
        for (session, sequence), pending in self._pending.items():
            if session:
                pending.result = self._machines.answer(SessionId(session), sequence)
                if pending.result is not None:
                    pending.done.set()

    def _answer_reads(self) -> None:
        applied = self._machines.applied
        for context, read in list(self._reads.items()):
            if read.index is not None and read.index <= applied:
                del self._reads[context]
                read.done.set()

    def _note(self, note: Note) -> None:
        if isinstance(note, LeaderChanged | BecameLeader):
            for pending in self._pending.values():
                pending.retry_at = -inf
            for read in self._reads.values():
                if read.index is None:
                    read.retry_at = -inf
            self._awake.set()
        self._on_note(note)

    # Snapshots of our own.

    def _snapshot_if_due(self, last: Entry) -> None:
        since = last.index - (self._mark.index if self._mark else 0)
        if self._snapshotting or not (
            since >= self._settings.snapshot_after_entries
            or self._bytes_since_mark >= self._settings.snapshot_after_bytes
        ):
            return
        self._snapshotting = True
        self._bytes_since_mark = 0
        mark = SnapshotMark(last.index, last.term, self._machines.configuration, last.time)
        self._nursery.start_soon(self._snapshot, mark, tuple(self._machines.freeze()))

    async def _snapshot(self, mark: SnapshotMark, chunks: Sequence[bytes]) -> None:
        try:
            await write_snapshot(self._runtime.disk, mark, chunks)
            first = Index(max(1, mark.index - self._settings.trailing_entries + 1))
            await self._wal.compact(mark, first)
            await drop_older(self._runtime.disk, mark)
        except (StorageError, OSError):
            return  # The log still has everything; the next occasion tries again.
        finally:
            self._snapshotting = False
        if self._mark is None or self._mark.index < mark.index:
            self._mark = mark
            self._compaction = (mark, first)
            self._awake.set()
