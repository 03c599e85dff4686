"""`node.kv`: handles to buckets, and what the store says of itself."""

from __future__ import annotations

from typing import Any, TypeVar, overload

import msgspec

from microos.codec import encode
from microos.errors import RejectedError, by_name
from microos.gossip.members import State
from microos.kv.bucket import Bucket, Level
from microos.kv.keeping import Keeping
from microos.node.kernel import Kernel
from microos.node.ownership import NUMBER as RING
from microos.node.ownership import decode_answer
from microos.raft.machine import Refused
from microos.ring.epochs import Gone
from microos.ring.ring import Ring

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

    def __init__(self, kernel: Kernel, keeping: Keeping, timeout: float) -> None:
        self._kernel = kernel
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

    def ring(self) -> Ring:
        """Return who owns which slot, as this node has applied it; immutable. No I/O."""
        return self._kernel.ring()[0]

    async def declare_gone(self, node: str, *, timeout: float | None = None) -> int:
        """Say that a node is dead for good: the ring goes on without what only it had.

        It is needed only where so many owners died together that no quorum of a slot is left.
        A wrong word may lose data; the same process never takes part in the ring again.

        Args:
            node: Its name or its id.
            timeout: Instead of the node's `kv.timeout` [s].

        Returns:
            How many owners (one per boot of the node) are gone by this word; 0: all were.

        Raises:
            RejectedError: It lives, or it owns nothing.
            NoQuorumError, UncertainError: As of every command to the raft group.
        """
        members = self._kernel.members()
        named = [member.node for member in members if node in (member.name, member.node)]
        if any(m.node in named and m.state in (State.ALIVE, State.SUSPECT) for m in members):
            raise RejectedError(
                f"expected a node that is dead, found {node!r} alive; stop it first"
            )
        ids = dict.fromkeys([*named, node])
        owners = tuple(owner for owner in self.ring().holdings if owner.node in ids)
        if not owners:
            raise RejectedError(f"expected a node that owns slots of the ring, found {node!r}")
        wait = self._timeout if timeout is None else timeout
        answer = decode_answer(await self._kernel.submit(RING, encode(Gone(owners)), timeout=wait))
        if isinstance(answer, Refused):
            raise by_name(answer.error, answer.message, answer.reason)
        return answer.count

    def statistics(self) -> KvStatistics:
        """Return the store's figures. Cost: O(slots).

        Raises:
            NoQuorumError: The node has not started yet.
        """
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
