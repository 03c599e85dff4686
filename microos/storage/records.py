"""The bytes of one log segment: a header, then batches of records, then zeros.

    header │ batch 1: record record │ batch 2: record │ … │ reserve │ seal │ zeros

Header, 64 bytes, little-endian as everything here:

| offset | size | field |
|---|---|---|
| 0 | 8 | magic `MICROWAL` |
| 8 | 2 | version, 1 |
| 10 | 2 | size of the header, 64 |
| 12 | 4 | cluster epoch |
| 16 | 16 | cluster id |
| 32 | 16 | node id |
| 48 | 8 | sequence of the segment, from 1, without gaps |
| 56 | 4 | check of the seal before this segment, 0 in the first |
| 60 | 4 | CRC-32 of bytes 0–59; also the *salt* of all records in this segment |

Record, aligned to 8 bytes:

| offset | size | field |
|---|---|---|
| 0 | 4 | length of the payload |
| 4 | 4 | CRC-32 begun with the salt, over bytes 0–3, 8–15 and the payload |
| 8 | 1 | kind: 1 hard state, 2 entries, 3 snapshot mark, 4 seal |
| 9 | 1 | flags: 1 last of its batch, 2 reset (marks only: the log before it is void) |
| 10 | 2 | CRC-32 begun with the salt, over bytes 0–3, 8–9 and 12–15, its low half |
| 12 | 4 | batch, from 1 in each segment; one batch is one sync |
| 16 | … | payload: MessagePack of the value, padded with zeros |
| end | 1 | 0xA5, the last byte of the record |

A batch is believed as a whole or not at all. Batch n + 1 is written only after the sync
of batch n has returned, over zeros: so power loss can spoil the last batch alone, and
what it spoils is zero, from some byte to the end, or in whole sectors. That is *torn*,
and was never acknowledged. Any other bad byte is *damage*. The salt makes leftovers of
other segments invalid; the check of the head says how long a bad record was, and the
last byte, never zero, whether its end had been written.

A whole zeroed sector in the last batch cannot be told from tearing.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum

import msgspec

from microos.hashing import crc32
from microos.storage.files import Identity

MAGIC = b"MICROWAL"
VERSION = 1
HEADER_SIZE = 64
HEAD_SIZE = 16
SECTOR = 512
END = b"\xa5"
LAST = 1
RESET = 2

_HEADER = struct.Struct("<8sHHI16s16sQI")
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<IIBBHI")
_CHECKED = struct.Struct("<IBBI")
assert _HEADER.size + _CRC.size == HEADER_SIZE
assert _HEAD.size == HEAD_SIZE


class RecordKind(IntEnum):
    """What a record holds."""

    HARD_STATE = 1
    ENTRIES = 2
    MARK = 3
    SEAL = 4


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record, without its place."""

    kind: int
    payload: bytes
    reset: bool = False


class Seal(msgspec.Struct, frozen=True, array_like=True):
    """Ends a full segment. Its own check, cited by the next header, chains the two."""

    sequence: int
    """Of the segment that follows."""
    last: int
    """Check of the batch before the seal: another copy of this segment has another."""


class Batch(msgspec.Struct, frozen=True):
    """What became durable by one sync."""

    number: int
    start: int
    end: int
    records: tuple[Record, ...]


class Header(msgspec.Struct, frozen=True):
    """Whose segment it is, and its place among the others."""

    epoch: int
    cluster: bytes
    node: str
    sequence: int
    previous: int
    """Check of the seal before it."""
    salt: int


class Contents(msgspec.Struct, frozen=True):
    """What one segment holds."""

    batches: tuple[Batch, ...]
    end: int
    """Where the last whole batch ends."""
    used: int
    """Where the last byte that is not zero ends; beyond `end` only if torn or damaged."""
    damaged: int | None
    """Offset of bytes that no power loss explains; None: clean, or merely torn."""


def encode_header(identity: Identity, sequence: int, previous: int) -> bytes:
    """Return the first 64 bytes of a segment."""
    assert sequence > 0
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        HEADER_SIZE,
        identity.epoch,
        identity.cluster.ljust(16, b"\0"),
        bytes.fromhex(identity.node),
        sequence,
        previous,
    )
    return head + _CRC.pack(crc32(head))


def decode_header(data: bytes) -> Header | None:
    """Return the header that a segment begins with; None if it is not intact."""
    if len(data) < HEADER_SIZE or data[60:64] != _CRC.pack(crc32(data[:60])):
        return None
    magic, version, size, epoch, cluster, node, sequence, previous = _HEADER.unpack_from(data)
    if (magic, version, size) != (MAGIC, VERSION, HEADER_SIZE):
        return None
    return Header(epoch, cluster, node.hex(), sequence, previous, salt_of(data))


