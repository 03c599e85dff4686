"""What every disk owes: the same tests on the real one and on the one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from microos.storage.disk import Disk
from microos.storage.memory import MemoryDisk
from microos.storage.system import SystemDisk


@pytest.fixture(params=["memory", "system"])
async def disk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Disk]:
    opened: Disk
    if request.param == "memory":
        opened = MemoryDisk().attach()
    else:
        opened = await SystemDisk.at(tmp_path / "data")
    yield opened
    await opened.close()


async def test_a_new_directory_is_empty(disk: Disk) -> None:
    assert list(await disk.names()) == []


async def test_only_create_makes_a_file(disk: Disk) -> None:
    with pytest.raises(FileNotFoundError):
        await disk.open("a")

    await (await disk.open("a", create=True)).close()

    assert list(await disk.names()) == ["a"]


async def test_buffers_are_written_one_behind_the_other(disk: Disk) -> None:
    file = await disk.open("a", create=True)

    await file.write([b"one", bytearray(b"two"), b"", memoryview(b"three")], 2, sync=True)

    assert await file.read(0, 100) == b"\0\0onetwothree"
    assert await file.size() == 13


async def test_many_buffers_are_one_write(disk: Disk) -> None:
    file = await disk.open("a", create=True)

    await file.write([bytes([i % 256]) * 3 for i in range(3000)], 0)

    assert await file.read(3 * 2999, 10) == bytes([2999 % 256]) * 3


async def test_reading_stops_at_the_end(disk: Disk) -> None:
    file = await disk.open("a", create=True)
    await file.write([b"abc"], 0)

    assert await file.read(1, 100) == b"bc"
    assert await file.read(3, 100) == b""
    assert await file.read(50, 1) == b""


@pytest.mark.parametrize("allocate", [False, True])
async def test_resize_extends_with_zeros_and_cuts(disk: Disk, allocate: bool) -> None:
    file = await disk.open("a", create=True)
    await file.write([b"abcdef"], 0)

    await file.resize(3, allocate=allocate)
    await file.resize(5, allocate=allocate)

    assert await file.read(0, 9) == b"abc\0\0"


async def test_rename_replaces(disk: Disk) -> None:
    for name in ("a", "b"):
        file = await disk.open(name, create=True)
        await file.write([name.encode()], 0)
        await file.close()

    await disk.rename("a", "b")
    await disk.sync()

    assert list(await disk.names()) == ["b"]
    assert await (await disk.open("b")).read(0, 9) == b"a"


async def test_a_removed_file_is_gone(disk: Disk) -> None:
    await (await disk.open("a", create=True)).close()

    await disk.remove("a")

    assert list(await disk.names()) == []
    with pytest.raises(FileNotFoundError):
        await disk.remove("a")
    with pytest.raises(FileNotFoundError):
        await disk.rename("a", "b")


async def test_names_are_sorted(disk: Disk) -> None:
    for name in ("c", "a", "b"):
        await (await disk.open(name, create=True)).close()

    assert list(await disk.names()) == ["a", "b", "c"]


async def test_a_closed_file_takes_nothing(disk: Disk) -> None:
    file = await disk.open("a", create=True)
    await file.close()
    await file.close()

    with pytest.raises(OSError, match="closed"):
        await file.write([b"x"], 0)


async def test_a_closed_disk_takes_nothing(disk: Disk) -> None:
    file = await disk.open("a", create=True)
    await disk.close()
    await disk.close()

    with pytest.raises(OSError, match="closed"):
        await disk.names()
    with pytest.raises(OSError, match="closed"):
        await file.write([b"x"], 0)
