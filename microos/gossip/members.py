"""The table of members: who is alive in which incarnation, and which news beats which.

    one rule   news is the pair (incarnation, rank), rank alive < suspect < dead < left;
               the greater pair stays, equal or smaller news is dropped

Keeping a maximum is commutative, associative and idempotent, so the same news in any
order, any number of times, ends in the same table. What a member says about itself
(address, labels, record: its *content*) follows the same rule by the incarnation that
said it, so an accusation that overtakes its Alive does not lose the content.

The table also keeps what is derived from it: the index by boot id, the ring of the
living ordered by xxh64 of the node id (who monitors whom, gossip.md 5.1) and the digest.

Source: Das, Gupta, Motivala, "SWIM" (DSN 2002), §4.2; memberlist, state.go.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import IntEnum

import msgspec

from microos.gossip.digest import Digest, hash_of
from microos.hashing import u64
from microos.types import Address, BootId, Incarnation, NodeId

MEMBERS_MAX = 65_536
"""Members and tombstones known at most; further strangers are not taken in."""


class State(IntEnum):
    """What is believed of a member; the number is its rank among news of one incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Me(msgspec.Struct, frozen=True):
    """Who this node is."""

    node: NodeId
    boot: BootId
    name: str
    """For people. 1..`limits.NAME_TEXT` bytes."""
    address: Address
    """Where others reach it, datagrams and streams alike."""
    labels: dict[str, str]
    """At most `limits.LABEL_TEXT` bytes encoded."""


class Member(msgspec.Struct, frozen=True):
    """One member, as this node sees it now. A snapshot, never changed."""

    node: NodeId
    boot: BootId
    """0 if only its death or leave is known."""
    name: str
    address: Address
    state: State
    incarnation: Incarnation
    labels: dict[str, str]
    record: bytes
    """The newest body held here; the one before while a newer one is being pulled."""
    record_hash: int
    """xxh64 of `record`; 0 if it is empty."""
    states: tuple[tuple[int, bytes], ...]
    """User states as (kind, body), by kind."""
    since: float
    """When it entered `state`, on this node's clock [s]."""
    score: int
    """Its health as it last said itself, 0 is well."""


class Known(msgspec.Struct, frozen=True, array_like=True):
    """What the member file keeps of another member."""

    node: NodeId
    name: str
    address: Address
    state: State


class Remembered(msgspec.Struct, frozen=True, array_like=True):
    """What outlives the process: the member file."""

    reserved: Incarnation
    """No incarnation above this one was ever used."""
    members: tuple[Known, ...] = ()
    """The others, the dead included: candidates to join when no seed answers."""


class Entry(msgspec.Struct, eq=False):
    """One member in the table, changed only through `Table`."""

    node: NodeId
    boot: BootId
    name: str
    address: Address
    labels: dict[str, str]
    incarnation: Incarnation
    state: State
    since: float
    content: int
    """The incarnation that said name, address, labels and record; -1: none did. <= incarnation"""
    announced_hash: int = 0
    """Hash of the newest record heard of; 0: it has none."""
    announced_size: int = 0
    body: bytes = b""
    body_hash: int = 0
    """Of the record held. Differs from `announced_hash` while a pull is under way."""
    states: dict[int, tuple[int, bytes]] = msgspec.field(default_factory=dict)
    """Kind to (version, body)."""
    score: int = 0
    faded: bool = False
    """A tombstone past half its time: no longer in the digest."""
    noticed_at: float = float("-inf")
    """When it was last told of its own death [s]."""
    share: int = 0
    """Its part of the digest."""
    view: Member | None = None

    @property
    def present(self) -> bool:
        """Whether it takes part: alive or suspect."""
        return self.state <= State.SUSPECT

    def beaten_by(self, incarnation: int, state: State) -> bool:
        """Return whether such news replaces what is believed: the one rule."""
        return (incarnation, state) > (self.incarnation, self.state)


