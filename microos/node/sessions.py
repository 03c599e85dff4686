"""Sessions: a node's registrations in the log, kept alive by their owner, ended by the leader.

A session makes commands exactly once and carries leases. Both sides count its
ttl on their own monotonic clock, and the owner counts shorter:

    owner    sent ──────────────── ttl·(1 − drift) − margin ─▶ lost: bodies cancelled
    leader        arrived ────────────────────────── ttl ────▶ Expire goes into the log

so the owner has stopped before anyone else can be given what it held, as long as
two clocks differ by less than `clock_drift_max`. Three rules carry this:

- The leader acknowledges a keep-alive only after a round of heartbeats that began
  after it arrived: a deposed leader acknowledges none.
- From the moment an expiry is proposed, no keep-alive of that session is acknowledged.
- `lost` is sticky and looked at before an acknowledgement is believed.

A new leader gives every session its full ttl from its own first commit, unless
the last one wrote down that the session was silent already (a checkpoint): so
failovers cannot keep a dead session alive for ever. A session with a checkpoint
is acknowledged again only after the checkpoint has been cleared in the log.
Gossip's suspicions neither end nor extend a session.

Source: Ongaro, dissertation §6.3; Burrows, "The Chubby lock service" (OSDI 2006) §2.8.
"""

from collections.abc import Callable
from math import inf
from typing import Annotated

import msgspec
import trio

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import NoQuorumError, by_name
from microos.node.consensus import Consensus
from microos.node.runtime import Runtime
from microos.raft.composite import Machines
from microos.raft.entry import Command
from microos.raft.machine import Refused
from microos.raft.sessions import (
    Checkpoint,
    Expire,
    Open,
    Opened,
    SessionChanged,
    SessionEnded,
    SessionOpened,
    decode_system_result,
)
from microos.settings import RaftSettings
from microos.types import BootId, NodeId, SessionId, Term
from microos.wire import Channel

MARGIN = 0.05
"""The owner stops this much before its count is up: time for the body to end [s]."""

_Ids = Annotated[tuple[SessionId, ...], msgspec.Meta(max_length=limits.SESSION_WINDOW)]


