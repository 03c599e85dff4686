"""What a `Network` promises, kept by real sockets on loopback and by the network in memory.

And what a `Stream` promises, kept by the streams of both with TLS around them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from microos import limits
from microos.clock import SystemClock
from microos.keyring import Keyring
from microos.net.memory import MemoryNetwork
from microos.net.network import Listener, Network, Stream
from microos.net.sealed import Session, seal
from microos.net.system import SystemNetwork
from microos.net.tls import Tls
from microos.types import Address

ANY = Address("127.0.0.1", 0)


@pytest.fixture(params=["system", "memory", "system, sealed", "memory, sealed"])
async def network(request: pytest.FixtureRequest) -> AsyncIterator[Network]:
    kind, _, is_sealed = request.param.partition(", ")
    with trio.fail_after(10.0):
        network: Network = SystemNetwork() if kind == "system" else MemoryNetwork().host("h")
        yield Sealed(network) if is_sealed else network


class Sealed:
    """A network whose `_connect` puts TLS around both ends."""

    def __init__(self, network: Network) -> None:
        self.udp = network.udp
        self.dial = network.dial
        self.listen = network.listen
        self.resolve = network.resolve
        self.tls = Tls(
            Keyring((b"k" * 32,), "l"),
            label="l",
            name="n",
            node="1",
            entropy=lambda size: b"e" * size,
        )


async def _connect(network: Network) -> tuple[Listener, Stream, Stream]:
    listener = await network.listen(ANY)
    ours: Stream = await network.dial(listener.address)
    theirs: Stream = await listener.accept()
    if isinstance(network, Sealed):
        ends: list[Stream] = [ours, theirs]

        async def wrap(end: int, session: Session) -> None:
            ends[end] = await seal(ends[end], session, SystemClock())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wrap, 0, network.tls.dial())
            nursery.start_soon(wrap, 1, network.tls.accept())
        ours, theirs = ends
    return listener, ours, theirs


async def _end(*things: object) -> None:
    for thing in things:
        getattr(thing, "abort", getattr(thing, "close", None))()  # type: ignore[misc]


async def test_datagrams_arrive_with_their_sender(network: Network) -> None:
    a, b = await network.udp(ANY), await network.udp(ANY)

    a.send(b"one", b.address)
    a.send(b"two", b.address)
    found = await b.receive()
    while len(found) < 2:
        found += await b.receive()

    assert found == [(b"one", a.address), (b"two", a.address)]
    await _end(a, b)


async def test_one_read_takes_what_has_gathered_up_to_64(network: Network) -> None:
    a, b = await network.udp(ANY), await network.udp(ANY)
    for n in range(150):
        a.send(b"%d" % n, b.address)
    await trio.testing.wait_all_tasks_blocked()

    sizes: list[int] = []
    while sum(sizes) < 150:
        sizes.append(len(await b.receive()))

    assert max(sizes) <= 64
    assert sizes[0] > 1
    await _end(a, b)


@pytest.mark.parametrize(
    "to",
    [
        Address("127.0.0.1", 9),
        Address("127.0.0.1", 70_000),
        Address("name.invalid", 80),
        Address("::1", 80),
        Address("a\0b", 80),
    ],
)
async def test_sending_never_raises(network: Network, to: Address) -> None:
    a = await network.udp(ANY)

    a.send(b"x", to)
    a.send(b"x" * 100_000, a.address)
    a.send(b"still works", a.address)

    assert await a.receive() == [(b"still works", a.address)]
    await _end(a)
    a.send(b"closed", to)


async def test_closing_ends_a_waiting_receive(network: Network) -> None:
    a = await network.udp(ANY)

    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await a.receive()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        a.close()
        a.close()
    with pytest.raises(trio.ClosedResourceError):
        await a.receive()


async def test_a_taken_port_is_an_os_error(network: Network) -> None:
    udp, listener = await network.udp(ANY), await network.listen(ANY)

    with pytest.raises(OSError, match="in use"):
        await network.udp(udp.address)
    with pytest.raises(OSError, match="in use"):
        await network.listen(listener.address)

    await _end(udp, listener)


async def test_datagrams_and_streams_share_a_port(network: Network) -> None:
    listener = await network.listen(ANY)

    udp = await network.udp(listener.address)

    assert udp.address == listener.address
    await _end(listener, udp)


async def test_bytes_go_both_ways_in_order(network: Network) -> None:
    listener, ours, theirs = await _connect(network)
    data = bytes(range(256)) * 2000

    async def echo() -> None:
        while part := await theirs.receive_some(7000):
            await theirs.send_all(part)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(ours.send_all, data)
        found = b""
        while len(found) < len(data):
            part = await ours.receive_some(5000)
            assert 1 <= len(part) <= 5000
            found += part
        await ours.aclose()

    assert found == data
    await _end(listener, ours, theirs)


async def test_nobody_listening_is_refused(network: Network) -> None:
    listener = await network.listen(ANY)
    listener.close()

    with pytest.raises(ConnectionRefusedError):
        await network.dial(listener.address)


async def test_an_orderly_close_lets_the_peer_read_all(network: Network) -> None:
    listener, ours, theirs = await _connect(network)

    await ours.send_all(b"last words")
    await ours.aclose()
    await ours.aclose()
    ours.abort()

    found = b""
    while part := await theirs.receive_some(4):
        found += part
    assert found == b"last words"
    await _end(listener, theirs)


async def test_an_abort_breaks_the_peer(network: Network) -> None:
    listener, ours, theirs = await _connect(network)

    ours.abort()
    ours.abort()

    with pytest.raises(trio.BrokenResourceError):
        await theirs.receive_some(1)
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"x" * limits.MIB)
    await _end(listener, theirs)


@pytest.mark.parametrize("end", ["abort", "aclose"])
async def test_closing_here_ends_what_waits_here(network: Network, end: str) -> None:
    listener, ours, theirs = await _connect(network)

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ours.receive_some(1)

    async def write() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x" * 32 * limits.MIB)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked(0.02)
        if end == "abort":
            ours.abort()
        else:
            await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")
    await _end(listener, theirs)


async def test_a_slow_reader_stops_the_writer(network: Network) -> None:
    listener, ours, theirs = await _connect(network)

    with trio.move_on_after(0.1) as scope:
        await ours.send_all(b"x" * 32 * limits.MIB)

    assert scope.cancelled_caught
    await _end(listener, ours, theirs)


async def test_closing_the_listener_ends_a_waiting_accept(network: Network) -> None:
    listener = await network.listen(ANY)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()
        listener.close()


async def test_every_wait_can_be_cancelled_and_used_again(network: Network) -> None:
    listener, ours, theirs = await _connect(network)
    udp = await network.udp(ANY)

    for wait in (listener.accept, udp.receive, lambda: ours.receive_some(1)):
        with trio.move_on_after(0.01) as scope:
            await wait()
        assert scope.cancelled_caught

    udp.send(b"x", udp.address)
    assert await udp.receive() == [(b"x", udp.address)]
    await theirs.send_all(b"y")
    assert await ours.receive_some(10) == b"y"
    await _end(listener, ours, theirs, udp)


async def test_a_busy_stream_lets_others_run(network: Network) -> None:
    listener, ours, theirs = await _connect(network)
    await theirs.send_all(b"x" * 1000)
    await trio.testing.wait_all_tasks_blocked()
    turns = []

    async def other() -> None:
        for n in range(20):
            turns.append(n)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(100):
            await ours.receive_some(1)
        assert len(turns) == 20
    await _end(listener, ours, theirs)


async def test_names_are_resolved(network: Network) -> None:
    assert Address("127.0.0.1", 7) in await network.resolve("localhost", 7)
    assert list(await network.resolve("127.0.0.1", 7)) == [Address("127.0.0.1", 7)]
