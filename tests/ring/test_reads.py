"""The short way of a read: what it asks, what confirms it, and what sends it the long way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from microos import limits
from microos.errors import NoQuorumError, OverloadedError
from microos.ring.entry import HEAD, head_of, outgoing
from microos.ring.messages import Answer, Code, Found, Read, Versions, Write
from microos.ring.ring import SLOTS
from tests.ring.desk import NAME, Desk, entry
from tests.ring.log import owner


def holding(data: bytes | None, **how: str) -> Desk:
    """Return a keeper whose own copy has `data` under the name."""
    desk = Desk(**how)
    if data is not None:
        desk.keeper.replica.store.apply(desk.slot, NAME, data)
    return desk


def confirm(desk: Desk, *entries: bytes | None, revision: int | None = None) -> None:
    """Answer the first question with the heads of entries."""
    ask = desk.asks.pop(0)
    assert isinstance(ask.request, Versions)
    known = desk.keeper.ring.revision if revision is None else revision
    desk.tell(ask, Found(Code.OK, known, 1, tuple(head_of(entry) for entry in entries)))


@pytest.mark.parametrize("kept", [None, entry(5), entry(5, b"", flags=1), entry(5, flags=2)])
def test_a_read_is_done_when_one_other_owner_has_the_same_version(kept: bytes | None) -> None:
    desk = holding(kept)

    number = desk.get()
    [ask] = desk.asks
    assert ask.request == Versions(
        1, desk.keeper.ring.revision, ask.request.stamp, ((desk.slot, NAME),)
    )
    confirm(desk, kept)

    assert desk.done == {number: kept}
    assert desk.keeper.in_flight == 0


def test_reads_of_one_turn_are_shared_among_the_other_owners_and_travel_together() -> None:
    desk = holding(entry(5))
    keeper = desk.keeper
    numbers = [
        keeper.get(desk.slot, NAME, one=False, deadline=desk.now + 2.0, now=desk.now)
        for _ in range(200)
    ]

    desk.perform()

    assert desk.asked == ["b", "b", "c", "c"]
    asked = [ask.request.names for ask in desk.asks if isinstance(ask.request, Versions)]
    assert [len(names) for names in asked] == [64, 36, 64, 36]
    for names in asked:
        confirm(desk, *[entry(5)] * len(names))
    assert desk.done == dict.fromkeys(numbers, entry(5))


def test_long_names_travel_in_pages() -> None:
    desk = Desk()
    long = b"b\0" + bytes(limits.KV_KEY_MAX)
    slots = [s for s in range(SLOTS) if owner("a") in desk.order(s)][:130]
    for slot in slots:
        desk.keeper.get(slot, long, one=False, deadline=desk.now + 2.0, now=desk.now)

    desk.perform()

    requests = [ask.request for ask in desk.asks]
    sizes = [sum(len(n) for _, n in r.names) for r in requests if isinstance(r, Versions)]
    assert len(sizes) == len(requests)
    assert max(sizes) <= limits.KV_PAGE_BYTES
    assert sum(sizes) == 130 * len(long)


def differs(desk: Desk) -> None:
    confirm(desk, entry(7))


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
    confirm(desk, entry(5))


def sees_the_slot_change_meanwhile(desk: Desk) -> None:
    revision = desk.keeper.ring.revision
    desk.propose("abd")
    assert desk.keeper.ring.positions[desk.slot] > revision
    confirm(desk, entry(5), revision=revision)


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
def test_where_anything_is_in_doubt_entries_are_compared(happens: Callable[[Desk], None]) -> None:
    desk = holding(entry(5), names="abc")
    desk.slot = next(s for s in range(SLOTS) if desk.order(s)[0] == owner("a"))
    desk.get()

    happens(desk)

    assert desk.done == {}
    assert desk.asks
    assert all(isinstance(ask.request, Read | Write) for ask in desk.asks)
    assert len(desk.keeper.reads) == 0


def test_a_value_that_ends_while_it_is_confirmed_is_looked_at_again() -> None:
    desk = holding(None)
    at = int(desk.now * 1000)
    kept = entry(5, left=at + 20)
    desk.keeper.replica.store.apply(desk.slot, NAME, kept)
    desk.get()
    desk.now += 0.03

    confirm(desk, outgoing(kept, at))

    assert desk.done == {}
    assert [type(ask.request) for ask in desk.asks] == [Read]


def test_a_read_without_an_answer_asks_the_other_owner_and_either_may_end_it() -> None:
    desk = holding(entry(5))
    number = desk.get()
    [first] = desk.asks

    desk.wait(0.06)

    second = next(ask for ask in desk.asks if ask is not first)
    assert isinstance(second.request, Read)
    assert first.owner != second.owner
    confirm(desk, entry(5))
    assert desk.done == {number: entry(5)}
    desk.tell(second, Answer(Code.OK, desk.keeper.ring.revision, 1, entry(6)))
    assert desk.done == {number: entry(5)}
    assert desk.keeper.in_flight == 0


def test_what_the_long_way_has_ended_a_late_confirmation_does_not_end_again() -> None:
    desk = holding(entry(5))
    number = desk.get()
    [first] = desk.asks
    desk.wait(0.06)
    second = next(ask for ask in desk.asks if ask is not first)
    desk.tell(second, Answer(Code.OK, desk.keeper.ring.revision, 1, entry(5)))
    assert desk.done == {number: entry(5)}
    desk.done.clear()

    confirm(desk, entry(5))

    assert desk.done == {}
    assert desk.keeper.in_flight == 0


def test_a_cancelled_read_is_forgotten_sent_or_not() -> None:
    desk = holding(entry(5))
    keeper = desk.keeper
    unsent = keeper.get(desk.slot, NAME, one=False, deadline=desk.now + 2.0, now=desk.now)
    keeper.cancel(unsent, desk.now)
    desk.perform()
    assert desk.asks == []

    sent = desk.get()
    keeper.cancel(sent, desk.now)
    confirm(desk, entry(5))

    assert desk.done == {}
    assert keeper.in_flight == 0


def test_a_lone_owner_answers_at_once() -> None:
    desk = holding(entry(5), names="a")

    number = desk.get()

    assert desk.done == {number: entry(5)}
    assert desk.asks == []


def test_an_owner_that_is_down_is_not_asked() -> None:
    desk = holding(entry(5))
    desk.up("ac")

    for _ in range(4):
        desk.get()
    assert desk.asked == ["c"] * 4

    desk.up("a")
    number = desk.get()
    assert isinstance(desk.done[number], NoQuorumError)


def test_while_a_slot_is_joint_or_the_own_copy_not_whole_entries_are_compared() -> None:
    desk = holding(entry(5), names="abc")
    desk.propose("abd")
    desk.get()
    assert all(isinstance(ask.request, Read) for ask in desk.asks)

    fresh = Desk(me="d", names="abc")
    fresh.propose("abd")
    fresh.slot = next(s for s in range(SLOTS) if owner("d") in fresh.keeper.ring.next(s))
    fresh.get()
    assert all(isinstance(ask.request, Read) for ask in fresh.asks)


def test_reads_under_way_count_against_the_limit_of_operations() -> None:
    desk = Desk()
    for _ in range(limits.KV_OPERATIONS_MAX):
        desk.keeper.get(desk.slot, NAME, one=False, deadline=desk.now + 2.0, now=desk.now)

    with pytest.raises(OverloadedError, match="operations in flight"):
        desk.get()


# The other owner's side.


def test_a_copy_says_versions_only_where_it_has_a_vote() -> None:
    desk = holding(entry(5), names="abc")
    kept, absent = (desk.slot, NAME), (desk.slot, b"b\0other")
    replica, revision = desk.keeper.replica, desk.keeper.ring.revision

    def found(asked: int) -> tuple[int, tuple[bytes, ...]]:
        answer = replica.serve(Versions(1, asked, 1, (kept, absent)), desk.now)
        assert isinstance(answer, Found)
        return answer.code, answer.heads

    assert found(revision) == (Code.OK, (head_of(entry(5)), head_of(None)))
    assert found(revision + 1) == (Code.BEHIND, (b"", b""))
    del replica.synced[desk.slot]
    assert found(revision) == (Code.OK, (b"", b""))
    replica.synced[desk.slot] = None
    desk.propose("abd")
    assert found(revision) == (Code.OK, (b"", b""))


def test_the_head_of_an_entry_tells_a_value_from_its_end_and_from_none() -> None:
    value = entry(5, b"v", left=10)

    assert head_of(value) == head_of(entry(5, b"w" * HEAD))
    assert (
        len({head_of(value), head_of(entry(5, b"", flags=1)), head_of(entry(6)), head_of(None)})
        == 4
    )
