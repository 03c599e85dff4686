"""A real directory: one lock on it, one thread that does all reading and writing in order.

    task ──▶ queue ──▶ thread: pwritev, fdatasync ──run_sync_soon──▶ task

A write and its sync are one hop. One thread of our own, rather than `to_thread`, halves
the way (160–185 µs against 217–401 µs for a synced write of 300 B), and it keeps the
order. The queue needs no bound of its own: it holds one job per waiting task, and what
was left behind by cancelled ones.

Whoever is cancelled while waiting goes on at once; the job is done all the same, since
half of it may be done already. Buffers handed in must not change before that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import trio

from microos.errors import StorageError
from microos.storage.disk import Buffer

LOCK = "lock"
BUFFERS_MAX = 512
"""Buffers of one pwritev; Linux allows 1024."""

ZEROS = 64 * 1024

T = TypeVar("T")


class SystemDisk:
    """One directory of the file system, owned until `close` or the end of the process."""

    def __init__(self, thread: _Thread, directory: int, lock: int) -> None:
        self._thread = thread
        self._directory = directory
        self._lock = lock
        self._open: dict[int, None] = {}
        """Descriptors of open files; touched by the thread only."""
        self._closed = False

    @staticmethod
    async def at(path: Path) -> SystemDisk:
        """Take the directory `path` for this process; make it (0700) if it is not there.

        Raises:
            StorageError: `locked`: another process has it. `failed`: it cannot be used.
        """
        thread = _Thread()
        try:
            directory, lock = await thread.run(partial(_take, path))
        except BaseException:
            thread.stop()
            raise
        return SystemDisk(thread, directory, lock)

    async def open(self, name: str, *, create: bool = False) -> SystemFile:
        return SystemFile(self, await self._run(partial(self._open_here, name, create)))

    async def rename(self, old: str, new: str) -> None:
        at = self._directory
        await self._run(partial(os.rename, _plain(old), _plain(new), src_dir_fd=at, dst_dir_fd=at))

    async def remove(self, name: str) -> None:
        await self._run(partial(os.unlink, _plain(name), dir_fd=self._directory))

    async def names(self) -> Sequence[str]:
        return await self._run(lambda: sorted(n for n in os.listdir(self._directory) if n != LOCK))

    async def sync(self) -> None:
        await self._run(partial(os.fsync, self._directory))

    async def close(self) -> None:
        """Give up the directory and its lock once all that was asked is done. Idempotent."""
        if self._closed:
            return
        self._closed = True
        # Begun also by a cancelled caller: it closes on its way out.
        job = self._thread.begin(self._close_here)
        self._thread.stop()
        await job.wait()

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise OSError(errno.EBADF, "the disk was closed")
        return await self._thread.run(work)

    # On the thread.

    def _open_here(self, name: str, create: bool) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        descriptor = os.open(_plain(name), flags, 0o600, dir_fd=self._directory)
        self._open[descriptor] = None
        return descriptor

    def _close_file_here(self, descriptor: int) -> None:
        if descriptor in self._open:
            del self._open[descriptor]
            os.close(descriptor)

    def _close_here(self) -> None:
        for descriptor in [*self._open, self._directory, self._lock]:
            with suppress(OSError):
                os.close(descriptor)
        self._open.clear()


class SystemFile:
    """One open file."""

    def __init__(self, disk: SystemDisk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._closed = False

    async def read(self, offset: int, size: int) -> bytes:
        return await self._run(partial(_read, self._descriptor, offset, size))

    async def write(self, data: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        await self._run(partial(_write, self._descriptor, data, offset, sync))

    async def sync(self) -> None:
        await self._run(partial(os.fdatasync, self._descriptor))

    async def size(self) -> int:
        return await self._run(lambda: os.fstat(self._descriptor).st_size)

    async def resize(self, size: int, *, allocate: bool = False) -> None:
        await self._run(partial(_resize, self._descriptor, size, allocate))

    async def close(self) -> None:
        if self._closed or self._disk._closed:
            return
        self._closed = True
        work = partial(self._disk._close_file_here, self._descriptor)
        await self._disk._thread.begin(work).wait()

    async def _run(self, work: Callable[[], T]) -> T:
        # A descriptor is a number that the system gives out again: never touch a closed one.
        if self._closed:
            raise OSError(errno.EBADF, "the file is closed")
        return await self._disk._run(work)


class _Thread:
    """Does one job after the other, in the order in which they were begun."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # A daemon: a disk that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name="microos-disk", daemon=True).start()

    async def run(self, work: Callable[[], T]) -> T:
        """Do `work` on the thread; return or raise what came of it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        result: T = await self.begin(work).wait()
        return result

    def begin(self, work: Callable[[], Any]) -> _Job:
        job = _Job(work, trio.lowlevel.current_trio_token(), trio.lowlevel.current_task())
        self._jobs.put(job)
        return job

    def stop(self) -> None:
        """End the thread after the jobs begun so far."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.do()


class _Job:
    """One piece of work, and the task that waits for it."""

    def __init__(
        self,
        work: Callable[[], Any],
        token: trio.lowlevel.TrioToken,
        task: trio.lowlevel.Task,
    ) -> None:
        self._work = work
        self._token = token
        self._task = task
        self._waiting = False
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def do(self) -> None:
        """On the thread."""
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._finish)

    def _finish(self) -> None:
        self._done = True
        if self._waiting:
            self._waiting = False
            trio.lowlevel.reschedule(self._task)

    async def wait(self) -> Any:
        def abort(_: Callable[[], object]) -> trio.lowlevel.Abort:
            self._waiting = False
            return trio.lowlevel.Abort.SUCCEEDED

        if not self._done:
            self._waiting = True
            await trio.lowlevel.wait_task_rescheduled(abort)
        if self._error is not None:
            raise self._error
        return self._value


def _take(path: Path) -> tuple[int, int]:
    """Return descriptors of the directory and of its lock, held."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        return directory, _lock(path, directory)
    except BaseException:
        os.close(directory)
        raise


def _lock(path: Path, directory: int) -> int:
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        user = f"process {holder}" if holder else "another process"
        os.close(lock)
        raise StorageError(
            f"data directory {path} is in use by {user}: stop it or choose another --data-dir",
            reason="locked",
            path=str(path),
            holder=holder,
        ) from error
    except OSError as error:
        os.close(lock)
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"data directory {path} cannot be used: {error.strerror}; "
        "make it writable or choose another --data-dir",
        reason="full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed",
        path=str(path),
    )


def _read(descriptor: int, offset: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def _write(descriptor: int, data: Sequence[Buffer], offset: int, sync: bool) -> None:
    views = [memoryview(part).cast("B") for part in data if len(part)]
    while views:
        written = os.pwritev(descriptor, views[:BUFFERS_MAX], offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
    if sync:
        os.fdatasync(descriptor)


def _resize(descriptor: int, size: int, allocate: bool) -> None:
    old = os.fstat(descriptor).st_size
    if size <= old or not allocate:
        os.ftruncate(descriptor, size)
        return
    try:
        os.posix_fallocate(descriptor, old, size - old)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        # A file system that cannot reserve: written zeros take the room as well.
        for at in range(old, size, ZEROS):
            _write(descriptor, [bytes(min(ZEROS, size - at))], at, False)


def _plain(name: str) -> str:
    assert name not in ("", ".", "..", LOCK)
    assert "/" not in name
    return name
