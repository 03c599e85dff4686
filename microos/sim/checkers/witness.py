"""Histories against the one order that the committed log gives, and naive models of the machines.

The world knows the log, so it knows an order of all operations: linearizability needs no
search. Required is that every acknowledged result is what a naive model, which shares no
code with the machines, makes of the log in that order; and that no operation stands
before one that had returned before it began. A pass is a proof; O(n log n).

Locks are judged in true time as well: at the instant a grant is first applied anywhere, no
running owner before it may still believe in its own.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from microos.codec import encode
from microos.config import messages as config
from microos.config.machine import NUMBER as CONFIG
from microos.errors import MicroosError
from microos.raft.composite import SYSTEM, Done
from microos.raft.entry import Command, Entry, Kind, decode_command
from microos.raft.machine import Refused
from microos.raft.sessions import SessionEnded, SessionOpened
from microos.sim.clients import Agent, Operation
from microos.sim.clients import Kind as Asked
from microos.sim.world import World
from microos.sync.machine import NUMBER as SYNC
from microos.sync.messages import Freed, Grant, Lost, Queued, decode_answer
from microos.types import Index, Revision, Version


class Witness:
    """Follows the committed log; `final` judges the history by it.

    Args:
        agents: Every agent of a running process.
    """

    def __init__(self, world: World, agents: Callable[[], list[Agent]]) -> None:
        self._world = world
        self._agents = agents
        self._sessions: dict[int, None] = {}
        self._first: dict[tuple[int, int], tuple[Index, bytes | None]] = {}
        """Where each (session, sequence) took effect, and what a model says it came to."""
        self._versions: dict[str, list[tuple[Index, int]]] = {}
        """Of each document: (index, version), 0: absent."""
        self._documents: dict[bytes, Index] = {}
        self._present: dict[str, bool] = {}
        self._counts: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._last_token = 0
        self._owners: dict[str, tuple[int, int]] = {}
        self._queues: dict[str, list[tuple[int, int]]] = {}

    def _fail(self, kind: str, invariant: str, detail: str) -> None:
        self._world.fail(kind, invariant, detail)

    # Along the log, at the instant of each commit.

    def committed(self, entry: Entry, done: Done) -> None:
        for machine, event in done.events:
            if machine == SYSTEM:
                self._session_event(event)
        command = _command(entry)
        if command is not None and command.session:
            self._command(entry, command, done)
        for machine, event in done.events:
            if machine == SYNC:
                self._lock_event(event)

    def _session_event(self, event: object) -> None:
        if isinstance(event, SessionOpened):
            self._sessions[event.session] = None
        elif isinstance(event, SessionEnded):
            del self._sessions[event.session]
            for agent in self._agents():
                if agent.session == event.session and agent.is_sure():
                    self._fail(
                        "safety",
                        "sync.expired_early",
                        f"{agent.host.name} is sure of {event.session} until {agent.lease_until}",
                    )

    def _command(self, entry: Entry, command: Command, done: Done) -> None:
        """Exactly once (15): the first time counts, what comes after has no effect."""
        key = (command.session, command.sequence)
        if key in self._first or command.session not in self._sessions:
            if done.events:
                self._fail("safety", "exactly_once", f"{key} again at {entry.index}: {done.events}")
            return
        expected: bytes | None = None
        if command.machine == CONFIG:
            expected = self._change(entry.index, command.body)
        elif command.machine == SYNC and done.result is not None:
            self._queue(command, done.result)
        if expected is not None and not _agrees(expected, done.result):
            self._fail(
                "linearizability",
                "config.result",
                f"{key} at {entry.index}: expected {expected!r}, found {done.result!r}",
            )
        self._first[key] = (entry.index, done.result)

    def _change(self, index: Index, body: bytes) -> bytes:
        """A document in the naive model is a counter and whether it is there."""
        change = config.decode_command(body)
        count = self._counts.get(change.name, 0)
        there = self._present.get(change.name, False)
        wanted = change.if_version
        if wanted is not None and wanted != count and (wanted != 0 or there):
            return encode(Refused("ConflictError", "version", ""))
        if isinstance(change, config.Put):
            if change.document in self._documents:
                self._fail("safety", "exactly_once", f"{change.document!r} written twice")
            self._documents[change.document] = index
        elif not there:
            return encode(config.Written(Version(count), Revision(0)))
        self._present[change.name] = there = isinstance(change, config.Put)
        self._counts[change.name] = count + 1
        self._versions.setdefault(change.name, []).append((index, count + 1 if there else 0))
        return encode(config.Written(Version(count + 1), Revision(0)))

    # Locks.

    def _queue(self, command: Command, result: bytes) -> None:
        body = msgspec.msgpack.decode(command.body)
        name, owner = body[2], body[3]
        queue = self._queues.setdefault(name, [])
        me = (command.session, owner)
        if isinstance(decode_answer(result), Queued):
            if me not in queue:
                queue.append(me)
        elif me in queue:
            queue.remove(me)

    def _lock_event(self, event: object) -> None:
        match event:
            case Grant(_, name, session, owner, token):
                self._granted(name, (session, owner), token)
            case Freed(_, name, session, owner, _):
                if self._owners.pop(name, None) != (session, owner):
                    self._fail("safety", "sync.freed", f"{name} freed by no owner: {event}")
            case Lost(_, name, session, owner, token):
                queue = self._queues.get(name, [])
                if token:
                    self._owners.pop(name, None)
                elif (session, owner) in queue:
                    queue.remove((session, owner))
            case _:
                self._fail("simulator", "witness", f"unknown event {event}")

    def _granted(self, name: str, me: tuple[int, int], token: int) -> None:
        """Tokens rise (16), `lost` comes first (17), first come first served (18, 19)."""
        if token <= self._tokens.get(name, 0) or token < self._last_token:
            self._fail("safety", "sync.token", f"{name}: {token} after {self._last_token}")
        self._tokens[name] = self._last_token = token
        if name in self._owners:
            self._fail("safety", "sync.exclusion", f"{name} has owner {self._owners[name]}")
        self._owners[name] = me
        if me[0] not in self._sessions:
            self._fail("safety", "sync.dead_owner", f"{name} granted to ended session {me[0]}")
        queue = self._queues.setdefault(name, [])
        if queue:
            if queue[0] != me:
                self._fail("safety", "sync.fifo", f"{name}: {queue[0]} waits, {me} is served")
            queue.pop(0)
        for agent in self._agents():
            if agent.believes(name) and agent.session != me[0]:
                self._fail(
                    "safety",
                    "sync.lost_after_grant",
                    f"{agent.host.name} believes in {name} until {agent.lease_until}",
                )

    # The history.

    def final(self, history: list[Operation]) -> None:
        """Judge every operation that returned."""
        returned: list[tuple[int, int, Operation]] = []
        for operation in history:
            if operation.returned_ns is None:
                continue
            if operation.kind is Asked.READ:
                returned.append((operation.returned_ns, operation.index, operation))
                self._read(operation)
                continue
            first = self._first.get((operation.session, operation.sequence))
            if first is None:
                if not _is_refused(operation.result):
                    self._fail("linearizability", "answered_unapplied", f"{operation}")
                continue
            if not _is_refused(operation.result) and operation.result != first[1]:
                self._fail("linearizability", "result", f"{operation}, the log says {first}")
            returned.append((operation.returned_ns, first[0], operation))
        self._real_time(returned)

    def _real_time(self, returned: list[tuple[int, int, Operation]]) -> None:
        """No operation stands before one that had returned before it was called."""
        returned.sort(key=lambda r: r[0])
        calls = sorted(returned, key=lambda r: r[2].called_ns)
        highest, at = 0, 0
        for _, index, operation in calls:
            while at < len(returned) and returned[at][0] < operation.called_ns:
                highest = max(highest, returned[at][1])
                at += 1
            if index < highest:
                self._fail(
                    "linearizability",
                    "real_time",
                    f"{operation} stands at {index}, {highest} had been answered before",
                )

    def _read(self, operation: Operation) -> None:
        version = 0
        for index, found in self._versions.get(operation.name, ()):
            if index > operation.index:
                break
            version = found
        if version != operation.version:
            self._fail("linearizability", "read", f"{operation}, the log says {version}")


def _command(entry: Entry) -> Command | None:
    if entry.kind != Kind.COMMAND:
        return None
    try:
        return decode_command(entry.data)
    except MicroosError:
        return None


def _is_refused(result: bytes | None) -> bool:
    return result is not None and msgspec.msgpack.decode(result)[0] == 0


def _agrees(expected: bytes, found: bytes | None) -> bool:
    """Compare a result with the model's: class and version, or class and reason of a refusal."""
    if found is None:
        return False
    return bool(msgspec.msgpack.decode(expected)[:2] == msgspec.msgpack.decode(found)[:2])
