"""Calls between the processes of layer `cores`: the real rpc core over streams as TCP has them.

What `node/calls.py` and the links do on trio is done here on the plain heap.

    post ─▶ Connection ─ take ─▶ frames ─▶ Stream ─▶ (in order, once, or not at all) ─▶ Connection

A stream is dialled when there is something to send. While its way is cut, what is sent waits
and is sent again; if that lasts too long, the stream is lost. The end of a process resets its
streams, unless the machine is silent: then the other side finds out late. Each side learns
of a loss for itself, and gives up what was under way by `Connection.end`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf
from typing import Protocol

from microos.errors import MicroosError, RejectedError, RemoteProtocolError, UnavailableError
from microos.rpc.core import Connection
from microos.rpc.effects import Answered, Cancelled, Effects, Failed, Incoming
from microos.sim.host import Host, node_name
from microos.sim.world import MILLISECOND, SECOND
from microos.types import BootId, NodeId

RETRY = 200 * MILLISECOND
"""Before what could not be sent over a cut way is sent again [ns]."""

LOST_AFTER = 2 * SECOND
"""A stream whose way is cut for so long is lost [ns]."""

DIAL_PATIENCE = SECOND
"""Nobody has answered a dial by then [ns]."""

Outcome = bytes | MicroosError
Answer = Callable[[bytes], None]
Handler = Callable[[bytes, NodeId, Answer], bytes | None]
"""Takes (body, caller, how to answer later); returns the answer, or None if it comes later."""


class Exchange(Protocol):
    """The other processes, as one process reaches them."""

    def calls_of(self, node: NodeId) -> Calls | None: ...
    def is_silent_node(self, node: NodeId) -> bool: ...


class Stream:
    """One stream between two processes; `sides` are told of it by what they are."""

    def __init__(self, one: Calls, other: Calls) -> None:
        self._sides = (one, other)
        self._open = [True, True]
        self._held: tuple[list[bytes], list[bytes]] = ([], [])
        """By sender: what waits for the way to be mended."""
        self._inbox: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        """By receiver: what has come, until the process notices."""
        self._arrives = [0, 0]
        """By receiver: when the last of what is on its way arrives [ns]."""
        self._network = one.host.cluster.network
        self._world = one.host.world
        one.streams[other] = other.streams[one] = self

    def is_open(self, me: Calls) -> bool:
        return self._open[self._side(me)]

    def other(self, me: Calls) -> Calls:
        return self._sides[1 - self._side(me)]

    def _side(self, me: Calls) -> int:
        return 0 if me is self._sides[0] else 1

    def send(self, me: Calls, frame: bytes) -> None:
        """Send one frame; it arrives in its turn, if the stream lives so long."""
        side = self._side(me)
        if self._held[side] or not self._go(side, frame):
            self._held[side].append(frame)
            if len(self._held[side]) == 1:
                self._again(side, self._world.now)

    def _go(self, side: int, frame: bytes) -> bool:
        delay = self._delay(side)
        if delay is None:
            return False
        to = 1 - side
        at = self._arrives[to] = max(self._world.now + delay, self._arrives[to] + 1)
        self._world.at(at, lambda: self._arrive(to, frame))
        return True

    def _delay(self, side: int) -> int | None:
        here, there = self._sides[side].host, self._sides[1 - side].host
        return self._network.segment(here.name, there.name)

    def _again(self, side: int, since: int) -> None:
        def retry() -> None:
            held = self._held[side]
            while held and self._open[side] and self._go(side, held[0]):
                del held[0]
            if not held or not self._open[side]:
                return
            if self._world.now - since < LOST_AFTER:
                self._again(side, since)
            else:
                self._sides[side].gate(lambda: self.close(self._sides[side]))

        self._world.after(RETRY, retry)

    def _arrive(self, to: int, frame: bytes) -> None:
        """What has come passes the gate in the order in which it came."""
        if self._open[to]:
            self._inbox[to].append(frame)
            self._sides[to].gate(lambda: self._noticed(to))

    def _noticed(self, to: int) -> None:
        if self._inbox[to]:
            frame = self._inbox[to].popleft()
            if self._open[to]:
                self._sides[to].receive(self, frame)

    # Its end.

    def close(self, me: Calls) -> None:
        """End it at this side; the other side learns of that, or finds it out."""
        side = self._side(me)
        if not self._open[side]:
            return
        self._open[side] = False
        self._forget()
        me.stream_lost(self)
        self._tell(side)

    def process_ended(self, me: Calls, *, silent: bool) -> None:
        """The process at this side is gone: its kernel resets, unless the machine is gone too."""
        side = self._side(me)
        self._open[side] = False
        self._forget()
        if silent:
            self._world.after(LOST_AFTER, lambda: self._reset(1 - side))
        else:
            self._tell(side)

    def _forget(self) -> None:
        """The next dial of either side makes a new one."""
        for side in (0, 1):
            streams, other = self._sides[side].streams, self._sides[1 - side]
            if streams.get(other) is self:
                del streams[other]

    def _tell(self, side: int) -> None:
        to = 1 - side
        delay = self._delay(side)
        at = self._world.now + LOST_AFTER if delay is None else self._world.now + delay
        self._world.at(max(at, self._arrives[to] + 1), lambda: self._reset(to))

    def _reset(self, to: int) -> None:
        side = self._sides[to]
        side.gate(lambda: self.close(side))


class _Peer:
    """One node, its connection, and what waits at this side."""

    def __init__(self, node: NodeId, ids: count[int]) -> None:
        self.node = node
        self.boot: BootId | None = None
        self.connection = Connection(ids)
        self.stream: Stream | None = None
        self.dialling = False
        self.early: list[bytes] = []
        self.waiting: dict[int, Callable[[Outcome], None]] = {}
        self.running: dict[int, None] = {}
        """Calls of theirs that are to be answered later."""
        self.pumping = False


class Calls:
    """All calls of one boot of one node, both ways."""

    def __init__(self, host: Host, boot: BootId, exchange: Exchange) -> None:
        self.host = host
        self.boot = boot
        self.gate = host.gate
        """Of this process: the next one on the host has another."""
        self._number = host.boot
        self._exchange = exchange
        self._world = host.world
        self._ids = count(1)
        self._peers: dict[NodeId, _Peer] = {}
        self._handlers: dict[str, Handler] = {}
        self._armed = inf
        self.streams: dict[Calls, Stream] = {}
        """One to each process at most, whoever has dialled: until either side ends it."""

    def is_alive(self) -> bool:
        return self.host.is_running(self._number)

    def serve(self, endpoint: str, handler: Handler) -> None:
        self._handlers[endpoint] = handler

    def post(
        self,
        node: NodeId,
        endpoint: str,
        body: bytes,
        deadline: float,
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """Call an endpoint of a node; return what cancels it.

        Args:
            deadline: On the clock here [s].
            done: Called once with the answer or the error, unless cancelled.
        """
        assert node != self.host.id
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = _Peer(node, self._ids)
        try:
            id = peer.connection.call(endpoint, body, deadline=deadline, now=self._now())
        except MicroosError as error:
            done(error)
            return _nothing
        peer.waiting[id] = done
        self._pump(peer)

        def cancel() -> None:
            if peer.waiting.pop(id, None) is not None:
                peer.connection.cancel(id)
                self._pump(peer)

        return cancel

    # Streams.

    def _dial(self, peer: _Peer) -> None:
        peer.dialling = True
        there = self._exchange.calls_of(peer.node)
        if there is None:
            silent = self._exchange.is_silent_node(peer.node)
            self._dial_failed(peer, DIAL_PATIENCE if silent else MILLISECOND)
            return
        ways = self.host.distance(peer.node)
        if ways is None or sum(ways) > DIAL_PATIENCE or there.gate.paused:
            self._dial_failed(peer, DIAL_PATIENCE)
            return

        def reached() -> None:
            """Their kernel accepts; ours is told when the answer is back."""
            if not there.is_alive():
                self._dial_failed(peer, ways[1])
                return
            stream = self.streams.get(there)
            if stream is None:
                stream = Stream(self, there)
            there.gate(lambda: there._linked(self, stream))
            self._world.after(ways[1], lambda: self.gate(lambda: connected(stream)))

        def connected(stream: Stream) -> None:
            peer.dialling = False
            if stream.is_open(self):
                self._linked(there, stream)
            else:
                self._dial_failed(peer, MILLISECOND)

        self._world.after(ways[0], reached)

    def _dial_failed(self, peer: _Peer, delay: int) -> None:
        def failed() -> None:
            peer.dialling = False
            if peer.stream is not None or not self.is_alive():
                return
            early, peer.early = peer.early, []
            for frame in early:
                peer.connection.unsent(frame, _unreachable(peer.node))
            self._pump(peer)

        self._world.after(delay, lambda: self.gate(failed))

    def _linked(self, there: Calls, stream: Stream) -> None:
        """There is a stream to a process; a newer one takes the place of what was before."""
        if not self.is_alive() or not stream.is_open(self):
            return
        node = there.host.id
        peer = self._peers.get(node)
        if peer is not None and peer.stream is stream:
            return
        if peer is not None and peer.boot is not None and peer.boot > there.boot:
            return  # The news of an earlier process has been long on its way.
        if peer is not None and peer.stream is not None:
            peer.stream.close(self)
            peer = self._peers.get(node)
        if peer is not None and peer.boot not in (None, there.boot):
            self._end(peer)
            peer = None
        if peer is None:
            peer = self._peers[node] = _Peer(node, self._ids)
        peer.boot, peer.stream = there.boot, stream
        early, peer.early = peer.early, []
        for frame in early:
            stream.send(self, frame)
        self._pump(peer)

    def stream_lost(self, stream: Stream) -> None:
        """What was under way on it is uncertain, and nobody waits for what runs here."""
        node = stream.other(self).host.id
        peer = self._peers.get(node)
        if peer is None or peer.stream is not stream:
            return
        self._world.sometimes("calls.stream_lost")
        peer.stream = None
        self._end(peer)

    def _end(self, peer: _Peer) -> None:
        peer.connection.end()
        self._pump(peer)
        if self._peers.get(peer.node) is peer and not (peer.waiting or peer.running):
            del self._peers[peer.node]

    def end(self, *, silent: bool) -> None:
        """The process has ended."""
        for stream in list(self.streams.values()):
            stream.process_ended(self, silent=silent)

    # Turns of connections.

    def receive(self, stream: Stream, frame: bytes) -> None:
        """Take in one frame."""
        peer = self._peers.get(stream.other(self).host.id)
        if peer is None or peer.boot not in (None, stream.other(self).boot) or not self.is_alive():
            return
        self._world.trace("call", self.host.name, node_name(peer.node), frame)
        try:
            peer.connection.receive(frame, self._now())
        except RemoteProtocolError as error:
            self._world.fail("safety", "rpc.protocol", f"{self.host.name}: {error}")
        self._pump(peer)

    def _pump(self, peer: _Peer) -> None:
        """Do what a connection wants done, until it wants nothing more."""
        if peer.pumping:
            return
        peer.pumping = True
        while True:
            effects = peer.connection.take()
            if not (effects.frames or effects.chunks or effects.events):
                break
            self._perform(peer, effects)
        peer.pumping = False
        if self._world.executed & 63 == 0:
            peer.connection.check()
        self._arm()

    def _perform(self, peer: _Peer, effects: Effects) -> None:
        for frame in (*effects.frames, *effects.chunks):
            if peer.stream is not None:
                peer.stream.send(self, frame)
            else:
                peer.early.append(frame)
                if not peer.dialling:
                    self._dial(peer)
        for event in effects.events:
            match event:
                case Answered(id, body):
                    done = peer.waiting.pop(id, None)
                    if done is not None:
                        done(body)
                case Failed(id, error):
                    done = peer.waiting.pop(id, None)
                    if done is not None:
                        done(error)
                case Incoming():
                    self._arrived(peer, event)
                case Cancelled(id):
                    peer.running.pop(id, None)

    def _arrived(self, peer: _Peer, call: Incoming) -> None:
        peer.running[call.id] = None

        def answer(body: bytes) -> None:
            if peer.running.pop(call.id, 0) is None:
                peer.connection.answer(call.id, body, None)
                self._pump(peer)

        handler = self._handlers.get(call.endpoint)
        if handler is None:
            peer.running.pop(call.id)
            peer.connection.fail(call.id, RejectedError("expected an endpoint of this node"), None)
            return
        body = handler(call.body, peer.node, answer)
        if body is not None:
            answer(body)

    # Time.

    def _now(self) -> float:
        return self.host.line.now()

    def _arm(self) -> None:
        deadline = min((p.connection.deadline for p in self._peers.values()), default=inf)
        if deadline >= self._armed:
            return
        self._armed = deadline

        def ring() -> None:
            if self._armed == deadline:
                self._armed = inf
            self.gate(self._ring)

        self._world.at(self.host.line.when(deadline), ring)

    def _ring(self) -> None:
        if not self.is_alive():
            return
        now = self._now()
        for peer in list(self._peers.values()):
            if peer.connection.deadline <= now:
                peer.connection.wake(now)
                self._pump(peer)
        self._arm()

    def check(self) -> None:
        """Assert all invariants."""
        for peer in self._peers.values():
            peer.connection.check()
            assert not peer.pumping


def _unreachable(node: NodeId) -> UnavailableError:
    return UnavailableError(
        f"expected a way to {node_name(node)}, found none: nothing was sent",
        reason="connection_lost",
    )


def _nothing() -> None:
    pass
