"""Waiting for room: a full disk is no reason to end, and no reason to go on without writing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from microos.clock import Clock
from microos.errors import StorageError

T = TypeVar("T")

PAUSE = 1.0
"""Between two tries on a full disk [s]."""


async def once_there_is_room(clock: Clock, work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`, again and again while the disk is full; what full means, storage has seen to.

    Raises:
        StorageError: Anything but `full`.
    """
    while True:
        try:
            return await work()
        except StorageError as error:
            if error.reason != "full":
                raise
        await clock.sleep_until(clock.now() + PAUSE)
