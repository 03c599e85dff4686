from __future__ import annotations

from itertools import count
from math import inf
from typing import Any

import pytest

from microos import limits
from microos.codec import encode
from microos.errors import (
    LimitError,
    MicroosError,
    OverloadedError,
    RejectedError,
    RemoteProtocolError,
    UnavailableError,
    UncertainError,
)
from microos.rpc.core import Connection
from microos.rpc.effects import NOTHING, Answered, Cancelled, Event, Failed, Incoming, Loaded
from microos.rpc.messages import (
    FOREVER_MS,
    Answer,
    Call,
    Cancel,
    CancelReason,
    Chunk,
    Failure,
    Frame,
    Goaway,
    Load,
    decode_frame,
)
from tests.rpc.pair import Pair

LOAD = Load(3, 250)
LONG = bytes(range(256)) * 700  # 175 KiB: three pieces.


def incoming(events: list[Event]) -> Incoming:
    [event] = events
    assert isinstance(event, Incoming)
    return event


def failed(events: list[Event]) -> Failed:
    [event] = events
    assert isinstance(event, Failed)
    return event


def sent(core: Connection) -> list[Frame]:
    effects = core.take()
    return [decode_frame(frame) for frame in (*effects.frames, *effects.chunks)]


# The way there and back.


def test_a_call_is_answered() -> None:
    pair = Pair()
    id = pair.a.core.call(
        "s.f", b"question", deadline=101.0, now=100.0, attempt=2, metadata={"k": "v"}
    )

    call = incoming(pair.out())
    pair.b.core.answer(call.id, b"answer", LOAD)

    assert call == Incoming(id, "s.f", b"question", 101.0, 2, {"k": "v"})
    assert pair.back() == [Answered(id, b"answer", LOAD)]
    assert pair.a.core.deadline == pair.b.core.deadline == inf
    assert pair.a.core.take() == NOTHING


def test_a_call_is_failed_by_the_error_of_the_callee() -> None:
    pair = Pair()
    id = pair.call()

    pair.b.core.fail(incoming(pair.out()).id, RejectedError("no", reason="bad_request"), LOAD)

    failure = failed(pair.back())
    assert (failure.id, failure.load) == (id, LOAD)
    assert type(failure.error) is RejectedError
    assert failure.error.reason == "bad_request"


def test_both_sides_call_with_the_same_ids() -> None:
    pair = Pair()
    pair.call(b"from a")
    pair.b.core.call("s.g", b"from b", deadline=101.0, now=100.0)
    pair.a.core.receive(pair.b.core.take().frames[0], 100.0)
    pair.b.core.receive(pair.a.core.take().frames[0], 100.0)

    pair.a.core.answer(1, b"from b, answered", None)
    pair.b.core.receive(pair.a.core.take().frames[0], 100.0)

    assert pair.b.core.take().events[1:] == [Answered(1, b"from b, answered", None)]
    assert pair.a.core.statistics().pending == 1


def test_answers_come_in_any_order() -> None:
    pair = Pair()
    ids = [pair.call(), pair.call(), pair.call()]
    pair.out()

    for id in reversed(ids):
        pair.b.core.answer(id, b"%d" % id, None)

    assert pair.back() == [Answered(id, b"%d" % id, None) for id in reversed(ids)]


def test_only_the_first_answer_counts() -> None:
    pair = Pair()
    pair.call()
    id = incoming(pair.out()).id

    pair.b.core.answer(id, b"first", None)
    pair.b.core.answer(id, b"second", None)
    pair.b.core.fail(id, RejectedError("third"), None)

    assert pair.back() == [Answered(id, b"first", None)]


# Refused before anything is sent.


def test_what_is_refused_here_sends_nothing() -> None:
    core = Connection(count(1))
    ok: dict[str, Any] = {"deadline": 101.0, "now": 100.0}

    with pytest.raises(UnavailableError, match="nothing was sent") as late:
        core.call("s.f", b"", deadline=100.0, now=100.0)
    with pytest.raises(UnavailableError):
        core.call("s.f", b"", deadline=100.0005, now=100.0)
    with pytest.raises(LimitError, match="arguments") as large:
        core.call("s.f", b"x" * (limits.RPC_BODY_MAX + 1), deadline=101.0, now=100.0)
    with pytest.raises(LimitError, match="endpoint"):
        core.call("s" * (limits.ENDPOINT_TEXT + 1), b"", **ok)
    with pytest.raises(LimitError, match="metadata"):
        core.call("s.f", b"", **ok, metadata={str(n): "" for n in range(65)})
    with pytest.raises(LimitError, match="metadata"):
        core.call("s.f", b"", **ok, metadata={"k": "é" * 4096})
    with pytest.raises(LimitError, match="keys"):
        core.call("s.f", b"", **ok, metadata={"k" * 129: ""})

    assert (late.value.reason, large.value.reason) == ("deadline", "size")
    assert core.take() is NOTHING
    assert core.deadline == inf
    core.check()


