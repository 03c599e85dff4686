"""The trio door, and what a user holds: `open` gives a `Node`, leaving the block leaves.

    async with microos.open(seeds=["10.0.0.1:7946"]) as node:
        await node.wait_ready()

Assembled here: settings checked as a whole, then files, then the node's life
(`node/lifecycle.py`), then the features on its kernel. `living` is the same for a
world handed in: the simulator's door.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import trio

from microos.config import attach as config
from microos.config.config import Config
from microos.control.server import ControlServer
from microos.discovery import attach as discovery
from microos.discovery.discovery import Discovery
from microos.errors import NoQuorumError
from microos.gossip.members import Member
from microos.kv import attach as kv
from microos.kv.kv import Kv
from microos.node.lifecycle import Lifecycle
from microos.node.runtime import Runtime, system
from microos.node.statistics import NodeStatistics
from microos.router import attach as router
from microos.router.middleware import of_kind
from microos.router.router import Router
from microos.service import current
from microos.service.debug import NodeHealth, NodeStats, debug
from microos.service.remote import contract_of
from microos.service.service import Service, records
from microos.service.serving import serve_endpoints
from microos.settings import Settings
from microos.storage.disk import Disk
from microos.storage.memory import MemoryDisk
from microos.storage.system import SystemDisk
from microos.sync import attach as sync
from microos.sync.lock import Sync

R = TypeVar("R")

LEAVE_BOUND = 40.0
"""A block that ends waits no longer than this for the leave, whatever happens [s]."""


class Node:
    """One member of the cluster, with one attribute per feature."""

    discovery: Discovery
    router: Router
    config: Config
    kv: Kv
    sync: Sync

    def __init__(
        self,
        lifecycle: Lifecycle,
        services: Sequence[Service] = (),
        middleware: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self._lifecycle = lifecycle
        settings, runtime = lifecycle.settings, lifecycle.runtime
        self.discovery = discovery.attach(lifecycle)
        self.router = router.attach(
            lifecycle, self.discovery, middleware, timeout=settings.rpc.timeout
        )
        self.config = config.attach(lifecycle)
        self.kv = kv.attach(lifecycle, settings.kv, participates=settings.ring.participate)
        self.sync = sync.attach(lifecycle, settings.sync)
        self._services = tuple(services)
        self._started = (runtime.clock.wall(), runtime.clock.now())
        endpoints = serve_endpoints(
            (*self._services, debug(self._health, self._stats)),
            node=self,
            observe=runtime.observe,
            entropy=runtime.entropy,
            middleware=of_kind("handler", middleware),
            remote_traceback=settings.rpc.remote_traceback,
        )
        for name, handler in endpoints.items():
            lifecycle.serve(name, handler)
        control = ControlServer(self, runtime.clock)
        lifecycle.on_control(control.serve)
        lifecycle.add_queues(control.queues)

    def _announce(self) -> None:
        """Make the services known; after the start."""
        for record in records(self._services):
            self.discovery.announce(
                record.name,
                version=record.version,
                labels=record.labels,
                endpoints=record.endpoints,
                schemas=record.schemas,
            )

    async def call(
        self,
        callee: Callable[..., Coroutine[Any, Any, R]],
        *arguments: Any,
        timeout: float | None = None,
        key: str | None = None,
    ) -> R:
        """Call an endpoint of whichever instance suits best; return its result.

        Args:
            callee: What `microos.remote` made, or a declared handler.
            arguments: As its parameters.
            timeout: For all attempts together [s]; default the endpoint's, else `rpc.timeout`.
                Within a handler, never more than is left of its caller's time.
            key: Calls of one key go to one instance while it can be used.

        Raises:
            NoMemberError: No instance is known, or none can be used.
            CircuitOpenError: All instances fail.
            UnavailableError: Nothing has happened; trying again is safe.
            UncertainError: It may have happened; retry only what is idempotent.
            RejectedError: The arguments or the caller were refused.
            RemoteError: The handler raised.
        """
        contract = contract_of(callee)
        result: R = await self.router.call(contract, arguments, timeout=timeout, key=key)
        return result

    def _health(self) -> NodeHealth:
        reason = self._lifecycle.reason()
        return NodeHealth(not reason, reason, "critical" if reason else "passing")

    def _stats(self) -> NodeStats:
        wall, began = self._started
        calls = self._lifecycle.calls
        return NodeStats(
            started=wall,
            uptime=self._lifecycle.runtime.clock.now() - began,
            calls_in=calls.running,
            calls_out=calls.in_flight,
        )

    @property
    def id(self) -> str:
        """The node's id, 32 hex digits; as long-lived as its data directory."""
        return self._lifecycle.node

    @property
    def name(self) -> str:
        return self._lifecycle.name

    @property
    def address(self) -> str:
        """HOST:PORT where the node listens."""
        return str(self._lifecycle.address)

    def members(self) -> tuple[Member, ...]:
        """Return every known member, this node included, sorted by id. No I/O."""
        return self._lifecycle.members()

    async def wait_ready(self, timeout: float = math.inf) -> None:
        """Wait until this node is in the group, has caught up, and can serve the store.

        Raises:
            NoQuorumError: Not within `timeout` [s]; the message says what is missing.
        """
        clock = self._lifecycle.runtime.clock
        deadline = clock.now() + timeout
        await self._lifecycle.wait_ready(timeout)
        with clock.timeout_at(deadline):
            await self.kv.wait_ready()
        if not self.kv.is_ready:
            raise NoQuorumError(
                f"not ready after {timeout:g} s: this node's copies of the store are not whole",
                reason="replicas",
            )

    async def wait_failed(self) -> str:
        """Wait until the node's own files have failed it; return what happened."""
        return await self._lifecycle.wait_failed()

    async def leave(self) -> None:
        """Leave the cluster: hand over, be let go, tell everyone. The block may then end."""
        await self._lifecycle.leave()

    def state(self) -> tuple[int, int] | None:
        """Return (applied index, digest of the replicated state); None before there is any.

        Two nodes at the same index have the same digest.
        """
        return self._lifecycle.state()

    def statistics(self) -> NodeStatistics:
        """Return what the node says of itself now, every queue with its bound. No I/O."""
        return self._lifecycle.statistics()

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.address} {self._lifecycle.reason() or 'ready'}>"


