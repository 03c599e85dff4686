"""The trio door, and what a user holds: `open` gives a `Node`, leaving the block leaves.

    async with microos.open(seeds=["10.0.0.1:7946"]) as node:
        await node.wait_ready()

Assembled here: settings checked as a whole, then files, then the node's life
(`node/lifecycle.py`), then the features on its kernel. `living` is the same for a
world handed in: the simulator's door.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from microos.config import attach as config
from microos.config.config import Config
from microos.control.server import ControlServer
from microos.discovery import attach as discovery
from microos.discovery.discovery import Discovery
from microos.gossip.members import Member
from microos.node.lifecycle import Lifecycle
from microos.node.runtime import Runtime, system
from microos.node.statistics import NodeStatistics
from microos.settings import Settings
from microos.storage.disk import Disk
from microos.storage.memory import MemoryDisk
from microos.storage.system import SystemDisk
from microos.sync import attach as sync
from microos.sync.lock import Sync

LEAVE_BOUND = 10.0
"""A block that ends waits no longer than this for the leave, whatever happens [s]."""


class Node:
    """One member of the cluster, with one attribute per feature."""

    discovery: Discovery
    config: Config
    sync: Sync

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.discovery = discovery.attach(lifecycle)
        self.config = config.attach(lifecycle)
        self.sync = sync.attach(lifecycle, lifecycle.settings.sync)
        clock = lifecycle.runtime.clock
        control = ControlServer(self, clock)
        lifecycle.on_control(control.serve)
        lifecycle.add_queues(control.queues)

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
        """Wait until this node is in the group and has caught up.

        Raises:
            NoQuorumError: Not within `timeout` [s]; the message says what is missing.
        """
        await self._lifecycle.wait_ready(timeout)

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


def open(
    *,
    seeds: Sequence[str] = (),
    settings: Settings | None = None,
    observe: Callable[[str, object], None] | None = None,
) -> AbstractAsyncContextManager[Node]:
    """Return a block in which this process is a node of the cluster.

    Args:
        seeds: HOST:PORT of some nodes to begin with, the same list everywhere; none: a
            cluster of its own.
        settings: Default: `Settings.load()`, that is file, environment, preset.
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
    return _opened(chosen, observe or _ignore)


def _ignore(source: str, note: object) -> None:
    """Observe nothing."""


@asynccontextmanager
async def _opened(  # det: closed by its own `async with`
    settings: Settings, observe: Callable[[str, object], None]
) -> AsyncIterator[Node]:
    disk: Disk
    if settings.data_dir is None:
        disk = MemoryDisk().attach()
    else:
        disk = await SystemDisk.at(settings.data_dir)
    try:
        async with living(system(settings.name, disk, observe), settings) as node:
            try:
                yield node
            finally:
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
    runtime: Runtime, settings: Settings
) -> AsyncIterator[Node]:
    """Run one node in the world given; the block's end is a crash unless it left before."""
    lifecycle = Lifecycle(runtime, settings)
    node = Node(lifecycle)
    try:
        async with trio.open_nursery() as nursery:
            await lifecycle.start(nursery)
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
