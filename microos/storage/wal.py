"""The write-ahead log: what a member must not forget, in segments, one sync per batch.

    write(batches) ─▶ joined ─▶ one write and one sync ─▶ durable

    segment n   │ batches … │ reserve │ seal │          aside, allocated, synced
    segment n+1 │ hard state, mark │ batches …          then: seal n, rename n+1

A segment that is full makes room for the next before it is closed, so a full disk is
found out (`full`) while nothing has been touched, and the reserve at its end still takes
hard states and snapshot marks: a member on a full disk keeps voting. Every segment begins
with the hard state and the newest mark, so those before it can go once a snapshot covers
their entries.

A commit index alone is worth no write: it rides along with the next batch. That also
keeps every byte of a batch under one sync (`records.py` says why that matters).

Any other failed write or sync ends the log for good (`failed`), and so does a cancelled
one: what reached the disk is unknown, and a second sync would lie.

Source: Ongaro, dissertation, §3.8 (what must be durable before an answer); segments and
batches after etcd's wal and LevelDB's log.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile

import msgspec
import trio

from microos import limits
from microos.codec import encode
from microos.errors import StorageError
from microos.raft.entry import Entry, HardState, Persist, SnapshotMark
from microos.storage.disk import Disk, File
from microos.storage.files import (
    ASIDE,
    DamagedError,
    Identity,
    is_quarantined,
    storage_error,
    storage_faults,
)
from microos.storage.records import (
    HEADER_SIZE,
    Record,
    RecordKind,
    Seal,
    check_of,
    encode_batch,
    encode_header,
    salt_of,
)
from microos.storage.recovery import (
    PREFIX,
    SUFFIX,
    Recovered,
    Tail,
    hard_state_of,
    hard_state_record,
    newer,
    records_of,
    recover,
    segment_name,
)
from microos.storage.snapshot import drop_others
from microos.types import Index

__all__ = ["DamagedError", "Loaded", "Wal", "WalStatistics", "recover"]

BROKEN = ".broken"
BROKEN_KEPT = 3
RESERVE = 64 * limits.KIB
"""At the end of each segment, for hard states and marks alone: some 600 of them."""

SEAL_SIZE = 32
ENTRY_OVERHEAD = 48


class Loaded(msgspec.Struct, frozen=True):
    """What a member knew when it stopped."""

    hard_state: HardState
    entries: tuple[Entry, ...]
    """Without gaps; beginning at or before `mark.index + 1`."""
    mark: SnapshotMark | None
    """The snapshot whose file has the state that `entries` go on from."""
    notes: tuple[str, ...]
    """What had to be mended, for people."""


class WalStatistics(msgspec.Struct, frozen=True):
    """How the log is doing."""

    segments: int
    size_bytes: int
    batches: int
    """Written since it was opened; as many syncs."""


class Wal:
    """The log of one member, open for writing. Its methods may be called from many tasks."""

    def __init__(self, disk: Disk, identity: Identity, segment_bytes: int) -> None:
        """Use `open`."""
        assert segment_bytes >= 16 * SEAL_SIZE
        self._disk = disk
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._reserve = min(RESERVE, segment_bytes // 8)
        self._lock = trio.Lock()
        self._failed = ""
        self._file: File | None = None
        self._batches = 0

        self._hard_state = HardState()
        self._written = HardState()
        """The same without what still rides along."""
        self._behind = False
        """Entries were refused for want of room: no commit index counts that came after."""
        self._mark: SnapshotMark | None = None

        self._highest: dict[int, int] = {}
        """Sequence of each segment, ascending, and the highest entry in it."""
        self._sizes: dict[int, int] = {}
        self._sequence = 0
        self._salt = 0
        self._number = 1
        self._last = 0
        """Check of the last batch."""
        self._offset = HEADER_SIZE
        self._size = 0

    @staticmethod
    async def open(
        disk: Disk, identity: Identity, *, segment_bytes: int = limits.SEGMENT_BYTES
    ) -> tuple[Wal, Loaded]:
        """Recover the log in the directory, or begin one; return it with what it said.

        A torn end is copied aside and cut. Snapshots that the log does not refer
        to are removed.

        Args:
            segment_bytes: Size of new segments; a larger batch gets a larger one.

        Raises:
            DamagedError: Nothing was changed. The member must not vote again.
            StorageError: `foreign`, `full`, `failed`.
        """
        if await is_quarantined(disk):
            raise DamagedError(
                "the log was set aside and this node has no new identity yet: set aside again"
            )
        wal = Wal(disk, identity, segment_bytes)
        with storage_faults("the log"):
            segments = await wal._read_all()
            recovered = recover(segments, identity)
            try:
                await wal._begin(recovered, segments)
            except BaseException:
                await wal._give_up()
                raise
        wal.check()
        return wal, Loaded(recovered.hard_state, recovered.entries, recovered.mark, recovered.notes)

    async def write(self, batches: Sequence[Persist]) -> None:
        """Write what a core handed out, in order; durable on return where it has to be.

        Batches are joined: one write and one sync for up to `limits.WAL_BATCH_MAX` bytes.

        Raises:
            StorageError: `full`: some of the first may be durable, nothing is damaged;
                offering the same batches again later is safe, and batches of hard states
                alone still go. `failed`: for good.
        """
        async with self._lock:
            with self._fatal():
                for group in _groups(batches):
                    await self._write(group)

    async def compact(self, mark: SnapshotMark, first: Index) -> None:
        """Note that the snapshot of `mark` is durable; forget segments wholly before `first`.

        Args:
            first: Oldest entry still wanted, at most `mark.index + 1`.

        Raises:
            StorageError: `full`: nothing happened. `failed`: for good.
        """
        assert first <= mark.index + 1
        async with self._lock:
            with self._fatal():
                if self._mark is None or mark.index > self._mark.index:
                    await self._append([Record(RecordKind.MARK, encode(mark))], small=True)
                    self._mark = mark
                for sequence in self._forgettable(first):
                    # Oldest first and one by one: no crash may leave a gap.
                    await self._disk.remove(segment_name(sequence))
                    await self._disk.sync()
                    del self._highest[sequence], self._sizes[sequence]

    async def close(self) -> None:
        """Write what still rides along, if it fits, and close. The disk stays open."""
        async with self._lock:
            if self._file is not None and not self._failed and self._hard_state != self._written:
                with suppress(StorageError), self._fatal():
                    await self._append([], small=True)
            self._failed = self._failed or "it was closed"
            await self._give_up()

    def statistics(self) -> WalStatistics:
        """Return counts and sizes. Cost: O(segments), no I/O."""
        return WalStatistics(len(self._sizes), sum(self._sizes.values()), self._batches)

    def check(self) -> None:
        """Assert the invariants."""
        assert list(self._highest) == list(self._sizes)
        first = self._sequence + 1 - len(self._highest)
        assert list(self._highest) == list(range(first, self._sequence + 1))
        assert self._offset > HEADER_SIZE
        assert self._number > 1
        assert newer(self._written, self._hard_state) == self._hard_state

    # Writing.

    async def _write(self, group: Sequence[Persist]) -> None:
        records = records_of(group)
        before = self._hard_state
        after = hard_state_of(group, before)
        if self._behind and not records:
            # The entries it counts may be those that were refused.
            after = HardState(after.term, after.vote, before.commit)
        self._hard_state = after
        moved = (after.term, after.vote) != (before.term, before.vote)
        if not (records or moved or any(batch.must_sync for batch in group)):
            return
        try:
            await self._append(records, small=not records)
        except StorageError:
            self._hard_state = before
            self._behind |= bool(records)
            raise
        self._behind &= not records
        for batch in group:
            if batch.snapshot is not None:
                self._mark = batch.snapshot
                self._highest = dict.fromkeys(self._highest, 0)
            if batch.entries:
                last = max(self._highest[self._sequence], batch.entries[-1].index)
                self._highest[self._sequence] = last

    async def _append(self, records: Sequence[Record], *, small: bool) -> None:
        """Write one batch and sync it; `small` ones may use the reserve."""
        hard_state = self._hard_state
        if hard_state != self._written:
            records = [*records, hard_state_record(hard_state)]
        if not records:
            return
        batch = encode_batch(records, self._number, self._salt)
        limit = self._size - SEAL_SIZE - (0 if small else self._reserve)
        if self._offset + len(batch) > limit:
            await self._roll(len(batch))
            batch = encode_batch(records, self._number, self._salt)
        assert self._file is not None
        await self._file.write([batch], self._offset, sync=True)
        self._offset += len(batch)
        self._last = check_of(batch)
        self._number += 1
        self._batches += 1
        self._written = hard_state

    async def _roll(self, room: int) -> None:
        """Go on in a new segment with `room` for the next batch."""
        seal = encode(Seal(self._sequence + 1, self._last))
        data = encode_batch([Record(RecordKind.SEAL, seal)], self._number, self._salt)
        assert len(data) <= SEAL_SIZE
        old, offset = self._file, self._offset
        assert old is not None
        new = await self._prepare(self._sequence + 1, check_of(data), room)
        await old.write([data], offset, sync=True)
        await self._adopt(new)
        with suppress(OSError):
            await old.close()

    async def _prepare(self, sequence: int, previous: int, room: int) -> _Prepared:
        """Write a segment aside, with all its room taken, and sync it."""
        header = encode_header(self._identity, sequence, previous)
        opening = [hard_state_record(self._written)]
        if self._mark is not None:
            opening.append(Record(RecordKind.MARK, encode(self._mark)))
        batch = encode_batch(opening, 1, salt_of(header))
        end = len(header) + len(batch)
        size = max(self._segment_bytes, end + room + self._reserve + SEAL_SIZE)
        name = segment_name(sequence)
        try:
            file = await self._write_aside(name, [header, batch], size)
        except OSError as error:
            raise storage_error(error, name) from error
        return _Prepared(sequence, file, salt_of(header), check_of(batch), end, size)

    async def _write_aside(self, name: str, data: Sequence[bytes], size: int) -> File:
        """Write a file of `size` bytes beside the one of that name, and sync it.

        Raises:
            OSError: Nothing is left of it.
        """
        try:
            file = await self._disk.open(name + ASIDE, create=True)
            try:
                await file.resize(0)
                await file.resize(size, allocate=True)
                await file.write(data, 0, sync=True)
            except BaseException:
                await file.close()
                raise
        except OSError:
            with suppress(OSError):
                await self._disk.remove(name + ASIDE)
            raise
        return file

    async def _adopt(self, new: _Prepared) -> None:
        name = segment_name(new.sequence)
        await self._disk.rename(name + ASIDE, name)
        await self._disk.sync()
        self._file = new.file
        self._sequence, self._salt, self._number = new.sequence, new.salt, 2
        self._last, self._offset, self._size = new.last, new.end, new.size
        self._highest[new.sequence] = 0
        self._sizes[new.sequence] = new.size

    def _forgettable(self, first: Index) -> list[int]:
        """Return the oldest segments without any entry from `first` on; never the last one."""
        older = [(s, highest) for s, highest in self._highest.items() if s != self._sequence]
        return [s for s, _ in takewhile(lambda item: item[1] < first, older)]

    @contextmanager
    def _fatal(self) -> Iterator[None]:
        """Return a block that may leave the disk in doubt: any error but `full` is final."""
        if self._failed:
            raise StorageError(
                f"the log takes nothing any more: {self._failed}; restart the node",
                reason="failed",
            )
        try:
            yield
        except StorageError as error:
            if error.reason != "full":
                self._failed = str(error)
            raise
        except OSError as error:
            # Also for want of room: where it was promised, a refusal leaves doubt.
            self._failed = f"the disk failed: {error.strerror or error}"
            raise StorageError(
                f"{self._failed}; what was not yet durable is lost, restart the node",
                reason="failed",
            ) from error
        except BaseException:
            self._failed = "a write was interrupted"
            raise

    # Opening.

    async def _read_all(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name in await self._disk.names():
            if name.startswith(PREFIX) and name.endswith(SUFFIX):
                file = await self._disk.open(name)
                try:
                    found[name] = await file.read(0, await file.size())
                finally:
                    await file.close()
        return found

    async def _begin(self, recovered: Recovered, segments: Mapping[str, bytes]) -> None:
        """Mend the end of the log, make what was found durable, and be ready to write."""
        names = await self._disk.names()
        tail = recovered.tail
        if tail is None and any(name.startswith("snap-") for name in names):
            raise DamagedError("expected a log beside the snapshots, found none: it was removed")
        for name in names:
            if name.startswith(PREFIX) and name.endswith(ASIDE):
                await self._disk.remove(name)
        self._hard_state = self._written = recovered.hard_state
        self._mark = recovered.mark
        self._highest = {s.sequence: s.last_index for s in recovered.segments}
        self._sizes = {s: len(segments[segment_name(s)]) for s in self._highest}
        if tail is not None:
            data = segments[segment_name(tail.sequence)]
            self._file = await self._mend(tail, data)
            self._last = check_of(data[tail.last_start : tail.end])
            self._sequence, self._salt, self._number = tail.sequence, tail.salt, tail.number
            self._offset, self._size = tail.end, tail.size
        # A name seen after a failed sync of the directory may not be on the disk.
        await self._disk.sync()
        if tail is None:
            await self._adopt(await self._prepare(1, 0, 0))
        elif tail.seal is not None:
            new = await self._prepare(tail.sequence + 1, tail.seal, 0)
            await self._give_up()
            await self._adopt(new)
        await drop_others(self._disk, self._mark)

    async def _mend(self, tail: Tail, data: bytes) -> File:
        """Cut a torn end and have the last whole batch on the disk; return the open segment.

        A torn end is not made zero where it stands: power lost half way could leave bytes that
        look like damage. The segment is written anew and takes the old one's name at once. Only
        a disk without room for that is mended in place; the worst of it is a member set aside.
        """
        name = segment_name(tail.sequence)
        if tail.used > tail.end:
            await self._keep_broken(tail.sequence, data[: tail.used])
            try:
                file = await self._write_aside(name, [data[: tail.end]], tail.size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            else:
                await self._disk.rename(name + ASIDE, name)
                return file
        file = await self._disk.open(name)
        self._file = file  # So that it is closed, whatever comes.
        again = [data[tail.last_start : tail.end], bytes(tail.used - tail.end)]
        await file.write(again, tail.last_start, sync=True)
        return file

    async def _keep_broken(self, sequence: int, data: bytes) -> None:
        """Keep a copy of what is cut, for people; without room, do without."""
        with suppress(OSError):
            file = await self._disk.open(f"{PREFIX}{sequence:016x}{BROKEN}", create=True)
            try:
                await file.resize(0)
                await file.write([data], 0)
            finally:
                await file.close()
        names = [n for n in await self._disk.names() if n.endswith(BROKEN)]
        for name in names[:-BROKEN_KEPT]:
            await self._disk.remove(name)

    async def _give_up(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                await self._file.close()
            self._file = None


class _Prepared(msgspec.Struct, frozen=True):
    """A segment that has everything but its name."""

    sequence: int
    file: File
    salt: int
    last: int
    end: int
    size: int


def _groups(batches: Sequence[Persist]) -> Iterator[list[Persist]]:
    """Give what is written at once: as much as fits a batch, at least one."""
    group: list[Persist] = []
    size = 0
    for batch in batches:
        more = sum(len(entry.data) + ENTRY_OVERHEAD for entry in batch.entries)
        if group and size + more > limits.WAL_BATCH_MAX:
            yield group
            group, size = [], 0
        group.append(batch)
        size += more
    if group:
        yield group
