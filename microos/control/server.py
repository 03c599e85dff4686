"""The node's end of control connections: what the command line asks, any node answers.

One task reads a connection; each request runs in a task of its own, a few at a time;
one task says `Beat` while streams run. Whatever goes wrong ends one connection alone,
and with the connection ends what was held through it: a lock is given back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import trio

from microos import limits, wire
from microos.clock import Clock
from microos.codec import encode
from microos.config.config import State
from microos.control.messages import (
    BEAT,
    Answer,
    Beat,
    Cancel,
    ConfigDelete,
    ConfigGet,
    ConfigSet,
    ConfigWatch,
    End,
    Failure,
    Item,
    LockTake,
    Nothing,
    OfService,
    Request,
    decode_ask,
)
from microos.discovery.discovery import Instance
from microos.errors import MicroosError, OverloadedError, ProtocolError, RejectedError
from microos.gossip.members import Member
from microos.net.network import Stream
from microos.node.statistics import NodeStatistics, QueueStatistics
from microos.types import FencingToken
from microos.wire import Channel, FrameReader

REQUESTS_MAX = 32
"""Requests of one connection under way; more are refused."""

IDLE = 60.0
"""A connection on which nothing runs is closed after this [s]."""

WRITE_TIMEOUT = 10.0
"""A client that does not read for so long is gone [s]."""

CHUNK = 64 * limits.KIB


# What is needed of a node: `microos.Node` has it.


class DiscoveryView(Protocol):
    """`node.discovery`."""

    def services(self) -> tuple[str, ...]: ...
    def instances(self, service: str) -> tuple[Instance, ...]: ...


class ConfigView(Protocol):
    """`node.config`."""

    def read(self, path: str) -> State: ...
    async def read_latest(self, path: str, *, timeout: float) -> State: ...
    def paths(self) -> tuple[str, ...]: ...
    async def set(
        self, path: str, value: Any, *, if_version: int | None, timeout: float
    ) -> int: ...
    async def delete(self, path: str, *, if_version: int | None, timeout: float) -> int: ...
    def watch(self, path: str) -> AbstractAsyncContextManager[AsyncIterator[State]]: ...


class LeaseView(Protocol):
    """What a lock gives its taker."""

    @property
    def token(self) -> FencingToken: ...


class SyncView(Protocol):
    """`node.sync`."""

    def lock(
        self, name: str, *, ttl: float | None, wait: float | None
    ) -> AbstractAsyncContextManager[LeaseView, bool | None]: ...


class NodeView(Protocol):
    """One member of the cluster."""

    @property
    def discovery(self) -> DiscoveryView: ...
    @property
    def config(self) -> ConfigView: ...
    @property
    def sync(self) -> SyncView: ...
    def members(self) -> tuple[Member, ...]: ...
    def statistics(self) -> NodeStatistics: ...


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
        self._verbs: dict[str, tuple[type, Callable[[Any, Request], Awaitable[Any]]]] = {
            "members": (Nothing, self._members),
            "status": (Nothing, self._status),
            "services": (Nothing, self._services),
            "instances": (OfService, self._instances),
            "config.list": (Nothing, self._config_list),
            "config.get": (ConfigGet, self._config_get),
            "config.set": (ConfigSet, self._config_set),
            "config.delete": (ConfigDelete, self._config_delete),
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
            if request.verb not in self._verbs:
                raise RejectedError(
                    f"expected one of {', '.join(self._verbs)}, found {request.verb!r}; "
                    "is this node older than the command line?",
                    reason="unknown_endpoint",
                )
            kind, handle = self._verbs[request.verb]
            result = await handle(msgspec.convert(request.arguments, kind), request)
        except MicroosError as error:
            return _failure(request, error)
        except ValueError as error:
            # Misuse of the API, a malformed argument among it.
            return _failure(request, RejectedError(f"{request.verb}: {error}"))
        if self._running[request.id].is_stream:
            return End(request.id)
        return Answer(request.id, result)

    async def _send(self, message: Answer | Failure | Item | End | Beat) -> None:
        """Send one message; a client that does not take it is cut off, and all it holds freed."""
        body = encode(message)
        if isinstance(message, Answer) and len(body) > limits.CONTROL_FRAME_MAX:
            bound = limits.CONTROL_FRAME_MAX
            why = f"expected an answer of at most {bound} bytes, found {len(body)}"
            body = encode(Failure(message.id, "LimitError", "size", why))
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

    # Verbs.

    async def _members(self, _: Nothing, request: Request) -> Any:
        now = self._clock.now()
        return [_member(member, now) for member in self._node.members()]

    async def _status(self, _: Nothing, request: Request) -> Any:
        return msgspec.to_builtins(self._node.statistics())

    async def _services(self, _: Nothing, request: Request) -> Any:
        discovery = self._node.discovery
        return [
            {"service": name, "instances": len(discovery.instances(name))}
            for name in discovery.services()
        ]

    async def _instances(self, ask: OfService, request: Request) -> Any:
        instances = self._node.discovery.instances(ask.service)
        # Labels are read-only mappings, which only `dict` makes plain.
        return [msgspec.to_builtins(i, enc_hook=dict) for i in instances]

    async def _config_list(self, _: Nothing, request: Request) -> Any:
        return list(self._node.config.paths())

    async def _config_get(self, ask: ConfigGet, request: Request) -> Any:
        if ask.latest:
            latest = await self._node.config.read_latest(ask.path, timeout=request.timeout)
            return _state(ask.path, latest)
        return _state(ask.path, self._node.config.read(ask.path))

    async def _config_set(self, ask: ConfigSet, request: Request) -> Any:
        version = await self._node.config.set(
            ask.path, ask.value, if_version=ask.if_version, timeout=request.timeout
        )
        return {"path": ask.path, "version": version}

    async def _config_delete(self, ask: ConfigDelete, request: Request) -> Any:
        version = await self._node.config.delete(
            ask.path, if_version=ask.if_version, timeout=request.timeout
        )
        return {"path": ask.path, "version": version}

    async def _config_watch(self, ask: ConfigWatch, request: Request) -> None:
        self._running[request.id].is_stream = True
        async with self._node.config.watch(ask.path) as states:
            async for state in states:
                await self._send(Item(request.id, _state(ask.path, state)))

    async def _lock(self, ask: LockTake, request: Request) -> None:
        running = self._running[request.id]
        running.is_stream = True
        async with self._node.sync.lock(ask.name, ttl=ask.ttl, wait=ask.wait) as lease:
            running.holds = True
            await self._send(Item(request.id, {"name": ask.name, "token": lease.token}))
            await running.stop.wait()


def _failure(request: Request, error: MicroosError) -> Failure:
    return Failure(request.id, type(error).__name__, error.reason, str(error))


def _too_many(request: Request, count: int) -> MicroosError:
    if count < REQUESTS_MAX:
        return RejectedError(f"expected a request id that is not in use, found {request.id}")
    return OverloadedError(f"expected at most {REQUESTS_MAX} requests at once, found one more")


def _member(member: Member, now: float) -> dict[str, Any]:
    return {
        "name": member.name,
        "address": str(member.address),
        "state": member.state.name.lower(),
        "seconds": round(max(0.0, now - member.since), 3),
        "incarnation": member.incarnation,
        "score": member.score,
        "node": member.node,
        "labels": member.labels,
    }


def _state(path: str, state: State) -> dict[str, Any]:
    return {
        "path": path,
        "value": state.value,
        "version": state.version,
        "revision": state.revision,
    }
