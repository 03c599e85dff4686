"""Small files, each written as a whole or not at all; who this directory belongs to.

A file is written aside, synced, renamed, and its directory synced, so a crash leaves
the old one or the new one. Little-endian:

| offset | size | field |
|---|---|---|
| 0 | 8 | magic `MICROFIL` |
| 8 | 4 | length of the content |
| 12 | 4 | CRC-32 of bytes 0–11 and the content |
| 16 | … | content |

**Setting aside.** A damaged log is never cut: it is renamed out of the way, and the node
comes back under a new id. Between the two it would be a voter without memory, so a
marker stands in the directory until the new identity is written:

    quarantine: marker ─▶ rename all logs and snapshots ─▶ (caller) save_identity ─▶ no marker

`Wal.open` refuses while the marker is there, and `quarantine` goes on where it stopped.
"""

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import msgspec

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError, StorageError
from microos.hashing import crc32
from microos.storage.disk import Disk
from microos.types import NodeId

MAGIC = b"MICROFIL"
ASIDE = ".new"
"""Names that end so were never finished, and are worth nothing."""

IDENTITY = "identity"
QUARANTINE = "quarantine"
SMALL_MAX = 4 * limits.MIB
FORMAT = 1

_HEAD = struct.Struct("<8sI")
_CRC = struct.Struct("<I")
HEAD_SIZE = _HEAD.size + _CRC.size


class DamagedError(StorageError):
    """Bytes on the disk are not what was written. Nothing was cut or repaired. `damaged`."""

    reason = "damaged"


class Identity(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Whose directory this is."""

    format: int = FORMAT
    node: Annotated[NodeId, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    cluster: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    """16 bytes; none before the cluster is known."""
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=1 << 25)] = 0
    """Cluster epoch, from 1; 0 before the cluster is known."""
    label: str = ""
    """The cluster's label, as it was set."""


_decode_identity: Decoder[Identity] = Decoder(Identity)
_decode_number: Decoder[int] = Decoder(int)


async def load_identity(disk: Disk) -> Identity | None:
    """Return the identity kept in the directory; None in a new one.

    Raises:
        StorageError: `damaged`, `failed`; `foreign`: written by a newer version.
    """
    data = await read_small(disk, IDENTITY)
    if data is None:
        return None
    try:
        identity = _decode_identity(data)
    except RemoteProtocolError as error:
        raise DamagedError(
            f"the file {IDENTITY} holds no identity: {error}; restore it, or begin with an empty "
            "directory as a new node",
            file=IDENTITY,
        ) from error
    if identity.format != FORMAT:
        raise StorageError(
            f"expected files of format {FORMAT}, found {identity.format}: "
            "run the version that wrote them",
            reason="foreign",
        )
    return identity


async def save_identity(disk: Disk, identity: Identity) -> None:
    """Keep the identity; it ends a quarantine.

    Raises:
        StorageError: `full`, `failed`.
    """
    assert len(identity.node) == 32
    await write_small(disk, IDENTITY, encode(identity))
    with storage_faults(QUARANTINE):
        if QUARANTINE in await disk.names():
            await disk.remove(QUARANTINE)
            await disk.sync()


async def read_small(disk: Disk, name: str) -> bytes | None:
    """Return the content of a small file; None if it is not there.

    Raises:
        StorageError: `damaged`, `failed`.
    """
    with storage_faults(name):
        try:
            file = await disk.open(name)
        except FileNotFoundError:
            return None
        try:
            data = await file.read(0, HEAD_SIZE + SMALL_MAX + 1)
        finally:
            await file.close()
    content = data[HEAD_SIZE:]
    if (
        len(data) < HEAD_SIZE
        or data[: _HEAD.size] != _HEAD.pack(MAGIC, len(content))
        or data[_HEAD.size : HEAD_SIZE] != _CRC.pack(_check(content))
    ):
        raise DamagedError(
            f"expected the {len(data)} bytes of the file {name} as they were written, found others",
            file=name,
            offset=0,
        )
    return content


async def write_small(disk: Disk, name: str, content: bytes) -> None:
    """Replace a small file; durable on return, and the old one or the new one at any time.

    Args:
        content: At most `SMALL_MAX` bytes.

    Raises:
        StorageError: `full`, `failed`; the old file is still there.
    """
    assert len(content) <= SMALL_MAX
    data = [_HEAD.pack(MAGIC, len(content)), _CRC.pack(_check(content)), content]
    with storage_faults(name):
        await write_aside(disk, name, data)


async def write_aside(disk: Disk, name: str, data: list[bytes]) -> None:
    """Write a file under another name, sync it, rename it, sync the directory."""
    file = await disk.open(name + ASIDE, create=True)
    try:
        await file.resize(0)
        await file.write(data, 0, sync=True)
    finally:
        await file.close()
    await disk.rename(name + ASIDE, name)
    await disk.sync()


async def quarantine(disk: Disk) -> int:
    """Set all logs and snapshots aside as `quarantine-<n>-…`; return n, from 1.

    The caller then saves a new identity: an id that lost its log must never vote again.
    Interrupted, it goes on under the same n.

    Raises:
        StorageError: `full`, `failed`.
    """
    number = await _quarantine_number(disk)
    await write_small(disk, QUARANTINE, encode(number))
    with storage_faults(QUARANTINE):
        for name in await disk.names():
            if name.startswith(("wal-", "snap-")):
                await disk.rename(name, f"{QUARANTINE}-{number}-{name}")
        await disk.sync()
    return number


async def is_quarantined(disk: Disk) -> bool:
    """Return whether a quarantine has begun and no new identity ended it."""
    with storage_faults(QUARANTINE):
        return QUARANTINE in await disk.names()


async def _quarantine_number(disk: Disk) -> int:
    with suppress(DamagedError, RemoteProtocolError):
        begun = await read_small(disk, QUARANTINE)
        if begun is not None:
            return _decode_number(begun)
    with storage_faults(QUARANTINE):
        names = await disk.names()
    taken = [name.split("-")[1] for name in names if name.startswith(f"{QUARANTINE}-")]
    return 1 + max((int(n) for n in taken if n.isascii() and n.isdigit()), default=0)


@contextmanager
def storage_faults(what: str) -> Iterator[None]:
    """Return a block in which the system's refusals become `StorageError`s: `full`, `failed`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error


def storage_error(error: OSError, what: str) -> StorageError:
    """Return what the system's refusal to read or write `what` means to the node."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk is full: {what} was not written; free some space", reason="full", file=what
        )
    return StorageError(
        f"the disk failed at {what}: {error.strerror or error}; what was not yet durable is lost",
        reason="failed",
        file=what,
    )


def _check(content: bytes) -> int:
    return crc32(content, crc32(_HEAD.pack(MAGIC, len(content))))
