"""The node's end of control connections: what the command line asks, any node answers.

One task reads a connection; each request runs in a task of its own, a few at a time;
one task says `Beat` while streams run. Whatever goes wrong ends one connection alone,
and with the connection ends what was held through it: a lock is given back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from microos import limits, wire
from microos.clock import Clock
from microos.codec import encode
from microos.control.messages import (
    BEAT,
    Answer,
    Beat,
    Cancel,
    ConfigWatch,
    End,
    Failure,
    Item,
    LockTake,
    Request,
    decode_ask,
)
from microos.control.verbs import Verbs, state_of
from microos.control.view import NodeView
from microos.errors import MicroosError, OverloadedError, ProtocolError, RejectedError
from microos.net.network import Stream
from microos.node.statistics import QueueStatistics
from microos.wire import Channel, FrameReader

REQUESTS_MAX = 32
"""Requests of one connection under way; more are refused."""

IDLE = 60.0
"""A connection on which nothing runs is closed after this [s]."""

WRITE_TIMEOUT = 10.0
"""A client that does not read for so long is gone [s]."""

CHUNK = 64 * limits.KIB


class ControlServer:
    """All control connections of one node."""

    def __init__(self, node: NodeView, clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self._clients = 0
        self._refused = 0

    async def serve(self, stream: Stream) -> None:
        """Serve one connection, whose preface has been read, until either side ends it.

        Raises:
            trio.BrokenResourceError: It broke.
        """
        connection = _Connection(stream, self._node, self._clock)
        if self._clients >= limits.CONTROL_CLIENTS:
            self._refused += 1
            await connection.refuse(
                f"expected at most {limits.CONTROL_CLIENTS} control connections to one node, "
                "found one more; try another node"
            )
            return
        self._clients += 1
        try:
            await connection.run()
        finally:
            self._clients -= 1

    def queues(self) -> tuple[QueueStatistics, ...]:
        """Return the bound on connections as it stands."""
        bound = limits.CONTROL_CLIENTS
        return (QueueStatistics("control.clients", self._clients, bound, "refuse", self._refused),)


@dataclass(eq=False)
class _Running:
    """One request under way."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_stream: bool = False
    stop: trio.Event = field(default_factory=trio.Event)
    """The client has asked for the end."""
    holds: bool = False
    """It has something to give back and watches `stop` itself."""

    def cancel(self) -> None:
        self.stop.set()
        if not self.holds:
            self.scope.cancel()