def test_calls_pending_are_bounded() -> None:
    pair = Pair()
    ids = [pair.call() for _ in range(limits.RPC_CALLS_MAX)]

    with pytest.raises(OverloadedError, match="pending") as full:
        pair.call()
    pair.a.core.cancel(ids[0])

    assert full.value.reason == "queue_full"
    assert pair.call() > ids[-1]


def test_calls_running_are_bounded_whatever_the_caller_believes() -> None:
    core = Connection(count(1))
    for id in range(1, limits.RPC_CALLS_MAX + 2):
        core.receive(encode(Call(id, "s.f", 1000, 1, None, 0, b"")), 100.0)

    [frame] = sent(core)

    assert isinstance(frame, Failure)
    assert (frame.id, frame.error) == (limits.RPC_CALLS_MAX + 1, "OverloadedError")
    core.check()


# Deadlines.


def test_the_budget_travels_in_whole_milliseconds_rounded_down() -> None:
    core = Connection(count(1))

    core.call("s.f", b"", deadline=100.2509, now=100.0)
    core.call("s.f", b"", deadline=inf, now=100.0)

    assert [frame.budget_ms for frame in sent(core) if isinstance(frame, Call)] == [250, FOREVER_MS]


def test_a_call_without_end_has_none_at_the_callee_either() -> None:
    pair = Pair()
    pair.call(timeout=inf)

    assert incoming(pair.out()).deadline == inf
    assert pair.a.core.deadline == pair.b.core.deadline == inf


def test_a_caller_waits_until_its_deadline_and_then_says_cancel() -> None:
    pair = Pair()
    id = pair.call(timeout=1.0)
    pair.a.take()

    assert pair.wake(pair.a, 100.99) == []
    assert 101.0 <= pair.a.core.deadline <= 101.01
    pair.a.core.wake(101.01)

    effects = pair.a.core.take()
    error = failed(list(effects.events)).error
    assert isinstance(error, UncertainError)
    assert error.reason == "deadline"
    assert list(map(decode_frame, effects.frames)) == [Cancel(id, CancelReason.DEADLINE)]


def test_a_call_that_expires_before_it_was_sent_never_is() -> None:
    pair = Pair()
    pair.call(b"stays", timeout=9.0)
    pair.call(LONG, timeout=1.0)
    pair.a.core.goaway(5.0)

    pair.a.core.wake(102.0)

    effects = pair.a.core.take()
    error = failed(list(effects.events)).error
    assert isinstance(error, UnavailableError)
    assert error.reason == "deadline"
    first, second = map(decode_frame, effects.frames)
    assert isinstance(first, Call)
    assert first.body == b"stays"
    assert second == Goaway(5000)
    assert effects.chunks == []


def test_a_callee_stops_the_handler_at_the_deadline_and_says_nothing() -> None:
    pair = Pair()
    pair.call(timeout=1.0)
    id = incoming(pair.out()).id

    assert pair.wake(pair.b, 101.02) == [Cancelled(id, CancelReason.DEADLINE)]
    pair.b.core.answer(id, b"too late", None)
    pair.b.core.fail(id, RejectedError("too late"), None)

    assert pair.b.core.take() is NOTHING


def test_a_call_that_arrives_without_time_is_never_started() -> None:
    core = Connection(count(1))

    core.receive(encode(Call(1, "s.f", 0, 1, None, 0, b"")), 100.0)

    [frame] = sent(core)
    assert isinstance(frame, Failure)
    assert (frame.error, frame.reason) == ("UnavailableError", "deadline")
    assert core.statistics().refused == 1
    assert core.deadline == inf


