"""The real directory: its lock, its modes, and cancellation."""

from __future__ import annotations

import os
import stat
import threading
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from microos.errors import StorageError
from microos.storage.system import SystemDisk


async def test_a_directory_has_one_owner_who_is_named(tmp_path: Path) -> None:
    disk = await SystemDisk.at(tmp_path / "data")

    with pytest.raises(StorageError, match=f"in use by process {os.getpid()}: stop it") as caught:
        await SystemDisk.at(tmp_path / "data")

    assert caught.value.reason == "locked"
    await disk.close()
    await (await SystemDisk.at(tmp_path / "data")).close()


async def test_what_is_made_is_for_its_owner_only(tmp_path: Path) -> None:
    disk = await SystemDisk.at(tmp_path / "deep" / "data")
    await disk.open("a", create=True)
    await disk.close()

    modes = [stat.S_IMODE((tmp_path / "deep" / p).stat().st_mode) for p in ("data", "data/a")]

    assert modes == [0o700, 0o600]


async def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="cannot be used"):
        await SystemDisk.at(tmp_path / "file")


async def test_a_cancelled_write_is_done_all_the_same(tmp_path: Path) -> None:
    disk = await SystemDisk.at(tmp_path)
    file = await disk.open("a", create=True)
    gate = threading.Event()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk._run, gate.wait)
            nursery.start_soon(partial(file.write, [b"abc"], 0))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    gate.set()

    assert await file.read(0, 9) == b"abc"
    await disk.close()


async def test_a_cancelled_task_still_closes(tmp_path: Path) -> None:
    disk = await SystemDisk.at(tmp_path)

    with trio.CancelScope() as scope:
        scope.cancel()
        await disk.close()

    disk = await SystemDisk.at(tmp_path / "other")
    await disk.close()


async def test_the_loop_goes_on_while_the_disk_is_slow(tmp_path: Path) -> None:
    disk = await SystemDisk.at(tmp_path)
    gate = threading.Event()
    ticks = 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk._run, gate.wait)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
            ticks += 1
        gate.set()

    assert ticks == 100
    await disk.close()
