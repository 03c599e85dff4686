"""Sessions: a retried command happens once, and ends are agreed on."""

from __future__ import annotations

from microos import limits
from microos.codec import encode
from microos.raft.entry import Command, Stamp
from microos.raft.machine import Refused
from microos.raft.sessions import (
    Checkpoint,
    Checkpointed,
    Ended,
    Open,
    Opened,
    SessionEnded,
    Sessions,
    decode_system_result,
)
from microos.types import BootId, Index, NodeId, SessionId, Term, packed

NODE = NodeId("a" * 32)


def stamp(index: int) -> Stamp:
    return Stamp(1, Index(index), Term(1), 0)


def opened(sessions: Sessions, index: int, boot: int = 1, *, gone: bool = False) -> SessionId:
    result, _ = sessions.open(Open(5.0, NODE, BootId(boot), gone), stamp(index))
    assert isinstance(result, Opened)
    sessions.check()
    return result.session


def command(session: SessionId, sequence: int, answered: int = 0) -> Command:
    return Command(1, session, sequence, answered, b"")


def refusal(answer: bytes | None) -> Refused:
    assert answer is not None
    result = decode_system_result(answer)
    assert isinstance(result, Refused)
    return result


def test_a_session_id_says_where_it_was_opened() -> None:
    assert opened(Sessions(), 7) == packed(1, 7)


def test_a_retried_command_gets_its_first_result() -> None:
    sessions = Sessions()
    session = opened(sessions, 1)

    assert sessions.admit(command(session, 1)) is None
    sessions.keep(command(session, 1), b"first")

    assert sessions.admit(command(session, 1)) == b"first"
    assert sessions.answer(session, 1) == b"first"


def test_an_answered_command_is_refused_and_forgotten() -> None:
    sessions = Sessions()
    session = opened(sessions, 1)
    assert sessions.admit(command(session, 1)) is None
    sessions.keep(command(session, 1), b"first")

    assert sessions.admit(command(session, 2, answered=1)) is None

    assert refusal(sessions.admit(command(session, 1))).reason == "answered"
    assert sessions.answer(session, 1) is None
    sessions.check()


def test_the_fate_of_a_command_of_an_unknown_session_is_uncertain() -> None:
    answer = refusal(Sessions().admit(command(SessionId(9), 1)))

    assert (answer.error, answer.reason) == ("UncertainError", "session_expired")


def test_a_session_has_at_most_a_window_of_unanswered_results() -> None:
    sessions = Sessions()
    session = opened(sessions, 1)
    for sequence in range(1, limits.SESSION_WINDOW + 1):
        assert sessions.admit(command(session, sequence)) is None
        sessions.keep(command(session, sequence), b"x")

    beyond = limits.SESSION_WINDOW + 1

    assert refusal(sessions.admit(command(session, beyond))).reason == "window"
    assert sessions.admit(command(session, beyond, answered=1)) is None
    sessions.check()


def test_a_result_too_big_to_keep_is_uncertain() -> None:
    sessions = Sessions()
    session = opened(sessions, 1)

    result = sessions.keep(command(session, 1), b"x" * (limits.RESULT_KEPT_MAX + 1))

    assert refusal(result).reason == "size"
    assert sessions.admit(command(session, 1)) == result


def test_a_new_boot_ends_the_old_one_only_with_proof() -> None:
    sessions = Sessions()
    old = opened(sessions, 1, boot=1)

    second = opened(sessions, 2, boot=2, gone=False)
    assert list(sessions.infos) == [old, second]
    third = opened(sessions, 3, boot=2, gone=True)

    assert list(sessions.infos) == [second, third]


def test_the_end_of_a_session_happens_once() -> None:
    sessions = Sessions()
    first, second = opened(sessions, 1), opened(sessions, 2)

    result, events = sessions.end((second, first, second, SessionId(99)))

    assert result == Ended((first, second))
    assert [event.session for event in events if isinstance(event, SessionEnded)] == [first, second]
    assert sessions.end((first,)) == (Ended(()), ())
    assert sessions.digest() == 0


def test_sessions_beyond_the_limit_are_refused() -> None:
    sessions = Sessions()
    frozen = Sessions()
    template = opened(frozen, 1)
    one = frozen.freeze()[0]
    many = [type(one)(SessionId(template + n), one.info, 0, ()) for n in range(limits.SESSIONS_MAX)]
    sessions.restore(tuple(many))

    result, _ = sessions.open(Open(5.0, NODE, BootId(1)), stamp(limits.SESSIONS_MAX + 9))

    assert isinstance(result, Refused)
    assert result.error == "OverloadedError"


def test_a_checkpoint_is_kept_until_it_is_cleared() -> None:
    sessions = Sessions()
    session = opened(sessions, 1)
    before = sessions.digest()

    assert sessions.checkpoint(Checkpoint(session, 2.5))[0] == Checkpointed(True)
    assert sessions.infos[session].checkpoint == 2.5
    sessions.check()
    sessions.checkpoint(Checkpoint(session, None))

    assert sessions.infos[session].checkpoint is None
    assert sessions.digest() == before
    assert sessions.checkpoint(Checkpoint(SessionId(9), 1.0))[0] == Checkpointed(False)


def test_nonsense_is_refused() -> None:
    sessions = Sessions()
    session = opened(sessions, 1)

    for ttl in (0.0, -1.0, float("nan"), float("inf")):
        assert isinstance(sessions.open(Open(ttl, NODE, BootId(1)), stamp(2))[0], Refused)
    for left in (-1.0, 5.1, float("nan")):
        assert isinstance(sessions.checkpoint(Checkpoint(session, left))[0], Refused)


def test_a_frozen_set_of_sessions_is_restored_as_it_was() -> None:
    sessions, copy = Sessions(), Sessions()
    session = opened(sessions, 1)
    sessions.admit(command(session, 4, answered=2))
    sessions.keep(command(session, 4), b"four")

    copy.restore(sessions.freeze())

    copy.check()
    assert copy.digest() == sessions.digest()
    assert encode(copy.freeze()) == encode(sessions.freeze())
