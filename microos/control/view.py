"""What the command line's end needs of a node: `microos.Node` has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from microos.config.config import State
from microos.discovery.discovery import Instance
from microos.gossip.members import Member
from microos.kv.bucket import Item, Level
from microos.kv.kv import KvStatistics
from microos.node.statistics import NodeStatistics
from microos.ring.ring import Ring
from microos.router.statistics import RouterStatistics
from microos.service.remote import Remote
from microos.types import FencingToken, Version


class DiscoveryView(Protocol):
    """`node.discovery`."""

    def services(self) -> tuple[str, ...]: ...
    def instances(self, service: str) -> tuple[Instance, ...]: ...
    def endpoints(self, service: str) -> tuple[str, ...]: ...


class RouterView(Protocol):
    """`node.router`."""

    def statistics(self) -> RouterStatistics: ...


class BucketView(Protocol):
    """A bucket of values of any type."""

    async def read(self, key: str, *, consistency: Level, timeout: float) -> Item[Any] | None: ...
    async def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | None,
        if_version: int | None,
        consistency: Level | None,
        timeout: float,
    ) -> Version: ...
    async def delete(
        self, key: str, *, if_version: int | None, consistency: Level | None, timeout: float
    ) -> Version: ...


class KvView(Protocol):
    """`node.kv`."""

    def bucket(self, name: str) -> BucketView: ...
    def ring(self) -> Ring: ...
    async def declare_gone(self, node: str, *, timeout: float) -> int: ...
    def statistics(self) -> KvStatistics: ...


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
    def router(self) -> RouterView: ...
    @property
    def config(self) -> ConfigView: ...
    @property
    def kv(self) -> KvView: ...
    @property
    def sync(self) -> SyncView: ...
    def members(self) -> tuple[Member, ...]: ...
    def statistics(self) -> NodeStatistics: ...
    async def call(self, callee: Remote[Any], *arguments: Any, timeout: float) -> Any: ...