class _Connection:
    """One client."""

    def __init__(self, stream: Stream, node: NodeView, clock: Clock) -> None:
        self._stream = stream
        self._node = node
        self._clock = clock
        self._reader = FrameReader()
        self._running: dict[int, _Running] = {}
        self._writing = trio.Lock()
        self._verbs = Verbs(node, clock).all
        self._streams: dict[str, tuple[type, Callable[[Any, Request], Awaitable[None]]]] = {
            "config.watch": (ConfigWatch, self._config_watch),
            "lock": (LockTake, self._lock),
        }

    async def refuse(self, why: str) -> None:
        """Say why not, after the client has spoken: closing with bytes unread would reset."""
        with self._clock.timeout_at(self._clock.now() + WRITE_TIMEOUT):
            await self._stream.receive_some(CHUNK)
            await self._send(Failure(0, "OverloadedError", "queue_full", why))

    async def run(self) -> None:
        """Read requests and begin them; whatever still runs ends with the connection."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            await self._read(nursery)
            nursery.cancel_scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            data = b""
            with self._clock.timeout_at(self._clock.now() + IDLE) as scope:
                data = await self._received()
            if scope.cancelled_caught and self._running:
                continue
            if not data:
                return
            try:
                for channel, body in self._reader.feed(data):
                    if channel is Channel.CONTROL:
                        await self._take(body, nursery)
            except ProtocolError as error:
                await self._send(Failure(0, type(error).__name__, error.reason, str(error)))
                return

    async def _received(self) -> bytes:
        try:
            return await self._stream.receive_some(CHUNK)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def _take(self, body: bytes, nursery: trio.Nursery) -> None:
        match decode_ask(body):
            case Cancel(id):
                if id in self._running:
                    self._running[id].cancel()
            case Request() as request:
                if request.id in self._running or len(self._running) >= REQUESTS_MAX:
                    await self._send(_failure(request, _too_many(request, len(self._running))))
                    return
                running = self._running[request.id] = _Running()
                nursery.start_soon(self._handle, request, running)

    async def _handle(self, request: Request, running: _Running) -> None:
        """Do one request and say how it ended: exactly one of Answer, Failure, End."""
        try:
            with running.scope:
                last = await self._done(request)
            if running.scope.cancelled_caught:
                last = End(request.id)
        finally:
            del self._running[request.id]
        await self._send(last)

    async def _done(self, request: Request) -> Answer | Failure | End:
        """Return the last message of a request, an error of ours as a Failure."""
        try:
            if request.verb in self._streams:
                kind, stream = self._streams[request.verb]
                self._running[request.id].is_stream = True
                await stream(msgspec.convert(request.arguments, kind), request)
                return End(request.id)
            if request.verb in self._verbs:
                kind, answer = self._verbs[request.verb]
                asked: Any = msgspec.convert(request.arguments, kind)
                return Answer(request.id, await answer(asked, request.timeout))
        except MicroosError as error:
            return _failure(request, error)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            # Misuse of the API, a malformed argument among it.
            return _failure(request, RejectedError(f"{request.verb}: {error}"))
        known = ", ".join([*self._verbs, *self._streams])
        return _failure(
            request,
            RejectedError(
                f"expected one of {known}, found {request.verb!r}; "
                "is this node older than the command line?",
                reason="unknown_endpoint",
            ),
        )

    async def _send(self, message: Answer | Failure | Item | End | Beat) -> None:
        """Send one message; a client that does not take it is cut off, and all it holds freed."""
        body = _encoded(message)
        with self._clock.timeout_at(self._clock.now() + WRITE_TIMEOUT) as scope:
            try:
                async with self._writing:
                    await self._stream.send_all(wire.pack_frame(Channel.CONTROL, body))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # The reader ends the connection.
        if scope.cancelled_caught:
            self._stream.abort()

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now() + BEAT)
            if any(running.is_stream for running in self._running.values()):
                await self._send(Beat())

    # Streams.

    async def _config_watch(self, ask: ConfigWatch, request: Request) -> None:
        async with self._node.config.watch(ask.path) as states:
            async for state in states:
                await self._send(Item(request.id, state_of(ask.path, state)))

    async def _lock(self, ask: LockTake, request: Request) -> None:
        running = self._running[request.id]
        async with self._node.sync.lock(ask.name, ttl=ask.ttl, wait=ask.wait) as lease:
            running.holds = True
            await self._send(Item(request.id, {"name": ask.name, "token": lease.token}))
            await running.stop.wait()


def _encoded(message: Answer | Failure | Item | End | Beat) -> bytes:
    """Return a message as bytes; an answer that cannot travel becomes a failure."""
    if not isinstance(message, Answer):
        return encode(message)
    bound = limits.CONTROL_FRAME_MAX
    try:
        body = encode(message)
        if len(body) <= bound:
            return body
        found = f"{len(body)}"
    except (TypeError, RecursionError) as error:
        found = f"one that cannot be sent: {error}"
    why = f"expected an answer of at most {bound} bytes, found {found}"
    return encode(Failure(message.id, "LimitError", "size", why))


def _failure(request: Request, error: MicroosError) -> Failure:
    return Failure(request.id, type(error).__name__, error.reason, str(error))


def _too_many(request: Request, count: int) -> MicroosError:
    if count < REQUESTS_MAX:
        return RejectedError(f"expected a request id that is not in use, found {request.id}")
    return OverloadedError(f"expected at most {REQUESTS_MAX} requests at once, found one more")
