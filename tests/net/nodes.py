"""Nodes that consist of links only, on a network in memory and on virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

import trio

from microos.clock import SystemClock
from microos.hashing import label_hash
from microos.keyring import Keyring
from microos.net.handshake import Hello
from microos.net.links import Links
from microos.net.memory import MemoryNetwork, PlainRules
from microos.net.network import Network, Stream
from microos.net.notes import Foreign, LinkLost, LinkNote, LinkUp
from microos.net.tls import Tls
from microos.types import Address, BootId, NodeId
from microos.wire import Channel

LATENCY = 0.001


class Node:
    """One process: its links, and all it was told."""

    def __init__(
        self,
        world: World,
        name: str,
        boot: int,
        network: Network,
        label: str,
        keyring: Keyring | None = None,
    ) -> None:
        self.world = world
        self.node = NodeId(name)
        self.boot = BootId(boot)
        self.network = network
        self.label = label
        self.address = Address("127.0.0.1", 0)
        self.frames: list[tuple[Channel, NodeId, BootId, bytes]] = []
        self.notes: list[LinkNote] = []
        self.refuse = ""
        self.on_frame: Callable[[bytes], None] = lambda body: None
        self.on_control: Callable[[Stream], Awaitable[None]] | None = None
        self.scope = trio.CancelScope()
        self.links = Links(
            self.hello,
            label=label_hash(label),
            clock=SystemClock(),
            random=random.Random(boot),
            network=network,
            address_of=world.addresses.get,
            on_frame=self._frame,
            on_calls=self._calls,
            on_note=self.notes.append,
            on_control=self._control,
            admit=lambda hello: self.refuse,
            sealer=None if keyring is None else self.tls(keyring),
        )

    def tls(self, keyring: Keyring) -> Tls:
        """Return this node's side of handshakes."""
        return Tls(
            keyring,
            label=self.label,
            name="",
            node=self.node,
            entropy=random.Random(self.boot).randbytes,
        )

    def hello(self) -> Hello:
        return Hello(self.node, self.boot, str(self.node), self.address, self.label)

    def _frame(self, channel: Channel, node: NodeId, boot: BootId, body: bytes) -> None:
        self.frames.append((channel, node, boot, body))
        self.on_frame(body)

    def _calls(self, node: NodeId, boot: BootId, bodies: list[bytes]) -> None:
        for body in bodies:
            self._frame(Channel.RPC, node, boot, body)

    async def _control(self, stream: Stream) -> None:
        assert self.on_control is not None
        await self.on_control(stream)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        listener = await self.network.listen(self.address)
        self.address = listener.address
        self.world.addresses[self.node] = self.address
        try:
            with self.scope:
                task_status.started()
                await self.links.run(listener)
        finally:
            listener.close()

    def send(self, to: Node, body: bytes = b"x", *, urgent: bool = False) -> bool:
        return self.links.send(to.node, Channel.GOSSIP, body, urgent=urgent)

    @property
    def bodies(self) -> list[bytes]:
        return [body for *_, body in self.frames]

    @property
    def ups(self) -> list[LinkUp]:
        return [note for note in self.notes if isinstance(note, LinkUp)]

    @property
    def losses(self) -> list[LinkLost]:
        return [note for note in self.notes if isinstance(note, LinkLost)]

    @property
    def strangers(self) -> list[str]:
        return [note.what for note in self.notes if isinstance(note, Foreign)]


class World:
    """Nodes on hosts `h1`, `h2`, … that all reach each other.

    Args:
        keys: Of every node that is given no others; none: links are plain.
    """

    def __init__(self, nursery: trio.Nursery, keys: Sequence[bytes] = ()) -> None:
        self.keys = keys
        self.rules = PlainRules(SystemClock(), latency=LATENCY)
        self.network = MemoryNetwork(self.rules)
        self.addresses: dict[NodeId, Address] = {}
        self.nodes: list[Node] = []
        self._nursery = nursery

    async def node(
        self,
        name: str,
        boot: int,
        *,
        label: str = "test",
        network: Network | None = None,
        keys: Sequence[bytes] | None = None,
    ) -> Node:
        """Start a node; a second one of a name takes the place of the first, on its host."""
        host = network or self.network.host(name)
        chosen = self.keys if keys is None else keys
        node = Node(self, name, boot, host, label, Keyring(chosen, label) if chosen else None)
        await self._nursery.start(node.run)
        self.nodes.append(node)
        return node

    def cut(self, a: Node, b: Node) -> None:
        """Let nothing through between two nodes."""
        self.rules.cut[(str(a.node), str(b.node))] = True
        self.rules.cut[(str(b.node), str(a.node))] = True

    def heal(self) -> None:
        self.rules.cut.clear()

    def check(self) -> None:
        for node in self.nodes:
            node.links.check()
            assert node.links.statistics().failures == 0, node.links.statistics().failure


async def until(condition: Callable[[], bool], *, timeout: float = 5.0) -> None:
    """Wait until a condition holds; fails after `timeout` [s]."""
    with trio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110 - on virtual time polling is exact and free
            await trio.sleep(LATENCY)
