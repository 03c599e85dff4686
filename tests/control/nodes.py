"""A node as the command line sees one: it remembers, locks and lists, and has no cluster."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio

from microos import limits
from microos.clock import SystemClock
from microos.codec import encode
from microos.config.config import State
from microos.control.server import ControlServer
from microos.discovery.discovery import Instance
from microos.errors import (
    ConflictError,
    LeaseLostError,
    NoQuorumError,
    RemoteError,
    UnavailableError,
)
from microos.gossip.members import Member as GossipMember
from microos.gossip.members import State as MemberState
from microos.hashing import label_hash
from microos.keyring import Keyring
from microos.kv.bucket import Item, Level
from microos.kv.kv import KvStatistics
from microos.net.handshake import Hello
from microos.net.links import Links
from microos.net.network import Network
from microos.net.tls import Tls
from microos.node.statistics import NodeStatistics, QueueStatistics
from microos.node.watch import Watch, Watchers
from microos.ring.epochs import Proof, RingState
from microos.ring.ring import SLOTS, Member, Owner, Ring
from microos.router.statistics import EndpointStatistics, RouterStatistics
from microos.service.remote import Remote
from microos.types import Address, BootId, FencingToken, Incarnation, NodeId, Revision, Version


class FakeDiscovery:
    def services(self) -> tuple[str, ...]:
        return ("orders", "stock")

    def endpoints(self, service: str) -> tuple[str, ...]:
        return tuple(sorted({name for i in self.instances(service) for name in i.endpoints}))

    def instances(self, service: str) -> tuple[Instance, ...]:
        if service not in self.services():
            return ()
        return (
            Instance(
                service, "1.2", "f" * 32, "a", "127.0.0.1:1", {"zone": "[x]"}, ("place",), "alive"
            ),
        )


class FakeConfig:
    """Documents of one node; `quorum = False` is the minority side of a split."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.quorum = True
        self._watchers: Watchers[State] = Watchers()

    def read(self, path: str) -> State:
        return self.states.get(path, State(None, 0, 0))

    async def read_latest(self, path: str, *, timeout: float) -> State:
        await self._ask(timeout)
        return self.read(path)

    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(self.states))

    async def set(self, path: str, value: Any, *, if_version: int | None, timeout: float) -> int:
        await self._ask(timeout)
        version = self.read(path).version
        if if_version not in (None, version):
            raise ConflictError(f"expected version {if_version}, found {version}")
        self.states[path] = State(value, version + 1, 7)
        self._watchers.tell()
        return version + 1

    async def delete(self, path: str, *, if_version: int | None, timeout: float) -> int:
        return await self.set(path, None, if_version=if_version, timeout=timeout)

    def watch(self, path: str) -> Watch[State]:
        return self._watchers.watch(lambda: self.read(path))

    async def _ask(self, timeout: float) -> None:
        if not self.quorum:
            await trio.sleep(timeout)
            raise NoQuorumError("expected a majority, found nobody")


class FakeBucket:
    """Values of one bucket; each write is one version more, beyond what MessagePack counts to."""

    def __init__(self) -> None:
        self.items: dict[str, Item[Any]] = {}
        self.versions = 1 << 100
        self.asked: list[tuple[str, object]] = []
        """The levels asked for, and how long an answer might take."""

    async def read(self, key: str, *, consistency: Level, timeout: float) -> Item[Any] | None:
        self.asked.append((consistency, timeout))
        return self.items.get(key)

    async def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | None,
        if_version: int | None,
        consistency: Level | None,
        timeout: float,
    ) -> Version:
        encode(value)
        version = await self.delete(
            key, if_version=if_version, consistency=consistency, timeout=timeout
        )
        self.items[key] = Item(value, version, ttl)
        return version

    async def delete(
        self, key: str, *, if_version: int | None, consistency: Level | None, timeout: float
    ) -> Version:
        self.asked.append((consistency or "quorum", timeout))
        found = self.items[key].version if key in self.items else 0
        if if_version not in (None, found):
            raise ConflictError(f"expected version {if_version}, found {found}")
        self.items.pop(key, None)
        self.versions += 1
        return Version(self.versions)


class FakeKv:
    """The store of one node, and a ring of two members and one that is gone."""

    def __init__(self) -> None:
        self.buckets: dict[str, FakeBucket] = {}
        self.gone: list[str] = []

    def bucket(self, name: str) -> FakeBucket:
        if not name:
            raise ValueError("a bucket has a name")
        return self.buckets.setdefault(name, FakeBucket())

    def ring(self) -> Ring:
        a, b, dead = (Owner(NodeId(letter * 32), BootId(1)) for letter in "abd")
        members = (Member(a.node, a.boot, weight=2, zone="z"), Member(b.node, b.boot))
        state = RingState(
            Revision(7),
            3,
            members,
            current=((a, b),) * (SLOTS - 1) + ((b, dead),),
            next=((),) * (SLOTS - 1) + ((b, a),),
            positions=(Revision(7),) * SLOTS,
            gone={dead: Proof.LEFT},
        )
        return state.ring()

    async def declare_gone(self, node: str, *, timeout: float) -> int:
        self.gone.append(node)
        return 1

    def statistics(self) -> KvStatistics:
        return msgspec.convert(dict.fromkeys(KvStatistics.__struct_fields__, 5), KvStatistics)


