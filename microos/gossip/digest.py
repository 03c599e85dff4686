"""Whether two tables are equal, in eight bytes, and when to look closer.

The digest is the XOR of one hash per member, so a change costs O(1) and the order
does not matter. It rides in every Ping and Ack. If it keeps differing, the two nodes
compare sixteen buckets (low four bits of xxh64 of the node id) over their link, then
exchange the records of those that differ:

    digest ≠, twice ──▶ Buckets ──▶ BucketRecords ──▶ BucketRecords back

One mismatch proves nothing: news is on its way most of the time.

Source: anti-entropy by hash trees (Dynamo, SOSP 2007, §4.7), cut down to one level.
"""

from __future__ import annotations

from typing import Any

from microos.codec import encode
from microos.hashing import u64
from microos.types import NodeId

BUCKETS = 16
REPAIRED_QUIET = 30.0
"""How long a pair of digests that was repaired is not tried again [s]."""

PAIRS_MAX = 64
SERVED_MAX = 8
"""Repairs served per interval."""


def hash_of(value: Any) -> int:
    """Return xxh64 of the MessagePack of `value`; never 0, which stands for "not counted"."""
    return u64(encode(value)) or 1


class Digest:
    """The XOR of all shares, whole and by bucket."""

    def __init__(self) -> None:
        self.total = 0
        self.count = 0
        """Members with a share."""
        self.buckets = [0] * BUCKETS

    def replace(self, node: NodeId, old: int, new: int) -> None:
        """Take one member's share out and put its new one in; 0 is none. Cost: O(1)."""
        self.total ^= old ^ new
        self.buckets[bucket_of(node)] ^= old ^ new
        self.count += (new != 0) - (old != 0)


def bucket_of(node: NodeId) -> int:
    """Return the bucket of a member. Range 0..15."""
    return u64(node.encode()) & (BUCKETS - 1)


class Repairs:
    """Decides when a difference has lasted long enough to be repaired."""

    def __init__(self, *, interval: float, tick: float) -> None:
        self._interval = interval
        self._tick = tick
        self._differs_since: float | None = None
        self._started_at = float("-inf")
        self._pairs: dict[tuple[int, int], float] = {}
        self._served_at = float("-inf")
        self._served = 0

    def compare(self, ours: int, theirs: int, now: float, *, quiet: bool) -> bool:
        """Take in one comparison; return whether to repair with that member now.

        Args:
            ours: Our digest.
            theirs: The other's.
            now: The time [s].
            quiet: Nothing waits to be spread here; otherwise a difference means nothing.
        """
        if ours == theirs or not quiet:
            self._differs_since = None
            return False
        if self._differs_since is None:
            self._differs_since = now
            return False
        if now - self._differs_since < self._tick:
            return False
        pair = (min(ours, theirs), max(ours, theirs))
        if now - self._pairs.get(pair, float("-inf")) < REPAIRED_QUIET or not self.start(now):
            return False
        self._pairs.pop(pair, None)
        self._pairs[pair] = now
        if len(self._pairs) > PAIRS_MAX:
            del self._pairs[next(iter(self._pairs))]
        return True

    def start(self, now: float) -> bool:
        """Return whether an exchange may start now: at most one per interval."""
        if now - self._started_at < self._interval:
            return False
        self._started_at = now
        self._differs_since = None
        return True

    def serve(self, now: float) -> bool:
        """Return whether one more exchange may be answered in this interval."""
        if now - self._served_at >= self._interval:
            self._served_at, self._served = now, 0
        self._served += 1
        return self._served <= SERVED_MAX
