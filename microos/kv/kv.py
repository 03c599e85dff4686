"""`node.kv`: handles to buckets, and what the store says of itself."""

from __future__ import annotations

from typing import Any, TypeVar, overload

import msgspec

from microos.kv.bucket import Bucket, Level
from microos.kv.keeping import Keeping

T = TypeVar("T")


class KvStatistics(msgspec.Struct, frozen=True):
    """The store of one node."""

    ring_epoch: int
    """0 before the first."""
    slots: int
    """In whose chain this node is."""
    joint: int
    """Of these, how many are in change."""
    filling: int
    """Copies of this node that are not whole yet."""
    handing_over: int
    """Slots kept here that are other nodes'."""
    entries: int
    tombstones: int
    bytes_kept: int
    bytes_max: int
    bytes_pulled: int
    """Taken over from other copies since the start."""
    in_flight: int


class Kv:
    """`node.kv`."""

    def __init__(self, keeping: Keeping, timeout: float) -> None:
        self._keeping = keeping
        self._timeout = timeout

    @overload
    def bucket(
        self, name: str, type: type[T], *, ttl: float | None = None, consistency: Level = "quorum"
    ) -> Bucket[T]: ...
    @overload
    def bucket(
        self, name: str, type: Any = Any, *, ttl: float | None = None, consistency: Level = "quorum"
    ) -> Bucket[Any]: ...
    def bucket(
        self, name: str, type: Any = Any, *, ttl: float | None = None, consistency: Level = "quorum"
    ) -> Bucket[Any]:
        """Return a handle to a bucket; free, no network.

        Args:
            name: 1..128 bytes; buckets of different names share no key.
            type: Of its values, as msgspec reads them; checked at each read.
            ttl: How long values live if a put does not say [s]; None: until deleted.
            consistency: `quorum` or `one` (see `kv/bucket.py`).
        """
        return Bucket(
            self._keeping, name, type, ttl=ttl, consistency=consistency, timeout=self._timeout
        )

    async def wait_ready(self) -> None:
        """Wait until there is a ring and this node's own copies are whole."""
        await self._keeping.wait_ready()

    @property
    def is_ready(self) -> bool:
        return self._keeping.is_ready

    def statistics(self) -> KvStatistics:
        """Return the store's figures. Cost: O(slots)."""
        keeper = self._keeping.keeper
        ring, store = keeper.ring, keeper.replica.store
        own = ring.slots_of(keeper.me)
        return KvStatistics(
            ring_epoch=ring.number,
            slots=len(own),
            joint=sum(len(ring.chains[slot]) == 2 for slot in own),
            filling=keeper.upkeep.filling,
            handing_over=keeper.upkeep.foreign,
            entries=len(store),
            tombstones=store.tombstones,
            bytes_kept=store.size,
            bytes_max=store.size_max,
            bytes_pulled=keeper.upkeep.bytes_pulled,
            in_flight=keeper.in_flight,
        )