def salt_of(header: bytes) -> int:
    """Return the salt of the records in a segment that begins with `header`."""
    return int(_CRC.unpack_from(header, 60)[0])


def encode_batch(records: Sequence[Record], number: int, salt: int) -> bytes:
    """Return one batch as bytes, to be written at once and then synced.

    Args:
        records: At least one; the last is marked as such.
        number: Of the batch within its segment, from 1.
    """
    assert records
    assert number > 0
    parts: list[bytes] = []
    for at, record in enumerate(records):
        flags = (LAST if at == len(records) - 1 else 0) | (RESET if record.reset else 0)
        parts += _encode(record, flags, number, salt)
    return b"".join(parts)


def check_of(batch: bytes) -> int:
    """Return the check of the first record of an encoded batch, by which others cite it."""
    return int(_HEAD.unpack_from(batch)[1])


def read_segment(data: bytes, salt: int) -> Contents:
    """Return all whole batches of a segment, and what is to be thought of the rest.

    Cost:
        O(bytes used); where the end is bad, every 8-byte offset behind it is looked at.
    """
    batches: list[Batch] = []
    records: list[Record] = []
    at = end = HEADER_SIZE
    while (found := _record(data, at, salt)) is not None and found[1] == len(batches) + 1:
        record, number, last = found
        records.append(record)
        at += _size(len(record.payload))
        if last:
            batches.append(Batch(number, end, at, tuple(records)))
            records.clear()
            end = at
    used = max(end, len(data.rstrip(b"\0")))
    torn = used <= at or _is_torn(data, at, used, len(batches) + 1, salt)
    return Contents(tuple(batches), end, used, None if torn else at)


def _encode(record: Record, flags: int, number: int, salt: int) -> tuple[bytes, bytes, bytes]:
    length = len(record.payload)
    check = _head_check(length, record.kind, flags, number, salt)
    crc = _crc(length, record.kind, flags, check, number, record.payload, salt)
    head = _HEAD.pack(length, crc, record.kind, flags, check, number)
    return head, record.payload, bytes(_size(length) - HEAD_SIZE - length - 1) + END


def _record(data: bytes, at: int, salt: int) -> tuple[Record, int, bool] | None:
    """Return (record, batch, whether it is the last of it); None if none stands at `at`."""
    length = _length(data, at, salt)
    if length is None or at + HEAD_SIZE + length > len(data):
        return None
    _, crc, kind, flags, check, number = _HEAD.unpack_from(data, at)
    payload = data[at + HEAD_SIZE : at + HEAD_SIZE + length]
    if crc != _crc(length, kind, flags, check, number, payload, salt):
        return None
    return Record(kind, payload, bool(flags & RESET)), number, bool(flags & LAST)


def _length(data: bytes, at: int, salt: int) -> int | None:
    """Return the length of the payload at `at`; None if no intact head stands there."""
    if at + HEAD_SIZE > len(data):
        return None
    length, _, kind, flags, check, number = _HEAD.unpack_from(data, at)
    if number == 0 or check != _head_check(length, kind, flags, number, salt):
        return None
    return int(length)


def _is_torn(data: bytes, at: int, used: int, number: int, salt: int) -> bool:
    """Return whether power loss explains the bad record at `at` of the unfinished batch."""
    for later in range(at, used, 8):
        found = _record(data, later, salt)
        if found is not None and found[1] > number:
            # It was written after a sync of the one that is bad now.
            return False
    # A torn end that was being made zero when the power went again; no head is all zeros.
    if not data[at : at + HEAD_SIZE].strip(b"\0"):
        return True
    length = _length(data, at, salt)
    if length is None:
        end = at + HEAD_SIZE
        region = used
    else:
        end = region = at + _size(length)
    # The end was not written, and nothing behind it.
    if used < end or (length is None and used == end):
        return True
    starts = [at, *range(at - at % SECTOR + SECTOR, region, SECTOR)]
    ends = [*starts[1:], region]
    return any(not data[a:b].strip(b"\0") for a, b in zip(starts, ends, strict=True))


def _size(length: int) -> int:
    """Return the bytes a record takes: head, payload, its last byte, aligned to 8."""
    return HEAD_SIZE + length + 8 & ~7


def _head_check(length: int, kind: int, flags: int, number: int, salt: int) -> int:
    return crc32(_CHECKED.pack(length, kind, flags, number), salt) & 0xFFFF


def _crc(
    length: int, kind: int, flags: int, check: int, number: int, payload: bytes, salt: int
) -> int:
    head = _HEAD.pack(length, 0, kind, flags, check, number)
    return crc32(payload, crc32(head, salt))
