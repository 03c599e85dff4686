from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import trio

from tests.net.nodes import World


@pytest.fixture
def keys() -> Sequence[bytes]:
    """The keys of all nodes; a module that wants them sealed has a fixture of its own."""
    return ()


@pytest.fixture
async def world(nursery: trio.Nursery, keys: Sequence[bytes]) -> AsyncIterator[World]:
    """A network in memory; ask for `autojump_clock` beside it. Checks all invariants at the end."""
    world = World(nursery, keys)
    yield world
    world.check()
