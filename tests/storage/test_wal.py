"""The log on a good disk, a full one, a failing one, and a rotting one."""

from __future__ import annotations

import errno
import random
from contextlib import suppress

import msgspec
import pytest
import trio
import trio.testing

from microos.errors import StorageError
from microos.raft.entry import HardState
from microos.storage.files import quarantine, save_identity
from microos.storage.memory import MemoryDisk
from microos.storage.recovery import segment_name
from microos.storage.snapshot import write_snapshot
from microos.storage.wal import DamagedError, Loaded, Wal
from microos.types import Index, NodeId, Term
from tests.storage.history import (
    IDENTITY,
    ME,
    OTHER,
    State,
    Write,
    after,
    assert_legal,
    do,
    entry,
    history,
    mark_at,
    opened,
    persist,
    state_of,
)


class Hook:
    """Counts what the disk is asked, and refuses what it is told to refuse."""

    def __init__(self, platter: MemoryDisk) -> None:
        platter.before = self
        self.counts: dict[str, int] = {}
        self.refused: dict[str, int] = {}

    async def __call__(self, operation: str, name: str) -> None:
        self.counts[operation] = self.counts.get(operation, 0) + 1
        if operation in self.refused:
            raise OSError(self.refused[operation], "refused")


async def restarted(platter: MemoryDisk) -> State:
    platter.before = None
    platter.kill()
    disk = platter.attach()
    _, loaded = await opened(disk)
    await disk.close()
    return state_of(loaded)


async def test_a_new_log_knows_nothing() -> None:
    platter = MemoryDisk()

    wal, loaded = await opened(platter.attach())

    assert state_of(loaded) == State()
    assert loaded.notes == ()
    assert wal.statistics().segments == 1


async def test_all_batches_handed_over_are_one_sync() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    hook = Hook(platter)

    await wal.write([persist(entry(1, i), term=1) for i in range(1, 9)])

    assert hook.counts == {"write": 1, "sync": 1}


async def test_a_commit_index_alone_rides_along() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    await wal.write([persist(entry(1, 1), term=1)])
    hook = Hook(platter)

    await wal.write([persist(term=1, commit=1, must_sync=False)])
    assert hook.counts == {}
    await wal.write([persist(entry(1, 2), term=1, commit=1)])

    assert (await restarted(platter)).hard_state.commit == 1


async def test_a_vote_may_follow_its_term_and_is_never_taken_back() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())

    for vote in ("", OTHER, ""):
        await wal.write([persist(term=7, vote=vote)])

    assert (await restarted(platter)).hard_state.vote == OTHER


async def test_closing_writes_what_rode_along() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    await wal.write([persist(entry(1, 1), term=1)])
    await wal.write([persist(term=1, commit=1, must_sync=False)])

    await wal.close()

    assert (await restarted(platter)).hard_state.commit == 1
    with pytest.raises(StorageError, match="closed"):
        await wal.write([])


async def test_a_batch_larger_than_a_segment_gets_its_own() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    big = entry(1, 1, bytes(range(256)) * 40)

    await wal.write([persist(big, term=1)])
    await wal.write([persist(entry(1, 2), term=1)])

    assert (await restarted(platter)).entries == (big, entry(1, 2))


async def test_compaction_bounds_the_directory() -> None:
    platter = MemoryDisk()
    disk = platter.attach()
    wal, _ = await opened(disk)

    for index in range(1, 400):
        await wal.write([persist(entry(1, index, bytes(50)), term=1, commit=index)])
        if index % 20 == 0:
            mark = mark_at(index, 1)
            await write_snapshot(disk, mark, [b"state"])
            await wal.compact(mark, Index(index - 5))

    statistics = wal.statistics()
    assert statistics.segments <= 3
    logs = [n for n in await disk.names() if n.startswith("wal-")]
    assert len(logs) == statistics.segments
    _, loaded = await opened_again(platter)
    assert loaded.entries[0].index <= 380 - 5
    assert loaded.entries[-1].index == 399


async def opened_again(platter: MemoryDisk) -> tuple[Wal, Loaded]:
    platter.before = None
    platter.kill()
    return await opened(platter.attach())


