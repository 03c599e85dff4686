"""A snapshot is valid as a whole or not at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.errors import StorageError
from microos.storage.memory import MemoryDisk
from microos.storage.snapshot import (
    decode_snapshot,
    drop_older,
    drop_others,
    encode_snapshot,
    read_snapshot,
    read_snapshot_bytes,
    snapshot_name,
    write_snapshot,
)
from microos.storage.wal import DamagedError
from tests.storage.history import mark_at
from tests.storage.test_crash import Fuse, PowerLoss

MARK = mark_at(9, 3)
CHUNKS = (b"one", b"", bytes(range(256)), b"last")


@pytest.mark.prop
@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=8))
def test_what_was_written_is_read(chunks: list[bytes]) -> None:
    assert decode_snapshot(encode_snapshot(MARK, chunks)) == (MARK, tuple(chunks))


def test_any_wrong_byte_is_damage() -> None:
    good = encode_snapshot(MARK, CHUNKS)

    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        with pytest.raises(DamagedError):
            decode_snapshot(bytes(bad))


def test_any_other_length_is_damage() -> None:
    good = encode_snapshot(MARK, CHUNKS)

    for size in range(len(good)):
        with pytest.raises(DamagedError):
            decode_snapshot(good[:size])
    with pytest.raises(DamagedError):
        decode_snapshot(good + good[-32:])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_foreign_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(DamagedError):
        decode_snapshot(data)


async def test_the_bytes_sent_are_the_bytes_kept() -> None:
    disk = MemoryDisk().attach()

    await write_snapshot(disk, MARK, iter(CHUNKS))

    assert await read_snapshot(disk, MARK) == CHUNKS
    assert await read_snapshot_bytes(disk, MARK) == encode_snapshot(MARK, CHUNKS)


async def test_leftovers_of_an_unfinished_snapshot_are_no_part_of_it() -> None:
    disk = MemoryDisk().attach()
    file = await disk.open(snapshot_name(MARK) + ".new", create=True)
    await file.write([b"x" * 10_000], 0)

    await write_snapshot(disk, MARK, CHUNKS)

    assert await read_snapshot(disk, MARK) == CHUNKS


async def test_large_snapshots_go_in_pieces() -> None:
    disk = MemoryDisk().attach()
    chunks = [bytes([i]) * 65536 for i in range(40)]

    await write_snapshot(disk, MARK, chunks)

    assert list(await read_snapshot(disk, MARK)) == chunks


async def test_a_missing_snapshot_is_damage() -> None:
    disk = MemoryDisk().attach()
    await write_snapshot(disk, MARK, CHUNKS)

    with pytest.raises(DamagedError, match="found none"):
        await read_snapshot(disk, mark_at(10, 3))


async def test_a_snapshot_of_another_mark_is_damage() -> None:
    disk = MemoryDisk().attach()
    name = await write_snapshot(disk, MARK, CHUNKS)
    await disk.rename(name, snapshot_name(mark_at(10, 3)))

    with pytest.raises(DamagedError, match="mark"):
        await read_snapshot(disk, mark_at(10, 3))


async def test_power_loss_leaves_no_half_snapshot() -> None:
    for at in range(8):
        for fate in range(10):
            platter = MemoryDisk()
            platter.before = Fuse(at)
            done = False
            try:
                await write_snapshot(platter.attach(), MARK, CHUNKS)
                done = True
            except PowerLoss:
                pass
            platter.before = None
            platter.crash(random.Random(f"{at}/{fate}"))
            disk = platter.attach()
            there = snapshot_name(MARK) in await disk.names()
            assert there or not done
            assert not there or await read_snapshot(disk, MARK) == CHUNKS


async def test_a_full_disk_leaves_the_older_snapshot() -> None:
    platter = MemoryDisk()
    disk = platter.attach()
    await write_snapshot(disk, MARK, CHUNKS)
    platter.full = True

    with pytest.raises(StorageError) as caught:
        await write_snapshot(disk, mark_at(10, 3), CHUNKS)

    assert caught.value.reason == "full"
    assert await read_snapshot(disk, MARK) == CHUNKS


async def test_only_older_ones_are_dropped_while_running() -> None:
    disk = MemoryDisk().attach()
    for index in (3, 9, 300):
        await write_snapshot(disk, mark_at(index, 3), CHUNKS)

    await drop_older(disk, MARK)
    assert await disk.names() == [snapshot_name(MARK), snapshot_name(mark_at(300, 3))]
    await drop_others(disk, MARK)
    assert await disk.names() == [snapshot_name(MARK)]
    await drop_others(disk, None)
    assert await disk.names() == []
