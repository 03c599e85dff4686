"""Nodes with a secret: who gets a link, who is told why not, and who may come in the clear."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from microos import wire
from microos.clock import SystemClock
from microos.hashing import label_hash
from microos.keyring import Keyring
from microos.net import identity
from microos.net.handshake import Bye, Connection, Hello, Use, introduce, link_frame
from microos.net.links import FOREIGN_INTERVAL, HANDSHAKE_TIMEOUT
from microos.net.network import Stream
from microos.net.tls import Tls
from microos.types import Address, BootId, NodeId
from microos.wire import Channel
from tests.net.nodes import Node, World, until

A, B = b"a" * 32, b"b" * 32
LABEL = label_hash("test")
HELLO = Hello(NodeId("s"), BootId(7), "s", Address("127.0.0.1", 7), "test")
OPENING = wire.pack_preface(LABEL) + link_frame(HELLO) + link_frame(Use())
CONTROL = wire.pack_preface(LABEL, wire.FLAG_CONTROL)


@pytest.fixture
def keys() -> Sequence[bytes]:
    return (A,)


def tls(node: str, *, key: bytes = A) -> Tls:
    return Tls(
        Keyring((key,), "test"), label="test", name="", node=node, entropy=lambda n: b"e" * n
    )


async def stranger(world: World, node: Node, *, ip: str = "127.0.0.1") -> Connection:
    return Connection(await world.network.host("stranger", ip=ip).dial(node.address))


async def everything(stream: Stream) -> bytes:
    """Read until the end, whichever end it is."""
    data = b""
    try:
        while part := await stream.receive_some(4096):
            data += part
    except trio.BrokenResourceError:
        pass
    return data


async def assert_alive(world: World, node: Node) -> None:
    other = await world.node("other", 99)
    other.send(node, b"alive")
    await until(lambda: node.bodies[-1:] == [b"alive"])


@pytest.mark.criterion("GEN-8")
async def test_a_plain_node_is_told_why_and_reaches_nobody(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 1)

    connection = await stranger(world, node)
    await connection.stream.send_all(OPENING + wire.pack_frame(Channel.RAFT, b"vote"))
    answer = await everything(connection.stream)

    assert answer == wire.pack_preface(LABEL) + link_frame(Bye("plain"))
    assert node.frames == []
    assert node.strangers == ["plain"]
    assert node.links.statistics().plain == 1
    await assert_alive(world, node)


async def test_a_sealed_and_a_plain_node_never_meet(
    world: World, autojump_clock: MockClock
) -> None:
    sealed, plain = await world.node("a", 1), await world.node("b", 2, keys=())

    from_plain = await plain.links.dial(sealed.address, None, 1.0)
    from_sealed = await sealed.links.dial(plain.address, None, 1.0)
    await trio.sleep(2.0)

    assert from_plain.outcome == "rejected:plain"
    assert from_sealed.outcome == "reset"
    assert sealed.ups == plain.ups == []
    assert (sealed.strangers, plain.strangers) == (["plain"], ["sealed"])
    assert plain.links.statistics().sealed == 1


@pytest.mark.criterion("GEN-7")
async def test_nodes_of_another_key_never_meet(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2, keys=(B,))

    for dialler, other in ((a, b), (b, a)):
        result = await dialler.links.dial(other.address, None, 1.0)
        assert result.outcome == "rejected:unauthenticated"
    await trio.sleep(2.0)

    assert a.ups == b.ups == []
    assert a.links.statistics().unauthenticated == b.links.statistics().unauthenticated == 2
    assert a.strangers == b.strangers == ["unauthenticated"]
    await trio.sleep(FOREIGN_INTERVAL)
    await a.links.dial(b.address, None, 1.0)
    assert a.strangers == ["unauthenticated"] * 2


async def test_who_trusts_but_is_not_trusted_is_told_so(
    world: World, autojump_clock: MockClock
) -> None:
    trusting, other = await world.node("a", 1, keys=(A, B)), await world.node("b", 2, keys=(B,))

    result = await trusting.links.dial(other.address, None, 1.0)
    await trio.sleep(2.0)

    assert result.outcome == "rejected:unauthenticated"
    assert trusting.ups == other.ups == []
    assert trusting.strangers == other.strangers == ["unauthenticated"]


async def test_a_node_is_who_its_certificate_says(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 1)

    connection = await stranger(world, node)
    await connection.seal(tls("t").dial(), SystemClock())
    answer = await introduce(connection, LABEL, HELLO)

    assert answer == Bye("identity")
    assert node.ups == []
    assert node.strangers == ["unauthenticated"]


async def test_whoever_is_dialled_is_who_its_certificate_says(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 1)
    listener = await world.network.host("liar").listen(Address("127.0.0.1", 0))
    heard = []

    async def lie() -> None:
        connection = Connection(await listener.accept())
        await connection.seal(tls("t").accept(), SystemClock())
        await connection.first_bytes()
        await connection.message()
        await connection.stream.send_all(wire.pack_preface(LABEL) + link_frame(HELLO))
        heard.append(await connection.message())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lie)
        result = await node.links.dial(listener.address, None, 1.0)

    assert result.outcome == "rejected:identity"
    assert heard == [Bye("identity")]
    assert node.ups == []


async def test_a_command_line_gets_no_link(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 1)

    connection = await stranger(world, node)
    await connection.seal(tls(identity.CONTROL).dial(), SystemClock())
    answer = await introduce(connection, LABEL, HELLO)

    assert answer == Bye("identity")
    assert node.ups == []
    assert node.strangers == ["unauthenticated"]


@pytest.mark.parametrize(
    ("ip", "bound", "served"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::ffff:127.0.0.1", "::", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("10.0.0.2", "0.0.0.0", False),
        ("nonsense", "0.0.0.0", False),
    ],
)
async def test_only_this_machine_may_ask_in_the_clear(
    world: World, autojump_clock: MockClock, ip: str, bound: str, served: bool
) -> None:
    node = await world.node("a", 1)
    connection = await stranger(world, node, ip=ip)
    node.address = Address(bound, node.address.port)

    async def serve(stream: Stream) -> None:
        await stream.send_all(b"answer")

    node.on_control = serve
    await connection.stream.send_all(CONTROL)

    refusal = wire.pack_preface(LABEL) + link_frame(Bye("plain"))
    assert await everything(connection.stream) == (b"answer" if served else refusal)
    assert node.links.statistics().control == served


async def test_from_elsewhere_the_command_line_shows_that_it_knows_the_secret(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 1)

    async def serve(stream: Stream) -> None:
        await stream.send_all(b"answer")

    node.on_control = serve
    connection = await stranger(world, node, ip="10.0.0.2")
    await connection.seal(tls(identity.CONTROL).dial(), SystemClock())
    await connection.stream.send_all(CONTROL)

    assert await everything(connection.stream) == b"answer"


@pytest.mark.parametrize("data", [b"\x16\x03", b"\x16\x03\x01\x00\x10", b"\x16\x03\x01\x40\x00abc"])
async def test_a_handshake_that_stands_still_is_cut_off(
    world: World, autojump_clock: MockClock, data: bytes
) -> None:
    node = await world.node("a", 1)

    connection = await stranger(world, node)
    await connection.stream.send_all(data)
    began = trio.current_time()
    await everything(connection.stream)

    assert trio.current_time() - began <= HANDSHAKE_TIMEOUT + 0.1
    assert node.links.statistics().connections == 0
    await assert_alive(world, node)


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=60), max_size=4), st.integers(0, 3))
def test_no_bytes_do_any_harm(chunks: list[bytes], honest: int) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery, (A,))
            node = await world.node("a", 1)
            connection = await stranger(world, node)
            raw = connection.stream
            try:
                if honest == 1:
                    await raw.send_all(_hello())
                if honest >= 2:
                    await connection.seal(tls("s").dial(), SystemClock())
                target = raw if honest < 3 else connection.stream
                for chunk in chunks:
                    await target.send_all(chunk)
            except trio.BrokenResourceError:
                pass
            await trio.sleep(1.0)
            world.check()
            await assert_alive(world, node)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def _hello() -> bytes:
    """Return a true ClientHello."""
    session = tls("s").dial()
    assert not session.meet()
    return session.taken()
