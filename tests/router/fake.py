"""A kernel whose attempts are scripted, with the real discovery on top of it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import trio

from microos.clock import SystemClock
from microos.codec import encode
from microos.discovery.attach import attach as attach_discovery
from microos.discovery.record import ServiceRecord
from microos.errors import MicroosError, RejectedError, UnavailableError, UncertainError
from microos.gossip.members import Member, State
from microos.node.kernel import Kernel
from microos.node.runtime import Runtime
from microos.router.attach import attach
from microos.router.middleware import CallMiddleware
from microos.router.policy import Policy
from microos.router.router import Router
from microos.rpc.messages import Load, Reply
from microos.types import Address, BootId, Incarnation, NodeId

LOAD = Load(0, 10_000)


def node(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


class Sent(msgspec.Struct, frozen=True):
    """One attempt the kernel was asked for."""

    at: float
    node: NodeId
    endpoint: str
    body: bytes
    deadline: float
    attempt: int
    metadata: dict[str, str]


Script = Callable[[Sent], Awaitable[Reply]]


async def answers(sent: Sent) -> Reply:
    """Echo after 10 ms."""
    await trio.sleep(0.010)
    return Reply(sent.body, LOAD)


def raises(make: Callable[[], MicroosError], load: Load | None = None) -> Script:
    """Return a script that fails after 1 ms."""

    async def script(sent: Sent) -> Reply:
        await trio.sleep(0.001)
        error = make()
        error.load = load
        raise error

    return script


async def hangs(sent: Sent) -> Reply:
    """Never answer; end at the deadline as the kernel does, the frame having left."""
    await trio.sleep_until(sent.deadline)
    raise UncertainError("no answer in time", reason="deadline")


def refused() -> UnavailableError:
    return UnavailableError("nobody listens there", reason="connection_refused")


def draining() -> UnavailableError:
    return UnavailableError("the node is leaving", reason="draining")


def lost() -> UncertainError:
    return UncertainError("the link broke", reason="connection_lost")


class FakeKernel:
    """What the router uses of a node. `scripts` says what each other node does."""

    def __init__(self, numbers: range, *, service: str = "shop", seed: int = 0) -> None:
        self.node = node(0)
        self.sent: list[Sent] = []
        self.notes: list[object] = []
        self.scripts: dict[NodeId, Script] = {}
        self.default: Script = answers
        self._told: list[Callable[[], None]] = []
        self._members: dict[NodeId, Member] = {}
        self.runtime = Runtime(
            name="fake",
            clock=SystemClock(),
            random=lambda consumer: random.Random(f"{seed}/{consumer}"),
            entropy=bytes,
            network=cast(Any, None),
            disk=cast(Any, None),
            observe=lambda source, note: self.notes.append(note),
        )
        for number in numbers:
            self.join(number, service)

    def join(self, number: int, service: str = "shop", state: State = State.ALIVE) -> None:
        self._members[node(number)] = Member(
            node=node(number),
            boot=BootId(1),
            name=f"node-{number}",
            address=Address("127.0.0.1", 1),
            state=state,
            incarnation=Incarnation(1),
            labels={},
            record=encode((ServiceRecord(service),)),
            record_hash=1,
            states=(),
            since=0.0,
            score=0,
        )
        self.tell()

    def leave(self, number: int) -> None:
        del self._members[node(number)]
        self.tell()

    def tell(self) -> None:
        for told in self._told:
            told()

    # What the kernel offers.

    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    def on_members(self, told: Callable[[], None]) -> None:
        self._told.append(told)
        told()

    def add_queues(self, queues: object) -> None:
        pass

    async def attempt(
        self,
        node: NodeId,
        endpoint: str,
        body: bytes,
        deadline: float,
        *,
        attempt: int = 1,
        metadata: dict[str, str] | None = None,
    ) -> Reply:
        now = self.runtime.clock.now()
        sent = Sent(now, node, endpoint, body, deadline, attempt, dict(metadata or {}))
        self.sent.append(sent)
        return await self.scripts.get(node, self.default)(sent)


class Endpoint:
    """A contract whose body is text."""

    def __init__(
        self, name: str = "shop.buy", *, idempotent: bool = False, timeout: float | None = None
    ) -> None:
        self.name = name
        self.idempotent = idempotent
        self.timeout = timeout
        self.encoded = 0

    def encode(self, arguments: tuple[Any, ...]) -> bytes:
        self.encoded += 1
        if not all(isinstance(argument, str) for argument in arguments):
            raise RejectedError("expected text", reason="bad_request")
        return "/".join(arguments).encode()

    def decode(self, body: bytes) -> str:
        return body.decode()


def router_on(
    kernel: FakeKernel, *middleware: CallMiddleware, policy: Policy | None = None
) -> Router:
    """Return a router on a fake kernel."""
    fake = cast(Kernel, kernel)
    router = attach(fake, attach_discovery(fake), middleware)
    if policy is not None:
        router.apply("*", policy)
    return router
