from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tests.net.nodes import World


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    """A network in memory; ask for `autojump_clock` beside it. Checks all invariants at the end."""
    world = World(nursery)
    yield world
    world.check()
