"""A node as the command line sees one: it remembers, locks and lists, and has no cluster."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from microos import limits
from microos.clock import SystemClock
from microos.config.config import State
from microos.control.server import ControlServer
from microos.discovery.discovery import Instance
from microos.errors import ConflictError, LeaseLostError, NoQuorumError, UnavailableError
from microos.gossip.members import Member
from microos.gossip.members import State as MemberState
from microos.hashing import label_hash
from microos.keyring import Keyring
from microos.net.handshake import Hello
from microos.net.links import Links
from microos.net.network import Network
from microos.net.tls import Tls
from microos.node.statistics import NodeStatistics, QueueStatistics
from microos.node.watch import Watch, Watchers
from microos.types import Address, BootId, FencingToken, Incarnation, NodeId


class FakeDiscovery:
    def services(self) -> tuple[str, ...]:
        return ("orders", "stock")

    def instances(self, service: str) -> tuple[Instance, ...]:
        if service not in self.services():
            return ()
        return (
            Instance(service, "1.2", "f" * 32, "a", "127.0.0.1:1", {"zone": "[x]"}, (), "alive"),
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
        self.server = ControlServer(self, SystemClock())

    def members(self) -> tuple[Member, ...]:
        return tuple(
            Member(
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
