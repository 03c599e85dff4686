"""The replicated machine as a whole: exactly once, the same everywhere, never an exception."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.hashing import xxh3
from microos.raft.composite import Done, Machines, Restored
from microos.raft.entry import Command, Configuration, Entry, Kind, SnapshotMark, Stamp
from microos.raft.machine import Outcome, Refused, pieces
from microos.raft.sessions import (
    Close,
    Ended,
    Expire,
    Open,
    Opened,
    SessionOpened,
    decode_system_result,
)
from microos.types import BootId, Index, NodeId, SessionId, Term, packed

_decode: Decoder[list[tuple[int, bytes]]] = Decoder(list[tuple[int, bytes]])
NODE = NodeId("n1")


class Notebook:
    """Writes down every command with its session; due at `due` [µs]."""

    version = 1

    def __init__(self, number: int = 7, due: int | None = None) -> None:
        self.number = number
        self.due = due
        self.lines: list[tuple[int, bytes]] = []

    def apply(self, session: SessionId, command: bytes, stamp: Stamp) -> Outcome:
        self.lines.append((session, command))
        return Outcome(encode(len(self.lines)), (("line", command),))

    def ended(self, sessions: tuple[SessionId, ...], stamp: Stamp) -> tuple[object, ...]:
        return tuple(("ended", session) for session in sessions)

    def wake(self, stamp: Stamp) -> tuple[object, ...]:
        self.due = None
        return (("woken", stamp.time),)

    def deadline(self) -> int | None:
        return self.due

    def freeze(self) -> Iterator[bytes]:
        return pieces(encode(self.lines))

    def restore(self, chunks: Iterable[bytes], version: int) -> None:
        data = b"".join(chunks)
        self.lines = _decode(data) if data else []

    def digest(self) -> int:
        return xxh3(encode(self.lines))


class Log:
    """Hands entries to machines, one index after the other."""

    def __init__(self, *machines: Notebook) -> None:
        self.notebooks = machines
        self.machines = Machines(1, machines)

    def entry(self, data: bytes, *, time: int = 0, kind: Kind = Kind.COMMAND) -> Done:
        index = Index(self.machines.applied + 1)
        time = max(time, self.machines.time)
        done = self.machines.apply(Entry(Term(1), index, time, kind, data))
        self.machines.check()
        return done

    def command(
        self, session: int, sequence: int, body: bytes, *, machine: int = 7, time: int = 0
    ) -> Done:
        return self.entry(encode(Command(machine, session, sequence, 0, body)), time=time)

    def open(self, boot: int = 1) -> SessionId:
        done = self.command(0, 0, encode(Open(5.0, NODE, BootId(boot))), machine=0)
        assert done.result is not None
        result = decode_system_result(done.result)
        assert isinstance(result, Opened)
        return result.session


def refusal(done: Done) -> str:
    assert done.result is not None
    result = decode_system_result(done.result)
    assert isinstance(result, Refused)
    return result.reason


def test_a_command_sent_twice_is_applied_once() -> None:
    log = Log(Notebook())
    session = log.open()

    first = log.command(session, 1, b"x")
    second = log.command(session, 1, b"x")

    assert first.result == second.result == encode(1)
    assert (first.events, second.events) == (((7, ("line", b"x")),), ())
    assert log.notebooks[0].lines == [(session, b"x")]
    assert log.machines.answer(session, 1) == encode(1)


def test_only_a_session_may_command() -> None:
    log = Log(Notebook())

    assert refusal(log.command(0, 1, b"x")) == "bad_request"
    assert refusal(log.command(0, 1, encode(Close(SessionId(1))), machine=0)) == "bad_request"
    assert refusal(log.command(4711, 1, b"x")) == "session_expired"
    assert log.notebooks[0].lines == []


def test_an_unknown_machine_is_refused_and_the_refusal_kept() -> None:
    log = Log(Notebook())
    session = log.open()

    first = log.command(session, 1, b"x", machine=99)

    assert refusal(first) == "unknown_machine"
    assert log.command(session, 1, b"x", machine=7).result == first.result


def test_the_end_of_a_session_reaches_every_machine_in_order_at_one_index() -> None:
    log = Log(Notebook(9), Notebook(3))
    session = log.open()

    done = log.command(0, 1, encode(Expire((session,))), machine=0)

    assert done.result == encode(Ended((session,)))
    assert [number for number, _ in done.events] == [0, 3, 9]
    assert log.machines.sessions() == {}
    assert refusal(log.command(session, 1, b"x")) == "session_expired"


def test_a_session_can_close_itself() -> None:
    log = Log(Notebook())
    session = log.open()

    done = log.command(session, 1, encode(Close(session)), machine=0)

    assert done.result == encode(Ended((session,)))
    assert log.machines.sessions() == {}


def test_due_machines_wake_before_the_entry_of_their_time() -> None:
    log = Log(Notebook(9, due=50), Notebook(3, due=60), Notebook(4))
    session = log.open()
    assert log.machines.deadline() == 50

    early = log.entry(b"", time=49, kind=Kind.EMPTY)
    late = log.command(session, 1, b"x", machine=9, time=70)

    assert early == Done(early.index)
    assert late.events == (
        (3, ("woken", 70)),
        (9, ("woken", 70)),
        (9, ("line", b"x")),
    )
    assert log.machines.deadline() is None


def test_a_configuration_entry_is_remembered_for_the_snapshot() -> None:
    log = Log(Notebook())
    configuration = Configuration(voters=(NODE,))

    done = log.entry(encode(configuration), kind=Kind.CONFIGURATION)

    assert done.result is None
    assert log.machines.configuration == configuration


def test_opening_tells_the_listeners_and_shows_the_session() -> None:
    log = Log()

    done = log.command(0, 12, encode(Open(5.0, NODE, BootId(3))), machine=0)

    ((number, event),) = done.events
    assert number == 0
    assert isinstance(event, SessionOpened)
    assert done.session == 0
    assert done.sequence == 12
    assert log.machines.sessions()[SessionId(packed(1, 1))] == event.info


def test_a_snapshot_larger_than_a_chunk_survives() -> None:
    log = Log(Notebook(3), Notebook(9))
    session = log.open()
    for sequence in range(1, 6):
        log.command(session, sequence, bytes(50_000), machine=3)

    chunks = log.machines.freeze()
    copy = Log(Notebook(3), Notebook(9))
    copy.notebooks[1].lines.append((1, b"to be forgotten"))
    copy.machines.restore(chunks)

    assert len(chunks) > 4
    assert max(map(len, chunks)) <= limits.SNAPSHOT_CHUNK
    assert copy.machines.digest() == log.machines.digest()
    assert copy.machines.freeze() == chunks
    assert copy.machines.restored()[1] == (3, Restored(log.machines.applied))
    assert copy.command(session, 5, b"again", machine=3).result == encode(5)


def test_a_founding_begins_with_an_empty_state_at_its_mark() -> None:
    machines, other = Machines(1, []), Machines(1, [])
    mark = SnapshotMark(Index(1), Term(1), Configuration(voters=(NODE,)))

    machines.begin(mark)
    other.restore(machines.freeze())

    assert other.applied == 1
    assert other.configuration.voters == (NODE,)
    assert other.digest() == machines.digest()


@pytest.mark.parametrize(
    "chunks",
    [[], [b"\xc1"], [encode((0, 1, b"nonsense"))], [encode((42, 1, b""))]],
)
def test_a_damaged_snapshot_is_an_error_of_ours(chunks: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError):
        Machines(1, []).restore(chunks)


_bodies = st.one_of(
    st.binary(max_size=12),
    st.builds(lambda gone: encode(Open(5.0, NODE, BootId(2), gone)), st.booleans()),
    st.integers(1, 6).map(lambda n: encode(Close(SessionId(packed(1, n))))),
    st.integers(1, 6).map(lambda n: encode(Expire((SessionId(packed(1, n)),)))),
)
_sessions = st.one_of(st.just(0), st.integers(1, 6).map(lambda n: packed(1, n)))
_commands = st.builds(
    Command,
    st.sampled_from([0, 0, 7, 8]),
    _sessions,
    st.integers(-1, 5),
    st.integers(-1, 3),
    _bodies,
)
_data = st.one_of(_commands.map(encode), st.binary(max_size=20))


@settings(max_examples=60, deadline=None)
@given(st.lists(_data, max_size=25), st.integers(0, 25))
def test_any_log_leaves_equal_members_wherever_they_began(data: list[bytes], cut: int) -> None:
    whole, late = Log(Notebook()), Log(Notebook())
    whole.open()
    for n, one in enumerate(data):
        if n == cut:
            late.machines.restore(whole.machines.freeze())
        done = whole.entry(one)
        if n >= cut:
            assert late.entry(one) == done
    if cut < len(data):
        assert late.machines.digest() == whole.machines.digest()
        assert late.machines.freeze() == whole.machines.freeze()
