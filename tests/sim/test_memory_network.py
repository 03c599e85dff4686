"""The network in memory, under the simulator's weather."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.net.memory import WINDOW, MemoryHost, MemoryNetwork, MemoryStream
from microos.sim.clock import Line, NodeClock
from microos.sim.loop import simulate
from microos.sim.network import SimulatedNetwork, Weather
from microos.sim.world import SECOND, World
from microos.types import Address

AT = Address("10.0.0.2", 7000)


class Pair:
    """Two hosts and what lies between them."""

    def __init__(self, seed: int = 1, weather: Weather | None = None) -> None:
        self.world = World(seed)
        self.rules = SimulatedNetwork(self.world, weather or Weather())
        hub = MemoryNetwork(self.rules)
        self.a: MemoryHost = hub.host("a", ip="10.0.0.1")
        self.b: MemoryHost = hub.host("b", ip="10.0.0.2")
        self.clock = NodeClock(Line(self.world), _call)

    def run(self, main: Callable[[Pair], Awaitable[None]]) -> None:
        simulate(self.world, lambda: main(self))
        assert self.world.failure is None, self.world.failure

    async def connect(self) -> tuple[MemoryStream, MemoryStream]:
        listener = await self.b.listen(AT)
        ours = await self.a.dial(AT)
        return ours, await listener.accept()

    async def sleep(self, seconds: float) -> None:
        await self.clock.sleep_until(self.clock.now() + seconds)

    def cut(self) -> None:
        self.rules.cut("a", "b")
        self.rules.cut("b", "a")

    def mend(self) -> None:
        self.rules.mend("a", "b")
        self.rules.mend("b", "a")


@given(st.integers(0, 1000), st.lists(st.integers(1, 100_000), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_bytes_arrive_once_and_in_order_whatever_the_weather(seed: int, sizes: list[int]) -> None:
    sent = b"".join(bytes([i + 1]) * size for i, size in enumerate(sizes))
    got = bytearray()

    async def main(pair: Pair) -> None:
        ours, theirs = await pair.connect()
        pair.world.after(SECOND // 1000, pair.cut)
        pair.world.after(SECOND, pair.mend)

        async def write() -> None:
            for i, size in enumerate(sizes):
                await ours.send_all(bytes([i + 1]) * size)
            await ours.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while data := await theirs.receive_some(8000):
                got.extend(data)

    Pair(seed, Weather(latency_mean_ns=SECOND // 100, loss_ppm=200_000)).run(main)

    assert bytes(got) == sent


def test_a_writer_nobody_reads_waits_after_64_kib() -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.connect()
        await ours.send_all(bytes(WINDOW))
        with pair.clock.timeout_at(pair.clock.now() + 5.0) as scope:
            await ours.send_all(b"one too many")
        assert scope.cancelled_caught
        with trio.fail_after(5):
            assert len(await theirs.receive_some(1000)) in range(1, 1001)
            await ours.send_all(b"x")

    Pair().run(main)


def test_a_dial_is_refused_where_nobody_listens_and_hangs_while_cut() -> None:
    async def main(pair: Pair) -> None:
        with pytest.raises(ConnectionRefusedError):
            await pair.a.dial(AT)
        pair.cut()
        with pair.clock.timeout_at(pair.clock.now() + 100.0) as scope:
            await pair.a.dial(AT)
        assert scope.cancelled_caught

    Pair().run(main)


def test_a_dial_succeeds_once_the_cut_is_mended() -> None:
    async def main(pair: Pair) -> None:
        await pair.b.listen(AT)
        pair.cut()
        pair.world.after(2 * SECOND, pair.mend)
        await pair.a.dial(AT)
        assert 2.0 < pair.clock.now() < 5.0

    Pair().run(main)


def test_a_crash_resets_and_a_silent_one_does_not_until_we_write() -> None:
    async def main(pair: Pair) -> None:
        ours, _ = await pair.connect()
        pair.b.crash(silent=True)
        with pair.clock.timeout_at(pair.clock.now() + 60.0) as scope:
            await ours.receive_some(10)
        assert scope.cancelled_caught
        await ours.send_all(b"anyone?")
        before = pair.clock.now()
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some(10)
        assert 10.0 < pair.clock.now() - before < 30.0

    async def polite(pair: Pair) -> None:
        ours, _ = await pair.connect()
        pair.b.crash()
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some(10)
        with pytest.raises(ConnectionRefusedError):
            await pair.a.dial(AT)

    Pair().run(main)
    Pair().run(polite)


def test_the_next_boot_resets_what_the_silent_one_left_open() -> None:
    async def main(pair: Pair) -> None:
        ours, _ = await pair.connect()
        pair.b.crash(silent=True)
        pair.b = pair.a.hub.host("b", ip="10.0.0.2")
        await ours.send_all(b"still there?")
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some(10)

    Pair().run(main)


def test_what_was_read_before_the_reset_is_not_lost() -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.connect()
        await ours.send_all(b"abc")
        await pair.sleep(5.0)
        ours.abort()
        await pair.sleep(5.0)
        assert [await theirs.receive_some(1) for _ in range(3)] == [b"a", b"b", b"c"]
        with pytest.raises(trio.BrokenResourceError):
            await theirs.receive_some(1)

    Pair().run(main)


def test_closing_a_listener_resets_who_was_not_accepted() -> None:
    async def main(pair: Pair) -> None:
        listener = await pair.b.listen(AT)
        ours = await pair.a.dial(AT)
        listener.close()
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some(1)

    Pair().run(main)


def test_an_address_in_use_is_an_os_error_and_port_0_takes_a_free_one() -> None:
    async def main(pair: Pair) -> None:
        await pair.b.udp(AT)
        with pytest.raises(OSError, match="in use"):
            await pair.b.udp(AT)
        one, two = await pair.b.udp(Address("", 0)), await pair.b.udp(Address("", 0))
        assert one.address != two.address

    Pair().run(main)


def test_lost_copied_and_late_datagrams_are_a_function_of_the_seed() -> None:
    def fates(seed: int) -> list[int]:
        rules = SimulatedNetwork(World(seed), Weather(loss_ppm=200_000, duplication_ppm=200_000))
        return [len(rules.datagram("a", "b", b"x")) for _ in range(1000)]

    assert fates(1) == fates(1) != fates(2)
    assert {0, 1, 2} == set(fates(1))
    assert 700 < sum(fates(1)) < 1200


def _call(fn: Callable[[], object]) -> None:
    fn()
