"""Snapshot files: the whole state of the machines at one index, the same on disk and on the way.

State and the index it belongs to are one file, so no crash can separate them
(etcd#13766). Named `snap-<index>-<term>.snap`, hexadecimal, 16 digits each.
Little-endian:

| offset | size | field |
|---|---|---|
| 0 | 8 | magic `MICROSNP` |
| 8 | 2 | version, 1 |
| 10 | 2 | size of this head, 32 |
| 12 | 4 | zero |
| 16 | 8 | index |
| 24 | 4 | zero |
| 28 | 4 | CRC-32 of bytes 0–27 |

then chunks, each aligned to 8; the first holds the mark as MessagePack:

| offset | size | field |
|---|---|---|
| 0 | 4 | length |
| 4 | 4 | number, from 0 |
| 8 | 8 | xxh3-64 of the payload, seeded with the chunk's offset in the file |
| 16 | … | payload, padded with zeros to 8 |

then a trailer of 32 bytes:

| offset | size | field |
|---|---|---|
| 0 | 8 | size of the file |
| 8 | 8 | xxh3-64 of everything before the trailer |
| 16 | 8 | magic `SNAPDONE` |
| 24 | 4 | count of chunks, the mark's included |
| 28 | 4 | CRC-32 of the trailer's first 28 bytes |

A file is valid as a whole or not at all. It counts only once the log refers to it:
write aside, sync, rename, sync the directory; then the mark in the log; then older ones go.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import xxhash

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.hashing import crc32, xxh3
from microos.raft.entry import SnapshotMark
from microos.storage.disk import Disk
from microos.storage.files import ASIDE, DamagedError, storage_faults

MAGIC = b"MICROSNP"
DONE = b"SNAPDONE"
VERSION = 1
HEAD_SIZE = 32
TRAILER_SIZE = 32
CHUNK_MAX = 4 * limits.MIB
"""Longest chunk believed; machines make them of at most `limits.SNAPSHOT_CHUNK`."""

WRITE_BYTES = 1 * limits.MIB
"""Handed to the disk at a time, so that the log's writes get their turn in between."""

_HEAD = struct.Struct("<8sHHIQI")
_CHUNK = struct.Struct("<IIQ")
_TRAILER = struct.Struct("<QQ8sI")
_CRC = struct.Struct("<I")
assert _HEAD.size + _CRC.size == HEAD_SIZE
assert _TRAILER.size + _CRC.size == TRAILER_SIZE

_decode_mark: Decoder[SnapshotMark] = Decoder(SnapshotMark)


def snapshot_name(mark: SnapshotMark) -> str:
    """Return the name of the file for `mark`; names sort by index."""
    return f"snap-{mark.index:016x}-{mark.term:016x}.snap"


def encode_snapshot(mark: SnapshotMark, chunks: Iterable[bytes]) -> bytes:
    """Return a whole snapshot file as bytes: on disk and on the wire the same."""
    return b"".join(_pieces(mark, chunks))


def decode_snapshot(data: bytes, name: str = "snapshot") -> tuple[SnapshotMark, tuple[bytes, ...]]:
    """Return (mark, chunks) of a whole snapshot file.

    Args:
        name: What to call it in an error.

    Raises:
        DamagedError: It is not, as a whole, what was written.
    """
    end = len(data) - TRAILER_SIZE
    head = data[: _HEAD.size]
    if end < HEAD_SIZE or data[_HEAD.size : HEAD_SIZE] != _CRC.pack(crc32(head)):
        raise _damaged(name, 0, "an intact head")
    magic, version, size, _, index, _ = _HEAD.unpack(head)
    if (magic, version, size) != (MAGIC, VERSION, HEAD_SIZE):
        raise _damaged(name, 0, f"a snapshot of version {VERSION}")
    count = _check_trailer(data, name)
    payloads = _payloads(data, end, name)
    if len(payloads) != count or not payloads:
        raise _damaged(name, end, f"{len(payloads)} chunks")
    try:
        mark = _decode_mark(payloads[0])
    except RemoteProtocolError as error:
        raise _damaged(name, HEAD_SIZE, "the mark of a snapshot") from error
    if mark.index != index:
        raise _damaged(name, HEAD_SIZE, f"the mark of index {index}")
    return mark, tuple(payloads[1:])


async def write_snapshot(disk: Disk, mark: SnapshotMark, chunks: Iterable[bytes]) -> str:
    """Write a snapshot file, durable on return; return its name.

    Raises:
        StorageError: `full`, `failed`; the log still has everything.
    """
    name = snapshot_name(mark)
    with storage_faults(name):
        file = await disk.open(name + ASIDE, create=True)
        try:
            await file.resize(0)
            offset = 0
            for part in _gathered(_pieces(mark, chunks)):
                await file.write([part], offset)
                offset += len(part)
            await file.sync()
        finally:
            await file.close()
        await disk.rename(name + ASIDE, name)
        await disk.sync()
    return name