def test_an_answer_before_the_sweep_is_an_answer() -> None:
    pair = Pair()
    id = pair.call(timeout=1.0)
    pair.out()
    pair.b.core.answer(id, b"just", None)

    pair.now = 101.005

    assert pair.back() == [Answered(id, b"just", None)]
    assert pair.wake(pair.a, 102.0) == []


# Cancel.


def test_a_cancelled_call_stops_its_handler() -> None:
    pair = Pair()
    id = pair.call()
    pair.out()

    pair.a.core.cancel(id, CancelReason.HEDGE)
    pair.a.core.cancel(id)

    assert pair.out() == [Cancelled(id, CancelReason.HEDGE)]
    assert pair.a.core.deadline == pair.b.core.deadline == inf
    assert pair.a.core.take() is NOTHING


def test_an_answer_that_crosses_its_cancel_is_dropped_but_tells_its_load() -> None:
    pair = Pair()
    id = pair.call()
    pair.out()

    pair.a.core.cancel(id)
    pair.b.core.answer(id, b"late", LOAD)

    assert pair.back() == [Loaded(LOAD)]
    assert pair.out() == []
    assert pair.a.core.statistics().late == 1


def test_a_failure_for_nobody_is_dropped_but_tells_its_load() -> None:
    core = Connection(count(1))

    core.receive(encode(Failure(7, LOAD, "RejectedError", "", "")), 100.0)
    core.receive(encode(Answer(7, None, 0, b"")), 100.0)
    core.receive(encode(Cancel(7, CancelReason.CALLER)), 100.0)

    assert core.take().events == [Loaded(LOAD)]
    assert core.statistics().late == 2


# Long bodies.


@pytest.mark.parametrize(
    "size",
    [0, limits.RPC_CHUNK, limits.RPC_CHUNK + 1, 2 * limits.RPC_CHUNK, limits.RPC_BODY_MAX],
)
def test_bodies_of_all_sizes_arrive_whole(size: int) -> None:
    pair = Pair()
    body = (LONG * 7)[:size]
    id = pair.call(body)

    call = incoming(pair.out())
    pair.b.core.answer(id, body[::-1], LOAD)

    assert call.body == body
    assert pair.back() == [Answered(id, body[::-1], LOAD)]
    assert pair.a.core.statistics().arriving_bytes == 0
    assert pair.b.core.statistics().arriving_bytes == 0


def test_a_long_body_is_bulk_but_for_its_beginning() -> None:
    pair = Pair()
    pair.call(LONG)

    effects = pair.a.core.take()

    assert (len(effects.frames), len(effects.chunks)) == (1, 2)
    assert max(map(len, (*effects.frames, *effects.chunks))) <= limits.RPC_FRAME_MAX


def test_a_call_too_large_is_refused_at_once_and_the_connection_lives() -> None:
    pair = Pair()
    size = limits.RPC_BODY_MAX + 1

    pair.b.core.receive(encode(Call(1, "s.f", 1000, 1, None, size, b"x")), 100.0)
    pair.b.core.receive(encode(Chunk(1, True, 1, b"x")), 100.0)

    [frame] = sent(pair.b.core)
    assert isinstance(frame, Failure)
    assert (frame.error, frame.reason) == ("LimitError", "size")
    pair.call()
    assert incoming(pair.out()).id == 1


def test_a_result_too_large_fails_its_call() -> None:
    pair = Pair()
    pair.call()
    id = incoming(pair.out()).id

    pair.b.core.answer(id, b"x" * (limits.RPC_BODY_MAX + 1), LOAD)

    failure = failed(pair.back())
    assert type(failure.error) is LimitError
    assert failure.error.reason == "size"
    assert failure.load == LOAD


def test_an_answer_that_announces_too_much_fails_its_call() -> None:
    pair = Pair()
    id = pair.call()
    pair.a.take()

    pair.a.core.receive(encode(Answer(id, LOAD, limits.RPC_BODY_MAX + 1, b"x")), 100.0)
    pair.a.core.receive(encode(Chunk(id, False, 1, b"x")), 100.0)

    assert type(failed(pair.a.take()).error) is LimitError
    assert pair.a.core.deadline == inf


def test_a_long_call_cancelled_half_way_never_starts() -> None:
    pair = Pair()
    id = pair.call(LONG)
    pair.b.core.receive(pair.a.core.take().frames[0], 100.0)

    pair.a.core.cancel(id)

    assert pair.out() == []
    assert pair.b.core.statistics().running == 0
    assert pair.b.core.statistics().arriving_bytes == 0


