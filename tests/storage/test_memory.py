"""The disk in memory keeps what was synced, and may lose anything else."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.errors import StorageError
from microos.storage.memory import MemoryDisk


async def filled(platter: MemoryDisk, data: bytes) -> None:
    disk = platter.attach()
    file = await disk.open("a", create=True)
    await file.write([data], 0, sync=True)
    await disk.sync()
    await disk.close()


async def test_what_was_synced_survives_every_crash() -> None:
    for seed in range(20):
        platter = MemoryDisk()
        await filled(platter, b"x" * 1000)

        platter.crash(random.Random(seed))

        assert platter.durable() == {"a": b"x" * 1000} == platter.seen()
        platter.check()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 1500), st.integers(1, 2000))
async def test_a_torn_write_leaves_old_and_new_bytes_only(
    seed: int, offset: int, size: int
) -> None:
    platter = MemoryDisk()
    await filled(platter, b"o" * 2000)
    file = await platter.attach().open("a")
    await file.write([b"n" * size], offset)

    platter.crash(random.Random(seed))

    found = platter.durable()["a"]
    assert set(found[offset : offset + size]) <= {*b"on\0"}
    assert found[:offset] == b"o" * offset
    assert found[offset + size :] == b"o" * (2000 - offset - size)


async def test_each_fate_of_an_unsynced_write_occurs() -> None:
    fates: dict[str, None] = {}
    for seed in range(200):
        platter = MemoryDisk()
        await filled(platter, bytes(1536))
        file = await platter.attach().open("a")
        await file.write([b"n" * 1536], 0)
        platter.crash(random.Random(seed))
        found = platter.durable()["a"]
        kept = len(found) - found.count(0)
        whole = [found[at : at + 512].count(0) in (0, 512) for at in range(0, 1536, 512)]
        fates["none" if not kept else "all" if kept == 1536 else f"sectors {all(whole)}"] = None

    assert sorted(fates) == ["all", "none", "sectors False", "sectors True"]


async def test_names_need_a_sync_of_the_directory() -> None:
    outcomes: dict[tuple[str, ...], None] = {}
    for seed in range(50):
        platter = MemoryDisk()
        await filled(platter, b"x")
        disk = platter.attach()
        await disk.rename("a", "b")
        platter.crash(random.Random(seed))
        outcomes[tuple(platter.durable())] = None

    assert sorted(outcomes) == [("a",), ("b",)]


async def test_a_failed_sync_dooms_what_it_was_for() -> None:
    platter = MemoryDisk()
    await filled(platter, bytes(4))
    file = await platter.attach().open("a")

    async def fail(operation: str, _: str) -> None:
        if operation == "sync":
            raise OSError(errno.EIO, "bad sector")

    platter.before = fail
    with pytest.raises(OSError, match="bad sector"):
        await file.write([b"lost"], 0, sync=True)
    platter.before = None
    await file.sync()

    assert await file.read(0, 4) == b"lost"
    assert platter.durable()["a"] == bytes(4)


async def test_a_full_disk_refuses_growth_only() -> None:
    platter = MemoryDisk()
    await filled(platter, bytes(4))
    disk = platter.attach()
    file = await disk.open("a")
    platter.full = True

    await file.write([b"abcd"], 0, sync=True)
    for grow in (file.write([b"e"], 4), file.resize(9, allocate=True)):
        with pytest.raises(OSError, match="no space"):
            await grow
    with pytest.raises(OSError, match="no space"):
        await disk.open("b", create=True)

    assert platter.durable() == {"a": b"abcd"}


async def test_after_a_crash_the_old_process_changes_nothing() -> None:
    platter = MemoryDisk()
    await filled(platter, b"x")
    disk = platter.attach()
    file = await disk.open("a")

    async def crash(operation: str, _: str) -> None:
        platter.crash(random.Random(0))

    platter.before = crash
    with pytest.raises(OSError, match="process has ended"):
        await file.write([b"y"], 0, sync=True)
    platter.before = None
    with pytest.raises(OSError, match="process has ended"):
        await disk.names()

    assert platter.durable() == {"a": b"x"}


async def test_a_killed_process_leaves_what_it_wrote() -> None:
    platter = MemoryDisk()
    await filled(platter, b"x")
    file = await platter.attach().open("a")
    await file.write([b"y"], 0)

    platter.kill()

    assert platter.seen() == {"a": b"y"}
    assert platter.durable() == {"a": b"x"}


async def test_two_processes_never_share_a_disk() -> None:
    platter = MemoryDisk()
    platter.attach()

    with pytest.raises(StorageError, match="in use"):
        platter.attach()


async def test_a_lying_disk_forgets() -> None:
    platter = MemoryDisk()
    await filled(platter, b"old")
    platter.lies = True
    file = await platter.attach().open("a")

    await file.write([b"new"], 0, sync=True)

    assert platter.durable() == {"a": b"old"}


async def test_rot_is_on_the_platter() -> None:
    platter = MemoryDisk()
    await filled(platter, b"abc")

    platter.corrupt("a", 1, 0x21)

    assert platter.durable() == {"a": b"a!c"} == platter.seen()
