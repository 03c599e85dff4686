"""One value of the store, with everything that travels with it, as one `bytes`.

| offset | size | field |
|---|---|---|
| 0 | 8 | stamp of the hybrid logical clock |
| 8 | 8 | the writer: last 64 bits of its node id |
| 16 | 6 | end of its life: ms of the keeper's own clock, on the wire ms that are left; 0: none |
| 22 | 1 | flags: 1 tombstone, 2 atomic, 4 renewed |
| 23 | 1 | format of the value: 1 MessagePack |
| 24 | … | value; of a renewed entry first the 16 bytes of the version it was written with |

Big-endian, so that comparing the first 16 bytes compares versions. Bytes 0–15 and
everything from 22 on are the same on every copy; the time is rewritten on the way in and
out, because two clocks have nothing to do with each other.

An entry is *renewed* when an atomic operation had to bring it to a quorum under a ballot of
its own (`atomic.py`): copies go by that, users by the version it was written with.

One object per value: a tuple or an object with slots costs 100 bytes more.
"""

from __future__ import annotations

from math import ceil

from microos.types import NodeId, Version

HEAD = 24
VERSION = 16
FLAGS = 22
"""Offset of the flags."""

TOMBSTONE = 1
ATOMIC = 2
RENEWED = 4
MESSAGEPACK = 1
TIME_MAX = (1 << 48) - 1
"""Ends of life beyond it are none [ms]."""

FOREVER = bytes(6)
"""The time of what does not end. Compared first: most entries are such, on the hot path."""

NOTHING = bytes(VERSION)
"""The version of what was never written: older than any."""

NO_HEAD = NOTHING + b"\0"


def pack(version: bytes, *, end: int, flags: int, value: bytes) -> bytes:
    """Return an entry.

    Args:
        version: 16 bytes.
        end: When it ends, or what is left of it [ms]; 0: never.
    """
    assert len(version) == VERSION
    assert 0 <= end <= TIME_MAX
    return version + end.to_bytes(6, "big") + bytes((flags, MESSAGEPACK)) + value


def tombstone(version: bytes, *, flags: int = 0) -> bytes:
    """Return the trace a removed value leaves."""
    return pack(version, end=0, flags=flags | TOMBSTONE, value=b"")


def version_bytes(stamp: int, writer: int) -> bytes:
    """Return the version of a write: its stamp, then who wrote."""
    return stamp.to_bytes(8, "big") + writer.to_bytes(8, "big")


def writer_of(node: NodeId) -> int:
    """Return what of a node's id is part of its versions."""
    return int(node[-16:], 16)


def version_of(entry: bytes | None) -> bytes:
    """Return an entry's version; of none, one older than any."""
    return NOTHING if entry is None else entry[:VERSION]


def head_of(entry: bytes | None) -> bytes:
    """Return version and flags, in which alike entries agree; of none, what no entry has."""
    return NO_HEAD if entry is None else entry[:VERSION] + entry[FLAGS : FLAGS + 1]


def shown_version_of(entry: bytes | None) -> bytes:
    """Return the version users know an entry by: the one it was written with."""
    if entry is not None and entry[FLAGS] & RENEWED:
        return entry[HEAD : HEAD + VERSION]
    return version_of(entry)


def renewed(entry: bytes, ballot: bytes) -> bytes:
    """Return the entry as a ballot brings it to a quorum."""
    flags = bytes((entry[FLAGS] | ATOMIC | RENEWED,))
    value = entry[HEAD:] if entry[FLAGS] & RENEWED else entry[:VERSION] + entry[HEAD:]
    return ballot + entry[VERSION:FLAGS] + flags + entry[FLAGS + 1 : HEAD] + value


def number_of(version: bytes) -> Version:
    """Return a version as users see it; 0 is none."""
    return Version(int.from_bytes(version, "big"))


def stamp_of(version: bytes) -> int:
    return int.from_bytes(version[:8], "big")


def is_tombstone(entry: bytes) -> bool:
    return bool(entry[FLAGS] & TOMBSTONE)


def is_atomic(entry: bytes) -> bool:
    return bool(entry[FLAGS] & ATOMIC)


def end_of(entry: bytes) -> int:
    return int.from_bytes(entry[16:22], "big")


def value_of(entry: bytes) -> bytes:
    return entry[HEAD + VERSION :] if entry[FLAGS] & RENEWED else entry[HEAD:]


def is_newer(entry: bytes, than: bytes | None) -> bool:
    """Return whether `entry` replaces the other; at equal versions a tombstone does."""
    if than is None:
        return True
    mine, other = entry[:VERSION], than[:VERSION]
    return mine > other or (mine == other and is_tombstone(entry) and not is_tombstone(than))


def ended(entry: bytes, now: int) -> bytes:
    """Return the entry, or its tombstone if its time is over at `now` [ms].

    The tombstone has the *value's* version: whatever came later beats it, and an older
    value that turns up again does not.
    """
    if entry[16:22] == FOREVER:
        return entry
    if end_of(entry) <= now:
        return tombstone(entry[:VERSION], flags=entry[FLAGS] & ATOMIC)
    return entry


def outgoing(entry: bytes, now: int) -> bytes:
    """Return an entry as it travels: what is left of its time instead of the end."""
    if entry[16:22] == FOREVER:
        return entry
    return entry[:16] + max(1, end_of(entry) - now).to_bytes(6, "big") + entry[22:]


def incoming(entry: bytes, now: int) -> bytes:
    """Return an entry that has travelled as it is kept: its end on the clock here."""
    if entry[16:22] == FOREVER:
        return entry
    return entry[:16] + min(now + end_of(entry), TIME_MAX).to_bytes(6, "big") + entry[22:]


def milliseconds(seconds: float) -> int:
    """Return a time to live as an entry has it: rounded up to 1 ms, and 0 if it never ends."""
    left = seconds * 1000.0
    return ceil(left) if left < TIME_MAX else 0
