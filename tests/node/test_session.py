"""One session as its owner sees it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos.node.sessions import Session
from microos.types import SessionId


class Watch:
    """A clock to be set by hand."""

    def __init__(self) -> None:
        self.now = 0.0


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def session(watch: Watch) -> Session:
    return Session(SessionId(1), 10.0, 9.0, lambda: watch.now)


async def test_what_is_lost_stays_lost_whatever_is_acknowledged_late(
    session: Session, watch: Watch
) -> None:
    told: list[str] = []
    session.on_lost(lambda: told.append(session.lost))
    session.renew(12.0)
    session.renew(11.0)  # Answers may overtake each other.
    watch.now = 11.9
    assert not told
    assert session.lost == ""
    watch.now = 12.0

    session.renew(100.0)

    assert told == ["expired"]
    session.end("revoked")
    assert [session.lost, *told] == ["expired", "expired"]


async def test_who_asks_late_is_told_at_once_and_who_left_is_not(session: Session) -> None:
    told: list[int] = []
    undo = session.on_lost(lambda: told.append(1))
    undo()
    undo()
    session.end("revoked")
    session.on_lost(lambda: told.append(2))

    assert told == [2]
    assert session.lost == "revoked"


@given(st.lists(st.none() | st.integers(0, 30), max_size=30))
def test_answered_is_the_end_of_the_prefix_that_is_finished(steps: list[int | None]) -> None:
    session = Session(SessionId(1), 10.0, 9.0, lambda: 0.0)
    finished: set[int] = set()
    begun = 0
    for step in steps:
        unfinished = sorted(set(range(1, begun + 1)) - finished)
        if unfinished and step is not None:
            sequence = unfinished[step % len(unfinished)]
            session.finish(sequence)
            finished.add(sequence)
        else:
            begun += 1
            assert session.begin() == begun

        prefix = 0
        while prefix + 1 in finished:
            prefix += 1
        assert session.answered == prefix
        assert session.in_flight == begun - len(finished)