async def test_a_received_snapshot_frees_all_that_was_before_it() -> None:
    platter = MemoryDisk()
    disk = platter.attach()
    wal, _ = await opened(disk)
    for index in range(1, 60):
        await wal.write([persist(entry(1, index, bytes(50)), term=1)])
    mark = mark_at(20, 2)
    await do(wal, disk, Write((persist(snapshot=mark, term=2, commit=20),)))

    await wal.compact(mark, Index(21))

    assert wal.statistics().segments == 1
    assert await restarted(platter) == State(HardState(Term(2), NodeId(""), Index(20)), (), mark)


async def test_a_snapshot_ahead_of_the_log_voids_it() -> None:
    platter = MemoryDisk()
    disk = platter.attach()
    wal, _ = await opened(disk)
    await wal.write([persist(*(entry(1, i) for i in range(1, 9)), term=2)])
    mark = mark_at(5, 2)
    await write_snapshot(disk, mark, [])

    await wal.compact(mark, Index(1))

    assert await restarted(platter) == State(HardState(Term(2), NodeId(""), Index(5)), (), mark)


async def test_a_commit_index_beyond_the_log_is_cut_and_noted() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    await wal.write([persist(entry(1, 1), term=1, commit=9)])

    platter.kill()
    _, loaded = await opened(platter.attach())

    assert loaded.hard_state.commit == 1
    assert "commit index 9" in loaded.notes[0]


# A full disk.


async def full(platter: MemoryDisk, wal: Wal) -> State:
    """Fill the disk and the segment; return what was acknowledged."""
    platter.full = True
    state = State()
    while True:
        step = Write((persist(entry(1, state.last + 1, bytes(99)), term=1),))
        try:
            await wal.write(step.batches)
        except StorageError as error:
            wal.check()
            return state if error.reason == "full" else State()
        state = after(state, step)


async def test_a_full_disk_still_takes_votes() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    state = await full(platter, wal)

    await wal.write([persist(term=2, vote=OTHER)])

    found = await restarted(platter)
    assert found.entries == state.entries
    assert found.hard_state == HardState(Term(2), OTHER, Index(0))


async def test_what_was_refused_may_be_offered_again() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    state = await full(platter, wal)
    await wal.write([persist(term=7, vote=OTHER)])
    refused = persist(entry(1, state.last + 1, bytes(99)), term=1)

    for _ in range(3):
        with pytest.raises(StorageError, match="full"):
            await wal.write([refused, persist(term=7, vote=OTHER)])
    platter.full = False
    await wal.write([refused])
    await wal.write([persist(term=7)])

    found = await restarted(platter)
    assert found.last == state.last + 1
    assert (found.hard_state.term, found.hard_state.vote) == (7, OTHER)


async def test_a_vote_on_a_full_disk_commits_no_refused_entry() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    await full(platter, wal)
    with pytest.raises(StorageError, match="full"):
        await wal.write([persist(entry(2, 1, bytes(99)), term=2, commit=1)])

    await wal.write([persist(term=3, commit=1)])

    # The old entry 1 stands there still; only the refused one was committed.
    found = await restarted(platter)
    assert found.hard_state == HardState(Term(3), NodeId(""), Index(0))


async def test_votes_fill_the_reserve_and_then_are_refused() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    await full(platter, wal)
    written = 1

    for term in range(2, 100):
        with suppress(StorageError):
            await wal.write([persist(term=term)])
            written = term

    assert 3 < written < 20
    assert (await restarted(platter)).hard_state.term == written


async def test_a_full_disk_is_no_reason_to_lose_the_log_at_start() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    state = await full(platter, wal)

    found = await restarted(platter)

    assert found == state


# A failing disk.