class Table:
    """All members, this node among them, with ring and digest kept up to date."""

    def __init__(self) -> None:
        self.entries: dict[NodeId, Entry] = {}
        self.boots: dict[BootId, Entry] = {}
        self.digest = Digest()
        self.ring: list[tuple[int, NodeId]] = []
        """Alive and suspect members by (xxh64 of the node id, node id)."""
        self.dead = 0
        """How many are dead (not left)."""
        self._members: tuple[Member, ...] | None = None

    @property
    def size(self) -> int:
        """How many take part, this node included."""
        return len(self.ring)

    def add(self, entry: Entry) -> None:
        """Take in an unknown member. Cost: O(log n) and one memmove."""
        assert entry.node not in self.entries
        self.entries[entry.node] = entry
        if entry.boot:
            self.boots[entry.boot] = entry
        self.dead += entry.state is State.DEAD
        if entry.present:
            insort(self.ring, _seat(entry.node))
        self.changed(entry)

    def move(self, entry: Entry, incarnation: int, state: State, now: float) -> None:
        """Let `entry` believe newer news."""
        assert entry.beaten_by(incarnation, state)
        was_present = entry.present
        self.dead -= entry.state is State.DEAD
        if entry.state is not state:
            entry.since = now
        entry.incarnation, entry.state = Incarnation(incarnation), state
        entry.faded = False
        self.dead += entry.state is State.DEAD
        if was_present and not entry.present:
            del self.ring[bisect_left(self.ring, _seat(entry.node))]
        elif entry.present and not was_present:
            insort(self.ring, _seat(entry.node))
        self.changed(entry)

    def rename(self, entry: Entry, boot: BootId) -> None:
        """Give `entry` the boot id of its newest process; user states end with the old one."""
        if entry.boot == boot:
            return
        if self.boots.get(entry.boot) is entry:
            del self.boots[entry.boot]
        entry.boot = boot
        entry.states = {}
        entry.score = 0
        self.boots[boot] = entry

    def changed(self, entry: Entry) -> None:
        """Bring digest and snapshot up to date after `entry` has changed."""
        self.seen(entry)
        share = _share(entry)
        self.digest.replace(entry.node, entry.share, share)
        entry.share = share

    def seen(self, entry: Entry) -> None:
        """Drop the snapshot of `entry` alone: what changed is not in the digest."""
        entry.view = None
        self._members = None

    def remove(self, entry: Entry) -> None:
        """Forget a dead or left member."""
        assert not entry.present
        self.digest.replace(entry.node, entry.share, 0)
        self.dead -= entry.state is State.DEAD
        if self.boots.get(entry.boot) is entry:
            del self.boots[entry.boot]
        del self.entries[entry.node]
        self._members = None

    def members(self) -> tuple[Member, ...]:
        """Return all members by node id. Cost: O(1) until something changes, then O(n)."""
        if self._members is None:
            self._members = tuple(_view(self.entries[node]) for node in sorted(self.entries))
        return self._members

    def present(self) -> Iterator[Entry]:
        """Yield those who take part, this node included, in the order of the ring."""
        for _, node in self.ring:
            yield self.entries[node]

    def at(self, address: Address) -> list[Entry]:
        """Return those who take part and are said to listen at `address`. Cost: O(n)."""
        return [entry for entry in self.present() if entry.address == address]

    def named(self, name: str, other_than: NodeId) -> Entry | None:
        """Return another member that takes part under `name`. Cost: O(n)."""
        for entry in self.present():
            if entry.name == name and entry.node != other_than:
                return entry
        return None

    def successors(self, node: NodeId, count: int) -> list[NodeId]:
        """Return the next `count` of the ring behind `node`; fewer if it is small."""
        start = bisect_left(self.ring, _seat(node))
        count = min(count, len(self.ring) - 1)
        return [self.ring[(start + k) % len(self.ring)][1] for k in range(1, count + 1)]

    def predecessors(self, node: NodeId, count: int) -> list[NodeId]:
        """Return the nearest `count` of the ring before `node`, nearest first."""
        start = bisect_left(self.ring, _seat(node))
        count = min(count, len(self.ring) - 1)
        return [self.ring[(start - k) % len(self.ring)][1] for k in range(1, count + 1)]

    def check(self) -> None:
        """Assert that everything derived equals what it is derived from. Cost: O(n log n)."""
        fresh = Digest()
        for entry in self.entries.values():
            assert entry.content <= entry.incarnation
            assert entry.share == _share(entry)
            assert not entry.faded or not entry.present
            fresh.replace(entry.node, 0, entry.share)
        assert fresh.buckets == self.digest.buckets
        assert fresh.total == self.digest.total
        assert fresh.count == self.digest.count
        assert self.ring == sorted(_seat(e.node) for e in self.entries.values() if e.present)
        assert self.dead == sum(e.state is State.DEAD for e in self.entries.values())
        for boot, entry in self.boots.items():
            assert entry.boot == boot
            assert self.entries[entry.node] is entry


def _seat(node: NodeId) -> tuple[int, NodeId]:
    return u64(node.encode()), node


def _share(entry: Entry) -> int:
    # Suspicion is not in the digest, since its timers are local. Of the dead and the
    # left only what decides over later news is: nobody repairs their content.
    if entry.faded:
        return 0
    if not entry.present:
        return hash_of((entry.node, entry.incarnation, int(entry.state)))
    return hash_of(
        (
            entry.node,
            entry.boot,
            entry.incarnation,
            entry.address,
            entry.announced_hash,
            tuple((kind, entry.states[kind][0]) for kind in sorted(entry.states)),
        )
    )


def _view(entry: Entry) -> Member:
    if entry.view is None:
        entry.view = Member(
            node=entry.node,
            boot=entry.boot,
            name=entry.name,
            address=entry.address,
            state=entry.state,
            incarnation=entry.incarnation,
            labels=entry.labels,
            record=entry.body,
            record_hash=entry.body_hash,
            states=tuple((kind, entry.states[kind][1]) for kind in sorted(entry.states)),
            since=entry.since,
            score=entry.score,
        )
    return entry.view
