"""One owner's side: what it keeps, what it promised, and what it says of its copy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos import limits
from microos.ring.entry import (
    ATOMIC,
    HEAD,
    TOMBSTONE,
    incoming,
    is_tombstone,
    pack,
    tombstone,
    value_of,
    version_bytes,
    version_of,
)
from microos.ring.epochs import frozen
from microos.ring.messages import (
    Accept,
    Answer,
    Code,
    Compare,
    Entries,
    Fetch,
    GetRing,
    Keep,
    List,
    Listing,
    Prepare,
    Purge,
    Read,
    RingState,
    Write,
)
from microos.ring.replica import Replica
from microos.ring.ring import SLOTS
from microos.ring.stamps import Stamps
from microos.ring.store import Store
from tests.ring.log import Log, owner

NAME = b"b\0k"
NOW = 100.0


def ballot(stamp: int, writer: int = 1) -> bytes:
    return version_bytes(stamp, writer)


def entry(stamp: int, data: bytes = b"v", *, left: int = 0, flags: int = 0) -> bytes:
    return pack(ballot(stamp), end=left, flags=flags, value=data)


class Copy:
    """A replica of node `a` that goes by a log, and the requests put to it."""

    def __init__(self, names: str = "abcd") -> None:
        self.log = Log().propose(names)
        self.replica = Replica(owner("a"), Store(1 << 20), Stamps(1000.0, NOW))
        self.turn()
        self.slot = next(s for s in range(SLOTS) if self.is_owner(s))
        self.now = NOW

    def turn(self) -> list[int]:
        return self.replica.turn(self.log.state.ring(), frozen(self.log.state))

    def is_owner(self, slot: int) -> bool:
        return owner("a") in self.log.state.ring().current(slot)

    def ask(self, kind: type[Any], *fields: Any, revision: int | None = None, boot: int = 1) -> Any:
        at = self.replica.ring.revision if revision is None else revision
        answer = self.replica.serve(kind(boot, at, 1, *fields), self.now)
        self.replica.check()
        return answer

    def read(self, **how: Any) -> Any:
        return self.ask(Read, self.slot, NAME, **how)

    def write(self, what: bytes, repair: bool = False, **how: Any) -> Any:
        return self.ask(Write, self.slot, NAME, what, repair, **how)

    def prepare(self, number: int, **how: Any) -> Any:
        return self.ask(Prepare, self.slot, NAME, ballot(number), **how)

    def accept(self, what: bytes, **how: Any) -> Any:
        return self.ask(Accept, self.slot, NAME, what, **how)


def test_the_newest_is_kept_and_said() -> None:
    copy = Copy()

    assert copy.write(entry(5)).code == Code.OK
    older = copy.write(entry(4))
    again = copy.write(entry(5))

    assert (older.code, older.entry) == (Code.NEWER_VERSION, entry(5)[:HEAD])
    assert again.code == Code.OK
    assert copy.read().entry == entry(5)


def test_another_boot_does_nothing() -> None:
    copy = Copy()

    assert copy.write(entry(5), boot=2).code == Code.WRONG_BOOT
    assert copy.read().entry is None


def test_a_plain_write_is_kept_whatever_ring_its_writer_goes_by() -> None:
    copy = Copy()
    copy.log.propose("abce")
    copy.turn()
    copy.slot = next(s for s in copy.log.state.joint() if copy.is_owner(s))

    old = copy.write(entry(5), revision=1)
    ahead = copy.write(entry(6), revision=9)

    assert (old.code, ahead.code) == (Code.NEWER_SLOT, Code.BEHIND)
    assert copy.read().entry == entry(6)


def test_time_travels_as_what_is_left() -> None:
    copy = Copy()
    copy.write(entry(5, left=500))

    copy.now += 0.2
    assert copy.read().entry == entry(5, left=300)
    copy.now += 0.3
    assert copy.read().entry == tombstone(ballot(5))


def test_no_room_is_said_and_nothing_kept() -> None:
    copy = Copy()
    copy.replica.store.size_max = 0

    assert copy.write(entry(5)).code == Code.FULL
    assert copy.accept(entry(6, flags=ATOMIC)).code == Code.FULL
    assert copy.read().entry is None


# Promises.


def test_a_ballot_is_promised_once_and_older_ones_are_refused() -> None:
    copy = Copy()

    assert copy.prepare(10).code == Code.OK
    for number in (9, 10):
        refused = copy.prepare(number)
        assert (refused.code, refused.promised) == (Code.REFUSED, ballot(10))
    assert copy.accept(entry(9, flags=ATOMIC)).code == Code.REFUSED
    assert copy.read().entry is None
    assert copy.accept(entry(10, flags=ATOMIC)).code == Code.OK
    assert copy.prepare(11).entry == entry(10, flags=ATOMIC)


def test_a_ballot_must_be_above_what_is_there() -> None:
    copy = Copy()
    copy.write(entry(20))

    refused = copy.prepare(15)

    assert (refused.code, refused.promised) == (Code.REFUSED, ballot(20))
    assert copy.prepare(21).code == Code.OK


def test_a_late_accept_changes_nothing_an_atomic_write_has_replaced() -> None:
    copy = Copy()
    copy.prepare(10)
    copy.prepare(12)
    copy.accept(entry(12, flags=ATOMIC))

    late = copy.accept(entry(10, flags=ATOMIC))

    assert (late.code, late.promised) == (Code.REFUSED, ballot(12))
    assert copy.read().entry == entry(12, flags=ATOMIC)


def test_a_plain_write_that_is_newer_hides_an_accept() -> None:
    copy = Copy()
    copy.prepare(10)
    copy.write(entry(15))

    assert copy.accept(entry(10, flags=ATOMIC)).code == Code.OK
    assert copy.read().entry == entry(15)


def test_a_repair_of_an_atomic_entry_bows_to_a_promise() -> None:
    copy = Copy()
    copy.prepare(10)

    refused = copy.write(entry(8, flags=ATOMIC), repair=True)
    plain = copy.write(entry(7), repair=True)

    assert (refused.code, refused.promised) == (Code.REFUSED, ballot(10))
    assert plain.code == Code.OK
    assert not copy.replica.take_pulled(copy.slot, NAME, entry(8, flags=ATOMIC), NOW, bows=True)
    assert copy.replica.take_pulled(copy.slot, NAME, entry(8, flags=ATOMIC), NOW, bows=False)


def test_a_slot_that_has_changed_refuses_ballots_and_forgets_its_promises() -> None:
    copy = Copy("abcd")
    copy.log.propose("abce")
    joint = [s for s in copy.log.state.joint() if copy.is_owner(s)]
    copy.slot = joint[0]
    copy.prepare(10)

    copy.turn()

    for stale in (copy.prepare(20, revision=1), copy.accept(entry(10), revision=1)):
        assert stale.code == Code.NEWER_SLOT
    assert copy.prepare(20, revision=9).code == Code.BEHIND
    assert copy.prepare(5).code == Code.OK


def test_a_promise_forgotten_for_want_of_room_is_kept_as_a_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "KV_PROMISES_MAX", 3)
    copy = Copy()
    for n, number in enumerate((30, 10, 20, 40, 50)):
        copy.ask(Prepare, copy.slot, b"b\0%d" % n, ballot(number))

    # 30 and 10 are forgotten: nothing up to 30 is taken any more, of whatever key.
    assert copy.ask(Prepare, copy.slot, b"b\0new", ballot(30)).code == Code.REFUSED
    assert copy.ask(Accept, copy.slot, b"b\0%d" % 1, entry(10, flags=ATOMIC)).code == Code.REFUSED
    assert copy.ask(Prepare, copy.slot, b"b\0new", ballot(31)).code == Code.OK


ATTEMPTS = st.lists(
    st.tuples(st.sampled_from(["prepare", "accept", "write", "repair"]), st.integers(1, 12)),
    max_size=40,
)


@given(ATTEMPTS)
@settings(max_examples=60)
def test_nothing_accepted_is_older_than_a_promise_given_before(
    attempts: list[tuple[str, int]],
) -> None:
    copy = Copy("ab")
    promised = 0
    for what, number in attempts:
        before = copy.read().entry
        if what == "prepare":
            if copy.prepare(number).code == Code.OK:
                assert number > promised
                promised = number
            continue
        if what == "accept":
            code = copy.accept(entry(number, b"atomic", flags=ATOMIC)).code
            assert number >= promised or code == Code.REFUSED
        elif what == "repair":
            copy.write(entry(number, b"repair", flags=ATOMIC), repair=True)
        else:
            copy.write(entry(number, b"plain"))
        after = copy.read().entry
        assert version_of(after) >= version_of(before)
        if after != before and value_of(after) in (b"atomic", b"repair"):
            assert number >= promised


# Copies.


def test_the_first_epoch_finds_every_copy_whole_and_a_later_owner_must_be_filled() -> None:
    copy = Copy("abcd")
    assert all(copy.replica.is_whole(s) for s in range(SLOTS) if copy.is_owner(s))
    late = Replica(owner("e"), Store(1 << 20), Stamps(1000.0, NOW))
    late.turn(copy.log.state.ring(), frozen(copy.log.state))
    copy.log.propose("abcde")
    late.turn(copy.log.state.ring(), frozen(copy.log.state))
    slot = next(s for s in copy.log.state.joint() if owner("e") in late.ring.next(s))

    unsynced = late.serve(Read(1, late.ring.revision, 1, slot, NAME), NOW)
    assert isinstance(unsynced, Answer)
    assert unsynced.code == Code.UNSYNCED
    late.made_whole(slot)
    assert (slot in late.ready, slot in late.synced) == (True, False)
    copy.log.settle([slot])
    late.turn(copy.log.state.ring(), frozen(copy.log.state))

    assert slot in late.synced
    late.check()


def test_who_missed_a_ring_epoch_is_not_whole_though_its_row_looks_the_same() -> None:
    copy = Copy("abcd")
    slot = copy.slot
    copy.log.propose("bcd").settle()
    copy.log.propose("abcd").settle()

    copy.turn()

    assert owner("a") in copy.replica.ring.current(slot)
    assert slot not in copy.replica.synced
    assert copy.read().code == Code.UNSYNCED


def test_a_settled_copy_that_was_not_ready_is_not_whole() -> None:
    copy = Copy("abcd")
    copy.log.propose("abce")
    copy.turn()
    slot = next(s for s in copy.log.state.joint() if owner("a") in copy.replica.ring.next(s))
    copy.log.settle([slot])

    copy.turn()

    assert slot not in copy.replica.synced


def test_a_comparison_tells_equal_from_different_and_leaves_out_what_has_changed() -> None:
    copy = Copy("abcd")
    copy.write(entry(5))
    digest = copy.replica.store.digest(copy.slot)
    other = next(s for s in range(SLOTS) if copy.is_owner(s) and s != copy.slot)

    compared = copy.ask(Compare, ((copy.slot, digest), (other, 7)))
    assert (compared.equal, compared.different, compared.unsynced) == ((copy.slot,), (other,), ())

    copy.log.propose("abce")
    copy.turn()
    joint = copy.log.state.joint()[0]
    stale = copy.ask(Compare, ((joint, 0),), revision=1)
    assert stale.equal == stale.different == ()


def test_a_slot_is_listed_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KV_PAGE_NAMES", 2)
    copy = Copy()
    for n in range(5):
        copy.ask(Write, copy.slot, b"b\0%d" % n, entry(n + 1))

    found: list[tuple[bytes, bytes]] = []
    after, last = b"", False
    while not last:
        page = copy.ask(List, copy.slot, 0, after)
        assert isinstance(page, Listing)
        found += page.names
        after, last = page.names[-1][0] if page.names else after, page.last

    assert found == [(b"b\0%d" % n, ballot(n + 1)) for n in range(5)]
    same = copy.ask(List, copy.slot, copy.replica.store.digest(copy.slot), b"")
    assert (same.equal, same.names) == (True, ())


def test_entries_are_fetched_up_to_a_page_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KV_PAGE_BYTES", 300)
    copy = Copy()
    names = [b"b\0%d" % n for n in range(4)]
    for name in names:
        copy.ask(Write, copy.slot, name, entry(1, bytes(100)))
    copy.ask(Write, copy.slot, names[3], entry(2, bytes(1000)))

    some = copy.ask(Fetch, copy.slot, (b"b\0none", *names))
    large = copy.ask(Fetch, copy.slot, (names[3],))

    assert isinstance(some, Entries)
    assert [name for name, _ in some.entries] == names[:2]
    assert [name for name, _ in large.entries] == names[3:]


def test_what_is_handed_over_is_kept_if_it_is_newer() -> None:
    copy = Copy()
    copy.write(entry(5))
    copy.prepare(20)

    old = copy.ask(Keep, copy.slot, ((NAME, entry(4)), (b"b\0x", tombstone(ballot(3)))))
    barred = copy.ask(Keep, copy.slot, ((NAME, entry(8, flags=ATOMIC)),))

    assert (old.code, barred.code) == (Code.OK, Code.REFUSED)
    assert copy.read().entry == entry(5)
    kept = copy.replica.store.get(copy.slot, b"b\0x", 0)
    assert kept is not None
    assert is_tombstone(kept)


def test_only_a_tombstone_of_that_very_version_is_purged() -> None:
    copy = Copy()
    copy.write(tombstone(ballot(5)))

    copy.ask(Purge, copy.slot, ((NAME, ballot(4)),))
    assert copy.read().entry is not None
    copy.ask(Purge, copy.slot, ((NAME, ballot(5)),))
    assert copy.read().entry is None

    copy.write(entry(6))
    copy.ask(Purge, copy.slot, ((NAME, ballot(6)),))
    assert copy.read().entry == entry(6)


def test_whoever_asks_is_told_the_ring() -> None:
    copy = Copy()

    state = copy.ask(GetRing)

    assert isinstance(state, RingState)
    assert (state.revision, state.state) == (1, frozen(copy.log.state))


def test_a_time_that_is_over_is_kept_as_a_tombstone_would_be() -> None:
    copy = Copy()
    copy.write(entry(5, left=10, flags=ATOMIC))
    copy.now += 1.0

    assert copy.read().entry == pack(ballot(5), end=0, flags=ATOMIC | TOMBSTONE, value=b"")
    assert copy.write(incoming(entry(4), 0)).code == Code.NEWER_VERSION
