"""Bytes that do not belong here: counted, answered if it helps, and harmless."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from microos import limits, wire
from microos.codec import encode
from microos.hashing import label_hash
from microos.net.handshake import Bye, Hello, Probe, Use, link_frame
from microos.net.links import HANDSHAKE_TIMEOUT
from microos.net.network import Stream
from microos.net.system import SystemNetwork
from microos.types import Address, BootId, NodeId
from microos.wire import Channel
from tests.net.nodes import Node, World, until

LABEL = label_hash("test")
PREFACE = wire.pack_preface(LABEL)


def hello(node: str = "s", boot: int = 7, *, label: str = "test", port: int = 7) -> Hello:
    return Hello(NodeId(node), BootId(boot), "s", Address("127.0.0.1", port), label)


async def everything(stream: Stream) -> bytes:
    """Read until the end, whichever end it is."""
    data = b""
    try:
        while part := await stream.receive_some(4096):
            data += part
    except trio.BrokenResourceError:
        pass
    return data


async def stranger(world: World, node: Node, data: bytes) -> Stream:
    stream = await world.network.host("stranger").dial(node.address)
    await stream.send_all(data)
    return stream


async def guest(world: World, node: Node, data: bytes = b"") -> Stream:
    """Return a connection that has become a link, over which `data` was sent."""
    stream = await stranger(world, node, PREFACE + link_frame(hello()) + link_frame(Use()))
    await until(lambda: len(node.ups) == 1)
    await stream.send_all(data)
    return stream


async def assert_alive(world: World, node: Node) -> None:
    other = await world.node("other", 99)
    other.send(node, b"alive")
    await until(lambda: node.bodies[-1:] == [b"alive"])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "http"),
        (b"PRI * HTTP/2.0\r\n\r\n", "http"),
        (b"\x16\x03\x01\x02\x00\x01", "sealed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "foreign"),
        (b"\x00" * 100, "foreign"),
        (wire.pack_preface(LABEL + 1), "wrong_cluster"),
        (b"MO\x02\x00" + PREFACE[4:], "malformed"),
        (PREFACE + b"\xff" * 12, "malformed"),
        (PREFACE + link_frame(Use()), "malformed"),
        (PREFACE + link_frame(Probe(1)), "malformed"),
        (PREFACE + wire.pack_frame(Channel.RAFT, b"vote"), "malformed"),
        (PREFACE + wire.pack_frame(Channel.LINK, b"\xc1"), "malformed"),
        (PREFACE + link_frame(hello())[:-1] + b"?", "malformed"),
        (PREFACE + b"\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "malformed"),
        (PREFACE + link_frame(hello(label="other")), "wrong_cluster"),
    ],
)
async def test_foreign_bytes_are_counted_and_closed(
    world: World, autojump_clock: MockClock, data: bytes, what: str
) -> None:
    node = await world.node("a", 1)

    stream = await stranger(world, node, data)
    with trio.fail_after(1.5):
        await everything(stream)

    assert node.strangers == [what]
    assert getattr(node.links.statistics(), what) == 1
    assert node.links.statistics().connections == 0
    await assert_alive(world, node)


@pytest.mark.parametrize("data", [b"", b"M", PREFACE, PREFACE + link_frame(hello())])
async def test_silence_is_cut_off(world: World, autojump_clock: MockClock, data: bytes) -> None:
    node = await world.node("a", 1)

    stream = await stranger(world, node, data)
    began = trio.current_time()
    await everything(stream)

    assert trio.current_time() - began == pytest.approx(HANDSHAKE_TIMEOUT, abs=0.1)
    assert node.strangers == ["silent"]
    await assert_alive(world, node)


async def test_a_port_scan_is_not_worth_a_note(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 1)

    stream = await stranger(world, node, b"")
    await stream.aclose()
    await until(lambda: node.links.statistics().silent == 1)

    assert node.notes == []


async def test_http_is_told_what_this_port_is(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 1)

    stream = await stranger(world, node, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 100 + b"\r\n")

    assert await everything(stream) == wire.HTTP_ANSWER


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (hello(label="other"), "cluster"),
        (hello(node="a"), "self"),
        (hello(port=0), "address"),
        (hello(port=-1), "address"),
        (hello(port=1 << 40), "address"),
    ],
)
async def test_a_hello_that_is_not_welcome_is_told_why(
    world: World, autojump_clock: MockClock, changed: Hello, reason: str
) -> None:
    node = await world.node("a", 1)

    stream = await stranger(world, node, PREFACE + link_frame(changed))

    assert await everything(stream) == PREFACE + link_frame(Bye(reason))
    assert node.ups == []


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff" * 12,
        link_frame(Use()),
        link_frame(hello()),
        wire.pack_frame(Channel.CONTROL, b"\x90"),
        wire.pack_frame(Channel.LINK, encode([77])),
        wire.pack_frame(Channel.RAFT, b"damaged")[:-1] + b"?",
        wire.pack_frame(9, b"unknown"),
    ],
)
async def test_a_link_that_breaks_the_protocol_ends(
    world: World, autojump_clock: MockClock, frame: bytes
) -> None:
    node = await world.node("a", 1)

    stream = await guest(world, node, frame + wire.pack_frame(Channel.RAFT, b"late"))
    await until(lambda: bool(node.losses))
    await everything(stream)

    assert node.frames == []
    assert node.strangers == ["malformed"]
    await assert_alive(world, node)


async def test_an_over_long_frame_ends_the_link(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 1)
    length = wire.BODY_MAX[Channel.SNAPSHOT] + 1
    head = length.to_bytes(4) + bytes([Channel.SNAPSHOT]) + b"\x00" * 7

    await guest(world, node, head)
    await until(lambda: bool(node.losses))

    assert node.links.statistics().malformed == 1


async def test_an_unknown_channel_marked_skippable_is_skipped(
    world: World, autojump_clock: MockClock
) -> None:
    node = await world.node("a", 1)

    unknown = wire.pack_frame(9, b"from a newer version", wire.FLAG_SKIPPABLE)
    await guest(world, node, unknown + wire.pack_frame(Channel.RAFT, b"known"))
    await until(lambda: bool(node.frames))

    assert node.bodies == [b"known"]


async def test_a_source_is_noted_once_a_minute(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 1)

    for _ in range(30):
        await everything(await stranger(world, node, b"nonsense"))
        await trio.sleep(3.0)

    assert node.links.statistics().foreign == 30
    assert len(node.strangers) == 2


async def test_probes_without_reading_cost_nothing(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 1)

    stream = await guest(world, node)
    for number in range(100):
        await stream.send_all(link_frame(Probe(number)) * 200)
    await trio.sleep(1.0)

    [link] = node.links.statistics().links
    assert link.frames_in == 20_000
    assert link.frames_out < 5000


async def test_control_connections_are_handed_over(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("a", 1)
    heard = []

    async def serve(stream: Stream) -> None:
        heard.append(await stream.receive_some(100))
        await stream.send_all(b"answer")

    node.on_control = serve
    request = wire.pack_frame(Channel.CONTROL, b"status")
    stream = await stranger(world, node, wire.pack_preface(LABEL, wire.FLAG_CONTROL) + request)

    assert await everything(stream) == b"answer"
    assert heard == [request]
    assert node.links.statistics().control == 1


def _frames() -> st.SearchStrategy[bytes]:
    messages = st.one_of(
        st.builds(hello, st.sampled_from(["s", "t", "a"]), st.integers(1, 3)),
        st.just(Use()),
        st.builds(Probe, st.integers(-9, 9)),
        st.just(Bye("leave")),
    ).map(link_frame)
    frames = st.builds(wire.pack_frame, st.sampled_from(list(Channel)), st.binary(min_size=1))
    return st.one_of(messages, frames, st.binary())


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(_frames(), max_size=6), honest=st.booleans(), size=st.integers(1, 40))
def test_no_bytes_do_any_harm(chunks: list[bytes], honest: bool, size: int) -> None:
    opening = PREFACE + link_frame(hello()) + link_frame(Use())
    data = (opening if honest else b"") + b"".join(chunks)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            node = await world.node("a", 1)
            stream = await world.network.host("stranger").dial(node.address)
            for at in range(0, len(data), size):
                try:
                    await stream.send_all(data[at : at + size])
                except trio.BrokenResourceError:
                    break
            await trio.sleep(1.0)
            world.check()
            await assert_alive(world, node)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", lambda answer: answer == wire.HTTP_ANSWER),
        (b"\x16\x03\x01\x02\x00\x01", lambda answer: answer == b""),
    ],
)
async def test_the_same_over_real_sockets(
    nursery: trio.Nursery, data: bytes, condition: Callable[[bytes], bool]
) -> None:
    world = World(nursery)
    node = await world.node("a", 1, network=SystemNetwork())

    stream = await SystemNetwork().dial(node.address)
    await stream.send_all(data)

    assert condition(await everything(stream))
    stream.abort()
    other = await world.node("b", 2, network=SystemNetwork())
    other.send(node, b"alive" * limits.KIB)
    await until(lambda: node.bodies == [b"alive" * limits.KIB])
    world.check()
    nursery.cancel_scope.cancel()
