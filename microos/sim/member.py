"""One member of the raft group in layer `cores`: its core, its log on a memory disk, its machines.

What the driver does on trio is done here on the plain heap: turns, writes joined and
synced, snapshots, the way of a command from proposal to result. Recovery, log and
snapshots are the real ones.

    inbox ─▶ turn ─▶ take() ─┬▶ unwritten ─▶ errand: Wal.write ─▶ Persisted ─▶ inbox
                             ├▶ messages ─▶ network ─▶ inbox of another
                             └▶ committed ─▶ machines ─▶ agent; Applied ─▶ inbox
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Sequence
from math import inf
from typing import Any, Protocol

from microos import limits
from microos.codec import encode
from microos.config.machine import ConfigMachine
from microos.errors import StorageError
from microos.raft.composite import Done, Machines
from microos.raft.core import Raft
from microos.raft.effects import Effects
from microos.raft.election import Role
from microos.raft.entry import (
    Applied,
    Entry,
    HardState,
    Persist,
    Persisted,
    SnapshotMark,
    SnapshotSent,
    Token,
    Unreachable,
)
from microos.raft.log import Log
from microos.raft.messages import Message, Snapshot, decode_message
from microos.raft.proposal import Dropped
from microos.settings import RaftSettings
from microos.sim.checkers.raft import RaftChecker
from microos.sim.errand import ErrandLock, run_errand
from microos.sim.host import Host
from microos.sim.rings import SharingMachine
from microos.sim.world import SECOND
from microos.storage.disk import Disk
from microos.storage.files import Identity
from microos.storage.snapshot import (
    decode_snapshot,
    drop_older,
    encode_snapshot,
    read_snapshot,
    write_snapshot,
)
from microos.storage.wal import Wal
from microos.sync.machine import LockMachine
from microos.types import Index, NodeId, Term

NOBODY = NodeId("")
CLUSTER = b"simulated world!"
EPOCH = 1
TRANSFER_TIMEOUT = SECOND
RAFT = b"R"


class Listener(Protocol):
    """Who wants to know what became of commands and reads; see `clients.py`."""

    def applied(self, done: Done) -> None: ...
    def restored(self) -> None: ...
    def readable(self, context: int) -> None: ...
    def dropped(self, context: int) -> None: ...
    def proposals(self, now: float) -> Sequence[bytes]: ...
    def proposed(self, taken: bool, now: float) -> None: ...
    def deadline(self) -> float: ...
    def turned(self, raft: Raft) -> None: ...


class Member:
    """One boot of one member.

    Args:
        founding: What the founders' logs begin with; None for one that joins later.
        turn_ns: How long messages gather before a turn.
        ring: The machine of the ring.
    """

    def __init__(
        self,
        host: Host,
        checker: RaftChecker,
        *,
        settings: RaftSettings,
        founding: SnapshotMark | None,
        turn_ns: int,
        segment_bytes: int,
        ring: SharingMachine,
    ) -> None:
        self.host = host
        self.boot = host.boot
        self.raft: Raft | None = None
        self.locks = LockMachine()
        self.config = ConfigMachine()
        self.machines = Machines(EPOCH, (self.locks, self.config, ring))
        self.listener: Listener | None = None
        self.failed = False
        self._world = host.world
        self._checker = checker
        self._settings = settings
        self._founding = founding
        self._turn_ns = turn_ns
        self._segment_bytes = segment_bytes
        self._wal: Wal
        self._inbox: deque[tuple[object, NodeId]] = deque()
        self._turn_at: int | None = None
        self._armed = inf
        """Deadline of the earliest timer set, on the node's clock [s]."""
        self._unwritten: list[Persist] = []
        self._writing = False
        self._arrived: dict[SnapshotMark, tuple[bytes, ...]] = {}
        """Snapshots the next turn will see; it takes one of them or none."""
        self._restoring: dict[SnapshotMark, tuple[bytes, ...]] = {}
        """Snapshots taken, until they are in their files."""
        self._compaction: tuple[SnapshotMark, Index] | None = None
        self._mark: SnapshotMark | None = None
        self._snapshotting = False
        self._ready: dict[int, Index] = {}
        self._errand(self._start())

    # Start.

    async def _start(self) -> None:
        """Open the log, once there is room for it."""
        self._disk = self.host.platter.attach()
        while self.raft is None:
            try:
                await self._open(self._disk)
            except StorageError as error:
                if error.reason != "full":
                    raise
                await self.host.delay(SECOND // 10)

    async def _open(self, disk: Disk) -> None:
        identity = Identity(node=self.host.id, cluster=CLUSTER, epoch=EPOCH, label="sim")
        wal, loaded = await Wal.open(disk, identity, segment_bytes=self._segment_bytes)
        wal._lock = ErrandLock()  # type: ignore[assignment]
        self._wal = wal
        mark, hard_state = loaded.mark, loaded.hard_state
        self._checker.recovered(self.host, loaded)
        if mark is None and self._founding is not None:
            mark = self._founding
            await write_snapshot(disk, mark, ())
            hard_state = HardState(Term(1), NodeId(""), Index(1))
            await wal.write([Persist(Token(0, Term(1)), (), hard_state, mark, True)])
            self._checker.founded(self.host, mark, hard_state)
        if mark is not None:
            chunks = await read_snapshot(disk, mark)
            if chunks:
                self.machines.restore(chunks)
            else:
                self.machines.begin(mark)
        self._mark = mark
        now = self.host.line.now()
        grant_after = now + self._settings.election_timeout_max / 2
        self.raft = Raft(
            self.host.id,
            Log(loaded.entries, mark),
            hard_state,
            self.machines.configuration,
            applied=self.machines.applied,
            settings=self._settings,
            random=self.host.random("raft"),
            now=now,
            grant_after=grant_after if hard_state.term > 1 else -inf,
        )
        if mark is not None:
            self._checker.restored(self.host, self.machines)
        self.host.note("raft", f"started with {loaded.hard_state} last={self.raft.log.last_index}")
        self._turn()

    # What comes in.

    def receive(self, body: bytes, sender: NodeId) -> None:
        """Take in one message of another member."""
        message = decode_message(body)
        if not isinstance(message, Snapshot):
            self.post(message, sender)

    def post(self, item: object, sender: NodeId = NOBODY) -> None:
        """Leave something for the next turn."""
        if self.raft is None or len(self._inbox) >= limits.INBOX:
            return
        self._inbox.append((item, sender))
        self.soon()

    def soon(self) -> None:
        """Take a turn soon."""
        if self._turn_at is None and self.raft is not None:
            self._turn_at = self._world.now + self._turn_ns
            self._world.after(self._turn_ns, lambda: self.host.gate(self._turn))

    def is_alive(self) -> bool:
        return self.host.is_running(self.boot) and not self.failed

    # One turn.

    def _turn(self) -> None:
        raft = self.raft
        self._turn_at = None
        if raft is None or not self.is_alive():
            return
        now = self.host.line.now()
        inbox, self._inbox = self._inbox, deque()
        for item, sender in inbox:
            raft.receive(item, sender, now)  # type: ignore[arg-type]
        if self._compaction is not None:
            # After the inbox: what a snapshot covers has been reported as applied by now.
            raft.compact(*self._compaction)
            self._checker.compacted(self.host, self._compaction[0])
            self._compaction = None
        self._propose(raft, now)
        raft.wake(now)
        self._perform(raft, raft.take())
        self._arrived.clear()
        if self.host.world.executed & 7 == 0:
            raft.check()
        if self.listener is not None:
            self.listener.turned(raft)
        self._arm(raft)

    def _propose(self, raft: Raft, now: float) -> None:
        listener = self.listener
        if listener is not None:
            due = listener.proposals(now)
            if due:
                listener.proposed(not isinstance(raft.propose(due, now), Dropped), now)

    def _arm(self, raft: Raft) -> None:
        """Set a timer for the deadline, unless an earlier one rings anyway."""
        deadline = raft.deadline
        if self.listener is not None:
            deadline = min(deadline, self.listener.deadline())
        if deadline >= self._armed:
            return
        self._armed = deadline

        def ring() -> None:
            if self._armed == deadline:
                self._armed = inf
            self.host.gate(self._ring)

        self._world.at(self.host.line.when(deadline), ring)

    def _ring(self) -> None:
        raft = self.raft
        if raft is None or not self.is_alive():
            return
        listener = self.listener
        due = min(raft.deadline, inf if listener is None else listener.deadline())
        if self.host.line.now() >= due:
            self._turn()
        else:
            self._arm(raft)

    def _perform(self, raft: Raft, effects: Effects) -> None:
        for note in effects.notes:
            self.host.note("raft", note)
            self._checker.noted(self.host, raft, note)
        if effects.persist is not None:
            self._persist(effects.persist)
        for node, message in effects.messages:
            self._send(node, message)
        if effects.committed:
            self._apply(effects.committed)
        for read in effects.reads:
            self._ready[read.context] = read.index
        for context in effects.dropped:
            if self.listener is not None:
                self.listener.dropped(context)
        self._answer_reads()

    def _send(self, node: NodeId, message: Message) -> None:
        self._checker.sent(self.host, node, message)
        if isinstance(message, Snapshot):
            self._errand(self._transfer(node, message))
        elif not self.host.send(node, RAFT + encode(message)):
            self.post(Unreachable(node))
        self.host.trigger("sent")

    def _apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            done = self.machines.apply(entry)
            self._checker.applied(self.host, self.machines, entry, done)
            if self.listener is not None:
                self.listener.applied(done)
        self.post(Applied(entries[-1].index))
        self.host.trigger("applied")
        self._snapshot_if_due(entries[-1])

    def _answer_reads(self) -> None:
        for context, index in list(self._ready.items()):
            if index <= self.machines.applied:
                del self._ready[context]
                if self.listener is not None:
                    self.listener.readable(context)

    # Storage.

    def _persist(self, persist: Persist) -> None:
        self._checker.handed(self.host, persist)
        if persist.snapshot is not None:
            chunks = self._restoring[persist.snapshot] = self._arrived[persist.snapshot]
            self.machines.restore(chunks)
            self._checker.restored(self.host, self.machines)
            if self.listener is not None:
                self.listener.restored()
        self._unwritten.append(persist)
        if not self._writing:
            self._writing = True
            self._errand(self._write())

    async def _write(self) -> None:
        """Write what has gathered, sync once, report it durable, until there is no more."""
        while self._unwritten:
            batches, self._unwritten = self._unwritten, []
            try:
                for batch in batches:
                    mark = batch.snapshot
                    if mark is not None and mark in self._restoring:
                        await write_snapshot(self._disk, mark, self._restoring[mark])
                        del self._restoring[mark]
                        self._mark = mark
                await self._wal.write(batches)
            except StorageError as error:
                if error.reason != "full":
                    raise
                self._world.sometimes("storage.full")
                self._unwritten = batches + self._unwritten
                await self.host.delay(SECOND // 10)
                continue
            for batch in batches:
                self._checker.durable(self.host, batch)
                self.post(Persisted(batch.token))
        self._writing = False

    def _snapshot_if_due(self, last: Entry) -> None:
        since = last.index - (self._mark.index if self._mark else 0)
        if self._snapshotting or since < self._settings.snapshot_after_entries:
            return
        self._snapshotting = True
        machines = self.machines
        mark = SnapshotMark(last.index, last.term, machines.configuration, last.time)
        self._errand(self._snapshot(mark, machines.freeze()))

    async def _snapshot(self, mark: SnapshotMark, chunks: Sequence[bytes]) -> None:
        first = Index(max(1, mark.index - self._settings.trailing_entries + 1))
        try:
            await write_snapshot(self._disk, mark, chunks)
            await self._wal.compact(mark, first)
            await drop_older(self._disk, mark)
        except StorageError as error:
            if error.reason != "full":
                raise
            self._snapshotting = False
            return
        self._snapshotting = False
        if self._mark is None or mark.index > self._mark.index:
            self._mark = mark
            self._compaction = (mark, first)
            self.soon()

    async def _transfer(self, node: NodeId, message: Snapshot) -> None:
        """Send the data of a snapshot, then the message."""
        try:
            chunks = await read_snapshot(self._disk, message.mark)
        except StorageError:
            self.post(SnapshotSent(node, False))  # It was replaced by a newer one meanwhile.
            return
        data = encode_snapshot(message.mark, chunks)
        delays = self.host.distance(node)
        if delays is None:
            await self.host.delay(TRANSFER_TIMEOUT)
            self.post(SnapshotSent(node, False))
            return
        there, back = delays
        await self.host.delay(there)
        arrived = self.host.cluster.deliver_snapshot(node, data, message, self.host.id)
        await self.host.delay(back)
        self.post(SnapshotSent(node, arrived))

    def arrived(self, data: bytes, message: Snapshot, sender: NodeId) -> None:
        """Take in a snapshot that has come as a whole."""
        mark, chunks = decode_snapshot(data)
        assert mark == message.mark
        self._arrived[mark] = chunks
        self.post(message, sender)

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        run_errand(
            self._world,
            work,
            alive=self.is_alive,
            gate=self.host.gate,
            failed=self._failed,
        )

    def _failed(self, error: Exception) -> None:
        """A write or sync has failed: this member has ended, and its supervisor starts it again."""
        if isinstance(error, StorageError) and error.reason == "full" and self.raft is None:
            self._world.sometimes("storage.full_at_start")
        elif isinstance(error, StorageError | OSError) and self.host.disk_is_bad():
            self._world.sometimes("storage.failed_sync_ended_member")
        else:
            self.host.failed(error)
            return
        self.failed = True
        self.host.cluster.restart(self.host.number)

    def is_leader(self) -> bool:
        return self.raft is not None and self.raft.role is Role.LEADER and self.is_alive()
