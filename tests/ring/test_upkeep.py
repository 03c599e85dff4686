"""Upkeep answered by hand: what is compared, pulled, handed over, dropped and forgotten."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

from microos import limits
from microos.ring.entry import (
    ATOMIC,
    end_of,
    is_tombstone,
    pack,
    tombstone,
    version_bytes,
    version_of,
)
from microos.ring.epochs import frozen
from microos.ring.messages import (
    Answer,
    Code,
    Compare,
    Compared,
    Entries,
    Fetch,
    Keep,
    List,
    Listing,
    Purge,
    Request,
)
from microos.ring.passes import Handing
from microos.ring.replica import Replica
from microos.ring.ring import SLOTS, Owner, Ring
from microos.ring.stamps import Stamps
from microos.ring.store import Store
from microos.ring.upkeep import HURRIED_GRACE, PATIENCE, PURGE_INTERVAL, TRANSFER_BURST, Upkeep
from microos.types import Random
from tests.ring.log import Log, owner

WALL, START = 1_700_000_000.0, 100.0
WINDOW = 3600.0
RATE = 256 * 1024


@cache
def log_of(*epochs: str) -> tuple[Ring, bytes]:
    """Return the ring after some epochs; `.` settles the one before."""
    log = Log()
    for names in epochs:
        if names == ".":
            log.settle()
        else:
            log.propose(names)
    return log.state.ring(), frozen(log.state)


class Desk:
    """What upkeep may use, and a record of what it did with it."""

    def __init__(self, *epochs: str, me: str = "a", rate: int = RATE) -> None:
        self.now = START
        self.stamps = Stamps(WALL, START)
        self.random: Random = random.Random(1)
        self.replica = Replica(owner(me), Store(1 << 24), self.stamps)
        self.ups = "abcdef"
        self.asks: list[tuple[Any, Owner, Any]] = []
        self.handed: list[tuple[bytes, bytes, Handing]] = []
        self.decided: list[bytes] = []
        self.upkeep = Upkeep(
            self,
            compare_interval=5.0,
            drop_grace=10.0,
            tombstone_window=WINDOW,
            transfer_rate=rate,
            now=START,
        )
        self.epochs: tuple[str, ...] = ()
        for names in epochs:
            self.turn(names)

    def turn(self, names: str) -> None:
        self.epochs += (names,)
        self.upkeep.moved(self.replica.turn(*log_of(*self.epochs)), self.now)

    # What upkeep uses.

    def ask_for(self, job: Any, owner: Owner, request: Request) -> None:
        self.asks.append((job, owner, request))

    def is_up(self, owner: Owner) -> bool:
        return owner.node in self.ups and owner.boot == 1

    def stamp(self) -> int:
        return self.stamps.peek(self.now)

    def hand_over(self, slot: int, name: bytes, entry: bytes, job: Handing) -> None:
        self.handed.append((name, entry, job))

    def decide(self, slot: int, name: bytes) -> None:
        self.decided.append(name)

    # What happens.

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.upkeep.wake(self.now)
        self.upkeep.check()

    def answer(self, answer: Any, kind: type[Request] | None = None) -> Any:
        """Answer the first ask, or the first of a kind; return its request."""
        at = next(n for n, ask in enumerate(self.asks) if kind is None or type(ask[2]) is kind)
        job, asked, request = self.asks.pop(at)
        job.answered(asked, answer, self.now)
        self.upkeep.check()
        return request

    def kinds(self) -> list[tuple[str, str]]:
        return [(type(request).__name__, asked.node) for _, asked, request in self.asks]

    # What is kept.

    def version(self, age: float) -> bytes:
        return version_bytes(int((WALL + self.now - START - age) * 1000.0) << 16, 1)

    def keep(self, slot: int, name: bytes, entry: bytes) -> None:
        assert self.replica.store.apply(slot, name, entry)

    def slot(self, *names: str, first: bool = True) -> int:
        """Return a slot whose current owners are these, if `first` in this order to begin with."""
        ring = self.replica.ring
        for slot in range(SLOTS):
            row = [o.node for o in ring.current(slot)]
            if {*row} == {*names} and (not first or row[0] == names[0]):
                return slot
        raise AssertionError("no such slot")


def value(version: bytes, data: bytes = b"v", *, left: int = 0, flags: int = 0) -> bytes:
    return pack(version, end=left, flags=flags, value=data)


def compared(*equal: int, different: tuple[int, ...] = (), unsynced: tuple[int, ...] = ()) -> Any:
    return Compared(0, 1000, 1, equal, different, unsynced)


# Filling.


def joining() -> tuple[Desk, int]:
    """Return a desk of node d, which is to be an owner of a slot of a, b and c."""
    desk = Desk("abc", "abcd", me="d")
    ring = desk.replica.ring
    row = tuple(map(owner, "abc"))
    slot = next(s for s in range(SLOTS) if ring.current(s) == row and owner("d") in ring.next(s))
    # Of all the slots of d only one is looked at.
    desk.upkeep._fills = {slot: desk.upkeep._fills[slot]}
    return desk, slot


def test_a_copy_is_whole_when_enough_whole_copies_are_in_it_and_the_rest_had_time() -> None:
    desk, slot = joining()
    desk.wait(0.0)
    assert desk.kinds() == [("Compare", "a"), ("Compare", "b"), ("Compare", "c")]
    desk.answer(compared(slot))
    desk.answer(compared(slot))
    assert not desk.replica.is_whole(slot)

    desk.wait(PATIENCE - 0.1)
    assert not desk.replica.is_whole(slot)
    desk.wait(0.2)

    assert desk.replica.is_whole(slot)


def test_a_source_that_is_down_is_not_waited_for_beyond_those_needed() -> None:
    desk, slot = joining()
    desk.ups = "abd"
    desk.wait(0.0)
    assert desk.kinds() == [("Compare", "a"), ("Compare", "b")]

    desk.answer(compared(slot))
    assert not desk.replica.is_whole(slot)
    desk.answer(compared(slot))

    assert desk.replica.is_whole(slot)


def test_a_copy_that_is_not_whole_itself_is_no_source() -> None:
    desk, slot = joining()
    desk.ups = "abd"
    desk.wait(0.0)
    desk.answer(compared(slot))
    desk.answer(compared(slot, unsynced=(slot,)))

    desk.wait(PATIENCE + 1.0)

    assert not desk.replica.is_whole(slot)


def test_a_source_that_knows_an_older_ring_does_not_count() -> None:
    desk, slot = joining()
    desk.ups = "abd"
    desk.wait(0.0)
    desk.answer(compared(slot))
    desk.answer(Compared(0, 1, 1, (slot,)))

    assert not desk.replica.is_whole(slot)
    desk.wait(0.2)
    assert desk.kinds()[-1] == ("Compare", "b")


def test_what_differs_is_listed_fetched_and_then_counted() -> None:
    desk, slot = joining()
    desk.ups = "abd"
    desk.wait(0.0)
    names = tuple((b"b\0%d" % n, desk.version(1.0)) for n in range(3))
    desk.keep(slot, *map(bytes, (names[0][0], value(names[0][1]))))

    desk.answer(compared(different=(slot,)))
    assert isinstance(desk.answer(Listing(0, 1000, 1, False, names, True), List), List)
    request = desk.answer(
        Entries(0, 1000, 1, tuple((name, value(version)) for name, version in names[1:])), Fetch
    )
    desk.answer(compared(slot), Compare)

    assert request.names == (names[1][0], names[2][0])
    assert len(desk.replica.store) == 3
    assert desk.upkeep.bytes_pulled == sum(len(n) + 25 for n, _ in names[1:])
    assert desk.replica.is_whole(slot)


def test_what_a_copy_had_before_and_no_source_has_is_forgotten_if_it_is_old() -> None:
    desk = Desk("abcd", "abc", ".", me="d")
    for name, age in ((b"b\0gone", WINDOW + 1), (b"b\0old", WINDOW + 1), (b"b\0young", 1.0)):
        for each in range(SLOTS):
            desk.keep(each, name, value(desk.version(age)))
    desk.turn("abcd")
    row = tuple(map(owner, "abc"))
    ring = desk.replica.ring
    slot = next(s for s in range(SLOTS) if ring.current(s) == row and owner("d") in ring.next(s))
    desk.upkeep._fills = {slot: desk.upkeep._fills[slot]}
    desk.ups = "abd"
    desk.asks.clear()
    desk.wait(0.0)

    listing = Listing(0, 1000, 1, False, ((b"b\0old", desk.version(WINDOW + 1)),), True)
    for _ in range(2):
        desk.answer(compared(different=(slot,)), Compare)
        desk.answer(listing, List)

    assert desk.replica.is_whole(slot)
    assert [name for name, _ in desk.replica.store.entries(slot)] == [b"b\0old", b"b\0young"]


def test_where_a_source_has_the_same_nothing_is_forgotten() -> None:
    desk, slot = joining()
    desk.keep(slot, b"b\0old", value(desk.version(WINDOW + 1)))
    desk.upkeep._fills[slot].unconfirmed[b"b\0old"] = None
    desk.ups = "abd"
    desk.wait(0.0)

    desk.answer(compared(slot))
    desk.answer(compared(slot))

    assert desk.replica.is_whole(slot)
    assert len(desk.replica.store) == 1


@pytest.mark.parametrize("lost", ["compare", "list", "fetch"])
def test_an_answer_that_never_comes_is_asked_for_again(lost: str) -> None:
    desk, slot = joining()
    desk.ups = "ad"
    desk.wait(0.0)
    listing = Listing(0, 1000, 1, False, ((b"b\0k", desk.version(1.0)),), True)
    if lost != "compare":
        desk.answer(compared(different=(slot,)))
        if lost == "fetch":
            desk.answer(listing)

    desk.answer(None)

    assert (desk.asks, desk.upkeep._busy, desk.upkeep._comparing) == ([], {}, {})
    desk.wait(0.2)
    assert desk.kinds() == [("Compare", "a")]


def test_an_atomic_entry_that_may_not_be_pulled_is_decided() -> None:
    desk = Desk("abc")
    slot = desk.slot("a", "b", "c", first=False)
    desk.replica._promise(slot, b"b\0k", desk.version(0.0))
    version = desk.version(1.0)
    desk.upkeep.differs(owner("b"), [slot], desk.now)

    desk.answer(Listing(0, 1000, 1, False, ((b"b\0k", version),), True))
    desk.answer(Entries(0, 1000, 1, ((b"b\0k", value(version, flags=ATOMIC)),)))

    assert desk.decided == [b"b\0k"]
    assert len(desk.replica.store) == 0


def test_the_way_an_answer_took_is_taken_from_the_time_left() -> None:
    desk = Desk("abc")
    slot = desk.slot("a", "b", "c", first=False)
    ends = []
    for n, way in enumerate((0.04, 30.0)):
        name = b"b\0%d" % n
        desk.upkeep.differs(owner("b"), [slot], desk.now)
        desk.answer(Listing(0, 1000, 1, False, ((name, desk.version(1.0)),), True))
        desk.now += way
        desk.answer(Entries(0, 1000, 1, ((name, value(desk.version(1.0), left=60_000)),)))
        entry = desk.replica.store.get(slot, name, 0)
        assert entry is not None
        ends.append(end_of(entry) / 1000.0 - desk.now)

    # Half of the round trip, but never more than 50 ms.
    assert ends == pytest.approx([59.98, 59.95], abs=0.0011)


# The transfer rate.


def test_pages_are_fetched_no_faster_than_the_transfer_rate() -> None:
    desk = Desk("abc", rate=RATE)
    slots = [s for s in range(SLOTS) if owner("a") in desk.replica.ring.current(s)][:8]
    page = limits.KV_PAGE_BYTES
    desk.upkeep.differs(owner("b"), slots, desk.now)
    came: list[tuple[float, int]] = []
    count = dict.fromkeys(slots, 0)
    while desk.asks or desk.upkeep._held:
        if not desk.asks:
            desk.wait(max(0.0, desk.upkeep.deadline - desk.now))
            continue
        request = desk.asks[0][2]
        names = tuple((b"b\0%d" % n, desk.version(1.0)) for n in range(10))
        if isinstance(request, List):
            desk.answer(Listing(0, 1000, 1, False, names, True))
        elif isinstance(request, Fetch):
            count[request.slot] += 1
            name = request.names[0]
            came.append((desk.now, page))
            desk.answer(Entries(0, 1000, 1, ((name, value(desk.version(0.0), bytes(page - 27))),)))
        else:
            desk.answer(None)

    assert set(count.values()) == {10}
    assert desk.upkeep.bytes_pulled == 80 * page
    for first in range(len(came)):
        for last in range(first, len(came)):
            size = sum(size for _, size in came[first : last + 1])
            span = came[last][0] - came[first][0]
            assert size <= RATE * (span + TRANSFER_BURST) + page
    # And not much slower either.
    assert desk.now - START <= 80 * page / RATE + 1.0


# Comparing.


def test_all_owners_are_compared_with_in_turn() -> None:
    desk = Desk("abcd")

    seen = []
    for _ in range(6):
        desk.wait(7.0)
        seen += [asked.node for _, asked, _ in desk.asks]
        desk.answer(compared())

    assert seen == ["b", "c", "d", "b", "c", "d"]


def test_an_owner_that_owes_an_answer_is_not_asked_twice() -> None:
    desk = Desk("ab")
    desk.wait(7.0)
    desk.wait(7.0)

    assert desk.kinds() == [("Compare", "b")]


# Handing over.


def leaving() -> tuple[Desk, int]:
    """Return a desk of node a, which owns nothing any more, and a slot that it keeps."""
    desk = Desk("abcd")
    slot = desk.slot("a", "b", "c", first=False)
    for name, entry in (
        (b"b\0young", value(desk.version(1.0))),
        (b"b\0theirs", value(desk.version(2.0))),
        (b"b\0old", value(desk.version(WINDOW + 1.0))),
        (b"b\0atomic", value(desk.version(1.0), flags=ATOMIC)),
        (b"b\0deleted", tombstone(desk.version(1.0))),
        (b"b\0ending", value(desk.version(1.0), left=int(desk.now * 1000.0) + 5000)),
    ):
        desk.keep(slot, name, entry)
    desk.turn("bcd")
    desk.turn(".")
    return desk, slot


def handing() -> tuple[Desk, int]:
    desk, slot = leaving()
    desk.asks.clear()
    desk.wait(10.1)
    desk.asks = [ask for ask in desk.asks if isinstance(ask[2], List)]
    theirs = ((b"b\0theirs", version_bytes((1 << 62), 1)),)
    desk.answer(Listing(0, 1000, 1, False, theirs, True))
    return desk, slot


def test_what_is_not_ours_is_kept_for_a_grace_and_then_handed_over() -> None:
    desk, slot = leaving()
    desk.asks.clear()
    desk.wait(9.9)
    assert not [ask for ask in desk.asks if isinstance(ask[2], List)]

    desk.wait(0.2)

    [(_, asked, request)] = [ask for ask in desk.asks if isinstance(ask[2], List)]
    assert request.slot == slot
    assert asked in desk.replica.ring.current(slot)


def test_only_young_plain_entries_that_are_newer_here_are_handed_over() -> None:
    """Old ones may have been deleted since and be forgotten; atomic ones are at a quorum."""
    desk, slot = handing()

    assert sorted(name for name, _, _ in desk.handed) == [b"b\0deleted", b"b\0ending", b"b\0young"]
    assert slot in desk.replica.store.slots()
    for _, _, job in desk.handed:
        job.handed(True, desk.now)
    assert desk.replica.store.slots() == ()
    assert desk.upkeep.foreign == 0


def test_what_has_ended_is_handed_over_as_its_tombstone() -> None:
    desk, _ = leaving()
    desk.now += 6.0
    desk.asks.clear()
    desk.wait(4.2)
    desk.answer(Listing(0, 1000, 1, False, (), True), List)

    [ending] = [entry for name, entry, _ in desk.handed if name == b"b\0ending"]
    assert is_tombstone(ending)


def test_what_could_not_be_handed_over_is_kept_and_tried_again() -> None:
    desk, slot = handing()
    for n, (_, _, job) in enumerate(desk.handed):
        job.handed(n > 0, desk.now)
    assert slot in desk.replica.store.slots()

    desk.asks.clear()
    desk.wait(10.1)
    desk.answer(Listing(0, 1000, 1, equal=True), List)

    assert desk.replica.store.slots() == ()


def test_an_owner_that_is_not_whole_gets_nothing_and_nothing_is_dropped() -> None:
    desk, slot = leaving()
    desk.asks.clear()
    desk.wait(10.1)

    desk.answer(Listing(Code.UNSYNCED, 1000, 1, equal=True), List)

    assert desk.handed == []
    assert slot in desk.replica.store.slots()


def test_who_leaves_lets_go_at_once() -> None:
    desk, _ = leaving()
    desk.asks.clear()

    desk.upkeep.hurry(desk.now)
    assert desk.upkeep.deadline <= desk.now + HURRIED_GRACE
    desk.wait(HURRIED_GRACE)

    assert [kind for kind, _ in desk.kinds()] == ["List"]


# Forgetting.


def with_tombstones(ages: dict[bytes, float], me: str = "a") -> tuple[Desk, int]:
    desk = Desk("abc", me=me)
    slot = desk.slot("a", "b", "c")
    for name, age in ages.items():
        desk.keep(slot, name, tombstone(desk.version(age)))
    desk.keep(slot, b"b\0value", value(desk.version(2 * WINDOW)))
    desk.upkeep._compare_at = 1e9
    return desk, slot


def test_old_tombstones_are_forgotten_when_every_owner_has_them() -> None:
    desk, slot = with_tombstones({b"b\0old": WINDOW, b"b\0young": 10.0})
    desk.wait(PURGE_INTERVAL)
    assert sorted(desk.kinds()) == [("Keep", "b"), ("Keep", "c")]
    assert desk.replica.store.tombstones == 2

    request = desk.answer(Answer(0, 1000, 1))
    assert [name for name, _ in request.entries] == [b"b\0old"]
    assert desk.replica.store.tombstones == 2
    desk.answer(Answer(0, 1000, 1))

    assert desk.replica.store.get(slot, b"b\0old", 0) is None
    assert desk.replica.store.tombstones == 1
    assert {kind for kind, _ in desk.kinds()} == {"Purge"}
    purge = desk.answer(None)
    assert isinstance(purge, Purge)
    assert purge.names == ((b"b\0old", request.entries[0][1][:16]),)


@pytest.mark.parametrize("said", [None, Code.NEWER_SLOT, Code.BEHIND, Code.REFUSED, Code.FULL])
def test_a_tombstone_that_one_owner_may_lack_is_kept(said: int | None) -> None:
    desk, _ = with_tombstones({b"b\0old": WINDOW})
    desk.wait(PURGE_INTERVAL)

    desk.answer(Answer(0, 1000, 1))
    desk.answer(None if said is None else Answer(said, 1000, 1))

    assert desk.replica.store.tombstones == 1
    assert desk.asks == []
    # And it is tried again.
    desk.wait(PURGE_INTERVAL)
    assert [kind for kind, _ in desk.kinds()] == ["Keep", "Keep"]


def test_nothing_is_forgotten_while_an_owner_is_away_or_the_slot_moves() -> None:
    desk, _ = with_tombstones({b"b\0old": WINDOW})
    desk.ups = "ab"
    desk.wait(PURGE_INTERVAL)
    assert desk.asks == []

    desk.ups = "abcd"
    desk.turn("abcd")
    desk.asks.clear()
    desk.wait(PURGE_INTERVAL)
    assert Keep not in [type(request) for _, _, request in desk.asks]


def test_only_the_first_owner_forgets() -> None:
    desk, _ = with_tombstones({b"b\0old": WINDOW}, me="b")

    desk.wait(PURGE_INTERVAL)

    assert desk.asks == []


def test_a_version_written_meanwhile_is_not_forgotten() -> None:
    desk, slot = with_tombstones({b"b\0old": WINDOW})
    desk.wait(PURGE_INTERVAL)
    newer = value(desk.version(0.0))
    desk.keep(slot, b"b\0old", newer)

    for _ in range(2):
        desk.answer(Answer(0, 1000, 1))

    kept = desk.replica.store.get(slot, b"b\0old", 0)
    assert version_of(kept) == version_of(newer)
