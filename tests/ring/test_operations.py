"""Operations of one keeper, answered by hand: what is sent, and what comes of each answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos import limits
from microos.codec import encode
from microos.errors import ConflictError, NoQuorumError, OverloadedError, UncertainError
from microos.ring.entry import (
    ATOMIC,
    HEAD,
    NOTHING,
    end_of,
    is_tombstone,
    number_of,
    pack,
    renewed,
    shown_version_of,
    stamp_of,
    tombstone,
    value_of,
    version_bytes,
    version_of,
)
from microos.ring.keeper import Silent
from microos.ring.messages import Accept, Answer, Code, Did, Do, Prepare, Read, Write
from microos.ring.operation import Operation
from microos.ring.ring import SLOTS
from microos.types import Version
from tests.ring.desk import NAME, Desk, entry
from tests.ring.log import owner

FUTURE = 1 << 62


# Plain writes.


def test_a_write_goes_to_all_owners_and_is_done_at_two_of_three() -> None:
    desk = Desk()

    number = desk.put()
    assert desk.asked == ["b", "c"]
    assert desk.done == {}
    desk.answer("c")

    kept = desk.keeper.replica.store.get(desk.slot, NAME, 0)
    assert desk.done == {number: number_of(version_of(kept))}


def test_at_level_one_the_own_copy_is_enough_and_all_are_sent_it() -> None:
    desk = Desk()

    number = desk.put(one=True)

    assert number in desk.done
    assert desk.asked == ["b", "c"]


def test_a_newer_version_met_is_overtaken_once() -> None:
    desk = Desk()
    number = desk.put()

    desk.answer("b", Code.NEWER_VERSION, entry(FUTURE)[:HEAD])

    assert desk.done == {}
    desk.asks = [ask for ask in desk.asks if ask.request.entry[:16] > version_bytes(FUTURE, 0)]  # type: ignore[attr-defined]
    assert desk.asked == ["b", "c"]
    desk.answer("b", Code.NEWER_VERSION, entry(FUTURE + 10)[:HEAD])
    assert isinstance(desk.done[number], int)


def test_a_repeated_version_overtakes_nothing() -> None:
    desk = Desk()
    known = Version(5 << 64 | 1)
    number = desk.put(version=known)

    desk.answer("b", Code.NEWER_VERSION, entry(FUTURE)[:HEAD])

    assert desk.done == {number: known}


def test_with_too_few_owners_up_nothing_is_sent() -> None:
    desk = Desk(me="d", names="abcd", up="ad")
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))

    number = desk.put()

    assert isinstance(desk.done[number], NoQuorumError)
    assert desk.asks == []


def test_a_write_that_was_sent_and_not_acknowledged_is_uncertain_and_says_its_version() -> None:
    desk = Desk(me="d", names="abcd")
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))
    number = desk.put()
    name = desk.asks[0].owner.node
    desk.answer(name)

    desk.wait(2.1)

    error = desk.done[number]
    assert isinstance(error, UncertainError)
    request = desk.asks[0].request
    assert isinstance(request, Write)
    assert error.facts == {"acks": 1, "version": number_of(version_of(request.entry))}


@pytest.mark.parametrize("end", ["deadline", "down"])
def test_a_write_kept_by_an_owner_of_a_changed_slot_is_never_called_nothing(end: str) -> None:
    """It says that the slot has changed, and has kept it all the same."""
    desk = Desk(me="d", names="abcd")
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))
    number = desk.put()
    names = list(desk.asked)
    for name in names:
        desk.answer(name, Code.NEWER_SLOT, revision=2)
    assert desk.done == {}

    if end == "down":
        desk.up("d")
        desk.propose("abce")
    desk.wait(2.1)

    assert isinstance(desk.done[number], UncertainError)


def test_an_owner_without_an_answer_is_asked_again_while_it_is_up() -> None:
    desk = Desk()
    number = desk.put()
    desk.silent("b", sent=False)
    desk.silent("c", sent=False)
    assert desk.asks == []

    desk.wait(0.03)

    assert desk.asked == ["b", "c"]
    desk.answer("b")
    assert isinstance(desk.done[number], int)


def test_what_is_sent_again_has_less_time_left() -> None:
    desk = Desk()
    desk.put(left=1000)
    first = desk.asks[0].request
    desk.silent("b")
    desk.wait(0.5)

    again = desk.take("b").request

    assert isinstance(first, Write)
    assert isinstance(again, Write)
    assert end_of(first.entry) == 1000
    assert end_of(again.entry) <= 980
    desk.wait(0.5)
    desk.silent("c")
    desk.wait(0.1)
    late = desk.take("c").request
    assert isinstance(late, Write)
    assert is_tombstone(late.entry)


# Reads.


def test_a_read_asks_as_few_as_may_do() -> None:
    desk = Desk()
    desk.keeper.replica.store.apply(desk.slot, NAME, entry(5))

    number = desk.get()
    [ask] = desk.asks
    desk.answer(ask.owner.node, entry=entry(5))

    assert desk.done == {number: entry(5)}
    assert isinstance(ask.request, Read)


def test_a_read_that_is_slow_asks_the_others_too() -> None:
    desk = Desk()
    desk.get()

    desk.wait(0.06)

    assert desk.asked == ["b", "c"]


def test_what_two_owners_have_differently_is_made_alike_before_it_is_answered() -> None:
    desk = Desk()
    desk.keeper.replica.store.apply(desk.slot, NAME, entry(5))
    number = desk.get()
    [ask] = desk.asks

    desk.answer(ask.owner.node, entry=entry(7))

    # The own copy is behind; with it two have the newest.
    assert desk.done == {number: entry(7)}
    assert desk.keeper.replica.store.get(desk.slot, NAME, 0) == entry(7)


def test_a_repair_that_a_promise_forbids_is_decided_by_a_ballot_if_it_lasts() -> None:
    """A coordinator died between promise and accept: a read must not wait for it for ever."""
    desk = Desk()
    atomic = entry(5, flags=ATOMIC)
    desk.keeper.replica.store.apply(desk.slot, NAME, atomic)
    number = desk.get()
    begun = desk.now
    looks = 0
    while not any(isinstance(ask.request, Prepare) for ask in desk.asks):
        if not desk.asks:
            desk.wait(0.005)
        elif isinstance(desk.asks[0].request, Read):
            looks += 1
            desk.answer(desk.asks[0].owner.node, entry=None)
        else:
            repair = desk.asks[0].request
            assert isinstance(repair, Write)
            assert repair.repair
            desk.answer(desk.asks[0].owner.node, Code.REFUSED, promised=version_bytes(9, 2))
    assert looks == 5
    assert desk.now - begun < 0.2

    prepares = [ask for ask in desk.asks if isinstance(ask.request, Prepare)]
    assert [ask.owner.node for ask in prepares] == ["b", "c"]
    desk.asks = prepares
    desk.answer("b")
    accepts = [ask for ask in desk.asks if isinstance(ask.request, Accept)]
    desk.asks = accepts
    desk.answer("b")
    result = desk.done[number]
    assert isinstance(result, bytes)
    assert version_of(result) > version_of(atomic)
    assert (shown_version_of(result), value_of(result)) == (version_of(atomic), b"v")


def test_a_copy_that_is_not_whole_has_no_vote_and_is_asked_again() -> None:
    desk = Desk(me="d", names="abcd")
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))
    number = desk.get()
    first, second = desk.asked
    desk.answer(first, Code.UNSYNCED)
    [third] = [o.node for o in desk.order(desk.slot) if o.node not in (first, second)]
    desk.answer(second, entry=entry(5))
    assert desk.done == {}

    # The third is gone; only with the first can there be a quorum, once it is whole.
    desk.up("".join(sorted({*"abcd"} - {third})))
    desk.silent(third)
    assert desk.done == {}
    desk.wait(0.05)
    desk.answer(first, entry=entry(5))

    assert desk.done == {number: entry(5)}


def test_what_only_a_copy_has_that_is_not_whole_has_no_say() -> None:
    """It may have been deleted, and the trace of that be forgotten, while the copy was away."""
    desk = Desk(me="d", names="abcd")
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))
    number = desk.get()
    desk.answer(desk.asked[0], Code.UNSYNCED, entry(5))
    while desk.asks:
        desk.answer(desk.asked[0])
    assert desk.done == {number: None}

    desk = Desk()
    number = desk.atomic()
    desk.answer("b", Code.UNSYNCED, entry(5))
    desk.answer("c")
    desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Accept)]
    desk.answer("c")
    assert isinstance(desk.done[number], int)


def test_a_read_at_level_one_ends_with_what_it_found_though_others_are_silent() -> None:
    desk = Desk(me="d", names="abcd")
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))
    number = desk.get(one=True)
    desk.answer(desk.asked[0], Code.UNSYNCED, entry(5))

    desk.wait(2.1)

    assert desk.done == {number: entry(5)}


def test_at_level_one_what_a_copy_has_that_is_not_whole_is_better_than_nothing() -> None:
    desk = Desk(me="d", names="abcd")
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))
    number = desk.get(one=True)
    [first] = desk.asked
    desk.answer(first, Code.UNSYNCED, entry(5))
    desk.up(first + "d")
    for _ in range(2):
        [other] = desk.asked
        desk.silent(other)

    assert desk.done == {number: entry(5)}


def test_a_read_waits_for_the_ring_in_which_its_slot_has_changed() -> None:
    desk = Desk(me="d", names="abcd")
    desk.slot = next(s for s in range(SLOTS) if owner("d") not in desk.order(s))
    number = desk.get()
    name = desk.asked[0]
    desk.answer(name, Code.NEWER_SLOT, revision=2)
    desk.asks.clear()

    desk.propose("abc")

    assert all(isinstance(ask.request, Read) for ask in desk.asks)
    for name in desk.asked:
        desk.answer(name, entry=entry(5))
    assert desk.done == {number: entry(5)}


# Writes under a condition.


def test_an_absent_key_is_written_by_prepare_and_accept() -> None:
    desk = Desk()
    number = desk.atomic()
    assert [type(ask.request) for ask in desk.asks] == [Prepare, Prepare]
    desk.answer("b")
    desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Accept)]
    assert desk.asked == ["b", "c"]

    desk.answer("c")

    kept = desk.keeper.replica.store.get(desk.slot, NAME, 0)
    assert desk.done == {number: number_of(version_of(kept))}


def test_an_own_try_that_somebody_else_has_brought_to_a_quorum_is_known_by_its_version() -> None:
    desk = Desk()
    number = desk.atomic()
    desk.answer("b")
    desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Accept)]
    tried = desk.asks[0].request
    assert isinstance(tried, Accept)
    ballot = version_bytes(stamp_of(tried.entry) + 1000, 2)
    for name in ("b", "c"):
        desk.answer(name, Code.REFUSED, promised=ballot)
    again = renewed(tried.entry, ballot)
    desk.keeper.replica.store.apply(desk.slot, NAME, again)

    desk.wait(0.3)
    desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Prepare)]
    desk.answer("b", entry=again)

    assert desk.done == {number: number_of(version_of(tried.entry))}


def test_a_value_that_is_not_at_a_quorum_gets_there_before_it_is_a_conflict() -> None:
    desk = Desk()
    number = desk.atomic()
    desk.answer("b", entry=entry(5))
    assert desk.done == {}
    desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Accept)]

    desk.answer("b")

    error = desk.done[number]
    assert isinstance(error, ConflictError)
    assert (error.reason, error.facts["version"]) == ("exists", 5 << 64 | 1)
    kept = desk.keeper.replica.store.get(desk.slot, NAME, 0)
    assert kept is not None
    assert (value_of(kept), kept[:16] > version_bytes(5, 1)) == (b"v", True)


def test_operations_on_one_key_wait_in_line() -> None:
    desk = Desk()
    first, second = desk.atomic(), desk.atomic()
    assert len(desk.asks) == 2
    desk.answer("b")
    desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Accept)]
    desk.answer("b")
    assert isinstance(desk.done[first], int)

    desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Prepare)]
    kept = desk.keeper.replica.store.get(desk.slot, NAME, 0)
    desk.answer("b", entry=kept)

    assert isinstance(desk.done[second], ConflictError)


def test_a_line_of_any_length_ends_at_once_when_the_owners_are_gone() -> None:
    desk = Desk()
    numbers = [desk.atomic() for _ in range(limits.KV_WAITERS_MAX)]
    late = desk.atomic()
    assert isinstance(desk.done[late], OverloadedError)

    desk.up("a")
    desk.silent("b", sent=False)
    desk.silent("c", sent=False)
    desk.wait(0.3)

    assert all(isinstance(desk.done[number], NoQuorumError) for number in numbers)


def test_a_cancelled_first_lets_the_next_begin() -> None:
    desk = Desk()
    first, second = desk.atomic(), desk.atomic()
    desk.asks.clear()

    desk.keeper.cancel(first, desk.now)
    desk.perform()

    assert [type(ask.request) for ask in desk.asks] == [Prepare, Prepare]
    desk.keeper.cancel(second, desk.now)
    desk.perform()
    assert desk.keeper.in_flight == 0


def test_whoever_is_not_first_owner_lets_it_decide_and_says_what_it_said() -> None:
    desk = Desk(me="b")
    number = desk.atomic(left=500)
    [ask] = desk.asks
    assert isinstance(ask.request, Do)
    assert (ask.owner.node, ask.request.budget_ms) == ("a", 2000)
    assert end_of(ask.request.entry) == 500

    version = (7 << 64).to_bytes(16, "big")
    desk.tell(desk.take("a"), Did(0, 1, 1, version, "ConflictError", "exists", "it is there"))

    error = desk.done[number]
    assert isinstance(error, ConflictError)
    assert (error.reason, error.facts, str(error)) == (
        "exists",
        {"version": 7 << 64},
        "it is there",
    )


def test_a_first_owner_that_dies_before_it_was_asked_is_followed_by_the_next() -> None:
    desk = Desk(me="b")
    number = desk.atomic()
    third = next(o.node for o in desk.order(desk.slot) if o.node not in ("a", "b"))
    desk.up("bc")
    desk.silent("a", sent=False)
    assert desk.done == {}

    desk.wait(0.15)

    next_first = next(o.node for o in desk.order(desk.slot) if o.node != "a")
    if next_first == "b":
        assert all(isinstance(ask.request, Prepare) for ask in desk.asks)
        desk.answer(third)
        desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Accept)]
        desk.answer(third)
        assert isinstance(desk.done[number], int)
    else:
        assert isinstance(desk.take(third).request, Do)


def test_a_first_owner_that_dies_after_it_was_asked_leaves_the_outcome_open() -> None:
    desk = Desk(me="b")
    number = desk.atomic()
    desk.up("bc")

    desk.silent("a", sent=True)

    assert isinstance(desk.done[number], UncertainError)


def test_a_decision_for_another_node_is_answered_by_its_handle() -> None:
    desk = Desk()
    now = desk.now
    request = Do(
        1, 1, 1, desk.slot, NAME, pack(NOTHING, end=0, flags=ATOMIC, value=b"v"), NOTHING, 500
    )

    assert desk.keeper.serve(request, owner("b").node, now, 77) is None
    desk.perform()
    desk.answer("b")
    desk.asks = [ask for ask in desk.asks if isinstance(ask.request, Accept)]
    desk.answer("b")

    [(handle, did)] = desk.answers
    kept = desk.keeper.replica.store.get(desk.slot, NAME, 0)
    assert (handle, did.error, did.version) == (77, "", version_of(kept))


def test_decisions_for_others_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KV_OPERATIONS_MAX", 2)
    desk = Desk()
    desk.put()
    desk.atomic()

    with pytest.raises(OverloadedError):
        desk.put()
    request = Do(
        1, 1, 1, desk.slot, NAME, pack(NOTHING, end=0, flags=ATOMIC, value=b"v"), NOTHING, 500
    )
    did = desk.keeper.serve(request, owner("b").node, desk.now, 77)

    assert isinstance(did, Did)
    assert did.error == "OverloadedError"


def test_an_answer_of_the_wrong_kind_is_no_answer() -> None:
    desk = Desk(me="b")
    number = desk.atomic()
    desk.tell(desk.take("a"), Answer(0, 1, 1))
    assert isinstance(desk.done[number], UncertainError)

    read = desk.get()
    [ask] = desk.asks
    desk.tell(desk.take(ask.owner.node), Did(0, 1, 1))
    assert read not in desk.done


# Whatever happens, nothing is left behind.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "put",
                "get",
                "one",
                "atomic",
                "cancel",
                "answer",
                "refuse",
                "silent",
                "wait",
                "up",
                "move",
            ]
        ),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=50)
def test_nothing_is_left_of_operations_that_ended_or_were_cancelled(
    steps: list[tuple[str, int]],
) -> None:
    desk = Desk()
    numbers: list[int] = []
    begin: dict[str, Callable[[], int]] = {
        "put": desk.put,
        "get": desk.get,
        "one": lambda: desk.get(one=True),
        "atomic": lambda: desk.atomic(0),
    }
    for what, chosen in steps:
        if what in begin:
            numbers.append(begin[what]())
        elif what == "cancel" and numbers:
            desk.keeper.cancel(numbers[chosen % len(numbers)], desk.now)
            desk.perform()
        elif what in ("answer", "refuse", "silent") and desk.asks:
            ask = desk.asks.pop(chosen % len(desk.asks))
            if what == "silent":
                desk.keeper.receive(Silent(ask.token, chosen % 2 == 0), desk.now)
                desk.perform()
            elif isinstance(ask.request, Do):
                desk.tell(ask, Did(0, 1, 1, version_bytes(5, 1)))
            elif what == "refuse":
                code = [Code.REFUSED, Code.FULL, Code.UNSYNCED, Code.BEHIND, Code.WRONG_BOOT][
                    chosen % 5
                ]
                desk.tell(ask, Answer(int(code), 1, 1, None, version_bytes(FUTURE, chosen)))
            else:
                found = None if chosen % 2 else tombstone(version_bytes(5, 1), flags=ATOMIC)
                desk.tell(ask, Answer(0, desk.keeper.ring.revision, 1, found))
        elif what == "wait":
            desk.wait(0.02 * chosen)
        elif what == "up":
            desk.up(["abc", "ab", "a", "ac"][chosen % 4])
        elif what == "move" and desk.keeper.ring.number < 3:
            desk.propose(["abcd", "ab"][chosen % 2])

    # In the end the shell has answered everything.
    desk.wait(2.1)
    for ask in desk.asks:
        desk.keeper.receive(Silent(ask.token, True), desk.now)
    desk.asks.clear()
    desk.perform()
    keeper = desk.keeper
    assert keeper.in_flight == 0
    assert not any(isinstance(target, Operation) for target, _, _ in keeper._asked.values())
    for left in (keeper._waiting, keeper._settling, keeper._handles, keeper._armed):
        assert not left


def test_messages_of_an_operation_can_be_encoded() -> None:
    desk = Desk()
    desk.put(None)
    desk.atomic(5)

    assert all(encode(ask.request) for ask in desk.asks)
