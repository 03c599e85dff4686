"""What a node may ask of a disk: one directory, owned by one process, as bytes.

Above it the storage code is one and the same everywhere: recovery in the
simulator is the real recovery. Below it stand `storage/system.py` (files, one
writing thread) and `storage/memory.py` (which loses, tears, fills up and lies on order).

Durability: bytes written are durable after `write(..., sync=True)` or `File.sync()`
returned; a created, renamed or removed *name* after `Disk.sync()` returned. Before
that a crash may keep any part of them. A failed sync is final: nobody retries it,
because Linux marks the pages clean and a second sync would lie (Rebello et al.,
"Can Applications Recover from fsync Failures?", USENIX ATC 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class File(Protocol):
    """One open file."""

    async def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer at the end of the file."""

    async def write(self, data: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        """Write the buffers one behind the other at `offset`; one hop to the writing thread.

        Raises:
            OSError: ENOSPC, EIO and their kind. What reached the disk is then unknown.
        """

    async def sync(self) -> None: ...
    async def size(self) -> int: ...

    async def resize(self, size: int, *, allocate: bool = False) -> None:
        """Cut or extend with zeros; `allocate` reserves the blocks now (may raise ENOSPC)."""

    async def close(self) -> None: ...


class Disk(Protocol):
    """One directory. Names are plain file names."""

    async def open(self, name: str, *, create: bool = False) -> File:
        """Open a file for reading and writing.

        Raises:
            FileNotFoundError: It is not there and `create` is False.
        """

    async def rename(self, old: str, new: str) -> None: ...
    async def remove(self, name: str) -> None: ...

    async def names(self) -> Sequence[str]:
        """Return the names in the directory, sorted."""

    async def sync(self) -> None:
        """Make creations, renames and removals so far durable."""

    async def close(self) -> None:
        """Give up the directory and its lock."""