@pytest.mark.parametrize("operation", ["write", "sync"])
async def test_after_a_failure_nothing_is_tried_again(operation: str) -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    hook = Hook(platter)
    hook.refused = {operation: errno.EIO}
    with pytest.raises(StorageError) as caught:
        await wal.write([persist(entry(1, 1), term=1)])
    hook.refused, hook.counts = {}, {}

    with pytest.raises(StorageError, match="nothing any more"):
        await wal.write([persist(entry(1, 1), term=1)])
    with pytest.raises(StorageError, match="nothing any more"):
        await wal.compact(mark_at(1, 1), Index(1))
    await wal.close()

    assert caught.value.reason == "failed"
    assert hook.counts == {}


async def test_no_room_where_room_was_promised_is_a_failure() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    Hook(platter).refused = {"write": errno.ENOSPC}

    with pytest.raises(StorageError) as caught:
        await wal.write([persist(entry(1, 1), term=1)])

    assert caught.value.reason == "failed"


async def test_a_cancelled_write_ends_the_log() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())

    async def hang(operation: str, name: str) -> None:
        await trio.sleep_forever()

    platter.before = hang
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wal.write, [persist(entry(1, 1), term=1)])
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()

    platter.before = None
    with pytest.raises(StorageError, match="interrupted"):
        await wal.write([])


@pytest.mark.prop
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("operation", ["write", "sync", "syncdir", "rename", "resize"])
async def test_what_is_reported_after_a_failed_sync_is_durable(seed: int, operation: str) -> None:
    chance = random.Random(seed)
    platter = MemoryDisk()
    disk = platter.attach()
    wal, _ = await opened(disk)
    legal = [State()]
    left = chance.randrange(12)

    async def fail(found: str, name: str) -> None:
        nonlocal left
        left -= found == operation
        if left < 0 and found == operation:
            raise OSError(errno.EIO, "bad sector")

    platter.before = fail
    try:
        for step in history(chance, 40):
            legal = [legal[-1], after(legal[-1], step)]
            await do(wal, disk, step)
            legal = legal[-1:]
    except StorageError:
        pass
    platter.before = None

    platter.kill()  # The page cache survives, with bytes that no sync will ever write.
    disk = platter.attach()
    wal, seen = await opened(disk)
    await assert_legal(disk, seen, legal)
    state = state_of(seen)
    if seed % 2:
        known = state.hard_state
        step = Write((persist(term=known.term + 1, vote=ME, commit=known.commit),))
        await do(wal, disk, step)
        state = after(state, step)
    platter.crash(chance)
    disk = platter.attach()
    _, durable = await opened(disk)
    await assert_legal(disk, durable, [state])


@pytest.mark.parametrize("seed", range(8))
async def test_a_segment_seen_after_a_failed_sync_of_its_name_is_kept(seed: int) -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    Hook(platter).refused = {"syncdir": errno.EIO}
    with suppress(StorageError):
        for index in range(1, 100):
            await wal.write([persist(entry(1, index, bytes(99)), term=1)])
    platter.before = None
    platter.kill()

    wal, _ = await opened(platter.attach())
    await wal.write([persist(term=2, vote=ME)])
    platter.crash(random.Random(seed))

    assert len([n for n in platter.seen() if n.endswith(".wal")]) == 2
    assert (await restarted(platter)).hard_state.vote == ME


# A rotting disk.


async def rotten(platter: MemoryDisk) -> None:
    """Write a log of three segments and more."""
    disk = platter.attach()
    wal, _ = await opened(disk)
    for index in range(1, 30):
        data = random.Random(index).randbytes(99)
        await wal.write([persist(entry(1, index, data), term=1, vote=ME, commit=index - 1)])
    assert wal.statistics().segments >= 3
    await disk.close()


@pytest.mark.prop
async def test_one_rotten_byte_is_damage_or_nothing() -> None:
    platter = MemoryDisk()
    await rotten(platter)
    files = platter.durable()
    _, whole = await opened(platter.attach())
    chance = random.Random(0)
    damaged = harmless = 0

    for name, data in files.items():
        for offset in range(0, len(data), 7):
            platter = copied(files)
            platter.corrupt(name, offset, data[offset] ^ 1 << chance.randrange(8))
            try:
                _, found = await opened(platter.attach())
            except DamagedError:
                damaged += 1
                assert platter.durable()[name][:offset] == data[:offset]
            else:
                harmless += 1
                assert state_of(found) == state_of(whole)

    assert damaged > 400 > harmless > 0


