"""Two connections between one pair, one side of them played by hand, frame by frame."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from microos import wire
from microos.hashing import label_hash
from microos.net.handshake import (
    Bye,
    Connection,
    Hello,
    LinkMessage,
    Probe,
    Use,
    decode_link_message,
    link_frame,
)
from microos.net.link import DOUBT_WAIT
from microos.net.notes import LinkUp
from microos.types import Address, BootId, NodeId
from microos.wire import Channel
from tests.net.nodes import Node, World, until

PREFACE = wire.pack_preface(label_hash("test"))


class Puppet:
    """A process without a will of its own."""

    def __init__(self, world: World, boot: int) -> None:
        self.host = world.network.host("puppet")
        self.world = world
        self.hello = Hello(NodeId("p"), BootId(boot), "p", Address("127.0.0.1", 1), "test")

    async def be_dialled(self, node: Node) -> Connection:
        """Let `node` dial us; return the connection, with its `Use` read."""
        listener = await self.host.listen(Address("127.0.0.1", 0))
        self.world.addresses[self.hello.node] = listener.address
        assert node.links.send(self.hello.node, Channel.RAFT, b"a reason to dial")
        connection = Connection(await listener.accept())
        await connection.first_bytes()
        assert isinstance(await connection.message(), Hello)
        await connection.stream.send_all(PREFACE + link_frame(self.hello))
        assert await connection.message() == Use()
        return connection

    async def dial(self, node: Node) -> Connection:
        """Dial `node` and want this as the link."""
        connection = Connection(await self.host.dial(node.address))
        await connection.stream.send_all(PREFACE + link_frame(self.hello))
        await connection.first_bytes()
        assert isinstance(await connection.message(), Hello)
        await connection.stream.send_all(link_frame(Use()))
        return connection


async def heard(connection: Connection) -> list[LinkMessage | bytes]:
    """Return what a connection says until it ends or is quiet for 100 ms."""
    found: list[LinkMessage | bytes] = [body for _, body in connection.rest()]
    try:
        while True:
            with trio.move_on_after(0.1) as scope:
                data = await connection.stream.receive_some(65_536)
            if scope.cancelled_caught or not data:
                break
            for channel, body in connection.reader.feed(data):
                found.append(body if channel is not Channel.LINK else _message(body))
    except trio.BrokenResourceError:
        pass
    return found


def _message(body: bytes) -> LinkMessage:
    return decode_link_message(body)


async def test_the_larger_boot_ends_its_own_dial(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 9)
    puppet = Puppet(world, 7)
    ours = await puppet.be_dialled(node)
    assert await heard(ours) == [b"a reason to dial"]

    theirs = await puppet.dial(node)
    await until(lambda: node.links.statistics().links[0].inbound)
    node.links.send(puppet.hello.node, Channel.RAFT, b"over the other")

    assert await heard(ours) == [Bye("duplicate")]
    assert await heard(theirs) == [b"over the other"]
    assert [type(note) for note in node.notes] == [LinkUp]


async def test_what_was_under_way_on_the_ended_one_arrives(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 9)
    puppet = Puppet(world, 7)
    ours = await puppet.be_dialled(node)
    await puppet.dial(node)
    await until(lambda: node.links.statistics().links[0].inbound)

    await ours.stream.send_all(wire.pack_frame(Channel.RAFT, b"late"))
    await trio.sleep(0.1)

    assert node.bodies == [b"late"]


async def test_the_smaller_boot_waits_for_the_other_to_end_its_dial(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 1)
    puppet = Puppet(world, 7)
    ours = await puppet.be_dialled(node)
    theirs = await puppet.dial(node)
    await trio.sleep(0.1)

    node.links.send(puppet.hello.node, Channel.RAFT, b"over ours")

    assert await heard(ours) == [b"a reason to dial", Probe(1), b"over ours"]
    assert await heard(theirs) == []


async def test_the_spare_takes_over_when_the_link_breaks(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 1)
    puppet = Puppet(world, 7)
    ours = await puppet.be_dialled(node)
    theirs = await puppet.dial(node)
    await trio.sleep(0.1)

    ours.stream.abort()
    await trio.sleep(0.1)
    node.links.send(puppet.hello.node, Channel.RAFT, b"over the spare")

    assert await heard(theirs) == [b"over the spare"]
    assert [type(note) for note in node.notes] == [LinkUp]


async def test_a_link_the_other_side_has_lost_is_found_out_at_once(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 1)
    puppet = Puppet(world, 7)
    await puppet.be_dialled(node)
    theirs = await puppet.dial(node)
    await trio.sleep(DOUBT_WAIT + 0.1)

    node.links.send(puppet.hello.node, Channel.RAFT, b"over the spare")

    assert await heard(theirs) == [b"over the spare"]
    assert node.links.statistics().connections == 1


async def test_a_second_dial_of_one_side_replaces_the_first(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 1)
    puppet = Puppet(world, 7)
    first = await puppet.dial(node)
    second = await puppet.dial(node)
    await trio.sleep(0.1)

    node.links.send(puppet.hello.node, Channel.RAFT, b"over the second")

    assert await heard(second) == [b"over the second"]
    assert await heard(first) == []
    assert [type(note) for note in node.notes] == [LinkUp]