class FakeRouter:
    """Two endpoints that were called."""

    def statistics(self) -> RouterStatistics:
        called = (EndpointStatistics(name, 3, 2, 1, 4) for name in ("orders.place", "stock.take"))
        return RouterStatistics(tuple(called), ())


class FakeLease:
    def __init__(self, token: FencingToken) -> None:
        self.token = token


class FakeSync:
    """Locks of one node."""

    def __init__(self) -> None:
        self.owned: dict[str, trio.CancelScope] = {}
        self.granted = 0
        self.freed = trio.Event()

    @asynccontextmanager
    async def lock(
        self, name: str, *, ttl: float | None, wait: float | None
    ) -> AsyncIterator[FakeLease]:
        if ttl == 13.0:
            raise ValueError("ttl must not be 13")
        with trio.move_on_after(15.0 if wait is None else wait):
            while name in self.owned:
                await self.freed.wait()
        if name in self.owned:
            raise UnavailableError(f"lock {name!r} is taken", reason="taken")
        self.granted += 1
        with trio.CancelScope() as scope:
            self.owned[name] = scope
            try:
                yield FakeLease(FencingToken(self.granted))
            finally:
                del self.owned[name]
                self.freed.set()
                self.freed = trio.Event()
        if scope.cancelled_caught:
            raise LeaseLostError(f"the lease on {name!r} ended")

    def lose(self, name: str) -> None:
        self.owned[name].cancel()


class FakeNode:
    """One node, with what `NodeView` asks for."""

    def __init__(self) -> None:
        self.discovery = FakeDiscovery()
        self.config = FakeConfig()
        self.sync = FakeSync()
        self.kv = FakeKv()
        self.router = FakeRouter()
        self.calls: list[tuple[str, bool, tuple[Any, ...], float]] = []
        self.server = ControlServer(self, SystemClock())

    async def call(self, callee: Remote[Any], *arguments: Any, timeout: float) -> Any:
        """Answer what was asked; `{1: b"x"}` and the like, as services may."""
        callee.encode(arguments)
        self.calls.append((callee.name, callee.idempotent, arguments, timeout))
        if callee.name == "orders.refuse":
            raise RemoteError("orders.refuse: the handler raised KeyError: 1")
        if callee.name == "orders.odd":
            return {1: b"x", "when": datetime(2026, 1, 1, tzinfo=UTC)}
        return list(arguments)

    def members(self) -> tuple[GossipMember, ...]:
        return tuple(
            GossipMember(
                node=NodeId(letter * 32),
                boot=BootId(1),
                name=letter,
                address=Address("127.0.0.1", 7946),
                state=state,
                incarnation=Incarnation(3),
                labels={"zone": "[x]"},
                record=b"",
                record_hash=0,
                states=(),
                since=0.0,
                score=0,
            )
            for letter, state in (("a", MemberState.ALIVE), ("b", MemberState.DEAD))
        )

    def statistics(self) -> NodeStatistics:
        numbers = dict.fromkeys(NodeStatistics.__struct_fields__, 0)
        words = dict.fromkeys(("node", "name", "address", "cluster", "reason", "storage"), "x")
        queue = QueueStatistics("outbox", 1, limits.LINK_OUTBOX_FRAMES, "refuse", 0)
        special = {
            "ready": True,
            "role": "leader",
            "leader": "a",
            "voters": ("a",),
            "learners": (),
            "queues": (queue,),
            "counters": {"foreign": 2},
        }
        return msgspec.convert({**numbers, **words, **special}, NodeStatistics)


@asynccontextmanager
async def serving(
    node: FakeNode,
    network: Network,
    *,
    label: str = "local",
    key: bytes | None = None,
    bound: str = "127.0.0.1",
) -> AsyncIterator[Address]:
    """Give a node a port, where links and control connections arrive as at a real one.

    Args:
        key: The node wants everything sealed with it.
        bound: Where the node believes that it is bound.
    """
    listener = await network.listen(Address("127.0.0.1", 0))
    me = Hello(NodeId("f" * 32), BootId(1), "a", Address(bound, listener.address.port), label)
    sealer = None
    if key is not None:
        sealer = Tls(
            Keyring((key,), label), label=label, name="a", node=me.node, entropy=os.urandom
        )
    links = Links(
        lambda: me,
        label=label_hash(label),
        clock=SystemClock(),
        random=random.Random(1),
        network=network,
        address_of=lambda node: None,
        on_frame=lambda channel, node, boot, body: None,
        on_calls=lambda node, boot, bodies: None,
        on_note=lambda note: None,
        on_control=node.server.serve,
        admit=lambda hello: "",
        sealer=sealer,
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.run, listener)
            yield listener.address
            assert links.statistics().failures == 0, links.statistics().failure
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
