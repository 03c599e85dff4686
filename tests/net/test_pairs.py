"""Whatever happens between two nodes, afterwards they share one link and both say so."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from microos.net.memory import SECOND
from tests.net.nodes import Node, World


class Weather:
    """Delays every segment by its own luck."""

    def __init__(self, seed: int, longest: float) -> None:
        self._random = random.Random(seed)
        self._longest = longest

    def segment(self, sender: str, receiver: str) -> int:
        return round(self._random.random() * self._longest * SECOND)


def assert_one_link(a: Node, b: Node) -> None:
    [at_a] = a.links.statistics().links
    [at_b] = b.links.statistics().links
    assert at_a.inbound != at_b.inbound
    assert (at_a.boot, at_b.boot) == (b.boot, a.boot)
    assert a.links.statistics().connections == b.links.statistics().connections == 1


@pytest.mark.prop
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    delay=st.floats(0.0, 0.05),
    starts=st.tuples(st.floats(0.0, 0.1), st.floats(0.0, 0.1)),
    boots=st.permutations([1, 2]),
)
def test_dialling_at_once_loses_nothing(
    seed: int, delay: float, starts: tuple[float, float], boots: list[int]
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            world.rules.segment = Weather(seed, delay).segment  # type: ignore[method-assign]
            a, b = await world.node("a", boots[0]), await world.node("b", boots[1])

            async def speak(me: Node, to: Node, start: float) -> None:
                await trio.sleep(start)
                for n in range(20):
                    assert me.send(to, b"%d" % n)
                    await trio.sleep(delay / 5)

            nursery.start_soon(speak, a, b, starts[0])
            nursery.start_soon(speak, b, a, starts[1])
            await trio.sleep(6.0)

            assert_one_link(a, b)
            wanted = sorted(b"%d" % n for n in range(20))
            assert sorted(a.bodies) == sorted(b.bodies) == wanted
            assert len(a.ups) == len(b.ups) == 1
            assert a.losses == b.losses == []
            world.check()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.prop
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    delay=st.floats(0.0, 0.05),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send a", "send b", "cut", "heal", "close", "restart", "dial"]),
            st.floats(0.0, 8.0),
        ),
        max_size=10,
    ),
)
def test_after_any_trouble_they_are_connected(
    seed: int, delay: float, steps: list[tuple[str, float]]
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            weather = Weather(seed, delay)
            through = world.rules.segment

            def segment(sender: str, receiver: str) -> int | None:
                open_way = through(sender, receiver) is not None
                return weather.segment(sender, receiver) if open_way else None

            world.rules.segment = segment  # type: ignore[method-assign]
            a, b = await world.node("a", 5), await world.node("b", 1)
            for number, (step, pause) in enumerate(steps):
                match step:
                    case "send a":
                        a.send(b)
                    case "send b":
                        b.send(a)
                    case "cut":
                        world.cut(a, b)
                    case "heal":
                        world.heal()
                    case "close":
                        a.links.close(b.node, "tired")
                    case "dial":
                        nursery.start_soon(a.links.dial, b.address, None, 1.0)
                    case "restart":
                        b.scope.cancel()
                        world.nodes.remove(b)
                        b = await world.node("b", number + 10)
                await trio.sleep(pause)
                world.check()
            world.heal()
            await trio.sleep(40.0)

            for _ in range(2):  # The first may find out that a link is gone.
                a.send(b, b"hello")
                b.send(a, b"hello")
                await trio.sleep(20.0)
            assert a.bodies[-1] == b.bodies[-1] == b"hello"
            assert_one_link(a, b)
            world.check()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
