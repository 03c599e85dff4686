"""From the bytes of the log back to what a member knew: pure, the same in every world.

    segments ─▶ headers agree, in sequence, sealed ─▶ batches in order ─▶ hard state, log, mark

Only the end of the last segment may be torn; it is cut by whoever owns the disk
(`wal.py`), which then also writes the last whole batch again and syncs it: after an
earlier failed sync the page cache may show what the disk does not have. Anything else
that is bad is damage, raised and never cut: acknowledged votes and entries may be in it.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError, StorageError
from microos.raft.entry import Entry, HardState, Persist, SnapshotMark
from microos.storage.files import DamagedError, Identity
from microos.storage.records import (
    HEADER_SIZE,
    Batch,
    Contents,
    Header,
    Record,
    RecordKind,
    Seal,
    check_of,
    decode_header,
    encode_batch,
    read_segment,
)
from microos.types import Index, NodeId

PREFIX = "wal-"
SUFFIX = ".wal"

_decode_hard_state: Decoder[HardState] = Decoder(HardState)
_decode_entries: Decoder[list[Entry]] = Decoder(list[Entry])
_decode_mark: Decoder[SnapshotMark] = Decoder(SnapshotMark)
_decode_seal: Decoder[Seal] = Decoder(Seal)


class SegmentInfo(msgspec.Struct, frozen=True):
    """One segment, for compaction."""

    sequence: int
    last_index: Index
    """Highest entry that stands in it and has not been voided; 0: none."""


class Tail(msgspec.Struct, frozen=True):
    """Where the log goes on."""

    sequence: int
    salt: int
    size: int
    number: int
    """Of the next batch."""
    last_start: int
    """Where the last whole batch begins: from there to `end` is to be written again."""
    end: int
    used: int
    """Beyond `end`: torn, to be made zero."""
    seal: int | None
    """Check of the seal, if the segment is closed and its successor was not begun."""


class Recovered(msgspec.Struct, frozen=True):
    """What the log says."""

    hard_state: HardState
    entries: tuple[Entry, ...]
    """Without gaps; beginning at or before `mark.index + 1`."""
    mark: SnapshotMark | None
    segments: tuple[SegmentInfo, ...]
    tail: Tail | None
    """None: there is no log yet."""
    notes: tuple[str, ...]
    """What had to be mended, for people."""


def segment_name(sequence: int) -> str:
    """Return the file name of a segment; names sort by sequence."""
    return f"{PREFIX}{sequence:016x}{SUFFIX}"


def records_of(batches: Sequence[Persist]) -> list[Record]:
    """Return the records of what is new in the log: snapshots received, and entries."""
    records: list[Record] = []
    for batch in batches:
        if batch.snapshot is not None:
            records.append(Record(RecordKind.MARK, encode(batch.snapshot), reset=True))
        if batch.entries:
            records.append(Record(RecordKind.ENTRIES, encode(batch.entries)))
    return records


def hard_state_of(batches: Sequence[Persist], known: HardState) -> HardState:
    """Return the hard state after `batches`, never behind the one known."""
    for batch in batches:
        if batch.hard_state is not None:
            known = newer(known, batch.hard_state)
    return known


def hard_state_record(hard_state: HardState) -> Record:
    return Record(RecordKind.HARD_STATE, encode(hard_state))


def newer(known: HardState, found: HardState) -> HardState:
    """Return both joined: the later term with its vote, the higher commit index.

    What did not fit on a full disk may be offered again after a later vote was written.
    """
    commit = max(known.commit, found.commit)
    if found.term > known.term:
        return HardState(found.term, found.vote, commit)
    if found.term == known.term:
        assert not known.vote or not found.vote or known.vote == found.vote
        return HardState(known.term, NodeId(known.vote or found.vote), commit)
    return HardState(known.term, known.vote, commit)


def recover(segments: Mapping[str, bytes], identity: Identity) -> Recovered:
    """Return what the segments say.

    Args:
        segments: Their bytes by file name.
        identity: Whose they have to be.

    Raises:
        StorageError: `foreign`: of another node, cluster or epoch.
        DamagedError: Bytes, a segment or an entry are missing or not as written.

    Cost:
        About 1 µs per record, and decoding.
    """
    replay = _Replay()
    tail: Tail | None = None
    notes: list[str] = []
    for name, header, contents, seal in _read(segments, identity):
        replay.begin(header.sequence)
        for batch in contents.batches:
            replay.do(batch, name)
        tail = _tail(header, contents, len(segments[name]), seal)
        if contents.used > contents.end:
            notes.append(f"{name} was torn at {contents.end}: its unfinished batch was cut")
    return replay.finish(tail, notes)


def _read(
    segments: Mapping[str, bytes], identity: Identity
) -> Iterator[tuple[str, Header, Contents, int | None]]:
    """Give the segments in order, each with the check of its seal, if it has one."""
    names = sorted(segments)
    before: int | None = None
    seal: int | None = None
    for name in names:
        header = decode_header(segments[name])
        if header is None or segment_name(header.sequence) != name:
            raise _damaged(name, 0, "the header of a segment")
        _check_owner(header, identity, name)
        if before is not None and header.sequence != before + 1:
            raise _damaged(segment_name(before + 1), 0, "a segment")
        if before is not None and header.previous != seal:
            raise _damaged(name, 56, "the check of the seal before it")
        contents = read_segment(segments[name], header.salt)
        if contents.damaged is not None or not contents.batches:
            # The first batch is durable before the segment gets its name.
            raise _damaged(name, contents.damaged or HEADER_SIZE, "a record as it was written")
        seal = _seal(header, contents)
        if name != names[-1] and (seal is None or contents.used > contents.end):
            raise _damaged(name, contents.end, "the seal of a full segment")
        yield name, header, contents, seal
        before = header.sequence


def _check_owner(header: Header, identity: Identity, name: str) -> None:
    wanted = (identity.node, identity.cluster.ljust(16, b"\0"), identity.epoch)
    if (header.node, header.cluster, header.epoch) != wanted:
        raise StorageError(
            f"expected the log of node {identity.node} in cluster {identity.cluster.hex()} epoch "
            f"{identity.epoch}, found {name} of node {header.node} in cluster "
            f"{header.cluster.hex()} epoch {header.epoch}: choose another data directory",
            reason="foreign",
            file=name,
        )


def _seal(header: Header, contents: Contents) -> int | None:
    """Return the check of the seal that ends the segment; None if it is still open."""
    if not contents.batches:
        return None
    last = contents.batches[-1]
    if last.records[-1].kind != RecordKind.SEAL:
        return None
    return check_of(encode_batch(last.records[-1:], last.number, header.salt))


def _tail(header: Header, contents: Contents, size: int, seal: int | None) -> Tail:
    last = contents.batches[-1] if contents.batches else None
    return Tail(
        sequence=header.sequence,
        salt=header.salt,
        size=size,
        number=last.number + 1 if last else 1,
        last_start=last.start if last else contents.end,
        end=contents.end,
        used=contents.used,
        seal=seal,
    )


class _Replay:
    """Does again, record by record, what was done to the log."""

    def __init__(self) -> None:
        self._hard_state = HardState()
        self._entries: list[Entry] = []
        self._mark: SnapshotMark | None = None
        self._highest: dict[int, Index] = {}
        self._sequence = 0

    def begin(self, sequence: int) -> None:
        self._sequence = sequence
        self._highest[sequence] = Index(0)

    def do(self, batch: Batch, name: str) -> None:
        for record in batch.records:
            try:
                self._record(record, name, batch.start)
            except RemoteProtocolError as error:
                raise _damaged(name, batch.start, "a record that can be read") from error

    def _record(self, record: Record, name: str, offset: int) -> None:
        match record.kind:
            case RecordKind.HARD_STATE:
                self._hard_state = newer(self._hard_state, _decode_hard_state(record.payload))
            case RecordKind.ENTRIES:
                self._append(_decode_entries(record.payload), name, offset)
            case RecordKind.MARK:
                self._snapshot(_decode_mark(record.payload), record.reset)
            case RecordKind.SEAL:
                if _decode_seal(record.payload).sequence != self._sequence + 1:
                    raise _damaged(name, offset, "the seal of this segment")
            case _:
                raise _damaged(name, offset, "a record of a kind known to this version")

    def _append(self, entries: list[Entry], name: str, offset: int) -> None:
        """Replace the log from the first index on.

        Where none is known yet it may begin anywhere: what came before may have been
        compacted under a mark that follows. `finish` sees whether one does.
        """
        first = entries[0].index if entries else 0
        if [e.index for e in entries] != list(range(first, first + len(entries))) or first < 1:
            raise _damaged(name, offset, "entries without a gap")
        if self._entries:
            keep = first - self._entries[0].index
            if keep > len(self._entries):
                raise _damaged(name, offset, f"the entry {self._entries[-1].index + 1}")
            del self._entries[max(keep, 0) :]
        self._entries += entries
        highest = max(self._highest[self._sequence], self._entries[-1].index)
        self._highest[self._sequence] = Index(highest)

    def _snapshot(self, mark: SnapshotMark, reset: bool) -> None:
        if reset:
            self._entries.clear()
            for sequence in self._highest:
                self._highest[sequence] = Index(0)
        elif self._mark is not None and mark.index < self._mark.index:
            return
        elif not self._agrees(mark):
            # A member may have applied what its own log had not got yet.
            self._entries.clear()
        self._mark = mark

    def _agrees(self, mark: SnapshotMark) -> bool:
        if not self._entries or mark.index < self._entries[0].index:
            return True
        at = mark.index - self._entries[0].index
        return at < len(self._entries) and self._entries[at].term == mark.term

    def finish(self, tail: Tail | None, notes: Sequence[str]) -> Recovered:
        """Check the whole, and return it."""
        mark, entries, hard_state = self._mark, self._entries, self._hard_state
        covered = mark.index if mark is not None else 0
        first = min(self._highest, default=1)
        if (entries and entries[0].index > covered + 1) or (first > 1 and mark is None):
            raise _damaged(segment_name(max(first - 1, 1)), 0, f"the entry {covered + 1}")
        if entries and entries[-1].index < covered:
            entries = []
        last = entries[-1].index if entries else covered
        term = entries[-1].term if entries else mark.term if mark is not None else 0
        if term > hard_state.term:
            raise _damaged(segment_name(first), 0, f"the hard state of term {term}")
        told = list(notes)
        if hard_state.commit > last:
            told.append(f"commit index {hard_state.commit} beyond the log was set to {last}")
        commit = Index(max(covered, min(hard_state.commit, last)))
        return Recovered(
            hard_state=HardState(hard_state.term, hard_state.vote, commit),
            entries=tuple(entries),
            mark=mark,
            segments=tuple(SegmentInfo(s, i) for s, i in self._highest.items()),
            tail=tail,
            notes=tuple(told),
        )


def _damaged(name: str, offset: int, wanted: str) -> DamagedError:
    return DamagedError(
        f"expected {wanted} in {name} at {offset}, found other bytes: nothing was cut; "
        "this member must be replaced",
        file=name,
        offset=offset,
    )