def test_a_long_call_that_expires_half_way_never_starts() -> None:
    pair = Pair()
    pair.call(LONG, timeout=1.0)
    effects = pair.a.core.take()
    pair.b.core.receive(effects.frames[0], 100.0)

    assert pair.wake(pair.b, 102.0) == []
    for chunk in effects.chunks:
        pair.b.core.receive(chunk, 102.0)

    assert pair.b.core.take() is NOTHING


def test_a_long_call_that_is_complete_too_late_never_starts() -> None:
    pair = Pair()
    id = pair.call(LONG, timeout=1.0)
    effects = pair.a.core.take()

    for frame in (*effects.frames, *effects.chunks):
        pair.b.core.receive(frame, 100.0 if frame in effects.frames else 101.005)

    [failure] = sent(pair.b.core)
    assert isinstance(failure, Failure)
    assert (failure.id, failure.error, failure.reason) == (id, "UnavailableError", "deadline")
    pair.b.core.check()


def test_a_call_that_lost_a_piece_fails_alone_and_nothing_happened() -> None:
    pair = Pair()
    id = pair.call(LONG)
    effects = pair.a.core.take()

    pair.b.core.receive(effects.frames[0], 100.0)
    pair.b.core.receive(effects.chunks[1], 100.0)
    pair.b.core.receive(effects.chunks[0], 100.0)

    failure = failed(pair.back())
    assert failure.id == id
    assert type(failure.error) is UnavailableError
    assert failure.error.reason == "connection_lost"


def test_an_answer_that_lost_a_piece_is_uncertain() -> None:
    pair = Pair()
    id = pair.call()
    pair.out()
    pair.b.core.answer(id, LONG, LOAD)
    effects = pair.b.core.take()

    pair.a.core.receive(effects.frames[0], 100.0)
    pair.a.core.receive(effects.chunks[1], 100.0)

    failure = failed(pair.a.take())
    assert type(failure.error) is UncertainError
    assert failure.load == LOAD
    pair.a.core.check()


def test_incomplete_calls_beyond_the_bound_are_refused_and_the_others_arrive() -> None:
    pair = Pair()
    body = b"x" * limits.RPC_BODY_MAX
    ids = [pair.call(body) for _ in range(10)]
    effects = pair.a.core.take()
    each = len(effects.chunks) // len(ids)
    last = effects.chunks[each - 1 :: each]

    for frame in (*effects.frames, *(chunk for chunk in effects.chunks if chunk not in last)):
        pair.b.core.receive(frame, 100.0)
        pair.b.core.check()
    for chunk in last:
        pair.b.core.receive(chunk, 100.0)

    started = [event.id for event in pair.b.take() if isinstance(event, Incoming)]
    refused = [event for event in pair.back() if isinstance(event, Failed)]
    assert len(started) >= limits.RPC_ARRIVING_MAX // limits.RPC_BODY_MAX
    assert sorted([*started, *(event.id for event in refused)]) == ids
    assert {type(event.error) for event in refused} == {OverloadedError}


# Frames that could not be sent.


def test_a_call_that_could_not_be_sent_fails_with_what_the_shell_says() -> None:
    pair = Pair()
    id = pair.call()
    [frame] = pair.a.core.take().frames
    error = OverloadedError("the link is full")

    pair.a.core.unsent(frame, error)

    assert pair.a.take() == [Failed(id, error)]
    assert pair.a.core.deadline == inf


def test_a_call_of_which_a_piece_could_not_be_sent_is_taken_back() -> None:
    pair = Pair()
    id = pair.call(LONG)
    effects = pair.a.core.take()
    pair.b.core.receive(effects.frames[0], 100.0)

    for chunk in effects.chunks:
        pair.a.core.unsent(chunk, OverloadedError("the link is full"))

    [failure] = pair.a.take()
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, OverloadedError)
    pair.b.core.receive(pair.a.frames[-1], 100.0)
    assert decode_frame(pair.a.frames[-1]) == Cancel(id, CancelReason.CALLER)
    assert pair.b.core.take() is NOTHING
    assert pair.b.core.statistics().running == 0


def test_an_answer_that_could_not_be_sent_is_forgotten() -> None:
    pair = Pair()
    pair.call()
    pair.out()
    pair.b.core.answer(1, LONG, None)
    effects = pair.b.core.take()

    for frame in (*effects.frames, *effects.chunks):
        pair.b.core.unsent(frame, OverloadedError("the link is full"))

    assert pair.b.core.take() is NOTHING


