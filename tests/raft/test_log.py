from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.raft.entry import Entry, SnapshotMark
from microos.raft.log import ENTRY_OVERHEAD, Log
from microos.types import Index, Term
from tests.raft.network import configuration, entries

terms = st.lists(st.integers(1, 4), max_size=8).map(sorted)


def mark(index: int, term: int) -> SnapshotMark:
    return SnapshotMark(Index(index), Term(term), configuration("abc"))


def all_of(log: Log) -> tuple[Entry, ...]:
    return log.slice(log.first_index, log.last_index)


@given(own=terms, new=terms.filter(bool), at=st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_merging_gives_the_own_log_or_the_leaders_and_never_less(
    own: list[int], new: list[int], at: int
) -> None:
    at = min(at, len(own))
    whole = [*own[:at], *(max(term, *own[:at], 1) for term in new)]
    log, sent = Log(entries(*own)), entries(*whole)[at:]

    cut = log.merge(sent, Index(0))

    log.check()
    agrees = own[: len(whole)] == whole[: len(own)]
    longer = own if len(own) > len(whole) else whole
    assert all_of(log) == entries(*(longer if agrees else whole))
    assert (cut is None) == agrees
    assert log.merge(sent, Index(0)) is None


@given(own=terms, index=st.integers(0, 10), term=st.integers(0, 5), gone=st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_the_hint_is_the_last_place_not_above_the_term(
    own: list[int], index: int, term: int, gone: int
) -> None:
    log = Log(entries(*own))
    gone = min(gone, len(own))
    if gone:
        log.compact(mark(gone, own[gone - 1]), Index(gone + 1))

    found, found_term = log.newest_not_above(Index(index), Term(term))

    model = max((i for i in range(min(index, len(own)) + 1) if ([0, *own])[i] <= term), default=0)
    if model >= gone:
        assert (found, found_term) == (model, ([0, *own])[model])
    else:
        # What is forgotten cannot be looked up: just before it, of unknown term.
        assert (found, found_term) == (min(index, gone - 1), 0)


@given(own=terms.filter(bool), first=st.integers(1, 9), behind=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_compacting_changes_nothing_that_is_left(own: list[int], first: int, behind: int) -> None:
    log, first = Log(entries(*own)), min(first, len(own) + 1)
    upto = min(len(own), first - 1 + behind) or 1

    log.compact(mark(upto, own[upto - 1]), Index(first))

    log.check()
    assert log.first_index == first
    assert all_of(log) == entries(*own)[first - 1 :]
    assert [log.term(Index(i)) for i in range(first, len(own) + 1)] == own[first - 1 :]
    assert log.term(Index(first - 1)) == ([0, *own])[first - 1]
    assert first < 3 or log.term(Index(first - 2)) is None


@given(own=terms.filter(bool), first=st.integers(1, 8), at=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_recovery_continues_where_the_log_was(own: list[int], first: int, at: int) -> None:
    at = min(at, len(own))
    first = min(first, at + 1)

    log = Log(entries(*own)[first - 1 :], mark(at, own[at - 1]))

    log.check()
    assert (log.last_index, log.last_term) == (len(own), own[-1])
    assert log.stable == log.handed == len(own)
    assert log.first_index <= at + 1
    assert all_of(log) == entries(*own)[log.first_index - 1 :]


def test_a_snapshot_that_contradicts_the_log_replaces_it() -> None:
    log = Log(entries(1, 1, 1), mark(2, 2))

    assert (log.first_index, log.last_index, log.last_term) == (3, 2, 2)


def test_what_is_overwritten_is_handed_out_again() -> None:
    log = Log(entries(1))
    log.append(entries(1, 1, first=2))
    log.hand_out()

    log.merge(entries(2, first=2), Index(1))

    assert log.hand_out() == (entries(2, first=2), None)
    assert log.hand_out() == ((), None)


def test_durability_of_an_overwritten_entry_does_not_count() -> None:
    log = Log(entries(1))
    log.append(entries(1, 1, first=2))
    log.hand_out()
    log.merge(entries(2, 2, first=2), Index(1))
    log.hand_out()

    log.persisted(Index(3), Term(1))
    assert log.stable == 1
    log.persisted(Index(3), Term(2))

    assert log.stable == 3


def test_a_committed_entry_is_never_cut() -> None:
    with pytest.raises(AssertionError, match="committed"):
        Log(entries(1, 1)).merge(entries(2, first=2), Index(2))


def test_a_slice_respects_bytes_but_is_never_empty() -> None:
    log = Log(entries(1, 1, 1))
    size = 3 + ENTRY_OVERHEAD

    assert len(log.slice(Index(1), Index(3), bytes_max=1)) == 1
    assert len(log.slice(Index(1), Index(3), bytes_max=2 * size)) == 2
    assert len(log.slice(Index(1), Index(3), count_max=2)) == 2


def test_a_received_snapshot_is_pending_until_it_is_restored() -> None:
    log = Log(entries(1, 1))

    log.restore(mark(9, 3))

    assert log.hand_out() == ((), mark(9, 3))
    assert log.hand_out() == ((), None)
    assert not log.restored(Index(8))
    assert log.restored(Index(9))
    assert log.pending is None