def copied(files: dict[str, bytes]) -> MemoryDisk:
    platter = MemoryDisk()
    platter.restore(files)
    return platter


async def test_a_zeroed_sector_before_the_last_batch_is_damage() -> None:
    platter = MemoryDisk()
    await rotten(platter)
    files = platter.durable()
    name = segment_name(1)
    files[name] = files[name][:512] + bytes(512) + files[name][1024:]

    with pytest.raises(DamagedError, match=r"wal-0{15}1.wal at \d+"):
        await opened(copied(files).attach())


@pytest.mark.parametrize(("gone", "what"), [(1, "entry 1"), (2, "a segment"), (3, None)])
async def test_a_missing_segment_is_damage(gone: int, what: str | None) -> None:
    platter = MemoryDisk()
    await rotten(platter)
    files = platter.durable()
    del files[segment_name(gone)]

    if what is None:
        # What follows it tells that it is missing.
        what = "a segment"
        assert segment_name(4) in files
    with pytest.raises(DamagedError, match=what):
        await opened(copied(files).attach())


async def test_a_segment_of_an_older_copy_is_damage() -> None:
    copies = []
    for filler in (b"a", b"b"):
        platter = MemoryDisk()
        wal, _ = await opened(platter.attach())
        for index in range(1, 40):
            await wal.write([persist(entry(1, index, filler * 99), term=1)])
        copies.append(platter.durable())
    name = segment_name(2)

    with pytest.raises(DamagedError, match="seal before it"):
        await opened(copied({**copies[0], name: copies[1][name]}).attach())


async def test_a_log_gone_beside_its_snapshot_is_damage() -> None:
    platter = MemoryDisk()
    await write_snapshot(platter.attach(), mark_at(5, 1), [])
    platter.kill()

    with pytest.raises(DamagedError, match="beside the snapshots"):
        await opened(platter.attach())


async def test_a_torn_end_is_kept_aside_and_noted() -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    await wal.write([persist(entry(1, 1), term=1)])
    used = len(platter.durable()[segment_name(1)].rstrip(b"\0"))
    await wal.write([persist(entry(1, 2), term=1)])
    files = platter.durable()
    name = segment_name(1)
    files[name] = files[name][: used + 20].ljust(len(files[name]), b"\0")

    torn = copied(files)
    _, loaded = await opened(torn.attach())

    assert loaded.entries == (entry(1, 1),)
    assert f"torn at {used}" in loaded.notes[0]
    assert torn.seen()["wal-0000000000000001.broken"] == files[name].rstrip(b"\0")


@pytest.mark.parametrize(
    "changed",
    [{"node": OTHER}, {"cluster": b"d" * 16}, {"epoch": 2}],
    ids=["node", "cluster", "epoch"],
)
async def test_another_ones_log_is_refused(changed: dict[str, object]) -> None:
    platter = MemoryDisk()
    disk = platter.attach()
    await opened(disk)

    with pytest.raises(StorageError, match="expected the log of node") as caught:
        await Wal.open(disk, msgspec.structs.replace(IDENTITY, **changed))

    assert caught.value.reason == "foreign"


async def test_a_file_of_a_strange_name_is_damage() -> None:
    platter = MemoryDisk()
    await opened(platter.attach())

    with pytest.raises(DamagedError):
        await opened(copied({**platter.durable(), "wal-x.wal": b"?"}).attach())


async def test_a_log_set_aside_stays_closed_until_there_is_a_new_identity() -> None:
    platter = MemoryDisk()
    await rotten(platter)
    disk = platter.attach()

    assert await quarantine(disk) == 1
    with pytest.raises(DamagedError, match="set aside"):
        await opened(disk)
    await save_identity(disk, msgspec.structs.replace(IDENTITY, node=OTHER))
    _, loaded = await Wal.open(disk, msgspec.structs.replace(IDENTITY, node=OTHER))

    assert state_of(loaded) == State()
    assert f"quarantine-1-{segment_name(1)}" in await disk.names()
