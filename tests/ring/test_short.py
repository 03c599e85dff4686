"""The short way of reads and writes: what it asks, what ends it, what sends it the long way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from microos import limits
from microos.errors import NoQuorumError, OverloadedError, UncertainError
from microos.ring.entry import (
    ATOMIC,
    HEAD,
    TOMBSTONE,
    end_of,
    head_of,
    is_tombstone,
    number_of,
    outgoing,
    version_of,
)
from microos.ring.messages import Answer, Code, Found, Kept, Read, ReadMany, Write, WriteMany
from microos.ring.ring import SLOTS
from tests.ring.desk import NAME, Desk, entry
from tests.ring.log import owner


def holding(data: bytes | None = None, names: str = "abc") -> Desk:
    """Return an owner whose copy has `data` under the name."""
    desk = Desk(names=names, short=True)
    if data is not None:
        desk.keeper.replica.store.apply(desk.slot, NAME, data)
    return desk


def stranger() -> Desk:
    """Return a node that is no owner of the slot."""
    desk = Desk(me="d", names="abcd", short=True)
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))
    return desk


def found(desk: Desk, *entries: bytes | None, revision: int | None = None) -> None:
    """Answer the first read asked with what is there."""
    ask = desk.asks.pop(0)
    assert isinstance(ask.request, ReadMany)
    known = desk.keeper.ring.revision if revision is None else revision
    heads = tuple(head_of(entry) for entry in entries)
    desk.tell(ask, Found(Code.OK, known, 1, heads, entries if ask.request.whole else ()))


def kept(desk: Desk, *codes: int, revision: int | None = None) -> None:
    """Answer the first write sent."""
    ask = desk.asks.pop(0)
    assert isinstance(ask.request, WriteMany)
    known = desk.keeper.ring.revision if revision is None else revision
    desk.tell(ask, Kept(Code.OK, known, 1, bytes(codes)))


def kinds(desk: Desk) -> list[str]:
    return [type(ask.request).__name__ for ask in desk.asks]


# Reads.


@pytest.mark.parametrize(
    "data",
    [None, entry(5), entry(5, b"", flags=TOMBSTONE), entry(5, flags=ATOMIC)],
    ids=["nothing", "value", "trace", "atomic"],
)
def test_an_owners_read_is_done_when_one_other_has_the_same_version(data: bytes | None) -> None:
    desk = holding(data)

    number = desk.get()
    [ask] = desk.asks
    assert isinstance(ask.request, ReadMany)
    assert (ask.request.names, ask.request.whole) == (((desk.slot, NAME),), False)
    found(desk, data)

    assert desk.done == {number: data}
    assert desk.keeper.in_flight == 0


def test_a_strangers_read_asks_one_owner_for_the_entry_and_one_for_its_version() -> None:
    desk = stranger()

    number = desk.get()
    wholes = [ask.request.whole for ask in desk.asks if isinstance(ask.request, ReadMany)]
    assert sorted(wholes) == [False, True]
    assert len({ask.owner for ask in desk.asks}) == 2
    desk.asks.reverse()  # In whatever order they answer.
    found(desk, entry(5))
    assert desk.done == {}
    found(desk, entry(5))

    assert desk.done == {number: entry(5)}


def test_a_strangers_read_at_level_one_asks_one_owner() -> None:
    desk = stranger()

    number = desk.get(one=True)
    assert kinds(desk) == ["ReadMany"]
    found(desk, entry(5))

    assert desk.done == {number: entry(5)}


def test_an_owners_read_at_level_one_and_a_lone_owners_ask_nobody() -> None:
    desk, alone = holding(entry(5)), holding(entry(5), names="a")

    one, lone = desk.get(one=True), alone.get()

    assert desk.done == {one: entry(5)}
    assert alone.done == {lone: entry(5)}
    assert desk.asks == alone.asks == []


def test_reads_of_one_turn_are_shared_among_the_others_and_travel_together() -> None:
    desk = holding(entry(5))
    keeper = desk.keeper
    numbers = [
        keeper.get(desk.slot, NAME, one=False, deadline=desk.now + 2.0, now=desk.now)
        for _ in range(200)
    ]

    desk.perform()

    assert desk.asked == ["b", "b", "c", "c"]
    asked = [ask.request.names for ask in desk.asks if isinstance(ask.request, ReadMany)]
    assert [len(names) for names in asked] == [64, 36, 64, 36]
    for names in asked:
        found(desk, *[entry(5)] * len(names))
    assert desk.done == dict.fromkeys(numbers, entry(5))


def test_what_does_not_fit_a_page_of_an_answer_is_read_the_long_way() -> None:
    desk = stranger()
    numbers = [
        desk.keeper.get(desk.slot, NAME, one=True, deadline=desk.now + 2.0, now=desk.now)
        for _ in range(9)
    ]
    desk.perform()

    while desk.asks and isinstance(desk.asks[0].request, ReadMany):
        ask = desk.asks.pop(0)
        assert isinstance(ask.request, ReadMany)
        heads = (head_of(entry(5)),) * len(ask.request.names)
        desk.tell(ask, Found(Code.OK, desk.keeper.ring.revision, 1, heads, (entry(5),)))

    assert desk.done == dict.fromkeys(numbers[:3], entry(5))
    assert kinds(desk) == ["Read"] * 6


# What puts a read in doubt.


def differs(desk: Desk) -> None:
    found(desk, entry(7))


def has_no_say(desk: Desk) -> None:
    desk.tell(desk.asks.pop(0), Found(Code.OK, desk.keeper.ring.revision, 1, (b"",)))


def answers_too_little(desk: Desk) -> None:
    desk.tell(desk.asks.pop(0), Found(Code.OK, desk.keeper.ring.revision, 1, ()))


def is_another_boot(desk: Desk) -> None:
    desk.tell(desk.asks.pop(0), Answer(Code.WRONG_BOOT, desk.keeper.ring.revision, 1))


def is_silent(desk: Desk) -> None:
    desk.silent(desk.asks[0].owner.node)


def sees_it_written_here_meanwhile(desk: Desk) -> None:
    desk.keeper.replica.store.apply(desk.slot, NAME, entry(9))
    found(desk, entry(5))


def sees_the_slot_change_meanwhile(desk: Desk) -> None:
    revision = desk.keeper.ring.revision
    desk.propose("abd")
    assert desk.keeper.ring.positions[desk.slot] > revision
    found(desk, entry(5), revision=revision)


@pytest.mark.parametrize(
    "happens",
    [
        differs,
        has_no_say,
        answers_too_little,
        is_another_boot,
        is_silent,
        sees_it_written_here_meanwhile,
        sees_the_slot_change_meanwhile,
    ],
)
def test_where_a_read_is_in_doubt_entries_are_compared(happens: Callable[[Desk], None]) -> None:
    desk = holding(entry(5))
    desk.get()

    happens(desk)

    assert desk.done == {}
    assert desk.asks
    assert {*kinds(desk)} <= {"Read", "Write"}
    assert len(desk.keeper.reads) == 0


@pytest.mark.parametrize("entry_first", [True, False])
def test_owners_who_differ_put_a_strangers_read_in_doubt(entry_first: bool) -> None:
    desk = stranger()
    desk.get()
    desk.asks.sort(key=lambda ask: ask.request.whole is not entry_first)  # type: ignore[attr-defined]

    found(desk, entry(5))
    found(desk, entry(6))

    assert desk.done == {}
    assert {*kinds(desk)} == {"Read"}


def test_a_value_that_ends_while_it_is_confirmed_is_looked_at_again() -> None:
    desk = holding()
    at = int(desk.now * 1000)
    data = entry(5, left=at + 20)
    desk.keeper.replica.store.apply(desk.slot, NAME, data)
    desk.get()
    desk.now += 0.03

    found(desk, outgoing(data, at))

    assert desk.done == {}
    assert kinds(desk) == ["Read"]


def test_a_read_without_an_answer_asks_another_owner_and_either_may_end_it() -> None:
    desk = holding(entry(5))
    number = desk.get()
    [first] = desk.asks

    desk.wait(0.06)

    second = next(ask for ask in desk.asks if ask is not first)
    assert isinstance(second.request, Read)
    assert first.owner != second.owner
    found(desk, entry(5))
    assert desk.done == {number: entry(5)}
    desk.tell(second, Answer(Code.OK, desk.keeper.ring.revision, 1, entry(6)))
    assert desk.done == {number: entry(5)}
    assert desk.keeper.in_flight == 0


def test_where_answers_usually_take_long_nobody_else_is_asked_before_that() -> None:
    desk = holding(entry(5))

    def read(seconds: float) -> list[str]:
        desk.get()
        desk.wait(seconds)
        asked = kinds(desk)
        found(desk, entry(5))
        desk.asks.clear()
        return asked

    assert read(0.2) == ["ReadMany", "Read", "Read"]
    for _ in range(10):
        read(0.2)
    assert read(0.2) == ["ReadMany"]
    desk.get()
    desk.wait(0.65)
    assert kinds(desk)[:2] == ["ReadMany", "Read"]
    for _ in range(50):
        desk.keeper.reads.took(60.0)
    assert desk.keeper.reads.patience < 1.0


def test_what_the_long_way_has_ended_a_late_answer_does_not_end_again() -> None:
    desk = holding(entry(5))
    number = desk.get()
    [first] = desk.asks
    desk.wait(0.06)
    second = next(ask for ask in desk.asks if ask is not first)
    desk.tell(second, Answer(Code.OK, desk.keeper.ring.revision, 1, entry(5)))
    assert desk.done == {number: entry(5)}
    desk.done.clear()

    found(desk, entry(5))

    assert desk.done == {}
    assert desk.keeper.in_flight == 0


# Writes.


def test_an_owners_write_is_kept_here_sent_to_all_others_and_done_with_the_first() -> None:
    desk = holding()

    number = desk.put()
    assert desk.asked == ["b", "c"]
    data = desk.keeper.replica.store.get(desk.slot, NAME, 0)
    assert data is not None
    assert desk.done == {}
    kept(desk, Code.OK)

    assert desk.done == {number: number_of(version_of(data))}
    kept(desk, Code.OK)
    assert desk.keeper.in_flight == 0


def test_a_strangers_write_wants_two_of_three_and_at_level_one_one() -> None:
    desk = stranger()

    number, one = desk.put(), desk.put(one=True)
    assert desk.asked == sorted([*desk.asked[:3:1], *desk.asked[3:]])
    assert len(desk.asks) == 6
    kept(desk, Code.OK)
    assert desk.done == {}
    kept(desk, Code.OK)
    assert [*desk.done] == [number]
    desk.asks.pop(0)
    kept(desk, Code.OK)
    assert [*desk.done] == [number, one]


def test_an_owners_write_at_level_one_is_done_at_once_and_sent_all_the_same() -> None:
    desk = holding()

    number = desk.put(one=True)

    assert isinstance(desk.done[number], int)
    assert desk.asked == ["b", "c"]
    kept(desk, Code.FULL)
    assert kinds(desk) == ["WriteMany"]


def test_writes_of_one_turn_travel_together_in_pages() -> None:
    desk = holding()
    for size, count in ((10, 100), (limits.KV_PAGE_BYTES // 2, 3), (limits.KV_PAGE_BYTES * 2, 1)):
        for _ in range(count):
            desk.keeper.put(
                desk.slot,
                NAME,
                bytes(size),
                left=0,
                one=False,
                version=None,
                deadline=desk.now + 2.0,
                now=desk.now,
            )

    desk.perform()

    sent = [
        [len(data) - HEAD for _, _, data in ask.request.entries]
        for ask in desk.asks
        if ask.owner.node == "b" and isinstance(ask.request, WriteMany)
    ]
    assert [len(page) for page in sent] == [64, 37, 1, 1, 1]
    assert sent[-1] == [limits.KV_PAGE_BYTES * 2]


@pytest.mark.parametrize("code", [Code.NEWER_SLOT, Code.NEWER_VERSION, Code.FULL])
def test_a_write_that_is_not_simply_kept_begins_anew_with_its_version(code: int) -> None:
    desk = holding()
    desk.put()
    first = desk.asks[0].request
    assert isinstance(first, WriteMany)

    kept(desk, code)

    again = [ask.request for ask in desk.asks if isinstance(ask.request, Write)]
    assert [request.entry for request in again] == [first.entries[0][2]] * 2
    assert len(desk.keeper.writes) == 0


def test_a_write_goes_on_without_an_owner_that_is_silent_and_the_long_way_without_both() -> None:
    desk = holding()
    desk.put(left=1000)
    first = desk.asks[0].request
    assert isinstance(first, WriteMany)

    desk.silent("b", sent=False)
    assert kinds(desk) == ["WriteMany"]
    desk.now += 0.1
    desk.silent("c", sent=False)

    again = [ask.request for ask in desk.asks if isinstance(ask.request, Write)]
    assert len(again) == 2
    assert end_of(first.entries[0][2]) == 1000
    assert end_of(again[0].entry) == 900


def test_a_write_whose_slot_has_changed_meanwhile_begins_anew() -> None:
    desk = holding()
    desk.put()
    revision = desk.keeper.ring.revision
    desk.propose("abd")

    kept(desk, Code.OK, revision=revision)

    assert desk.done == {}
    assert "Write" in kinds(desk)


def test_a_write_without_acknowledgements_is_sent_again_and_at_last_uncertain() -> None:
    desk = stranger()
    number = desk.put()
    asked = [*desk.asks]

    desk.wait(0.3)

    assert kinds(desk) == ["WriteMany"] * 3 + ["Write"] * 3
    for ask in asked:  # From here on only the long way's answers count.
        desk.tell(ask, Kept(Code.OK, desk.keeper.ring.revision, 1, bytes(1)))
    assert desk.done == {}
    desk.wait(2.0)
    assert isinstance(desk.done[number], UncertainError)


def test_a_write_that_was_sent_to_owners_that_are_gone_by_now_is_uncertain() -> None:
    desk = stranger()
    number = desk.put()
    desk.up("d")

    for name in [*desk.asked]:
        desk.silent(name)

    assert isinstance(desk.done[number], UncertainError)


def test_a_value_whose_time_is_over_before_it_is_sent_again_travels_as_its_trace() -> None:
    desk = holding()
    desk.put(left=50)

    desk.wait(0.3)

    again = [ask.request for ask in desk.asks if isinstance(ask.request, Write)]
    assert again
    assert all(is_tombstone(request.entry) for request in again)


# Both.


def test_an_owner_that_is_down_is_not_asked() -> None:
    desk = holding(entry(5))
    desk.up("ac")

    for _ in range(2):
        desk.get()
        desk.put()
    assert desk.asked == ["c"] * 4

    desk.up("a")
    assert isinstance(desk.done[desk.get()], NoQuorumError)
    assert isinstance(desk.done[desk.put()], NoQuorumError)


def test_a_slot_that_is_changing_and_a_copy_that_is_not_whole_know_no_short_way() -> None:
    desk = holding(entry(5))
    desk.propose("abd")
    desk.get()
    desk.put()
    assert {*kinds(desk)} == {"Read", "Write"}

    fresh = holding()
    del fresh.keeper.replica.synced[fresh.slot]
    fresh.get()
    assert {*kinds(fresh)} == {"Read"}


@pytest.mark.parametrize("kind", ["get", "put"])
def test_what_was_gathered_before_the_slot_changed_is_in_doubt(kind: str) -> None:
    """Both owners asked agree, by the new ring as well: there they may be no quorum."""
    desk = holding(entry(5))
    desk.up("abcde")
    keeper, deadline = desk.keeper, desk.now + 2.0
    if kind == "get":
        keeper.get(desk.slot, NAME, one=False, deadline=deadline, now=desk.now)
    else:
        keeper.put(
            desk.slot, NAME, b"v", left=0, one=False, version=None, deadline=deadline, now=desk.now
        )
    before = keeper.ring.revision

    desk.propose("ade")

    assert {ask.request.revision for ask in desk.asks} == {before}
    if kind == "get":
        found(desk, entry(5))
    else:
        kept(desk, Code.OK)
    assert desk.done == {}
    assert {"Read", "Write"} & {*kinds(desk)}


@pytest.mark.parametrize("kind", ["get", "put"])
def test_what_is_cancelled_is_forgotten(kind: str) -> None:
    desk = holding(entry(5))
    number = desk.get() if kind == "get" else desk.put()

    desk.keeper.cancel(number, desk.now)

    assert desk.keeper.in_flight == 0
    if kind == "get":
        found(desk, entry(5))
    else:
        kept(desk, Code.OK)
    assert desk.done == {}


def test_what_is_under_way_counts_against_the_limit_of_operations() -> None:
    desk = holding()
    half = limits.KV_OPERATIONS_MAX // 2
    for _ in range(half):
        desk.keeper.get(desk.slot, NAME, one=False, deadline=desk.now + 2.0, now=desk.now)
        desk.keeper.put(
            desk.slot,
            NAME,
            b"v",
            left=0,
            one=False,
            version=None,
            deadline=desk.now + 2.0,
            now=desk.now,
        )

    with pytest.raises(OverloadedError, match="operations in flight"):
        desk.get()


# The side that is asked.


def test_a_copy_says_versions_only_where_it_has_a_vote() -> None:
    desk = holding(entry(5))
    names = ((desk.slot, NAME), (desk.slot, b"b\0other"))
    replica, revision = desk.keeper.replica, desk.keeper.ring.revision

    def heads(asked: int) -> tuple[int, tuple[bytes, ...]]:
        answer = replica.serve(ReadMany(1, asked, 1, names), desk.now)
        assert isinstance(answer, Found)
        assert answer.entries == ()
        return answer.code, answer.heads

    assert heads(revision) == (Code.OK, (head_of(entry(5)), head_of(None)))
    assert heads(revision + 1) == (Code.BEHIND, (b"", b""))
    del replica.synced[desk.slot]
    assert heads(revision) == (Code.OK, (b"", b""))
    replica.synced[desk.slot] = None
    desk.propose("abd")
    assert heads(revision) == (Code.OK, (b"", b""))


def test_entries_are_given_as_far_as_they_fit_a_page() -> None:
    desk = holding()
    store, names = desk.keeper.replica.store, []
    for number in range(4):
        name = b"b\0%d" % number
        names.append((desk.slot, name))
        if number != 1:
            store.apply(desk.slot, name, entry(5, bytes(limits.KV_PAGE_BYTES // 2)))
    revision = desk.keeper.ring.revision

    answer = desk.keeper.replica.serve(ReadMany(1, revision, 1, tuple(names), True), desk.now)

    assert isinstance(answer, Found)
    assert len(answer.heads) == 4
    assert [data is not None for data in answer.entries] == [True, False]


def test_each_write_of_many_is_answered_for_itself() -> None:
    desk = holding(entry(5))
    replica, revision = desk.keeper.replica, desk.keeper.ring.revision

    def codes(asked: int, *names: bytes) -> tuple[int, list[int]]:
        entries = tuple((desk.slot, name, entry(4)) for name in names)
        answer = replica.serve(WriteMany(1, asked, 1, entries), desk.now)
        assert isinstance(answer, Kept)
        return answer.code, [*answer.codes]

    new = b"b\0new"
    assert codes(revision, NAME, new) == (Code.OK, [Code.NEWER_VERSION, Code.OK])
    assert replica.store.get(desk.slot, new, 0) == entry(4)
    assert codes(revision + 1, NAME, new) == (Code.BEHIND, [Code.NEWER_VERSION, Code.OK])
    replica.store.size_max = 0
    assert codes(revision, b"b\0more") == (Code.OK, [Code.FULL])
    desk.propose("abd")
    assert codes(revision, b"b\0more") == (Code.OK, [Code.NEWER_SLOT | Code.FULL])


def test_the_head_of_an_entry_tells_a_value_from_its_end_and_from_none() -> None:
    value = entry(5, b"v", left=10)
    trace = entry(5, b"", flags=TOMBSTONE)

    assert head_of(value) == head_of(entry(5, b"w" * HEAD))
    assert len({head_of(value), head_of(trace), head_of(entry(6)), head_of(None)}) == 4