# Draining, and the end.


def test_a_draining_node_takes_no_new_calls_and_finishes_the_others() -> None:
    pair = Pair()
    old, crossing = pair.call(), 0
    pair.out()
    pair.b.core.goaway(10.0)
    crossing = pair.call()

    assert pair.out() == []
    pair.b.core.answer(old, b"done", None)
    refused, answered = pair.back()

    assert isinstance(refused, Failed)
    assert refused.id == crossing
    assert type(refused.error) is UnavailableError
    assert refused.error.reason == "draining"
    assert answered == Answered(old, b"done", None)
    assert pair.a.core.peer_draining
    with pytest.raises(UnavailableError, match="leaving") as here:
        pair.call()
    assert here.value.reason == "draining"


def test_a_draining_node_may_still_call() -> None:
    pair = Pair()
    pair.a.core.goaway(10.0)

    id = pair.call()

    assert incoming(pair.out()).id == id


def test_a_lost_link_ends_every_call_of_both_sides() -> None:
    pair = Pair()
    ours = pair.call()
    theirs = pair.b.core.call("s.g", b"", deadline=101.0, now=100.0)
    half = pair.b.core.call("s.g", LONG, deadline=101.0, now=100.0)
    frames = pair.b.core.take().frames
    pair.a.take()
    for frame in frames:
        pair.a.core.receive(frame, 100.0)
    pair.a.take()
    unsent = pair.call()
    assert pair.a.core.statistics().running == 2
    assert half != theirs

    pair.a.core.end()
    pair.a.core.end()

    effects = pair.a.core.take()
    first, second, third = effects.events
    assert isinstance(first, Failed)
    assert isinstance(second, Failed)
    assert (first.id, type(first.error)) == (ours, UncertainError)
    assert (second.id, type(second.error)) == (unsent, UnavailableError)
    assert first.error.reason == second.error.reason == "connection_lost"
    assert third == Cancelled(theirs, CancelReason.CONNECTION_LOST)
    assert effects.frames == []
    assert pair.a.core.deadline == inf
    pair.a.core.check()


# What breaks the protocol.


@pytest.mark.parametrize(
    "frames",
    [
        [Call(1, "s.f", 9000, 1, None, 0, b""), Call(1, "s.f", 9000, 1, None, 0, b"")],
        [Call(1, "s.f", 9000, 1, None, 9, b"x"), Call(1, "s.f", 9000, 1, None, 0, b"")],
        [Call(1, "s.f", 9000, 1, None, 3, b"xyz")],
        [Call(1, "s.f", 9000, 1, None, 9, b"x"), Chunk(1, True, 0, b"x")],
        [Call(1, "s.f", 9000, 1, None, 3, b"x"), Chunk(1, True, 1, b"xyz")],
        [Answer(1, None, 9, b"x"), Answer(1, None, 0, b"y")],
        [Answer(1, None, 9, b"x"), Failure(1, None, "RejectedError", "", "")],
        [Answer(1, None, 1, b"xyz")],
        [Answer(1, None, 9, b"x"), Chunk(1, False, 0, b"x")],
    ],
)
def test_what_no_honest_node_sends_breaks_the_protocol(frames: list[Frame]) -> None:
    core = Connection(count(1))
    core.call("s.f", b"", deadline=109.0, now=100.0)
    *before, last = map(encode, frames)
    for frame in before:
        core.receive(frame, 100.0)
    known = core.statistics()

    with pytest.raises(RemoteProtocolError, match="expected"):
        core.receive(last, 100.0)

    assert core.statistics() == known
    core.check()


def test_an_id_may_come_again_once_its_call_is_over() -> None:
    core = Connection(count(1))
    call = encode(Call(1, "s.f", 9000, 1, None, 0, b""))
    core.receive(call, 100.0)
    core.answer(1, b"", None)

    core.receive(call, 100.0)

    assert core.statistics().running == 1


def test_errors_say_the_endpoint_and_what_to_do() -> None:
    pair = Pair()
    pair.b.core.goaway(1.0)
    pair.call()
    pair.out()

    error = next(e.error for e in pair.back() if isinstance(e, Failed))

    assert isinstance(error, MicroosError)
    assert "s.f" in str(error)
    assert "another instance" in str(error)
