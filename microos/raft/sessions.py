"""Sessions: what makes a retried command happen once, and what leases hang on.

A session is a client's registration in the log. It is known by where in the log
it was opened, so its id never repeats; it ends by command (`Close`), by the
leader's judgement written into the log (`Expire`), or when a new start of the
same node proves that the old process is gone. All replicas agree on each end.

    session is   sequence is     outcome
    unknown      any             refused: its earlier fate is unknown
    known        <= answered     refused: the client has had its answer
    known        kept            the kept result again, nothing applied
    known        new             applied; the result is kept until answered

No time passes in here: whose lease is over is decided by the leader's clock.

Source: Ongaro, "Consensus: Bridging Theory and Practice" (2014), §6.3.
"""

from collections.abc import Mapping
from math import isfinite
from types import MappingProxyType

import msgspec

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.hashing import xxh3
from microos.raft.entry import Command, Stamp
from microos.raft.machine import Refused
from microos.types import BootId, NodeId, SessionId, packed

# Commands of machine 0.


class Open(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Begin a session. The one command that cannot be exactly once."""

    ttl: float
    """How long it lives without a keep-alive [s]."""
    node: NodeId
    boot: BootId
    process_gone: bool = False
    """Proven: no process of an earlier start of `node` lives; their sessions end here and now."""


class Close(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """End a session in order."""

    session: SessionId


class Expire(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The leader's judgement: these were silent for longer than their ttl."""

    sessions: tuple[SessionId, ...]


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Remember how much of its ttl a silent session has left, for the next leader."""

    session: SessionId
    remaining: float | None
    """[s]; None: the session has been heard again, its full ttl counts."""


SystemCommand = Open | Close | Expire | Checkpoint
decode_system_command: Decoder[SystemCommand] = Decoder(SystemCommand)

# Their results.


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=1):
    session: SessionId


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The sessions that this command has ended, sorted; none if they had ended before."""

    sessions: tuple[SessionId, ...]


class Checkpointed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Whether the session was there."""

    known: bool


SystemResult = Refused | Opened | Ended | Checkpointed
decode_system_result: Decoder[SystemResult] = Decoder(SystemResult)

# What is told to this node's listeners of machine 0.


class SessionInfo(msgspec.Struct, frozen=True, array_like=True):
    """One session, as its opening and the last checkpoint made it."""

    ttl: float
    """[s]"""
    node: NodeId
    boot: BootId
    checkpoint: float | None = None
    """What was left of the ttl when a leader last wrote it down [s]; None: all of it."""


class SessionOpened(msgspec.Struct, frozen=True):
    session: SessionId
    info: SessionInfo


class SessionChanged(msgspec.Struct, frozen=True):
    """Its checkpoint was set or cleared."""

    session: SessionId
    info: SessionInfo


class SessionEnded(msgspec.Struct, frozen=True):
    session: SessionId
    info: SessionInfo


class _Session(msgspec.Struct):
    info: SessionInfo
    answered: int = 0
    """All sequences up to it have been answered to the client."""
    kept: dict[int, bytes] = msgspec.field(default_factory=dict)
    """Results by sequence, all above `answered`, at most `limits.SESSION_WINDOW`."""


class FrozenSession(msgspec.Struct, frozen=True, array_like=True):
    """One session in a snapshot."""

    session: SessionId
    info: SessionInfo
    answered: int
    kept: tuple[tuple[int, bytes], ...]


class Sessions:
    """Every session of the cluster, and the kept results of each."""

    def __init__(self) -> None:
        self._sessions: dict[SessionId, _Session] = {}
        self._infos: dict[SessionId, SessionInfo] = {}
        self._digest = 0
        self.infos: Mapping[SessionId, SessionInfo] = MappingProxyType(self._infos)
        """All sessions, in the order of their opening: a live view."""

    # Exactly once.

    def admit(self, command: Command) -> bytes | None:
        """Return what a command is answered with unapplied, or None: it is new, apply it.

        Cost: O(results newly answered).
        """
        session = SessionId(command.session)
        record = self._sessions.get(session)
        if record is None:
            return _refused("UncertainError", "session_expired", _expired(session))
        self._answer(session, record, command.answered)
        if command.sequence <= record.answered:
            return _refused(
                "RejectedError",
                "answered",
                f"expected a sequence above {record.answered}, all up to it are answered; "
                f"found {command.sequence}",
            )
        kept = record.kept.get(command.sequence)
        if kept is not None:
            return kept
        if len(record.kept) >= limits.SESSION_WINDOW:
            # Uncertain and not overloaded: a copy of this command may follow, and fit.
            return _refused(
                "UncertainError",
                "window",
                f"expected at most {limits.SESSION_WINDOW} unanswered commands of one session; "
                "wait for answers",
            )
        return None

    def keep(self, command: Command, result: bytes) -> bytes:
        """Keep the result of an applied command; return what to answer it with."""
        session = SessionId(command.session)
        record = self._sessions.get(session)
        if record is None:
            return result  # It closed its own session.
        assert command.sequence > record.answered
        assert command.sequence not in record.kept
        if len(result) > limits.RESULT_KEPT_MAX:
            result = _refused(
                "UncertainError",
                "size",
                f"applied, but its result of {len(result)} bytes is more than the "
                f"{limits.RESULT_KEPT_MAX} that are kept",
            )
        record.kept[command.sequence] = result
        self._digest += _kept_digest(session, command.sequence, result)
        return result

    def answer(self, session: SessionId, sequence: int) -> bytes | None:
        """Return what a command has come to, or None if it has not been applied."""
        record = self._sessions.get(session)
        if record is None:
            return _refused("UncertainError", "session_expired", _expired(session))
        return record.kept.get(sequence)

    def _answer(self, session: SessionId, record: _Session, answered: int) -> None:
        if answered <= record.answered:
            return
        self._digest += _session_digest(session, record.info, answered)
        self._digest -= _session_digest(session, record.info, record.answered)
        record.answered = answered
        for sequence in [s for s in record.kept if s <= answered]:
            self._digest -= _kept_digest(session, sequence, record.kept.pop(sequence))

    # Commands of machine 0. Each returns (result, events); ended sessions are in the result.

    def open(self, command: Open, stamp: Stamp) -> tuple[SystemResult, tuple[object, ...]]:
        """Open a session; where proven gone, end those of the node's earlier starts."""
        if not (isfinite(command.ttl) and command.ttl > 0 and command.node and command.boot):
            return Refused("RejectedError", "bad_request", "expected ttl > 0, node and boot"), ()
        ended: list[object] = []
        if command.process_gone:
            old = [
                session
                for session, info in self._infos.items()
                if info.node == command.node and info.boot != command.boot
            ]
            ended = [self._end(session) for session in old]
        if len(self._sessions) >= limits.SESSIONS_MAX:
            return Refused(
                "OverloadedError",
                "queue_full",
                f"expected at most {limits.SESSIONS_MAX} sessions; try again once some have ended",
            ), tuple(ended)
        session = SessionId(packed(stamp.epoch, stamp.index))
        info = SessionInfo(command.ttl, command.node, command.boot)
        self._add(session, _Session(info))
        return Opened(session), (*ended, SessionOpened(session, info))

    def end(self, sessions: tuple[SessionId, ...]) -> tuple[SystemResult, tuple[object, ...]]:
        """End those of the sessions that are still there."""
        known = sorted({session for session in sessions if session in self._sessions})
        return Ended(tuple(known)), tuple(self._end(session) for session in known)

    def checkpoint(self, command: Checkpoint) -> tuple[SystemResult, tuple[object, ...]]:
        """Write down, or forget, what is left of a session's ttl."""
        record = self._sessions.get(command.session)
        if record is None:
            return Checkpointed(False), ()
        left = command.remaining
        if left is not None and not (isfinite(left) and 0 <= left <= record.info.ttl):
            return Refused("RejectedError", "bad_request", "expected 0 <= remaining <= ttl"), ()
        info = msgspec.structs.replace(record.info, checkpoint=left)
        self._digest -= _session_digest(command.session, record.info, record.answered)
        self._digest += _session_digest(command.session, info, record.answered)
        record.info = self._infos[command.session] = info
        return Checkpointed(True), (SessionChanged(command.session, info),)

    def _add(self, session: SessionId, record: _Session) -> None:
        assert session not in self._sessions
        self._sessions[session] = record
        self._infos[session] = record.info
        self._digest += _record_digest(session, record)

    def _end(self, session: SessionId) -> SessionEnded:
        record = self._sessions.pop(session)
        del self._infos[session]
        self._digest -= _record_digest(session, record)
        return SessionEnded(session, record.info)

    # Snapshots, digest, invariants.

    def freeze(self) -> tuple[FrozenSession, ...]:
        return tuple(
            FrozenSession(session, record.info, record.answered, tuple(record.kept.items()))
            for session, record in self._sessions.items()
        )

    def restore(self, frozen: tuple[FrozenSession, ...]) -> None:
        """Replace all sessions.

        Raises:
            RemoteProtocolError: They are not in the order of their opening.
        """
        order = [one.session for one in frozen]
        if order != sorted(set(order)):
            raise RemoteProtocolError("expected sessions in ascending order, found another")
        self._sessions.clear()
        self._infos.clear()
        self._digest = 0
        for one in frozen:
            self._add(one.session, _Session(one.info, one.answered, dict(one.kept)))

    def digest(self) -> int:
        """Return a number equal exactly where all sessions are. Cost: O(1)."""
        return self._digest & 0xFFFF_FFFF_FFFF_FFFF

    def check(self) -> None:
        """Assert all invariants. Cost: O(sessions and kept results)."""
        assert len(self._sessions) <= limits.SESSIONS_MAX
        assert list(self._sessions) == list(self._infos) == sorted(self._sessions)
        total = 0
        for session, record in self._sessions.items():
            assert record.info is self._infos[session]
            assert len(record.kept) <= limits.SESSION_WINDOW
            assert all(sequence > record.answered for sequence in record.kept)
            total += _record_digest(session, record)
        assert (total - self._digest) & 0xFFFF_FFFF_FFFF_FFFF == 0


def _refused(error: str, reason: str, message: str) -> bytes:
    return encode(Refused(error, reason, message))


def _expired(session: SessionId) -> str:
    return f"expected a living session, found {session:#x} ended; what it asked for may have been"


def _session_digest(session: SessionId, info: SessionInfo, answered: int) -> int:
    return xxh3(encode((session, info, answered)))


def _kept_digest(session: SessionId, sequence: int, result: bytes) -> int:
    return xxh3(encode((session, sequence, result)))


def _record_digest(session: SessionId, record: _Session) -> int:
    kept = sum(_kept_digest(session, s, result) for s, result in record.kept.items())
    return kept + _session_digest(session, record.info, record.answered)
