"""A disk in memory that keeps what a real one keeps: durable bytes, and bytes that only seem so.

`MemoryDisk` is the platter and outlives every process; `attach()` gives one process
its handle. What was written and not yet synced is kept apart, in order:

    write ──▶ seen ──(sync)──▶ durable          a file's bytes
    create, rename, remove ──(Disk.sync)──▶     a directory's names

`crash` settles the rest as power loss does: each unsynced write is kept, lost, torn at
any byte, missing some of its 512-byte sectors, or only its length remains as zeros, in
any order; each unsynced name is kept or lost. Bytes whose sync failed look written until
then, and no later sync saves them (Rebello et al., "Can Applications Recover from fsync
Failures?", USENIX ATC 2020). `kill` ends the process alone: what it wrote stays seen.

Faults: `before` is awaited ahead of every operation and may wait, or raise OSError;
`full` refuses all that needs more room; `lies` makes syncs do nothing; `corrupt` is bit rot.
Without `before` no operation waits, so one step of the caller is one step of the disk.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import pairwise

import msgspec

from microos.errors import StorageError
from microos.storage.disk import Buffer
from microos.types import Random

SECTOR = 512


class _Write(msgspec.Struct, frozen=True):
    offset: int
    data: bytes


class _Resize(msgspec.Struct, frozen=True):
    size: int


class _Create(msgspec.Struct, frozen=True):
    name: str
    inode: _Inode


class _Rename(msgspec.Struct, frozen=True):
    old: str
    new: str


class _Remove(msgspec.Struct, frozen=True):
    name: str


class MemoryDisk:
    """The platter: one directory's bytes, over all processes that ever use it."""

    def __init__(self) -> None:
        self.before: Callable[[str, str], Awaitable[None]] | None = None
        """Awaited ahead of each operation with (operation, name); raising OSError fails it.

        Operations: `open read write sync resize close` of a file; `rename remove names
        syncdir` of the directory (name empty for the last two). A write with `sync=True`
        is a `write` and then a `sync`.
        """
        self.full = False
        """Whatever needs more room than there is now is refused (ENOSPC)."""
        self.lies = False
        """Syncs answer and do nothing."""
        self._names: dict[str, _Inode] = {}
        self._durable: dict[str, _Inode] = {}
        self._unsynced: list[_Create | _Rename | _Remove] = []
        self._owner: MemoryHandle | None = None

    def attach(self) -> MemoryHandle:
        """Return the disk as one process has it.

        Raises:
            StorageError: `locked`: another process has it and neither closed it nor died.
        """
        if self._owner is not None:
            raise StorageError(
                "the disk in memory is in use by another process: stop it first", reason="locked"
            )
        self._owner = MemoryHandle(self)
        return self._owner

    def kill(self) -> None:
        """End the process alone: its handle does nothing any more, all it wrote stays seen."""
        self._owner = None

    def crash(self, random: Random) -> None:
        """End process and machine: what was not synced is kept, lost or torn, as `random` says."""
        self._owner = None
        for change in self._unsynced:
            if random.random() < 0.5:
                _rename(self._durable, change)
        self._unsynced.clear()
        for _, inode in sorted(self._durable.items()):
            inode.settle(random)
        self._names = dict(self._durable)

    def durable(self) -> dict[str, bytes]:
        """Return the files as the most unlucky crash would leave them, by name."""
        return {name: bytes(inode.durable) for name, inode in sorted(self._durable.items())}

    def seen(self) -> dict[str, bytes]:
        """Return the files as a process reads them now, by name."""
        return {name: bytes(inode.seen) for name, inode in sorted(self._names.items())}

    def restore(self, files: Mapping[str, bytes]) -> None:
        """End the process; put other files in place of all: an old copy, or none."""
        self._owner = None
        self._unsynced.clear()
        self._durable = {name: _Inode(data) for name, data in files.items()}
        self._names = dict(self._durable)

    def corrupt(self, name: str, offset: int, byte: int) -> None:
        """Let one byte of a file rot to another value, on the platter and as read."""
        inode = self._names[name]
        for data in (inode.durable, inode.seen):
            if offset < len(data):
                data[offset] = byte

    def check(self) -> None:
        """Assert the invariants: nothing unsynced means that seen and durable are alike."""
        if not self._unsynced:
            assert self._names.keys() == self._durable.keys()
        for inode in self._names.values():
            if not inode.unsynced and not inode.doomed:
                assert inode.seen == inode.durable


