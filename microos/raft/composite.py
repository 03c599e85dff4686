"""The one replicated machine of a node, made of named ones and the sessions.

    entry ─▶ machines that are due by its log time wake, in order of number
          ─▶ exactly-once (sessions.py) ─▶ the machine it names ─▶ result, kept until answered
          ─▶ sessions it ended ─▶ every machine, in order of number, at this one index

Everything here is a function of the log: the same entries make the same state,
results and events on every member, whenever and in whatever batches they come.
So a bad command is a `Refused` result and never an exception, and no text of a
library finds its way into one.

A snapshot is a list of chunks, each one MessagePack array (machine, version,
payload) of at most `limits.SNAPSHOT_CHUNK` bytes; the payloads of one machine,
joined in order, are its state. Machine 0's begins the list and also says where in
the log the snapshot stands.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.hashing import xxh3
from microos.raft.entry import (
    Command,
    Configuration,
    Entry,
    Kind,
    SnapshotMark,
    Stamp,
    decode_command,
    decode_configuration,
)
from microos.raft.machine import Machine, Refused, pieces
from microos.raft.sessions import (
    Checkpoint,
    Close,
    Expire,
    FrozenSession,
    Open,
    SessionEnded,
    SessionInfo,
    Sessions,
    SystemCommand,
    SystemResult,
    decode_system_command,
)
from microos.types import Index, SessionId

SYSTEM = 0
"""Number of the machine that is in here: sessions, applied index, configuration."""

SYSTEM_VERSION = 1

_PAYLOAD_MAX = limits.SNAPSHOT_CHUNK - 32
"""What is left of a chunk beside the machine's number, its version and the lengths."""


class Done(msgspec.Struct, frozen=True):
    """What one entry came to on this member."""

    index: Index
    session: int = 0
    sequence: int = 0
    result: bytes | None = None
    """MessagePack of the machine's result or of `Refused`; None: the entry was no command."""
    events: tuple[tuple[int, object], ...] = ()
    """(machine, event), in the order they happened."""


class Restored(msgspec.Struct, frozen=True):
    """A machine's state was replaced by a snapshot's: read again what you knew of it."""

    index: Index


class _Chunk(msgspec.Struct, frozen=True, array_like=True):
    machine: int
    version: int
    payload: bytes


class _System(msgspec.Struct, frozen=True, array_like=True):
    """Machine 0 in a snapshot."""

    index: Index
    time: int
    configuration: Configuration
    sessions: tuple[FrozenSession, ...]


_decode_chunk: Decoder[_Chunk] = Decoder(_Chunk)
_decode_system: Decoder[_System] = Decoder(_System)


@runtime_checkable
class _Checked(Protocol):
    def check(self) -> None: ...


