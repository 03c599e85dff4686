"""What one node keeps: entries by slot and name, their digests, their bytes, their end.

    slots[slot][name] -> entry        name: bucket, a zero byte, key

A removed value leaves a tombstone, and so does one whose time is over: otherwise an older
copy that turns up again would live again (kv.md 6.4). A tombstone goes when `purge` says
that every owner had it.

The digest of a slot is the XOR of a hash of (name, version) of all its entries: equal
copies have equal digests, kept up to date at 0.3 µs a write.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from microos.deadlines import Deadlines
from microos.hashing import xxh3
from microos.ring.entry import (
    VERSION,
    end_of,
    ended,
    is_newer,
    is_tombstone,
    stamp_of,
)

TOMBSTONE_SHARE = 20
"""Tombstones may take one part in this of the limit: they are not evicted, only purged."""

ENTRY_OVERHEAD = 96
"""Dictionary and hash of one entry [bytes], measured."""

SEPARATOR = b"\0"


def name_of(bucket: str, key: bytes) -> bytes:
    """Return how a key is named among those of all buckets."""
    return bucket.encode() + SEPARATOR + key


def cost_of(name: bytes, entry: bytes) -> int:
    """Return what an entry is charged [bytes]: a little more than it takes."""
    return ENTRY_OVERHEAD + (33 + len(name) + 15 & ~15) + (33 + len(entry) + 15 & ~15)


class Store:
    """The entries of one node.

    Args:
        size_max: Charged to all entries together; beyond it what grows is refused [bytes].
    """

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self.size = 0
        """Charged for what is here [bytes]."""
        self.tombstones = 0
        self._slots: dict[int, dict[bytes, bytes]] = {}
        self._digests: dict[int, int] = {}
        self._ends: Deadlines[tuple[int, bytes]] = Deadlines()

    @property
    def deadline(self) -> float:
        """When the next entry ends, on the keeper's clock [s]."""
        return self._ends.deadline

    def __len__(self) -> int:
        return sum(len(slot) for slot in self._slots.values())

    # Reading.

    def get(self, slot: int, name: bytes, now: int) -> bytes | None:
        """Return the entry, a tombstone if its time is over at `now` [ms]; None: unknown."""
        entries = self._slots.get(slot)
        entry = None if entries is None else entries.get(name)
        return None if entry is None else ended(entry, now)

    def digest(self, slot: int) -> int:
        """Return a number that is equal where the copies of the slot are."""
        return self._digests.get(slot, 0)

    def slots(self) -> tuple[int, ...]:
        """Return the slots that hold something."""
        return tuple(self._slots)

    def names(self, slot: int, after: bytes, count: int) -> list[bytes]:
        """Return up to `count` names behind `after`, in order. Cost: O(k log k) of the slot's."""
        ordered = sorted(self._slots.get(slot, ()))
        at = bisect_right(ordered, after) if after else 0
        return ordered[at : at + count]

    def entries(self, slot: int) -> Iterator[tuple[bytes, bytes]]:
        """Give (name, entry) of a slot, in order of names."""
        entries = self._slots.get(slot, {})
        for name in sorted(entries):
            yield name, entries[name]

    # Writing.

    def has_room(self, slot: int, name: bytes, entry: bytes) -> bool:
        """Return whether an entry may be kept: what frees memory always may."""
        kept = self._slots.get(slot, {}).get(name)
        cost = cost_of(name, entry)
        more = cost - (0 if kept is None else cost_of(name, kept))
        if is_tombstone(entry):
            return more <= 0 or self.tombstones * cost * TOMBSTONE_SHARE < self.size_max
        return more <= 0 or self.size + more <= self.size_max

    def apply(self, slot: int, name: bytes, entry: bytes) -> bool:
        """Keep an entry if it is newer than what is here; return whether it was."""
        entries = self._slots.get(slot)
        if entries is None:
            entries = self._slots[slot] = {}
        kept = entries.get(name)
        if not is_newer(entry, kept):
            return False
        if kept is not None:
            self._forget(slot, name, kept)
        entries[name] = entry
        self._digests[slot] = self._digests.get(slot, 0) ^ _leaf(name, entry)
        self.size += cost_of(name, entry)
        self.tombstones += is_tombstone(entry)
        end = end_of(entry)
        if end:
            self._ends.add((slot, name), end / 1000.0)
        return True

    def expire(self, now: float) -> int:
        """Replace all whose time is over at `now` [s] by tombstones; return how many."""
        count = 0
        for slot, name in self._ends.due(now):
            # Its tick has come, so it is over, whatever milliseconds `now` is rounded to.
            entry = self._slots[slot][name]
            count += self.apply(slot, name, ended(entry, end_of(entry)))
        return count

    def purge(self, slot: int, name: bytes, version: bytes) -> bool:
        """Forget a tombstone of exactly that version; return whether it was there."""
        entry = self._slots.get(slot, {}).get(name)
        if entry is None or not is_tombstone(entry) or entry[:VERSION] != version:
            return False
        self._remove(slot, name, entry)
        return True

    def forget(self, slot: int, name: bytes) -> None:
        """Forget an entry, if there is one, without a trace."""
        entry = self._slots.get(slot, {}).get(name)
        if entry is not None:
            self._remove(slot, name, entry)

    def drop(self, slot: int) -> None:
        """Forget a whole slot."""
        for name, entry in list(self._slots.get(slot, {}).items()):
            self._remove(slot, name, entry)
        self._slots.pop(slot, None)

    def old_tombstones(self, slot: int, before: int, count: int) -> list[tuple[bytes, bytes]]:
        """Return up to `count` (name, version) of tombstones stamped before `before`."""
        found = []
        for name, entry in self.entries(slot):
            if is_tombstone(entry) and stamp_of(entry) < before:
                found.append((name, entry[:VERSION]))
                if len(found) == count:
                    break
        return found

    def _remove(self, slot: int, name: bytes, entry: bytes) -> None:
        self._forget(slot, name, entry)
        entries = self._slots[slot]
        del entries[name]
        if not entries:
            del self._slots[slot]

    def _forget(self, slot: int, name: bytes, entry: bytes) -> None:
        """Take an entry out of the accounts."""
        digest = self._digests[slot] ^ _leaf(name, entry)
        if digest:
            self._digests[slot] = digest
        else:
            del self._digests[slot]
        self.size -= cost_of(name, entry)
        self.tombstones -= is_tombstone(entry)
        end = end_of(entry)
        if end:
            self._ends.remove((slot, name), end / 1000.0)

    def check(self) -> None:
        """Assert that accounts, digests and ends equal what a recount gives. Cost: O(entries)."""
        size = tombstones = ends = 0
        digests: dict[int, int] = {}
        for slot, entries in self._slots.items():
            for name, entry in entries.items():
                size += cost_of(name, entry)
                tombstones += is_tombstone(entry)
                ends += bool(end_of(entry))
                digests[slot] = digests.get(slot, 0) ^ _leaf(name, entry)
        assert size == self.size
        assert tombstones == self.tombstones
        assert {slot: digest for slot, digest in digests.items() if digest} == self._digests
        assert ends == len(self._ends)


def _leaf(name: bytes, entry: bytes) -> int:
    return xxh3(name, xxh3(entry[:VERSION]))