class KeepAlive(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """These sessions are wanted; answered by the leader alone."""

    number: int
    sessions: _Ids


class KeepAliveAnswer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    number: int
    renewed: _Ids
    gone: _Ids
    """Not in the log any more."""


_decode: Decoder[KeepAlive | KeepAliveAnswer] = Decoder(KeepAlive | KeepAliveAnswer)


class Session:
    """One session of this node, as its owner sees it."""

    def __init__(
        self, id: SessionId, ttl: float, deadline: float, now: Callable[[], float]
    ) -> None:
        self.id = id
        self.ttl = ttl
        self.deadline = deadline
        """Until when it is certainly ours, on the node's clock [s]."""
        self._now = now
        self._ended = ""
        self._sequence = 0
        self._open: dict[int, None] = {}
        self._on_lost: dict[int, Callable[[], None]] = {}
        self._watchers = 0
        self.freed = trio.Event()

    @property
    def lost(self) -> str:
        """Why it ended (`expired`, `revoked`), or nothing while it lives. Sticky."""
        if not self._ended and self._now() >= self.deadline:
            self.end("expired")
        return self._ended

    def renew(self, deadline: float) -> None:
        """Move the deadline, unless the session is lost already."""
        if not self.lost:
            self.deadline = max(self.deadline, deadline)

    def end(self, why: str) -> None:
        """Lose the session for good and tell those who hold something by it."""
        if self._ended:
            return
        self._ended = why
        for told in list(self._on_lost.values()):
            told()

    def on_lost(self, told: Callable[[], None]) -> Callable[[], None]:
        """Call `told` once when the session is lost, at once if it is; return what undoes it."""
        self._watchers += 1
        number = self._watchers
        self._on_lost[number] = told
        if self.lost:
            told()

        def undo() -> None:
            self._on_lost.pop(number, None)

        return undo

    # Exactly once: sequences, and how far they have been answered.

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def begin(self) -> int:
        """Return the next sequence number."""
        self._sequence += 1
        self._open[self._sequence] = None
        return self._sequence

    def finish(self, sequence: int) -> None:
        """Take note that a sequence will not be asked for again."""
        del self._open[sequence]
        self.freed.set()
        self.freed = trio.Event()

    @property
    def answered(self) -> int:
        """All sequences up to this one are answered: what the machines may forget."""
        return next(iter(self._open), self._sequence + 1) - 1


class Sessions:
    """All sessions of one node, and, while it leads, the deadlines of everybody's."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        settings: RaftSettings,
        consensus: Consensus,
        machines: Machines,
        node: NodeId,
        boot: BootId,
        send: Callable[[NodeId, Channel, bytes], bool],
    ) -> None:
        self._runtime = runtime
        self._clock = runtime.clock
        self._settings = settings
        self._consensus = consensus
        self._machines = machines
        self._node = node
        self._boot = boot
        self._send = send

        self._own: dict[float, Session] = {}
        self._opening: dict[float, trio.Lock] = {}
        self._number = 0
        self._sent: dict[int, float] = {}
        self._hurry = trio.Event()
        self._opened = trio.Event()

        self._term = Term(0)
        self._leading = False
        self._deadlines: dict[SessionId, float] = {}
        self._unsettled: dict[SessionId, None] = {}
        self._deadlines_moved = trio.Event()
        self._nursery: trio.Nursery | None = None

    # The owner's side.

    async def get(self, ttl: float, deadline: float) -> Session:
        """Return this node's session of that ttl, opening one if there is none.

        Raises:
            NoQuorumError, UncertainError, OverloadedError: It could not be opened in time.
        """
        session = self._own.get(ttl)
        if session is not None and not session.lost:
            return session
        lock = self._opening.setdefault(ttl, trio.Lock())
        with self._clock.timeout_at(deadline) as scope:
            async with lock:
                session = self._own.get(ttl)
                if session is None or session.lost:
                    session = await self._open(ttl, deadline)
                    self._own[ttl] = session
                    self._hurry.set()
                    self._opened.set()
                return session
        assert scope.cancelled_caught
        raise NoQuorumError(f"no session could be opened in time: {self._consensus.reason()}")

    async def _open(self, ttl: float, deadline: float) -> Session:
        sent = self._clock.now()
        nonce = self._runtime.random("sessions").randrange(1 << 62)
        body = encode(Open(ttl=ttl, node=self._node, boot=self._boot))
        answer = await self._consensus.submit(Command(0, 0, nonce, 0, body), deadline)
        match decode_system_result(answer):
            case Opened(session):
                return Session(session, ttl, self._until(sent, ttl), self._clock.now)
            case Refused(kind, reason, message):
                raise by_name(kind, message, reason)
            case other:
                raise AssertionError(f"expected an answer to open, found {other!r}")

    def _until(self, sent: float, ttl: float) -> float:
        return sent + ttl * (1.0 - self._settings.clock_drift_max) - MARGIN

    async def submit(self, machine: int, body: bytes, session: Session, deadline: float) -> bytes:
        """Commit one command exactly once under a session; return the machine's answer."""
        while session.in_flight >= limits.SESSION_WINDOW // 2:
            with self._clock.timeout_at(deadline) as scope:
                await session.freed.wait()
            if scope.cancelled_caught:
                raise NoQuorumError(f"not sent: {self._consensus.reason()}")
        sequence = session.begin()
        try:
            command = Command(machine, session.id, sequence, session.answered, body)
            return await self._consensus.submit(command, deadline)
        finally:
            session.finish(sequence)

    def hurry(self) -> None:
        """Renew now: there is a new leader."""
        self._hurry.set()

    async def run(self) -> None:
        """Keep this node's sessions alive and, as leader, end those of the silent."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_alive)
            nursery.start_soon(self._watch_own)

    async def _keep_alive(self) -> None:
        """Renew what is due, all in one message; again after E/2 while nobody answers."""
        while True:
            hurried = self._hurry.is_set()
            self._hurry = trio.Event()
            now = self._clock.now()
            live = [s for s in self._own.values() if not s.lost]
            if live and (hurried or any(self._due_at(s) <= now for s in live)):
                self._renew(tuple(s.id for s in live))
            pause = self._settings.election_timeout_max / 2
            at = min((max(self._due_at(s), now + min(s.ttl / 3, pause)) for s in live), default=inf)
            with self._clock.timeout_at(at):
                await self._hurry.wait()

    def _due_at(self, session: Session) -> float:
        """Return when a third of the ttl has passed since the keep-alive answered last."""
        return session.deadline - self._until(0.0, session.ttl) + session.ttl / 3

    def _renew(self, ids: tuple[SessionId, ...]) -> None:
        self._number += 1
        self._sent[self._number] = self._clock.now()
        while len(self._sent) > 64:
            del self._sent[next(iter(self._sent))]
        message = KeepAlive(self._number, ids)
        leader = self._consensus.leader
        if leader == self._node:
            self._arrived(message, self._node)
        elif leader:
            self._send(leader, Channel.SESSION, encode(message))

    async def _watch_own(self) -> None:
        """Lose a session the moment its deadline passes, whoever looks."""
        while True:
            self._opened = trio.Event()
            live = [s for s in self._own.values() if not s.lost]
            at = min((s.deadline for s in live), default=inf)
            with self._clock.timeout_at(at):
                await self._opened.wait()

    def receive(self, body: bytes, sender: NodeId) -> None:
        """Take in one frame of the session channel.

        Raises:
            RemoteProtocolError: The frame breaks the protocol.
        """
        message = _decode(body)
        match message:
            case KeepAlive():
                self._arrived(message, sender)
            case KeepAliveAnswer():
                self._answered(message)

    def _answered(self, answer: KeepAliveAnswer) -> None:
        sent = self._sent.pop(answer.number, None)
        if sent is None:
            return
        for session in self._own.values():
            if session.id in answer.renewed:
                session.renew(self._until(sent, session.ttl))
            elif session.id in answer.gone:
                session.end("expired")

    def told(self, event: object) -> None:
        """Take note of what the log says of sessions."""
        match event:
            case SessionOpened(session, info):
                if self._leading:
                    self._deadlines[session] = self._clock.now() + info.ttl
                    self._deadlines_moved.set()
            case SessionChanged(session):
                self._unsettled.pop(session, None)
            case SessionEnded(session):
                self._deadlines.pop(session, None)
                self._unsettled.pop(session, None)
                self._lose(session)

    def restored(self) -> None:
        """Take note that the log's state was replaced: sessions may have ended unseen."""
        known = self._machines.sessions()
        for session in list(self._own.values()):
            if session.id not in known:
                self._lose(session.id)

    def _lose(self, id: SessionId) -> None:
        for session in self._own.values():
            if session.id == id:
                session.end("expired")

    # The leader's side.

    def lead(self, term: Term) -> None:
        """Begin to count everybody's deadlines: this node leads `term` now."""
        self._term = term
        self._leading = False
        self._deadlines.clear()
        self._unsettled.clear()
        assert self._nursery is not None
        self._nursery.start_soon(self._lead, term)

    async def _lead(self, term: Term) -> None:
        if not await self._confirm(term):
            return
        now = self._clock.now()
        for id, info in self._machines.sessions().items():
            left = info.ttl if info.checkpoint is None else info.checkpoint
            self._deadlines[id] = now + left
        self._leading = True
        while self._consensus.leads(term):
            await self._sleep_until_due()
            if (self._due() or self._silent()) and await self._confirm(term):
                # What was due before the wait may have been renewed during it: look again.
                self._expire(self._due())
                self._checkpoint(self._silent())
        if self._term == term:
            self._leading = False

    async def _confirm(self, term: Term) -> bool:
        """Return whether a majority confirms, by a round that begins now, that we lead `term`."""
        while self._consensus.leads(term):
            try:
                until = self._clock.now() + self._settings.election_timeout_max
                await self._consensus.barrier(until)
            except NoQuorumError:
                continue
            return self._consensus.leads(term)
        return False

    async def _sleep_until_due(self) -> None:
        known = self._machines.sessions()
        ends = [d for id, d in self._deadlines.items() if id not in self._unsettled]
        silences = [
            self._deadlines[id] - info.ttl / 2
            for id, info in known.items()
            if info.checkpoint is None and id in self._deadlines and id not in self._unsettled
        ]
        # Leadership may end while nothing is due; look now and then.
        far = self._clock.now() + 10 * self._settings.election_timeout_max
        at = min([far, *ends, *silences])
        self._deadlines_moved = trio.Event()
        with self._clock.timeout_at(at):
            await self._deadlines_moved.wait()
        late = self._clock.now() - at
        if late > self._settings.heartbeat_interval:
            # We were away: the silence of others is not their fault.
            for id in self._deadlines:
                self._deadlines[id] += late

    def _due(self) -> tuple[SessionId, ...]:
        """Return the sessions whose time is over."""
        now = self._clock.now()
        return tuple(
            id for id, d in self._deadlines.items() if d <= now and id not in self._unsettled
        )[: limits.SESSION_WINDOW]

    def _silent(self) -> tuple[SessionId, ...]:
        """Return the sessions that have been silent for half their time, not yet written down."""
        now = self._clock.now()
        return tuple(
            id
            for id, info in self._machines.sessions().items()
            if info.checkpoint is None
            and id not in self._unsettled
            and self._deadlines.get(id, inf) - info.ttl / 2 <= now
        )[: limits.SESSION_WINDOW]

    def _expire(self, due: tuple[SessionId, ...]) -> None:
        if due and self._write_down(Expire(due)):
            self._unsettled.update(dict.fromkeys(due))

    def _checkpoint(self, silent: tuple[SessionId, ...]) -> None:
        now = self._clock.now()
        for id in silent:
            left = max(0.0, self._deadlines[id] - now)
            if self._write_down(Checkpoint(id, min(left, self._machines.sessions()[id].ttl))):
                self._unsettled[id] = None

    def _write_down(self, judgement: Expire | Checkpoint) -> bool:
        """Propose a leader's judgement, here and in this term or not at all."""
        nonce = self._runtime.random("sessions").randrange(1 << 62)
        return self._consensus.propose_as_leader(Command(0, 0, nonce, 0, encode(judgement)))

    def _arrived(self, message: KeepAlive, sender: NodeId) -> None:
        if self._leading and self._nursery is not None:
            arrival = self._clock.now()
            self._nursery.start_soon(self._acknowledge, message, sender, arrival, self._term)

    async def _acknowledge(
        self, message: KeepAlive, sender: NodeId, arrival: float, term: Term
    ) -> None:
        if not await self._confirm(term):
            return
        known = self._machines.sessions()
        gone = tuple(id for id in message.sessions if id not in known)
        heard = [id for id in message.sessions if id in known and id not in self._unsettled]
        renewed = tuple(id for id in heard if known[id].checkpoint is None)
        for id in renewed:
            until = arrival + known[id].ttl
            self._deadlines[id] = max(self._deadlines.get(id, -inf), until)
        for id in heard:
            if known[id].checkpoint is not None and self._write_down(Checkpoint(id, None)):
                self._unsettled[id] = None
        answer = KeepAliveAnswer(message.number, renewed, gone)
        if sender == self._node:
            self._answered(answer)
        else:
            self._send(sender, Channel.SESSION, encode(answer))
