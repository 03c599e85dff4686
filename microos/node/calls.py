"""Calls over the links: one attempt at one node, and the serving of theirs.

    attempt ─▶ post ─▶ Connection (rpc/core) ─▶ links ─▶ ... ─▶ Connection ─▶ handler
       ▲                    │ Answered, Failed                       │ inline: at once
       └────── done ◀───────┘                                        └ else: a task of its own

There is one connection per process at the other end, whatever links carry it. A call to
this node itself goes through a pair of connections too: the same deadlines, refusals and
copies of what is said, without a frame on any wire.

Liberties of the data plane (`house.md` 1.9): no task, scope or channel per call at the
caller, deadlines in one place, requests of our own that cannot wait answered by the reader
that brought them. A user's handler gets its task, and its scope is cancelled from here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from math import inf
from types import MappingProxyType

import msgspec
import trio

from microos import limits
from microos.clock import Clock
from microos.errors import (
    MicroosError,
    RejectedError,
    RemoteError,
    RemoteProtocolError,
    UnavailableError,
    UncertainError,
)
from microos.node.alarm import Alarm
from microos.node.statistics import QueueStatistics
from microos.rpc.core import Connection
from microos.rpc.effects import NOTHING, Answered, Cancelled, Failed, Loaded
from microos.rpc.effects import Incoming as Arrived
from microos.rpc.messages import Load, Reply
from microos.types import BootId, NodeId

DRAINING = 1
"""Flag of a `Load`: this node takes no more calls of services."""

NO_METADATA: Mapping[str, str] = MappingProxyType({})

Send = Callable[[NodeId, Sequence[bytes], bool], int]
"""Gives frames to the links, bulk or not; returns how many of the first were taken."""

Outcome = Reply | MicroosError


class Incoming(msgspec.Struct, frozen=True):
    """A call, as its handler gets it."""

    endpoint: str
    body: bytes
    caller: NodeId
    deadline: float
    """On this node's clock [s]."""
    attempt: int
    metadata: Mapping[str, str]


Handler = Callable[[Incoming], Awaitable[bytes]]


class Later:
    """How an inline handler answers a request that it could not answer at once."""

    __slots__ = ("_calls", "_id", "_peer")

    def __init__(self, calls: Calls, peer: _Peer, id: int) -> None:
        self._calls = calls
        self._peer = peer
        self._id = id

    def __call__(self, body: bytes) -> None:
        self._peer.connection.answer(self._id, body, None)
        self._calls._pump(self._peer)


TOGETHER_FROM = 4
"""With less under way than this nothing waits for the turn of the loop to end."""

TOGETHER_MAX = 8
"""When so much has gathered it leaves: the other end should not be idle meanwhile."""

Inline = Callable[[bytes, NodeId, Later], bytes | None]
"""Takes (body, caller, how to answer later); returns the answer, or None if it comes later."""


class _Peer:
    """One node, its connection, and what waits on either side of it."""

    def __init__(self, node: NodeId, ids: count[int]) -> None:
        self.node = node
        self.boot: BootId | None = None
        """Whose process it is; None until a link or a frame tells."""
        self.connection = Connection(ids)
        self.linked = False
        self.early: list[bytes] = []
        """Frames given to the links while there was none: if the dial fails, nothing happened."""
        self.waiting: dict[int, Callable[[Outcome], None]] = {}
        self.scopes: dict[int, trio.CancelScope] = {}
        self.other: _Peer | None = None
        """The other end, if it is in this process."""
        self.pumping = False
        self.gathered = 0
        """How much was begun or answered since it was last pumped, and waits for that."""


