"""Watching: the present state, then the newest; nothing is kept of what nobody watches."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from microos.node.watch import Boards, Watchers


async def test_the_present_state_comes_first_and_then_only_the_newest() -> None:
    watchers: Watchers[int] = Watchers()
    state = [1]
    async with watchers.watch(lambda: state[0]) as states:
        first = await anext(states)
        for value in (2, 3, 4):
            state[0] = value
            watchers.tell()
        second = await anext(states)

        assert (first, second) == (1, 4)
        with pytest.raises(trio.TooSlowError):
            await told_within(states.__anext__, 0.01)


async def told_within(wait: object, seconds: float) -> None:
    assert callable(wait)
    with trio.fail_after(seconds):
        await wait()


async def test_a_cancelled_wait_loses_no_news(autojump_clock: trio.testing.MockClock) -> None:
    watchers: Watchers[int] = Watchers()
    async with watchers.watch(lambda: 1) as states:
        await anext(states)
        with trio.move_on_after(1.0):
            await anext(states)
        watchers.tell()

        assert await anext(states) == 1


async def test_it_is_a_block_and_one_block_at_a_time() -> None:
    watchers: Watchers[int] = Watchers()
    watch = watchers.watch(lambda: 1)
    with pytest.raises(RuntimeError, match="async with"):
        await anext(watch)
    async with watch:
        assert len(watchers) == 1
        with pytest.raises(RuntimeError, match="another"):
            await watch.__aenter__()
    assert len(watchers) == 0
    async with watch as states:
        assert await anext(states) == 1


async def test_a_board_tells_those_of_a_key_and_forgets_what_nobody_watches() -> None:
    boards: Boards[str] = Boards()
    early = boards.watch("a", lambda: "a")
    async with boards.watch("a", lambda: "a") as first, boards.watch("b", lambda: "b") as second:
        await anext(first)
        await anext(second)
        assert (len(boards), boards.waiting) == (2, 0)
        boards.tell("a")
        boards.tell("unknown")
        assert (first.is_behind, second.is_behind, boards.waiting) == (True, False, 1)
    assert (list(boards), len(boards)) == ([], 0)

    # Made before the key was forgotten, entered after: it is told like any other.
    async with early as states:
        await anext(states)
        boards.tell("a")
        assert states.is_behind
