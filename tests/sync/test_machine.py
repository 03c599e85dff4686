"""Locks: one owner, first come first served, tokens that rise, nothing freed by mistake."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos import limits
from microos.codec import encode
from microos.raft.entry import Stamp
from microos.raft.machine import Refused
from microos.sync.machine import LockMachine
from microos.sync.messages import (
    Acquire,
    Cancel,
    Cancelled,
    Command,
    Freed,
    Grant,
    Granted,
    Lost,
    Queued,
    Release,
    Released,
    Result,
    Taken,
    decode_answer,
)
from microos.types import FencingToken, Index, SessionId, Term, packed

A, B, C, D = (SessionId(n) for n in (101, 102, 103, 104))


class Log:
    """Applies to one machine, an index and 10 µs per entry; wakes it as the composite does."""

    def __init__(self, delay: int = 0) -> None:
        self.machine = LockMachine(delay)
        self.index = 0
        self.time = 0
        self.events: list[object] = []

    def step(self, pause: int = 10) -> Stamp:
        self.index += 1
        self.time += pause
        stamp = Stamp(1, Index(self.index), Term(1), self.time)
        due = self.machine.deadline()
        if due is not None and due <= self.time:
            self.events += self.machine.wake(stamp)
        return stamp

    def do(self, session: SessionId, command: Command) -> Result:
        outcome = self.machine.apply(session, encode(command), self.step())
        self.events += outcome.events
        self.machine.check()
        return decode_answer(outcome.result)

    def acquire(self, session: SessionId, *, owner: int = 1, wait: bool = True) -> Result:
        return self.do(session, Acquire("", "x", owner, wait))

    def token(self, session: SessionId) -> FencingToken:
        granted = self.machine.standing("", "x", session, 1)
        assert isinstance(granted, Granted)
        return granted.token

    def end(self, *sessions: SessionId) -> None:
        self.events += self.machine.ended(sessions, self.step())
        self.machine.check()


def test_a_free_lock_is_granted_where_it_was_asked_for() -> None:
    log = Log()

    assert log.acquire(A) == Granted(FencingToken(packed(1, 1)))
    assert log.events == [Grant("", "x", A, 1, FencingToken(packed(1, 1)))]
    assert log.machine.owner("", "x") == log.events[0]


@pytest.mark.criterion("SYNC-5")
def test_a_taken_lock_names_its_owner_to_those_who_do_not_wait() -> None:
    log = Log()
    log.acquire(A, owner=4)

    assert log.acquire(B, wait=False) == Taken(A, 4)
    assert log.machine.waiters("", "x") == ()


def test_waiters_are_served_in_order_of_arrival() -> None:
    log = Log()
    log.acquire(A)
    assert [log.acquire(B), log.acquire(C), log.acquire(D)] == [Queued(1), Queued(2), Queued(3)]

    for before, after in ((A, B), (B, C), (C, D)):
        freed = Release("", "x", 1, log.token(before))
        assert log.do(before, freed) == Released(True)
        assert log.token(after) == packed(1, log.index)
    log.do(D, Release("", "x", 1, log.token(D)))

    assert log.machine.locks() == ()
    assert log.machine.digest() == 0


def test_asking_again_changes_nothing() -> None:
    log = Log()
    first = log.acquire(A)
    log.acquire(B)
    log.acquire(C)
    before = log.machine.digest()

    assert log.acquire(A) == first
    assert log.acquire(C) == Queued(2)
    assert log.machine.digest() == before


def test_two_owners_of_one_session_exclude_each_other() -> None:
    log = Log()
    log.acquire(A, owner=1)

    assert log.acquire(A, owner=2) == Queued(1)


@pytest.mark.criterion("SYNC-7")
def test_a_late_repeated_or_foreign_release_frees_nobodys_lock() -> None:
    log = Log()
    log.acquire(A)
    old = log.token(A)
    log.acquire(B)
    log.do(A, Release("", "x", 1, old))
    mine = log.token(B)

    for session, owner, token in ((A, 1, old), (A, 1, mine), (B, 1, old), (B, 2, mine)):
        assert log.do(session, Release("", "x", owner, token)) == Released(False)

    assert log.token(B) == mine


@pytest.mark.criterion("SYNC-8")
def test_namespaces_are_independent() -> None:
    log = Log()

    log.do(A, Acquire("one", "x", 1, False))

    assert isinstance(log.do(B, Acquire("two", "x", 1, False)), Granted)


def test_cancelling_leaves_the_queue_or_gives_the_grant_back() -> None:
    log = Log()
    log.acquire(A)
    log.acquire(B)
    log.acquire(C)

    assert log.do(B, Cancel("", "x", 1)) == Cancelled(False)
    assert log.do(A, Cancel("", "x", 1)) == Cancelled(True)
    assert log.token(C)
    assert log.do(B, Cancel("", "x", 1)) == Cancelled(False)
    assert log.do(B, Cancel("", "unknown", 1)) == Cancelled(False)


def test_nobody_is_granted_a_dead_waiters_lock() -> None:
    log = Log()
    for session in (A, B, C, D):
        log.acquire(session)
    log.events.clear()
    held = log.token(A)

    log.end(A, B, C)

    assert [type(event) for event in log.events] == [Lost, Lost, Lost, Grant]
    assert log.events[0] == Lost("", "x", A, 1, held)
    assert log.token(D) == packed(1, log.index)


def test_one_entry_makes_one_grant_of_a_lock() -> None:
    log = Log(delay=5)
    for session in (A, B, C):
        log.acquire(session)
    log.end(A)
    log.events.clear()

    log.end(B)  # Its entry first wakes the lock, which goes to B.

    assert [type(event) for event in log.events] == [Grant, Lost]
    given = log.events[0]
    assert isinstance(given, Grant)
    log.step(pause=5)
    assert log.token(C) > given.token


def test_a_lock_freed_in_the_entry_of_its_grant_goes_on_with_the_next() -> None:
    log = Log(delay=5)
    for session in (A, B, C):
        log.acquire(session)
    log.end(A)

    assert log.do(B, Cancel("", "x", 1)) == Cancelled(True)
    assert log.machine.owner("", "x") is None
    assert log.machine.deadline() == log.time
    assert log.acquire(D, wait=False) == Taken(C, 1)


def test_the_delay_keeps_a_lock_from_everyone() -> None:
    log = Log(delay=25)
    log.acquire(A)
    log.end(A)

    assert log.acquire(B, wait=False) == Taken(A, 1)
    assert log.acquire(B) == Queued(1)
    log.step()

    assert log.token(B)


def test_a_delay_without_waiters_leaves_nothing_behind() -> None:
    log = Log(delay=5)
    log.acquire(A)
    log.end(A)
    log.step()

    assert log.machine.locks() == ()
    assert log.machine.digest() == 0


def test_nonsense_and_excess_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(limits, "LOCKS_MAX", 1)
    monkeypatch.setattr(limits, "LOCK_WAITERS_MAX", 1)
    long = "x" * (limits.LOCK_NAME_TEXT + 1)
    garbage = decode_answer(log.machine.apply(A, b"\xc1", log.step()).result)

    log.acquire(A)
    log.acquire(B)
    answers = [
        garbage,
        log.do(A, Acquire("", long, 1, True)),
        log.do(A, Acquire("", "", 1, True)),
        log.do(A, Acquire("", "y", 1, True)),
        log.acquire(C),
    ]

    refusals = [answer for answer in answers if isinstance(answer, Refused)]
    assert [one.reason for one in refusals] == [
        "bad_request",
        "size",
        "bad_request",
        "count",
        "queue_full",
    ]


_sessions = st.sampled_from([A, B, C, D])
_names = st.sampled_from(["x", "y"])
_numbers = st.integers(1, 2)
_Step = tuple[tuple[SessionId, ...], Command | None]
"""A command of one session; without one: each releases what it owns, or several end."""

_single = _sessions.map(lambda session: (session,))
_command = st.one_of(
    st.builds(Acquire, st.just(""), _names, _numbers, st.booleans()),
    st.builds(Cancel, st.just(""), _names, _numbers),
    # Late, repeated, or with another's token, as it may be: right only by chance.
    st.builds(
        Release,
        st.just(""),
        _names,
        _numbers,
        st.integers(0, 60).map(lambda index: FencingToken(packed(1, index))),
    ),
)
_steps: st.SearchStrategy[list[_Step]] = st.lists(
    st.one_of(
        st.tuples(_single, _command),
        st.tuples(_single, st.none()),
        st.tuples(st.permutations([A, B, C, D]).map(lambda four: tuple(four[:2])), st.none()),
    ),
    max_size=40,
)


@pytest.mark.criterion("SYNC-7")
@settings(max_examples=100, deadline=None)
@given(_steps, st.sampled_from([0, 5, 25]), st.integers(0, 39))
def test_any_schedule_has_one_owner_at_a_time_and_rising_tokens(
    steps: list[_Step], delay: int, cut: int
) -> None:
    log = Log(delay)
    for n, step in enumerate(steps):
        if n == cut:  # A member that joins by snapshot here cannot be told from one that did not.
            chunks, digest = list(log.machine.freeze()), log.machine.digest()
            log.machine = LockMachine(delay)
            log.machine.restore(chunks, 1)
            assert log.machine.digest() == digest
            assert list(log.machine.freeze()) == chunks
        sessions, command = step
        if command is not None:
            log.do(sessions[0], command)
        elif len(sessions) > 1:
            log.end(*sessions)
        else:
            for lock in log.machine.locks():
                if lock.session == sessions[0]:
                    log.do(lock.session, Release("", lock.name, lock.owner, lock.token))

    owner: dict[str, tuple[int, int, int] | None] = {}
    newest: dict[str, int] = {}
    for event in log.events:
        match event:
            case Grant(_, name, session, number, token):
                assert owner.get(name) is None
                assert token > newest.get(name, 0)
                owner[name], newest[name] = (session, number, token), token
            case Freed(_, name, session, number, token):
                assert owner[name] == (session, number, token)
                owner[name] = None
            case Lost(_, name, session, number, token) if token:
                assert owner[name] == (session, number, token)
                owner[name] = None
