"""The store against a dictionary: accounts, digests, ends of life, tombstones."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from microos.ring.entry import (
    ATOMIC,
    end_of,
    ended,
    is_newer,
    is_tombstone,
    pack,
    stamp_of,
    tombstone,
    version_bytes,
    version_of,
)
from microos.ring.store import ENTRY_OVERHEAD, TOMBSTONE_SHARE, Store, cost_of, name_of

slots = st.integers(0, 2)
names = st.sampled_from([b"b\0k%d" % n for n in range(4)])
moments = st.integers(0, 50)


def value(stamp: int, data: bytes = b"v", *, end: int = 0, flags: int = 0) -> bytes:
    return pack(version_bytes(stamp, 1), end=end, flags=flags, value=data)


class Beside(RuleBasedStateMachine):
    """The store and a dictionary that does the same, plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(1 << 20)
        self.kept: dict[tuple[int, bytes], bytes] = {}
        self.now = 0

    @rule(slot=slots, name=names, stamp=st.integers(1, 20), left=moments, dead=st.booleans())
    def apply(self, slot: int, name: bytes, stamp: int, left: int, dead: bool) -> None:
        end = 0 if left == 0 else (self.now // 10 + left) * 10
        entry = tombstone(version_bytes(stamp, 1)) if dead else value(stamp, end=end)
        before = self.kept.get((slot, name))

        took = self.store.apply(slot, name, entry)

        assert took == is_newer(entry, before)
        if took:
            self.kept[slot, name] = entry

    @rule(passed=st.integers(0, 300))
    def expire(self, passed: int) -> None:
        self.now += passed
        over = {at: e for at, e in self.kept.items() if end_of(e) and end_of(e) <= self.now}

        count = self.store.expire(self.now / 1000.0)

        # At most a tick later, never earlier.
        assert count <= len(over)
        for at, entry in over.items():
            self.kept[at] = ended(entry, self.now)

    @rule(slot=slots, name=names, stamp=st.integers(1, 20))
    def purge(self, slot: int, name: bytes, stamp: int) -> None:
        version = version_bytes(stamp, 1)
        entry = self.kept.get((slot, name))
        self.store.expire(self.now / 1000.0 + 0.01)
        fits = entry is not None and is_tombstone(ended(entry, self.now + 10))

        gone = self.store.purge(slot, name, version)

        assert gone == (fits and version_of(entry) == version)
        for at, kept in list(self.kept.items()):
            self.kept[at] = ended(kept, self.now + 10)
        if gone:
            del self.kept[slot, name]

    @rule(slot=slots)
    def drop(self, slot: int) -> None:
        self.store.drop(slot)
        self.kept = {at: entry for at, entry in self.kept.items() if at[0] != slot}

    @invariant()
    def alike(self) -> None:
        store = self.store
        store.check()
        assert len(store) == len(self.kept)
        assert {*store.slots()} == {slot for slot, _ in self.kept}
        for (slot, name), entry in self.kept.items():
            assert store.get(slot, name, self.now) == ended(entry, self.now)
        for slot in range(3):
            mine = sorted(name for at, name in self.kept if at == slot)
            assert [name for name, _ in store.entries(slot)] == mine
            assert store.names(slot, b"", 100) == mine
            assert store.names(slot, b"b\0k1", 2) == [name for name in mine if name > b"b\0k1"][:2]
        assert store.get(7, b"b\0k1", self.now) is None
        ends = [end_of(entry) for entry in self.kept.values() if end_of(entry)]
        if ends:
            assert min(ends) / 1000.0 <= store.deadline <= min(ends) / 1000.0 + 0.0101
        else:
            assert store.deadline == inf


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.permutations(range(6)))
def test_equal_copies_have_equal_digests_whatever_the_order(order: list[int]) -> None:
    one, other = Store(1 << 20), Store(1 << 20)
    entries = [(b"b\0k%d" % (n // 2), value(n + 1, b"%d" % n)) for n in range(6)]
    for name, entry in entries:
        one.apply(1, name, entry)
    for n in order:
        other.apply(1, *entries[n])

    assert one.digest(1) == other.digest(1) != 0
    assert one.digest(2) == 0


def test_digests_tell_versions_and_names_apart() -> None:
    digests = set()
    for name in (b"b\0a", b"b\0b"):
        for stamp in (1, 2):
            store = Store(1 << 20)
            store.apply(0, name, value(stamp))
            digests.add(store.digest(0))

    assert len(digests) == 4


def test_expiry_changes_no_digest() -> None:
    store = Store(1 << 20)
    store.apply(0, b"b\0a", value(1, end=500))
    before = store.digest(0)

    assert store.expire(0.5) == 1

    assert store.digest(0) == before
    assert store.tombstones == 1


@pytest.mark.parametrize("tick", [803, 811, 1606, 3201])
def test_a_tick_that_is_no_whole_millisecond_as_a_float_ends_once(tick: int) -> None:
    """8.03 * 1000 is 8029.999…: what is due then must not be waited for again at once."""
    store = Store(1 << 20)
    store.apply(0, b"b\0a", value(1, end=tick * 10))

    assert store.expire(store.deadline) == 1
    assert store.deadline == inf


def test_an_atomic_value_that_ends_stays_atomic() -> None:
    store = Store(1 << 20)
    store.apply(0, b"b\0a", value(1, end=10, flags=ATOMIC))

    store.expire(1.0)

    entry = store.get(0, b"b\0a", 0)
    assert entry == tombstone(version_bytes(1, 1), flags=ATOMIC)


def test_what_grows_beyond_the_limit_has_no_room_and_what_shrinks_has() -> None:
    name = b"b\0a"
    store = Store(2 * cost_of(name, value(1, bytes(100))))
    store.apply(0, name, value(1, bytes(100)))
    store.apply(0, b"b\0b", value(1, bytes(100)))

    assert not store.has_room(0, b"b\0c", value(1))
    assert not store.has_room(0, name, value(2, bytes(200)))
    assert store.has_room(0, name, value(2, bytes(100)))
    assert store.has_room(0, name, value(2, bytes(10)))
    assert store.has_room(0, name, tombstone(version_bytes(2, 1)))


def test_tombstones_have_a_share_of_their_own() -> None:
    cost = cost_of(b"b\0%03d" % 0, tombstone(version_bytes(1, 1)))
    store = Store(10 * TOMBSTONE_SHARE * cost)
    store.apply(0, b"b\0x", value(1, bytes(store.size_max)))  # Full of values.

    count = 0
    while store.has_room(0, name := b"b\0%03d" % count, dead := tombstone(version_bytes(1, 1))):
        store.apply(0, name, dead)
        count += 1

    assert count == 10


def test_old_tombstones_are_those_stamped_before() -> None:
    store = Store(1 << 20)
    for n in range(5):
        store.apply(0, b"b\0%d" % n, tombstone(version_bytes(n, 1)))
    store.apply(0, b"b\0v", value(1))

    assert store.old_tombstones(0, 3, 10) == [(b"b\0%d" % n, version_bytes(n, 1)) for n in range(3)]
    assert len(store.old_tombstones(0, 5, 2)) == 2
    assert all(stamp_of(version) < 3 for _, version in store.old_tombstones(0, 3, 10))


def test_buckets_and_keys_make_names_that_never_clash() -> None:
    assert name_of("a", b"bc") != name_of("ab", b"c")
    assert name_of("a", b"\0c") != name_of("a", b"c")


@given(st.binary(min_size=2, max_size=600), st.binary(max_size=600))
def test_the_charge_covers_both_objects(name: bytes, data: bytes) -> None:
    entry = value(1, data)

    assert cost_of(name, entry) >= ENTRY_OVERHEAD + name.__sizeof__() + entry.__sizeof__() - 2


@given(st.integers(1, 10_000_000))
@example(16310)
def test_what_is_due_ends_at_once_though_its_time_in_milliseconds_is_rounded_down(end: int) -> None:
    """16.31 s are 16309.999999999998 ms: an entry put back would be due again, for ever."""
    store, name = Store(1 << 20), name_of("b", b"k")
    store.apply(1, name, pack(version_bytes(5, 1), end=end, flags=0, value=b"x"))

    assert store.expire(store.deadline) == 1

    entry = store.get(1, name, 0)
    assert entry is not None
    assert is_tombstone(entry)
    store.check()
