"""The ring as one node knows it: a key has a slot, a slot has owners; looked up in O(1).

    key ──xxh3, seed of its bucket──▶ slot 0..1023 ──▶ chain of one row or of two

             current          next                 position
    slot 0   a b c            ·        settled     revision of the command that last
    slot 1   a b c            a b d    joint       changed this slot
    slot 2   ·                ·        before the first ring epoch

A row names the owners of a slot, best first; a bucket with fewer replicas uses the
first of them. An owner is a *boot* of a node: a process that restarts has lost its
memory and is another owner. While a slot is joint, an operation needs a quorum in
each row of its chain (`ring/quorum.py`).

`Ring` is an immutable snapshot, replaced as a whole (kv.md 4.5); what Raft agrees on
and how it changes is in `ring/epochs.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from microos import limits
from microos.hashing import xxh3
from microos.types import BootId, Incarnation, NodeId, Revision

SLOTS = limits.RING_SLOTS
"""Fixed for the life of a cluster."""

SET_BYTES = SLOTS // 8
"""Size of a set of slots, one bit each."""


class Owner(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """One process that keeps copies: a node and its boot."""

    node: NodeId
    boot: BootId


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One node that takes part in a ring epoch."""

    node: NodeId
    boot: BootId
    weight: int = 1
    """Its share of the copies relative to others. 1..`limits.RING_WEIGHT_MAX`."""
    zone: str = ""
    """What fails together; copies of a slot are spread over zones."""
    incarnation: Incarnation = Incarnation(0)
    """One with which gossip knew this boot: of two boots of a node the newer has the higher."""

    @property
    def owner(self) -> Owner:
        return Owner(self.node, self.boot)


Row = tuple[Owner, ...]
"""Owners of a slot, best first, none twice."""

Chain = tuple[Row, ...]
"""Current and, while joint, next; empty before the first ring epoch."""


# Keys to slots.


def seed_of(bucket: str) -> int:
    """Return the seed with which a bucket's keys are hashed; compute it once per handle."""
    return xxh3(bucket.encode())


def slot_of(seed: int, key: bytes) -> int:
    """Return the slot of a key as stored. Cost: 0.1 µs."""
    return xxh3(key, seed) & SLOTS - 1


# Sets of slots: slot s is bit s % 8 of byte s // 8.


def slot_set(slots: Iterable[int]) -> bytes:
    """Return these slots as a bit set."""
    bits = 0
    for slot in slots:
        bits |= 1 << slot
    return bits.to_bytes(SET_BYTES, "little")


def slots_in(found: bytes) -> Iterator[int]:
    """Yield the slots of a bit set, rising."""
    bits = int.from_bytes(found, "little")
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


# The snapshot.


class Ring(msgspec.Struct, frozen=True):
    """The ring at one revision. Made by `RingState.ring`; all look-ups are O(1)."""

    revision: Revision = Revision(0)
    """Of the last ring command that changed anything; 0: none has."""
    number: int = 0
    """The newest ring epoch; 0 before the first."""
    members: tuple[Member, ...] = ()
    """Of the newest ring epoch, by node."""
    chains: tuple[Chain, ...] = ((),) * SLOTS
    everyone: tuple[Row, ...] = ((),) * SLOTS
    """The owners of both rows of each slot, without repeats, current first."""
    positions: tuple[Revision, ...] = (Revision(0),) * SLOTS
    gone: Mapping[Owner, object] = msgspec.field(default_factory=dict)
    """Owners in some chain that are proven dead, with the proof."""
    holdings: Mapping[Owner, tuple[int, ...]] = msgspec.field(default_factory=dict)
    """The slots of each owner, rising."""
    paused: str = ""
    """Why no change is proposed at present; empty: it is."""

    def chain(self, slot: int) -> Chain:
        """Return current and, while the slot is joint, next; empty before the first epoch."""
        return self.chains[slot]

    def current(self, slot: int) -> Row:
        """Return the present owners; empty before the first ring epoch."""
        chain = self.chains[slot]
        return chain[0] if chain else ()

    def next(self, slot: int) -> Row:
        """Return the owners to be; empty while the slot is settled."""
        chain = self.chains[slot]
        return chain[1] if len(chain) == 2 else ()

    def owners(self, slot: int) -> Row:
        """Return the owners of both rows without repeats, current first."""
        return self.everyone[slot]

    def position(self, slot: int) -> Revision:
        """Return the revision of the command that last changed this slot; 0: none has."""
        return self.positions[slot]

    def slots_of(self, owner: Owner) -> tuple[int, ...]:
        """Return the slots in whose chain this owner is, rising."""
        return self.holdings.get(owner, ())

    def check(self) -> None:
        """Assert all invariants. Cost: O(slots)."""
        assert len(self.chains) == len(self.everyone) == len(self.positions) == SLOTS
        holdings: dict[Owner, list[int]] = {}
        for slot, chain in enumerate(self.chains):
            assert len(chain) <= 2
            assert bool(chain) == bool(self.number)
            assert all(row and len(row) == len({*row}) <= limits.RING_REPLICAS for row in chain)
            assert len(chain) < 2 or chain[0] != chain[1]
            assert self.everyone[slot] == union(chain)
            assert bool(chain) == (self.positions[slot] > 0)
            assert self.positions[slot] <= self.revision
            for owner in self.everyone[slot]:
                holdings.setdefault(owner, []).append(slot)
        assert {owner: tuple(slots) for owner, slots in holdings.items()} == self.holdings
        assert all(owner in holdings for owner in self.gone)


def union(rows: Sequence[Row]) -> Row:
    """Return the owners of all rows, each once, in order of appearance."""
    if len(rows) == 1:
        return rows[0]
    return tuple(dict.fromkeys(owner for row in rows for owner in row))
