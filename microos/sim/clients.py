"""Simulated clients of one node in layer `cores`: sessions, config writes and reads, locks.

An agent is what a node's driver and its users are together: it opens a session, keeps it
alive at the leader, retries what was lost under the same (session, sequence), and runs a
few clients, each of which does one thing after another and records what came of it.
Unknown outcomes stay open to the end.

    client ─▶ command ─▶ pending ─▶ proposals ─▶ ... ─▶ applied ─▶ result ─▶ history

Keep-alives follow the three rules of `node/sessions.py`: acknowledged after a read round
only, never once an expiry is proposed, and the owner counts shorter than the leader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from math import inf

import msgspec

from microos.codec import Decoder, encode
from microos.config import machine as config
from microos.config.messages import Delete, Put
from microos.raft.composite import SYSTEM, Done
from microos.raft.core import Raft
from microos.raft.election import Role
from microos.raft.entry import Command
from microos.raft.sessions import Expire, Open, Opened, decode_system_result
from microos.sim.host import Host
from microos.sim.keeping import Proposing
from microos.sim.member import Member
from microos.sim.swarm import Config
from microos.sim.world import exponential
from microos.sync import machine as sync
from microos.sync.messages import Acquire, Cancel, Grant, Granted, Queued, Release, decode_answer
from microos.types import BootId, FencingToken, Index, NodeId, SessionId, Term

AGENT = b"A"
NAMESPACE = "sim"
PATIENCE = 5.0
"""How many election timeouts a client waits for an answer."""
DRIFT_MAX = 0.10
KEPT_ALIVE = 4
"""Keep-alives per ttl."""


class KeepAlive(msgspec.Struct, frozen=True, array_like=True, tag=1):
    session: SessionId
    number: int


class KeepAliveAnswer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    session: SessionId
    number: int


_decode: Decoder[KeepAlive | KeepAliveAnswer] = Decoder(KeepAlive | KeepAliveAnswer)


class Kind(IntEnum):
    """What a client asked for."""

    PUT = 1
    DELETE = 2
    READ = 3
    ACQUIRE = 4
    RELEASE = 5
    CANCEL = 6
    RING = 7


class Operation(msgspec.Struct):
    """One line of the history."""

    kind: Kind
    client: str
    name: str
    called_ns: int
    session: SessionId = SessionId(0)
    sequence: int = 0
    returned_ns: int | None = None
    """None: unknown to the end."""
    result: bytes | None = None
    index: Index = Index(0)
    """Of a read: what was applied when it was answered."""
    version: int = 0
    """Of a read: the version of the document, 0 if there was none."""


class _Pending:
    __slots__ = ("data", "deadline", "done", "retry_at")

    def __init__(self, data: bytes, deadline: float, done: Callable[[bytes | None], None]) -> None:
        self.data = data
        self.deadline = deadline
        self.retry_at = -inf
        self.done = done


class Agent:
    """All clients of one boot of one node."""

    def __init__(
        self, host: Host, member: Member, drawn: Config, history: list[Operation], stop_ns: int
    ) -> None:
        self.host = host
        self.member = member
        self.session = SessionId(0)
        self.lease_until = -inf
        """Until when the session is certainly ours, on the node's clock [s]."""
        self.held: dict[str, tuple[int, FencingToken]] = {}
        """Locks that we believe to own: (owner number, token)."""
        self._drawn = drawn
        self._history = history
        self._stop = stop_ns
        self._world = host.world
        self._chance = host.random("clients")
        self._patience = PATIENCE * drawn.raft.election_timeout_max
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._due: list[_Pending] = []
        self._sequence = 0
        self._open_sequences: dict[int, None] = {}
        self._context = 0
        self._reads: dict[int, Callable[[bool], None]] = {}
        self._asked: dict[int, float] = {}
        self._owner = 0
        self._waiting: dict[tuple[str, int], Callable[[FencingToken | None], None]] = {}
        # As leader.
        self._leading: Term | None = None
        self._heard: dict[SessionId, float] = {}
        self._expiring: dict[SessionId, None] = {}
        self._swept = -inf
        self.proposing: Proposing | None = None
        """What this member proposes for the ring while it leads."""
        member.listener = self
        self._later(self._think(), self._open)

    # Sessions.

    def _open(self) -> None:
        sent = self._now()
        body = Open(self._drawn.ttl, self.host.id, BootId(self.host.boot), False)
        nonce = self._chance.getrandbits(60)
        command = Command(SYSTEM, 0, nonce, 0, encode(body))

        def done(result: bytes | None) -> None:
            opened = None if result is None else decode_system_result(result)
            if not isinstance(opened, Opened):
                self._later(self._think(), self._open)
                return
            self.session = opened.session
            self._sequence = 0
            self._open_sequences.clear()
            self.held.clear()
            # From the sending on: the leader counts from when it applied the opening.
            self.lease_until = sent + self._lease()
            self._keep_alive(opened.session)
            for number in range(self._drawn.clients):
                self._later(self._think(), lambda n=number: self._next(n, opened.session))  # type: ignore[misc]

        self._submit(command, done)

    def _lease(self) -> float:
        return self._drawn.ttl * (1 - DRIFT_MAX)

    def _keep_alive(self, session: SessionId) -> None:
        if self.session != session or self._world.now >= self._stop + self._stop // 4:
            return
        if self._lost():
            return
        raft = self.member.raft
        if raft is not None and raft.leader is not None:
            number = self._chance.getrandbits(60)
            self._asked[number] = self._now()
            while len(self._asked) > 2 * KEPT_ALIVE:
                del self._asked[next(iter(self._asked))]
            self._say(raft.leader, KeepAlive(session, number))
        wait = self._drawn.ttl / KEPT_ALIVE
        self._later(int(wait * 1e9), lambda: self._keep_alive(session))

    def _lost(self) -> bool:
        """Return whether the session is over in our eyes; if so, begin anew."""
        if self.session and self._now() >= self.lease_until:
            self.host.note("client", "SessionLost")
            self._lose()
        return not self.session

    def _lose(self) -> None:
        if self.held:
            self._world.sometimes("client.lock_lost_under_owner")
        self.session = SessionId(0)
        self.held.clear()
        for told in list(self._waiting.values()):
            told(None)
        self._waiting.clear()
        self._later(self._think(), self._open)

    def believes(self, name: str) -> bool:
        """Return whether a running owner here would act on its lock at this instant."""
        return name in self.held and self.is_sure()

    def is_sure(self) -> bool:
        return self._now() < self.lease_until and not self.host.gate.paused

    # One client: one operation after another.

    def _next(self, number: int, session: SessionId) -> None:
        if self._lost() or self.session != session or self._world.now >= self._stop:
            return
        client = f"{self.host.name}.{self.host.boot}.{number}"
        dice = self._chance.randrange(10)
        name = f"k{self._chance.randrange(self._drawn.keys)}"

        def again() -> None:
            self._later(self._think(), lambda: self._next(number, session))

        if dice < 4:
            self._put(client, name, again)
        elif dice < 5:
            delete = Delete(NAMESPACE, name, if_version=self._version(name) or None)
            self._do(Kind.DELETE, client, name, config.NUMBER, encode(delete), again)
        elif dice < 7:
            self._read(client, name, again)
        else:
            lock = f"l{self._chance.randrange(self._drawn.locks)}"
            self._lock(client, lock, self._chance.random() < 0.7, again)

    def _put(self, client: str, name: str, again: Callable[[], None]) -> None:
        """Write a value never written before, half of the time only over what we know."""
        document = encode([client, self._sequence, self._world.now])
        known = self._version(name) if self._chance.random() < 0.5 else None
        body = encode(Put(NAMESPACE, name, document, known, client))
        self._do(Kind.PUT, client, name, config.NUMBER, body, again)

    def _version(self, name: str) -> int:
        found = self.member.config.get(NAMESPACE, name)
        return 0 if found is None else found.version

    def _do(
        self,
        kind: Kind,
        client: str,
        name: str,
        machine: int,
        body: bytes,
        then: Callable[[], None],
        told: Callable[[bytes | None], None] | None = None,
    ) -> None:
        """Submit a command within the session and record it."""
        self._sequence += 1
        sequence = self._sequence
        self._open_sequences[sequence] = None
        answered = next(iter(self._open_sequences)) - 1
        operation = Operation(kind, client, name, self._world.now, self.session, sequence)
        self._history.append(operation)
        session = self.session

        def done(result: bytes | None) -> None:
            if result is not None:
                operation.returned_ns = self._world.now
                operation.result = result
                self._world.trace("answer", client, name, result)
                self.host.trigger("answer")
            if self.session == session:
                self._open_sequences.pop(sequence, None)
            if told is not None:
                told(result)
            then()

        # What gives something back is not given up: it would be lost as long as the session lives.
        stubborn = kind in (Kind.RELEASE, Kind.CANCEL)
        self._submit(Command(machine, session, sequence, answered, body), done, stubborn=stubborn)

    def _read(self, client: str, name: str, again: Callable[[], None]) -> None:
        """Read what is newest: behind a read index."""
        operation = Operation(Kind.READ, client, name, self._world.now)
        self._history.append(operation)

        def done(ready: bool) -> None:
            if ready:
                operation.returned_ns = self._world.now
                operation.index = self.member.machines.applied
                operation.version = self._version(name)
            again()

        self._barrier(done)

    def _lock(self, client: str, name: str, wait: bool, again: Callable[[], None]) -> None:
        """Take a lock, hold it for a while, give it back."""
        self._owner += 1
        owner = self._owner
        session = self.session

        def granted(token: FencingToken | None) -> None:
            self._waiting.pop((name, owner), None)
            if token is None or self.session != session or self._lost():
                again()
                return
            if name in self.held:
                again()  # Ours already, by another client of this node: cannot be.
                self._world.fail("safety", "sync.exclusion", f"{client} has {name} twice")
                return
            self.held[name] = (owner, token)
            self._later(self._think(), release)

        def release() -> None:
            if self.session != session or self._lost():
                again()
                return
            token = self.held.pop(name)[1]
            body = encode(Release(NAMESPACE, name, owner, token))
            self._do(Kind.RELEASE, client, name, sync.NUMBER, body, again)

        def give_up() -> None:
            if (name, owner) not in self._waiting or self.session != session:
                return
            del self._waiting[name, owner]
            body = encode(Cancel(NAMESPACE, name, owner))
            self._do(Kind.CANCEL, client, name, sync.NUMBER, body, again)

        def asked(result: bytes | None) -> None:
            if result is None:
                return  # It may have been granted: `Cancel` will tell.
            answer = decode_answer(result)
            if (name, owner) not in self._waiting or isinstance(answer, Queued):
                return
            granted(answer.token if isinstance(answer, Granted) else None)

        self._waiting[name, owner] = granted
        self._later(int(self._patience * 1e9), give_up)
        body = encode(Acquire(NAMESPACE, name, owner, wait))
        self._do(Kind.ACQUIRE, client, name, sync.NUMBER, body, _nothing, asked)

    # Commands on their way.

    def submit(self, machine: int, body: bytes, told: Callable[[bytes | None], None]) -> None:
        """Commit a command of the node's own; None is told if nobody knows what became of it."""
        if self._lost():
            told(None)
            return
        client = f"{self.host.name}.{self.host.boot}.node"
        self._do(Kind.RING, client, "ring", machine, body, _nothing, told)

    def _submit(
        self, command: Command, done: Callable[[bytes | None], None], *, stubborn: bool = False
    ) -> None:
        deadline = inf if stubborn else self._now() + self._patience
        pending = _Pending(encode(command), deadline, done)
        self._pending[command.session, command.sequence] = pending
        self.member.soon()

    def proposals(self, now: float) -> Sequence[bytes]:
        for key, pending in list(self._pending.items()):
            if pending.deadline <= now:
                del self._pending[key]
                pending.done(None)
        self._due = [p for p in self._pending.values() if p.retry_at <= now]
        return [p.data for p in self._due]

    def proposed(self, taken: bool, now: float) -> None:
        timeout = self._drawn.raft.election_timeout_max
        for pending in self._due:
            pending.retry_at = now + (timeout if taken else timeout / 8)

    def deadline(self) -> float:
        due = inf
        for pending in self._pending.values():
            due = min(due, pending.deadline, pending.retry_at)
        return due if self.proposing is None else min(due, self.proposing.deadline)

    def applied(self, done: Done) -> None:
        """Take in what an entry came to on this node."""
        if done.result is not None:
            pending = self._pending.pop((done.session, done.sequence), None)
            if pending is not None:
                pending.done(done.result)
        for machine, event in done.events:
            if machine == sync.NUMBER and isinstance(event, Grant):
                self._told_of_grant(event.name, event.session, event.owner, event.token)

    def restored(self) -> None:
        """A snapshot has overtaken entries: find out what became of ours."""
        for (session, sequence), pending in list(self._pending.items()):
            result = self.member.machines.answer(SessionId(session), sequence) if session else None
            if result is not None:
                del self._pending[session, sequence]
                pending.done(result)
        for info in self.member.locks.locks():
            self._told_of_grant(info.name, info.session, info.owner, info.token)

    def _told_of_grant(self, name: str, session: int, owner: int, token: FencingToken) -> None:
        if session == self.session and session:
            waiting = self._waiting.get((name, owner))
            if waiting is not None:
                waiting(token)

    # Reads.

    def _barrier(self, done: Callable[[bool], None]) -> None:
        raft = self.member.raft
        if raft is None:
            done(False)
            return
        self._context += 1
        self._reads[self._context] = done
        raft.read(self._context, self._now())
        self.member.soon()

    def readable(self, context: int) -> None:
        self._reads.pop(context)(True)

    def dropped(self, context: int) -> None:
        self._reads.pop(context)(False)

    # Keep-alives, as owner and as leader.

    def receive(self, body: bytes, sender: NodeId) -> None:
        message = _decode(body)
        match message:
            case KeepAliveAnswer(session, number):
                sent = self._asked.pop(number, None)
                if sent is not None and session == self.session and not self._lost():
                    self.lease_until = max(self.lease_until, sent + self._lease())
            case KeepAlive(session, _):
                if self._leading is not None:
                    self._confirm(message, sender, self._now(), self._leading)

    def _confirm(self, message: KeepAlive, sender: NodeId, arrived: float, term: Term) -> None:
        session = message.session

        def done(ready: bool) -> None:
            if not ready or self._leading != term or session in self._expiring:
                return
            if session in self.member.machines.sessions():
                self._heard[session] = max(self._heard.get(session, -inf), arrived)
                self._say(sender, KeepAliveAnswer(session, message.number))

        self._barrier(done)

    def _say(self, to: NodeId, message: KeepAlive | KeepAliveAnswer) -> None:
        if to == self.host.id:
            self.receive(encode(message), to)
        else:
            self.host.send(to, AGENT + encode(message))

    def turned(self, raft: Raft) -> None:
        """As leader, judge the sessions: those silent for their ttl end by the log."""
        now = self._now()
        leads = (
            raft.role is Role.LEADER and raft.log.term(self.member.machines.applied) == raft.term
        )
        if self.proposing is not None:
            self.proposing.turned(leads, self.member.machines.configuration)
        if not leads:
            self._leading = None
            return
        if self._leading != raft.term:
            self._leading = raft.term
            self._heard, self._expiring = {}, {}
            self._swept = now
        if now < self._swept + self._drawn.ttl / 8:
            return
        self._swept = now
        due: list[SessionId] = []
        for session, info in self.member.machines.sessions().items():
            heard = self._heard.setdefault(session, now)
            if now >= heard + info.ttl and session not in self._expiring:
                due.append(session)
        if due:
            nonce = self._chance.getrandbits(60)
            command = Command(SYSTEM, 0, nonce, 0, encode(Expire(tuple(due))))
            raft.propose([encode(command)], now, leader_only=True)
            self._expiring.update(dict.fromkeys(due))
            self._world.sometimes("client.session_expired")
            self.member.soon()

    # Time.

    def _now(self) -> float:
        return self.host.line.now()

    def _think(self) -> int:
        return 1 + exponential(self._chance.getrandbits(64), self._drawn.think_ns)

    def _later(self, delay: int, fn: Callable[[], None]) -> None:
        gate = self.host.gate
        self._world.after(delay, lambda: gate(fn))


def _nothing() -> None:
    pass