class Machines:
    """All replicated machines of one member, applied in log order."""

    def __init__(self, epoch: int, machines: Sequence[Machine]) -> None:
        """Make the state of an empty log.

        Args:
            epoch: Of the cluster, from 1; part of every number taken from the log.
            machines: The same on all members. Their numbers are distinct and above 0.
        """
        ordered = sorted(machines, key=lambda machine: machine.number)
        self._machines: dict[int, Machine] = {machine.number: machine for machine in ordered}
        assert len(self._machines) == len(machines)
        assert SYSTEM not in self._machines
        self._epoch = epoch
        self._sessions = Sessions()
        self.applied = Index(0)
        """The last entry applied."""
        self.time = 0
        """Its log time [µs]."""
        self.configuration = Configuration()
        """The last configuration applied."""

    def begin(self, mark: SnapshotMark) -> None:
        """Take the empty state for that of `mark`: a founding's snapshot holds nothing else."""
        assert self.applied == 0
        self.applied = mark.index
        self.time = mark.time
        self.configuration = mark.configuration

    def apply(self, entry: Entry) -> Done:
        """Apply the next entry of the log.

        Raises:
            RemoteProtocolError: A configuration entry that raft itself cannot have read.
        """
        assert entry.index == self.applied + 1
        assert entry.time >= self.time
        stamp = Stamp(self._epoch, entry.index, entry.term, entry.time)
        events = self._wake(stamp)
        self.applied = entry.index
        self.time = entry.time
        if entry.kind == Kind.CONFIGURATION:
            self.configuration = decode_configuration(entry.data)
        if entry.kind != Kind.COMMAND:
            return Done(entry.index, events=tuple(events))
        try:
            command = decode_command(entry.data)
        except RemoteProtocolError:
            result = _refused("RejectedError", "bad_request", "expected a Command")
            return Done(entry.index, result=result, events=tuple(events))
        result = self._once(command, stamp, events)
        return Done(entry.index, command.session, command.sequence, result, tuple(events))

    def _wake(self, stamp: Stamp) -> list[tuple[int, object]]:
        events: list[tuple[int, object]] = []
        for number, machine in self._machines.items():
            due = machine.deadline()
            if due is not None and due <= stamp.time:
                events.extend((number, event) for event in machine.wake(stamp))
        return events

    def _once(self, command: Command, stamp: Stamp, events: list[tuple[int, object]]) -> bytes:
        """Apply a command unless it was; return its result (Ongaro, dissertation §6.3)."""
        if command.session == 0:
            return self._without_session(command, stamp, events)
        known = self._sessions.admit(command)
        if known is not None:
            return known
        return self._sessions.keep(command, self._perform(command, stamp, events))

    def _without_session(
        self, command: Command, stamp: Stamp, events: list[tuple[int, object]]
    ) -> bytes:
        """Open a session, or do what a leader says of its own and never repeats."""
        body = _system_command(command.body) if command.machine == SYSTEM else None
        if not isinstance(body, Open | Expire | Checkpoint):
            return _refused(
                "RejectedError", "bad_request", "expected a command within a session; open one"
            )
        return self._system(body, stamp, events)

    def _perform(self, command: Command, stamp: Stamp, events: list[tuple[int, object]]) -> bytes:
        if command.machine == SYSTEM:
            body = _system_command(command.body)
            if body is None:
                return _refused("RejectedError", "bad_request", "expected a command of machine 0")
            return self._system(body, stamp, events)
        machine = self._machines.get(command.machine)
        if machine is None:
            return _refused(
                "RejectedError",
                "unknown_machine",
                f"expected one of the machines {list(self._machines)}, found {command.machine}",
            )
        outcome = machine.apply(SessionId(command.session), command.body, stamp)
        events.extend((command.machine, event) for event in outcome.events)
        return outcome.result

    def _system(self, body: SystemCommand, stamp: Stamp, events: list[tuple[int, object]]) -> bytes:
        result: SystemResult
        match body:
            case Open():
                result, told = self._sessions.open(body, stamp)
            case Close(session):
                result, told = self._sessions.end((session,))
            case Expire(sessions):
                result, told = self._sessions.end(sessions)
            case Checkpoint():
                result, told = self._sessions.checkpoint(body)
        events.extend((SYSTEM, event) for event in told)
        ended = tuple(event.session for event in told if isinstance(event, SessionEnded))
        if ended:
            for number, machine in self._machines.items():
                events.extend((number, event) for event in machine.ended(ended, stamp))
        return encode(result)

    # Reads.

    def sessions(self) -> Mapping[SessionId, SessionInfo]:
        """Return all sessions by id, oldest first: a live view, read-only."""
        return self._sessions.infos

    def answer(self, session: SessionId, sequence: int) -> bytes | None:
        """Return what a command came to, for one that a snapshot overtook.

        Returns:
            Its kept result; `Refused` if its session has ended; None: not applied so far.
        """
        return self._sessions.answer(session, sequence)

    def deadline(self) -> int | None:
        """Return the log time [µs] at which a machine waits for an entry, any entry."""
        due = [at for machine in self._machines.values() if (at := machine.deadline()) is not None]
        return min(due, default=None)

    # Snapshots, digest, invariants.

    def freeze(self) -> list[bytes]:
        """Return the whole state as of now: a copy, in chunks. Cost: O(state)."""
        system = encode(
            _System(self.applied, self.time, self.configuration, self._sessions.freeze())
        )
        chunks = [
            encode(_Chunk(SYSTEM, SYSTEM_VERSION, payload))
            for payload in pieces(system, _PAYLOAD_MAX)
        ]
        for number, machine in self._machines.items():
            chunks.extend(
                encode(_Chunk(number, machine.version, payload))
                for chunk in machine.freeze()
                for payload in pieces(chunk, _PAYLOAD_MAX)
            )
        assert all(len(chunk) <= limits.SNAPSHOT_CHUNK for chunk in chunks)
        return chunks

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the whole state by a frozen one. A machine it does not name becomes empty.

        Raises:
            RemoteProtocolError: Not such chunks, or of a machine that this node lacks. The
                state is then not to be used.
        """
        parts: dict[int, list[_Chunk]] = {}
        for data in chunks:
            chunk = _decode_chunk(data)
            parts.setdefault(chunk.machine, []).append(chunk)
        for number, found in parts.items():
            if number != SYSTEM and number not in self._machines:
                raise RemoteProtocolError(
                    f"expected a snapshot of the machines {list(self._machines)}, found {number}; "
                    "register the same machines on every node"
                )
            if len({chunk.version for chunk in found}) != 1:
                raise RemoteProtocolError(f"expected one version of machine {number}, found many")
        system = _decode_system(b"".join(chunk.payload for chunk in parts.get(SYSTEM, [])))
        self._sessions.restore(system.sessions)
        for number, machine in self._machines.items():
            found = parts.get(number, [])
            version = found[0].version if found else machine.version
            machine.restore((chunk.payload for chunk in found), version)
        self.applied = system.index
        self.time = system.time
        self.configuration = system.configuration

    def restored(self) -> tuple[tuple[int, object], ...]:
        """Return what to tell each machine's listeners after `restore`."""
        return tuple((number, Restored(self.applied)) for number in (SYSTEM, *self._machines))

    def digest(self) -> int:
        """Return a number equal exactly where the states are. Cost: O(machines)."""
        digests = tuple(machine.digest() for machine in self._machines.values())
        system = (self.applied, self.time, self.configuration, self._sessions.digest())
        return xxh3(encode((system, tuple(self._machines), digests)))

    def check(self) -> None:
        """Assert all invariants, those of the machines too. Cost: O(state)."""
        assert list(self._machines) == sorted(self._machines)
        self._sessions.check()
        for machine in self._machines.values():
            if isinstance(machine, _Checked):
                machine.check()


def _system_command(body: bytes) -> SystemCommand | None:
    try:
        return decode_system_command(body)
    except RemoteProtocolError:
        return None


def _refused(error: str, reason: str, message: str) -> bytes:
    return encode(Refused(error, reason, message))