class Calls:
    """All calls of one node, both ways.

    Args:
        send: Gives frames to the links.
        observe: Told what handlers of our own raise: (source, note).
    """

    def __init__(
        self,
        *,
        clock: Clock,
        send: Send,
        observe: Callable[[str, object], None],
    ) -> None:
        self._clock = clock
        self._send = send
        self._observe = observe
        self._ids = count(1)
        self._peers: dict[NodeId, _Peer] = {}
        self._handlers: dict[str, Handler] = {}
        self._inline: dict[str, Inline] = {}
        self._running: dict[str, int] = {}
        """Handlers under way, by service."""
        self._nursery: trio.Nursery | None = None
        self._idle = trio.Event()
        self._gathered: dict[_Peer, None] = {}
        """Whose connections want to be pumped when this turn of the loop ends."""
        self._has_gathered = trio.Event()
        self._next = inf
        self._alarm = Alarm(clock, lambda: self._next, self._wake)
        self.draining = False
        self.refused = 0

    def open(self, me: NodeId) -> None:
        """Say who this node is: calls to it stay in the house."""
        here, there = _Peer(me, self._ids), _Peer(me, self._ids)
        here.other, there.other = there, here
        self._peers[me] = here

    # Serving.

    def serve(self, endpoint: str, handler: Handler) -> None:
        """Let `handler` answer calls of `endpoint`, each in a task of its own.

        What it raises of our errors reaches the caller as it is; anything else as RemoteError.
        """
        assert endpoint not in self._handlers
        self._handlers[endpoint] = handler

    def serve_inline(self, endpoint: str, handler: Inline) -> None:
        """Let `handler` answer requests of our own at once: it is bounded and never waits."""
        assert endpoint not in self._inline
        self._inline[endpoint] = handler

    # Calling.

    def post(
        self,
        node: NodeId,
        endpoint: str,
        body: bytes,
        deadline: float,
        done: Callable[[Outcome], None],
        *,
        attempt: int = 1,
        metadata: Mapping[str, str] | None = None,
        gather: bool = False,
    ) -> Callable[[], None]:
        """Make one attempt without waiting for it; return what cancels it.

        Args:
            deadline: On this node's clock [s].
            done: Called once with the reply or the error, unless cancelled; perhaps before
                this returns.
            gather: Under load it may wait for the end of the loop's turn, and travel with others.

        Cost:
            About 3 µs, and 3 µs for the answer.
        """
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = _Peer(node, self._ids)
        try:
            id = peer.connection.call(
                endpoint,
                body,
                deadline=deadline,
                now=self._clock.now(),
                attempt=attempt,
                metadata=metadata,
            )
        except MicroosError as error:
            error.load = None
            done(error)
            return _nothing
        peer.waiting[id] = done
        if gather:
            self._pump_soon(peer)
        else:
            self._pump(peer)
        if deadline < self._next:
            self._next = deadline
            self._alarm.moved()

        def cancel() -> None:
            if peer.waiting.pop(id, None) is not None:
                peer.connection.cancel(id)
                self._pump(peer)

        return cancel

    async def attempt(
        self,
        node: NodeId,
        endpoint: str,
        body: bytes,
        deadline: float,
        *,
        attempt: int = 1,
        metadata: Mapping[str, str] | None = None,
    ) -> Reply:
        """Make one attempt at one node, and wait for what comes of it.

        Raises:
            MicroosError: As the callee raised it, or what became of the attempt; its `load` is
                what the callee said of itself.
        """
        # Hot path: the task is parked and rescheduled, without an event or a channel.
        task = trio.lowlevel.current_task()
        outcome: list[Outcome] = []
        parked = False

        def done(result: Outcome) -> None:
            outcome.append(result)
            if parked:
                trio.lowlevel.reschedule(task)

        cancel = self.post(
            node, endpoint, body, deadline, done, attempt=attempt, metadata=metadata, gather=True
        )

        def abort(_: object) -> trio.lowlevel.Abort:
            cancel()
            return trio.lowlevel.Abort.SUCCEEDED

        if outcome:
            await trio.lowlevel.checkpoint()
        else:
            parked = True
            await trio.lowlevel.wait_task_rescheduled(abort)
        result = outcome[0]
        if isinstance(result, MicroosError):
            raise result
        return result

    # What the links tell.

    def receive(self, node: NodeId, boot: BootId, bodies: list[bytes]) -> None:
        """Take in frames that came in a row; what is to be answered at once is, in one go.

        Raises:
            RemoteProtocolError: One of them breaks the protocol.
        """
        peer = self._bound(node, boot)
        receive, now = peer.connection.receive, self._clock.now()
        try:
            for body in bodies:
                receive(body, now)
        finally:
            self._pump(peer)

    def link_up(self, node: NodeId, boot: BootId) -> None:
        peer = self._bound(node, boot)
        peer.linked = True
        peer.early.clear()

    def link_lost(self, node: NodeId, boot: BootId) -> None:
        """What was under way with that process is uncertain, and nobody waits for its handlers."""
        peer = self._peers.get(node)
        if peer is None or peer.boot != boot:
            return
        peer.linked = False
        peer.connection.end()
        self._pump(peer)
        if not (peer.waiting or peer.scopes):
            del self._peers[node]

    def died(self, node: NodeId) -> None:
        """Wait no longer for a node that is held to be dead, as if its link were lost.

        The link itself may stay, half open, until its own silence ends it; what still comes
        over it is too late. Handlers that run for the node are left to their deadlines.
        """
        peer = self._peers.get(node)
        if peer is None or not peer.linked:
            return
        for id, done in list(peer.waiting.items()):
            if peer.waiting.pop(id, None) is not None:
                peer.connection.cancel(id)
                done(
                    UncertainError(
                        f"node {node} died before an answer came; the call may have been done, "
                        "so repeat only what is idempotent",
                        reason="connection_lost",
                    )
                )
        self._pump(peer)

    def dial_failed(self, node: NodeId, why: str) -> None:
        """What waited for a link was never sent."""
        peer = self._peers.get(node)
        if peer is None or peer.linked:
            return
        early, peer.early = peer.early, []
        for frame in early:
            peer.connection.unsent(frame, _unreachable(node, why))
        self._pump(peer)

    def _bound(self, node: NodeId, boot: BootId) -> _Peer:
        """Return the peer for that process; what was under way with an earlier one is lost."""
        peer = self._peers.get(node)
        if peer is not None and peer.boot is not None and peer.boot != boot:
            peer.connection.end()
            self._pump(peer)
            peer = None
        if peer is None:
            peer = self._peers[node] = _Peer(node, self._ids)
        peer.boot = boot
        return peer

    # Turns of connections.

    def _pump(self, peer: _Peer) -> None:
        """Do what a connection wants done, until it wants nothing more."""
        if peer.pumping:
            return
        peer.pumping = True
        peer.gathered = 0
        connection = peer.connection
        while True:
            effects = connection.take()
            if effects is NOTHING:
                break
            if effects.frames:
                self._forward(peer, effects.frames, False)
            if effects.chunks:
                self._forward(peer, effects.chunks, True)
            for event in effects.events:
                match event:
                    case Answered():
                        done = peer.waiting.pop(event.id, None)
                        if done is not None:
                            done(Reply(event.body, event.load))
                    case Arrived():
                        self._arrived(peer, event)
                    case Failed():
                        done = peer.waiting.pop(event.id, None)
                        if done is not None:
                            event.error.load = event.load
                            done(event.error)
                    case Cancelled():
                        scope = peer.scopes.pop(event.id, None)
                        if scope is not None:
                            scope.cancel()
                    case Loaded():
                        pass  # Nobody waits for it any more.
        peer.pumping = False

    def _pump_soon(self, peer: _Peer) -> None:
        """Pump at once, or under load once for all that wants it in this turn of the loop."""
        peer.gathered += 1
        if len(peer.waiting) + len(peer.scopes) < TOGETHER_FROM or peer.gathered >= TOGETHER_MAX:
            self._pump(peer)
        elif peer.gathered == 1:
            self._gathered[peer] = None
            self._has_gathered.set()

    async def _pump_gathered(self) -> None:
        while True:
            await self._has_gathered.wait()
            self._has_gathered = trio.Event()
            gathered, self._gathered = self._gathered, {}
            for peer in gathered:
                self._pump(peer)

    def _forward(self, peer: _Peer, frames: Sequence[bytes], bulk: bool) -> None:
        other = peer.other
        if other is not None:
            now = self._clock.now()
            for frame in frames:
                other.connection.receive(frame, now)
            self._pump(other)
            return
        taken = self._send(peer.node, frames, bulk)
        if not peer.linked:
            peer.early += frames[:taken]
        for frame in frames[taken:]:
            why = "its queue is full, or a dial has failed a moment ago"
            peer.connection.unsent(frame, _unreachable(peer.node, why))

    def _wake(self) -> None:
        """End what has expired, on all connections."""
        now = self._clock.now()
        self._next = inf
        for peer in self._ends():
            if peer.connection.deadline <= now:
                peer.connection.wake(now)
                self._pump(peer)
        self._next = min((peer.connection.deadline for peer in self._ends()), default=inf)

    # Handlers.

    def _arrived(self, peer: _Peer, call: Arrived) -> None:
        if call.deadline < self._next:
            self._next = call.deadline
            self._alarm.moved()
        inline = self._inline.get(call.endpoint)
        if inline is not None:
            try:
                body = inline(call.body, peer.node, Later(self, peer, call.id))
            except RemoteProtocolError as error:
                peer.connection.fail(call.id, RejectedError(str(error)), None)
            else:
                if body is not None:
                    peer.connection.answer(call.id, body, None)
            return
        handler = self._handlers.get(call.endpoint)
        if handler is None:
            peer.connection.fail(call.id, self._unknown(call.endpoint), None)
        elif self.draining or self._nursery is None:
            self.refused += 1
            draining = UnavailableError(
                f"{call.endpoint!r} was not begun: the node is leaving; call another instance",
                reason="draining",
            )
            peer.connection.fail(call.id, draining, Load(self.running, 0, 1, DRAINING))
        else:
            scope = peer.scopes[call.id] = trio.CancelScope()
            self._nursery.start_soon(self._handle, peer, call, handler, scope)

    async def _handle(
        self, peer: _Peer, call: Arrived, handler: Handler, scope: trio.CancelScope
    ) -> None:
        """Run one handler; whatever it raises goes to its caller."""
        service = call.endpoint.rpartition(".")[0]
        self._running[service] = self._running.get(service, 0) + 1
        begun = self._clock.now()
        body: bytes | None = None
        failure: MicroosError | None = None
        try:
            with scope:
                body = await handler(
                    Incoming(
                        call.endpoint,
                        call.body,
                        peer.node,
                        call.deadline,
                        call.attempt,
                        call.metadata or NO_METADATA,
                    )
                )
        except MicroosError as error:
            failure = error
        except AssertionError:
            raise
        except Exception as error:
            failure = RemoteError(f"{call.endpoint}: {type(error).__name__}: {error}")
            self._observe("calls", HandlerRaised(call.endpoint, str(failure)))
        finally:
            left = self._running[service] - 1
            if left:
                self._running[service] = left
            else:
                del self._running[service]
            if not self._running:
                self._idle.set()
        if peer.scopes.pop(call.id, None) is None:
            return  # Cancelled or expired: nobody waits.
        took = int((self._clock.now() - begun) * 1e6)
        load = Load(left, took, 1, DRAINING if self.draining else 0)
        if failure is not None:
            peer.connection.fail(call.id, failure, load)
        elif body is not None:
            peer.connection.answer(call.id, body, load)
        self._pump_soon(peer)

    def _unknown(self, endpoint: str) -> MicroosError:
        return RejectedError(
            f"expected an endpoint of this node, found {endpoint!r}: nothing answers to it here",
            reason="unknown_endpoint",
        )

    # Life.

    async def run(self) -> None:
        """Keep deadlines and handlers, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._pump_gathered)
            try:
                await self._alarm.run()
            finally:
                self._nursery = None

    async def drain(self, until: float) -> None:
        """Begin no more handlers; wait for those that run, and cancel what is left at `until`."""
        self.draining = True
        with self._clock.timeout_at(until):
            while self._running:
                self._idle = trio.Event()
                await self._idle.wait()
        for peer in self._ends():
            for scope in list(peer.scopes.values()):
                scope.cancel()

    def _ends(self) -> list[_Peer]:
        peers = list(self._peers.values())
        return peers + [peer.other for peer in peers if peer.other is not None]

    @property
    def running(self) -> int:
        """Handlers under way."""
        return sum(self._running.values())

    @property
    def in_flight(self) -> int:
        """Calls of ours that wait for an answer."""
        return sum(len(peer.waiting) for peer in self._peers.values())

    def queues(self) -> tuple[QueueStatistics, ...]:
        pending = max((len(peer.waiting) for peer in self._peers.values()), default=0)
        bound = limits.RPC_CALLS_MAX
        return (
            QueueStatistics("calls.pending", pending, bound, "refuse", 0),
            QueueStatistics("calls.running", self.running, bound, "refuse", self.refused),
        )

    def check(self) -> None:
        """Assert all invariants."""
        for peer in self._ends():
            peer.connection.check()
            assert not peer.pumping


class HandlerRaised(msgspec.Struct, frozen=True):
    """A handler of our own raised what it should not have."""

    endpoint: str
    error: str


def _unreachable(node: NodeId, why: str) -> UnavailableError:
    return UnavailableError(
        f"expected a link to node {node}, found none ({why}): nothing was sent",
        reason="connection_lost",
    )


def _nothing() -> None:
    pass
