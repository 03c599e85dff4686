"""What to tell next, and how to fill a packet with it.

Each piece of news is sent a fixed number of times by each node that has taken it in,
then it leaves the queue: 3·ceil(log2(n + 1)) sends reach everybody in 99.9 % of runs even
at 20 % loss (gossip.md 27.3). The digest finds the rest.

    tier (sends so far)   0: [big … small]  1: [big … small]  …
                          └── the largest that still fits, fewest sends first ──▶ packet

There is at most one item per subject; newer news of it replaces the older, so the queue
cannot grow beyond what is known. Nothing is ever split.

Source: SWIM §4.1; memberlist, queue.go.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from microos import limits

Subject = tuple[str, ...]
"""Whom or what an item is about."""

MESSAGES_MAX = limits.DATAGRAM_MESSAGES
HEADER_SIZE = 3
"""Room kept for the array header of a packet: up to 65,535 items."""


def retransmit_limit(count: int, factor: int = 3) -> int:
    """Return how often each node sends an item in a cluster of `count` members."""
    return factor * count.bit_length()


def pack(parts: Sequence[bytes]) -> bytes:
    """Return one MessagePack array of parts that are already encoded."""
    count = len(parts)
    assert 0 < count <= MESSAGES_MAX
    header = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return header + b"".join(parts)


class Queue:
    """News on its way, fewest sent first."""

    def __init__(self) -> None:
        self._items: dict[Subject, tuple[int, int, int, Subject]] = {}
        self._order: list[tuple[int, int, int, Subject]] = []
        """(sends so far, -size, -number, subject), sorted."""
        self._data: dict[Subject, bytes] = {}
        self._number = 0
        self.size = 0
        """Bytes of all items."""

    def __len__(self) -> int:
        return len(self._order)

    @property
    def has_fresh(self) -> bool:
        """Whether an item was never sent."""
        return bool(self._order) and self._order[0][0] == 0

    def put(self, subject: Subject, data: bytes) -> None:
        """Queue an encoded message in place of what was queued about `subject`."""
        self.discard(subject)
        self._number += 1
        item = (0, -len(data), -self._number, subject)
        self._items[subject] = item
        self._data[subject] = data
        self.size += len(data)
        insort(self._order, item)

    def discard(self, subject: Subject) -> None:
        """Drop what is queued about `subject`, if anything."""
        item = self._items.pop(subject, None)
        if item is not None:
            self.size -= len(self._data.pop(subject))
            del self._order[bisect_left(self._order, item)]

    def clear(self) -> None:
        """Drop everything."""
        self._items.clear()
        self._order.clear()
        self._data.clear()
        self.size = 0

    def fill(self, room: int, *, count: int, limit: int, copies: int = 1) -> list[bytes]:
        """Return items of at most `room` bytes together, and count them as sent.

        Args:
            room: Bytes left in the packet.
            count: Messages it may still hold.
            limit: Sends after which an item leaves the queue.
            copies: To how many members this packet goes.
        """
        taken: list[int] = []
        at = 0
        while at < len(self._order) and len(taken) < count:
            sends = self._order[at][0]
            # Within a tier items fall in size: the first that fits is the largest that does.
            at = bisect_left(self._order, (sends, -room), at)
            if at == len(self._order) or self._order[at][0] != sends:
                continue
            taken.append(at)
            room += self._order[at][1]
            at += 1
        return self._sent(taken, limit, copies)

    def _sent(self, taken: list[int], limit: int, copies: int) -> list[bytes]:
        items = [self._order[at] for at in taken]
        for at in reversed(taken):
            del self._order[at]
        out = []
        for sends, size, number, subject in items:
            out.append(self._data[subject])
            if sends + copies < limit:
                item = (sends + copies, size, number, subject)
                self._items[subject] = item
                insort(self._order, item)
            else:
                del self._items[subject]
                self.size -= len(self._data.pop(subject))
        return out

    def check(self) -> None:
        """Assert one item per subject, in order."""
        assert self._order == sorted(self._items.values())
        assert list(self._data) == [s for s in self._data if s in self._items]
        assert len(self._data) == len(self._items)
        assert self.size == sum(map(len, self._data.values()))
        for _, size, _, subject in self._order:
            assert -size == len(self._data[subject])