class MemoryHandle:
    """The disk as one process has it. After `crash`, `kill` or `close` all it does fails."""

    def __init__(self, platter: MemoryDisk) -> None:
        self._platter = platter

    async def open(self, name: str, *, create: bool = False) -> MemoryFile:
        platter = await self._turn("open", name)
        inode = platter._names.get(name)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            self._room(name)
            inode = platter._names[name] = _Inode()
            platter._unsynced.append(_Create(name, inode))
        return MemoryFile(self, name, inode)

    async def rename(self, old: str, new: str) -> None:
        self._change(await self._turn("rename", old), old, _Rename(old, new))

    async def remove(self, name: str) -> None:
        self._change(await self._turn("remove", name), name, _Remove(name))

    async def names(self) -> Sequence[str]:
        return sorted((await self._turn("names", ""))._names)

    async def sync(self) -> None:
        platter = await self._turn("syncdir", "")
        if not platter.lies:
            platter._durable = dict(platter._names)
            platter._unsynced.clear()

    async def close(self) -> None:
        if self._platter._owner is self:
            self._platter._owner = None

    @staticmethod
    def _change(platter: MemoryDisk, name: str, change: _Rename | _Remove) -> None:
        if name not in platter._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        _rename(platter._names, change)
        platter._unsynced.append(change)

    async def _turn(self, operation: str, name: str) -> MemoryDisk:
        """Wait as the hook says; then return the platter, if the process still lives."""
        assert "/" not in name
        self._alive()
        if self._platter.before is not None:
            await self._platter.before(operation, name)
            self._alive()
        return self._platter

    def _alive(self) -> None:
        if self._platter._owner is not self:
            raise OSError(errno.EBADF, "the disk was closed, or its process has ended")

    def _room(self, name: str) -> None:
        """Refuse what needs more room, while there is none."""
        if self._platter.full:
            raise OSError(errno.ENOSPC, "no space left on the disk in memory", name)


class MemoryFile:
    """One open file."""

    def __init__(self, handle: MemoryHandle, name: str, inode: _Inode) -> None:
        self._handle = handle
        self._name = name
        self._inode = inode
        self._closed = False

    async def read(self, offset: int, size: int) -> bytes:
        await self._turn("read")
        return bytes(self._inode.seen[offset : offset + size])

    async def write(self, data: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        await self._turn("write")
        written = _Write(offset, b"".join(data))
        if offset + len(written.data) > len(self._inode.seen):
            self._handle._room(self._name)
        self._inode.do(written)
        if sync:
            await self.sync()

    async def sync(self) -> None:
        try:
            platter = await self._turn("sync")
        except OSError:
            self._inode.doom()
            raise
        if not platter.lies:
            self._inode.sync()

    async def size(self) -> int:
        await self._turn("read")
        return len(self._inode.seen)

    async def resize(self, size: int, *, allocate: bool = False) -> None:
        await self._turn("resize")
        if size > len(self._inode.seen) and allocate:
            self._handle._room(self._name)
        self._inode.do(_Resize(size))

    async def close(self) -> None:
        self._closed = True

    async def _turn(self, operation: str) -> MemoryDisk:
        if self._closed:
            raise OSError(errno.EBADF, "the file is closed", self._name)
        return await self._handle._turn(operation, self._name)


class _Inode:
    """A file's bytes, apart from its name."""

    __slots__ = ("doomed", "durable", "seen", "unsynced")

    def __init__(self, data: bytes = b"") -> None:
        self.durable = bytearray(data)
        self.seen = bytearray(data)
        self.unsynced: list[_Write | _Resize] = []
        self.doomed: list[_Write | _Resize] = []
        """Their sync failed: seen, perhaps on the platter, and synced by nothing."""

    def do(self, change: _Write | _Resize) -> None:
        _apply(self.seen, change)
        self.unsynced.append(change)

    def sync(self) -> None:
        for change in self.unsynced:
            _apply(self.durable, change)
        self.unsynced.clear()

    def doom(self) -> None:
        self.doomed += self.unsynced
        self.unsynced.clear()

    def settle(self, random: Random) -> None:
        changes = [*self.doomed, *self.unsynced]
        if random.random() < 0.5:
            random.shuffle(changes)
        for change in changes:
            for left in _torn(change, random):
                _apply(self.durable, left)
        self.unsynced.clear()
        self.doomed.clear()
        self.seen = bytearray(self.durable)


def _apply(data: bytearray, change: _Write | _Resize) -> None:
    match change:
        case _Write(offset=offset, data=written):
            if offset > len(data):
                data.extend(bytes(offset - len(data)))
            data[offset : offset + len(written)] = written
        case _Resize(size=size):
            del data[size:]
            data.extend(bytes(size - len(data)))


def _rename(names: dict[str, _Inode], change: _Create | _Rename | _Remove) -> None:
    match change:
        case _Create(name=name, inode=inode):
            names[name] = inode
        case _Rename(old=old, new=new):
            # The creation of `old` may itself have been lost.
            if old in names:
                names[new] = names.pop(old)
        case _Remove(name=name):
            names.pop(name, None)


def _torn(change: _Write | _Resize, random: Random) -> list[_Write | _Resize]:
    """Return what power loss leaves of one unsynced change."""
    fate = random.randrange(5)
    match change:
        case _Resize():
            return [change] if fate % 2 else []
        case _Write(offset=offset, data=data):
            if fate == 0:
                return []
            if fate == 1:
                return [change]
            if fate == 2:
                return [_Write(offset, data[: random.randrange(len(data) + 1)])]
            sectors = _sectors(offset, data)
            kept: list[_Write | _Resize] = [s for s in sectors if random.random() < 0.5]
            # The file may have grown although the bytes never arrived.
            return [_Write(offset + len(data), b""), *kept] if fate == 4 else kept


def _sectors(offset: int, data: bytes) -> list[_Write]:
    """Return a write cut where the sectors of the file begin."""
    first = SECTOR - offset % SECTOR
    cuts = [0, *range(first, len(data), SECTOR), len(data)]
    return [_Write(offset + a, data[a:b]) for a, b in pairwise(cuts)]