async def read_snapshot_bytes(disk: Disk, mark: SnapshotMark) -> bytes:
    """Return the file for `mark` as it stands, to be sent; `decode_snapshot` tells if it is good.

    Raises:
        StorageError: `damaged`: it is not there. `failed`.
    """
    name = snapshot_name(mark)
    with storage_faults(name):
        try:
            file = await disk.open(name)
        except FileNotFoundError as error:
            raise DamagedError(
                f"expected the snapshot {name} that the log refers to, found none", file=name
            ) from error
        try:
            return await file.read(0, await file.size())
        finally:
            await file.close()


async def read_snapshot(disk: Disk, mark: SnapshotMark) -> tuple[bytes, ...]:
    """Return the state kept for `mark`, in the chunks it was written in.

    Raises:
        StorageError: `damaged`: not there, not intact, or of another mark. `failed`.
    """
    name = snapshot_name(mark)
    found, chunks = decode_snapshot(await read_snapshot_bytes(disk, mark), name)
    if found != mark:
        raise _damaged(name, HEAD_SIZE, "the mark that the log has")
    return chunks


async def drop_older(disk: Disk, mark: SnapshotMark) -> None:
    """Remove the snapshots before `mark`, once the log refers to `mark`.

    Raises:
        StorageError: `failed`.
    """
    await _drop(disk, lambda name: name < snapshot_name(mark))


async def drop_others(disk: Disk, mark: SnapshotMark | None) -> None:
    """Remove all snapshots but the one for `mark`: at start, nothing refers to them.

    Raises:
        StorageError: `failed`.
    """
    await _drop(disk, lambda name: mark is None or name != snapshot_name(mark))


async def _drop(disk: Disk, unwanted: Callable[[str], bool]) -> None:
    with storage_faults("a snapshot no longer needed"):
        names = [n for n in await disk.names() if n.startswith("snap-") and unwanted(n)]
        for name in names:
            await disk.remove(name)
        if names:
            await disk.sync()


def _pieces(mark: SnapshotMark, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the file piece by piece, so that it is never in memory twice."""
    head = _HEAD.pack(MAGIC, VERSION, HEAD_SIZE, 0, mark.index, 0)
    head += _CRC.pack(crc32(head))
    whole = xxhash.xxh3_64(head)
    offset, count = len(head), 0
    yield head
    for payload in chain([encode(mark)], chunks):
        assert len(payload) <= CHUNK_MAX
        check = xxh3(payload, offset)
        piece = _CHUNK.pack(len(payload), count, check) + payload + bytes(-len(payload) % 8)
        whole.update(piece)
        offset += len(piece)
        count += 1
        yield piece
    trailer = _TRAILER.pack(offset + TRAILER_SIZE, whole.intdigest(), DONE, count)
    yield trailer + _CRC.pack(crc32(trailer))


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces, so that each hop to the disk carries about `WRITE_BYTES`."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= WRITE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


def _check_trailer(data: bytes, name: str) -> int:
    """Return how many chunks the trailer promises, once it and the whole are known good."""
    end = len(data) - TRAILER_SIZE
    trailer = data[end:-4]
    if data[-4:] != _CRC.pack(crc32(trailer)):
        raise _damaged(name, end, "an intact trailer")
    size, whole, magic, count = _TRAILER.unpack(trailer)
    if magic != DONE or size != len(data):
        raise _damaged(name, end, f"a file of {size} bytes")
    if whole != xxhash.xxh3_64_intdigest(memoryview(data)[:end]):
        raise _damaged(name, _first_bad(data, end), "intact chunks")
    return int(count)


def _payloads(data: bytes, end: int, name: str) -> list[bytes]:
    found: list[bytes] = []
    at = HEAD_SIZE
    while at < end:
        payload = _payload(data, at, end, len(found))
        if payload is None:
            raise _damaged(name, at, "an intact chunk")
        found.append(payload)
        at += _CHUNK.size + len(payload) + -len(payload) % 8
    if at != end:
        raise _damaged(name, end, "chunks up to the trailer")
    return found


def _payload(data: bytes, at: int, end: int, number: int) -> bytes | None:
    """Return the payload of the chunk at `at`; None if it is not intact."""
    if at + _CHUNK.size > end:
        return None
    length, found, check = _CHUNK.unpack_from(data, at)
    payload = data[at + _CHUNK.size : at + _CHUNK.size + length]
    fits = length <= CHUNK_MAX and at + _CHUNK.size + length <= end
    return payload if fits and found == number and xxh3(payload, at) == check else None


def _first_bad(data: bytes, end: int) -> int:
    """Return where the first chunk that is not intact begins, for the error."""
    at, number = HEAD_SIZE, 0
    while at < end and (payload := _payload(data, at, end, number)) is not None:
        at += _CHUNK.size + len(payload) + -len(payload) % 8
        number += 1
    return min(at, end)


def _damaged(name: str, offset: int, wanted: str) -> DamagedError:
    return DamagedError(
        f"expected {wanted} in {name} at {offset}, found other bytes: the state must come "
        "from another member",
        file=name,
        offset=offset,
    )
