"""Watching a state: first the present one, then the newest; what came between may be skipped.

A watcher holds one item at most, so a slow reader costs nothing and always ends
on the newest state.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Watchers(Generic[T]):
    """Everybody who watches one state."""

    def __init__(self) -> None:
        self._watches: dict[int, Watch[T]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._watches)

    def watch(self, now: Callable[[], T]) -> Watch[T]:
        """Return a watch, a block and an async iterator, that begins with `now()`."""
        return Watch(self, now)

    def tell(self) -> None:
        """Say that there is a newer state."""
        for watch in self._watches.values():
            watch.tell()

    def join(self, watch: Watch[T]) -> Callable[[], None]:
        self._number += 1
        number = self._number
        self._watches[number] = watch

        def leave() -> None:
            self._watches.pop(number, None)

        return leave


class Watch(Generic[T]):
    """One watcher: `async with` it, then `async for` the states."""

    def __init__(self, watchers: Watchers[T], now: Callable[[], T]) -> None:
        self._watchers = watchers
        self._now = now
        self._changed = trio.Event()
        self._leave: Callable[[], None] | None = None

    def tell(self) -> None:
        self._changed.set()

    async def __aenter__(self) -> Watch[T]:
        self._leave = self._watchers.join(self)
        self._changed.set()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._leave is not None
        self._leave()

    def __aiter__(self) -> Watch[T]:
        return self

    async def __anext__(self) -> T:
        if self._leave is None:
            raise RuntimeError("expected `async with` around the watch before iterating over it")
        await self._changed.wait()
        self._changed = trio.Event()
        return self._now()
