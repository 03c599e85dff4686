"""Histories of a log, and what it must hold after each step: for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from microos.raft.entry import (
    Configuration,
    Entry,
    HardState,
    Kind,
    Persist,
    SnapshotMark,
    Token,
)
from microos.storage.disk import Disk
from microos.storage.files import Identity
from microos.storage.snapshot import drop_older, read_snapshot, write_snapshot
from microos.storage.wal import Loaded, Wal
from microos.types import Index, NodeId, Random, Term

ME = NodeId("1" * 32)
OTHER = NodeId("2" * 32)
IDENTITY = Identity(node=ME, cluster=b"c" * 16, epoch=1)
SEGMENT = 2048


def entry(term: int, index: int, data: bytes = b"data") -> Entry:
    return Entry(Term(term), Index(index), index * 1000, Kind.COMMAND, data)


def mark_at(index: int, term: int) -> SnapshotMark:
    return SnapshotMark(Index(index), Term(term), Configuration(voters=(ME, OTHER)), index * 1000)


def persist(
    *entries: Entry,
    term: int | None = None,
    vote: str = "",
    commit: int = 0,
    snapshot: SnapshotMark | None = None,
    must_sync: bool = True,
) -> Persist:
    hard_state = None
    if term is not None:
        hard_state = HardState(Term(term), NodeId(vote), Index(commit))
    return Persist(Token(0, Term(term or 0)), entries, hard_state, snapshot, must_sync)


class State(msgspec.Struct, frozen=True):
    """What a member knows."""

    hard_state: HardState = HardState()
    entries: tuple[Entry, ...] = ()
    """From `mark.index + 1` on."""
    mark: SnapshotMark | None = None

    @property
    def covered(self) -> int:
        return self.mark.index if self.mark else 0

    @property
    def last(self) -> Index:
        return Index(self.covered + len(self.entries))


class Write(msgspec.Struct, frozen=True):
    batches: tuple[Persist, ...]


class Compact(msgspec.Struct, frozen=True):
    mark: SnapshotMark
    first: Index


Step = Write | Compact


def after(state: State, step: Step) -> State:
    """Return what must be held once `step` is acknowledged."""
    if isinstance(step, Compact):
        kept = tuple(e for e in state.entries if e.index > step.mark.index)
        return msgspec.structs.replace(state, mark=step.mark, entries=kept)
    for batch in step.batches:
        mark, entries = state.mark, state.entries
        if batch.snapshot is not None:
            mark, entries = batch.snapshot, ()
        if batch.entries:
            first = batch.entries[0].index
            entries = (*(e for e in entries if e.index < first), *batch.entries)
        state = State(batch.hard_state or state.hard_state, entries, mark)
    return state


async def do(wal: Wal, disk: Disk, step: Step) -> None:
    """Do `step` as the driver does it: the state's file first, then the log."""
    match step:
        case Write(batches):
            for batch in batches:
                if batch.snapshot is not None:
                    await write_snapshot(disk, batch.snapshot, [b"state"])
            await wal.write(batches)
        case Compact(mark, first):
            await write_snapshot(disk, mark, [b"state", b"", b"more"])
            await wal.compact(mark, first)
            await drop_older(disk, mark)
    wal.check()


def history(random: Random, steps: int, state: State | None = None) -> list[Step]:
    """Return a history such as raft makes them: growing terms, truncation, snapshots."""
    state = state or State()
    found: list[Step] = []
    while len(found) < steps:
        step = _step(random, state)
        found.append(step)
        state = after(state, step)
    return found


def _step(random: Random, state: State) -> Step:
    hard_state = state.hard_state
    fate = random.randrange(20)
    if fate == 0 and hard_state.commit > state.covered:
        at = state.entries[hard_state.commit - state.covered - 1]
        first = Index(max(1, at.index - random.randrange(5) + 1))
        return Compact(mark_at(at.index, at.term), first)
    if fate == 1 and hard_state.term:
        index = state.last + 1 + random.randrange(5)
        mark = mark_at(index, hard_state.term)
        return Write(
            (persist(snapshot=mark, term=hard_state.term, vote=hard_state.vote, commit=index),)
        )
    batches: list[Persist] = []
    for _ in range(1 + random.randrange(3)):
        batch = _batch(random, state)
        batches.append(batch)
        state = after(state, Write((batch,)))
    return Write(tuple(batches))


def _batch(random: Random, state: State) -> Persist:
    known = state.hard_state
    fate = random.randrange(4)
    if fate == 0:
        commit = known.commit + random.randrange(state.last - known.commit + 1)
        return persist(term=known.term, vote=known.vote, commit=commit, must_sync=False)
    if fate == 1:
        vote = random.choice([ME, OTHER, NodeId("")])
        return persist(term=known.term + 1, vote=vote, commit=known.commit)
    term = known.term + (1 if fate == 2 else not known.term)
    vote = known.vote if term == known.term else NodeId("")
    lowest = max(known.commit, state.covered) + 1
    first = state.last + 1
    if fate == 2:
        # A new leader replaces what was never committed.
        first = lowest + random.randrange(first - lowest + 1)
    data = bytes(random.randrange(256) for _ in range(random.randrange(120)))
    entries = [entry(term, i, data) for i in range(first, first + 1 + random.randrange(4))]
    return persist(*entries, term=term, vote=vote, commit=known.commit)


async def opened(disk: Disk) -> tuple[Wal, Loaded]:
    return await Wal.open(disk, IDENTITY, segment_bytes=SEGMENT)


def state_of(loaded: Loaded) -> State:
    covered = loaded.mark.index if loaded.mark else 0
    entries = tuple(e for e in loaded.entries if e.index > covered)
    return State(loaded.hard_state, entries, loaded.mark)


async def assert_legal(disk: Disk, loaded: Loaded, legal: Sequence[State]) -> None:
    """Assert that what was found is one of `legal`, but for a commit index still riding along."""
    found = state_of(loaded)
    alike = [s for s in legal if _without_commit(s) == _without_commit(found)]
    assert alike, f"found {found}, expected one of {legal}"
    assert found.covered <= found.hard_state.commit <= found.last
    assert found.hard_state.commit <= max(max(s.hard_state.commit, s.covered) for s in alike)
    indexes = [e.index for e in loaded.entries]
    assert indexes == list(range(indexes[0], indexes[0] + len(indexes))) if indexes else True
    if loaded.mark is not None:
        assert await read_snapshot(disk, loaded.mark)


def _without_commit(state: State) -> tuple[object, ...]:
    return (state.hard_state.term, state.hard_state.vote, state.entries, state.mark)