def current_node() -> Node:
    """Return the node this runs in: that of the handler, else the process's only open one.

    Raises:
        RuntimeError: None is open, or several are.
    """
    node = current.current_node()
    assert isinstance(node, Node)
    return node


def open(
    *services: Service,
    seeds: Sequence[str] = (),
    settings: Settings | None = None,
    middleware: Sequence[Callable[..., Any]] = (),
    observe: Callable[[str, object], None] | None = None,
) -> AbstractAsyncContextManager[Node]:
    """Return a block in which this process is a node of the cluster.

    Args:
        services: What this process serves, from now to the end of the block.
        seeds: HOST:PORT of some nodes to begin with, the same list everywhere; none: a
            cluster of its own.
        settings: Default: `Settings.load()`, that is file, environment, preset.
        middleware: What stands around calls and handlers, first listed outermost; of all kinds,
            or of those it was marked with by `microos.middleware`.
        observe: Called with (source, note) for everything the node observes.

    Raises (on entering):
        SettingsError: All that is wrong with the settings, before any socket opens.
        UnavailableError: The port is taken.
        StorageError: The data directory is in use or belongs to another cluster.
    """
    chosen = settings if settings is not None else Settings.load()
    if seeds:
        chosen = chosen.replace(seeds=tuple(seeds))
    chosen.validate()
    return _opened(chosen, observe or _ignore, services, middleware)


def _ignore(source: str, note: object) -> None:
    """Observe nothing."""


@asynccontextmanager
async def _opened(  # det: closed by its own `async with`
    settings: Settings,
    observe: Callable[[str, object], None],
    services: Sequence[Service],
    middleware: Sequence[Callable[..., Any]],
) -> AsyncIterator[Node]:
    disk: Disk
    if settings.data_dir is None:
        disk = MemoryDisk().attach()
    else:
        disk = await SystemDisk.at(settings.data_dir)
    try:
        runtime = system(settings.name, disk, observe)
        async with living(runtime, settings, services, middleware) as node:
            current.opened(node)
            try:
                yield node
            finally:
                current.closed(node)
                with trio.CancelScope(shield=True) as scope:
                    undo = node._lifecycle.runtime.clock.call_at(
                        node._lifecycle.runtime.clock.now() + LEAVE_BOUND, scope.cancel
                    )
                    await node.leave()
                    undo()
    finally:
        with trio.CancelScope(shield=True):
            await disk.close()


@asynccontextmanager
async def living(  # det: closed by its own `async with`
    runtime: Runtime,
    settings: Settings,
    services: Sequence[Service] = (),
    middleware: Sequence[Callable[..., Any]] = (),
) -> AsyncIterator[Node]:
    """Run one node in the world given; the block's end is a crash unless it left before."""
    lifecycle = Lifecycle(runtime, settings)
    node = Node(lifecycle, services, middleware)
    try:
        async with trio.open_nursery() as nursery:
            await lifecycle.start(nursery)
            node._announce()
            yield node
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only(group) from group.__cause__


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception in a group, as the caller raised it, or the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
