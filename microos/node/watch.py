"""Watching a state: first the present one, then the newest; what came between may be skipped.

A watcher holds one item at most, so a slow reader costs nothing and always ends
on the newest state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

    @property
    def waiting(self) -> int:
        """How many have not yet taken the newest state."""
        return sum(watch.is_behind for watch in self._watches.values())

    def watch(self, now: Callable[[], T]) -> Watch[T]:
        """Return a watch, a block and an async iterator, that begins with `now()`."""
        return Watch(self.join, now)

    def tell(self) -> None:
        """Say that there is a newer state."""
        for watch in self._watches.values():
            watch.tell()

    def join(self, watch: Watch[T]) -> Callable[[], None]:
        """Let `watch` be told from now on; return what ends that."""
        self._number += 1
        number = self._number
        self._watches[number] = watch

        def leave() -> None:
            self._watches.pop(number, None)

        return leave


class Boards(Generic[T]):
    """Everybody who watches one of many states; nothing is kept of a state nobody watches."""

    def __init__(self) -> None:
        self._of: dict[str, Watchers[T]] = {}

    def __iter__(self) -> Iterator[str]:
        """Give the states that are watched, by key."""
        return iter(tuple(self._of))

    def __len__(self) -> int:
        """Return how many watch."""
        return sum(len(watchers) for watchers in self._of.values())

    @property
    def waiting(self) -> int:
        """How many have not yet taken the newest state."""
        return sum(watchers.waiting for watchers in self._of.values())

    def watch(self, key: str, now: Callable[[], T]) -> Watch[T]:
        """Return a watch of the state called `key`; it counts from when it is entered."""
        return Watch(lambda watch: self._join(key, watch), now)

    def tell(self, key: str) -> None:
        """Say that the state called `key` is newer."""
        if key in self._of:
            self._of[key].tell()

    def _join(self, key: str, watch: Watch[T]) -> Callable[[], None]:
        watchers = self._of.setdefault(key, Watchers())
        leave = watchers.join(watch)

        def leave_and_forget() -> None:
            leave()
            if not len(watchers):
                self._of.pop(key, None)

        return leave_and_forget


class Watch(Generic[T]):
    """One watcher: `async with` it, then `async for` the states."""

    def __init__(
        self, join: Callable[[Watch[T]], Callable[[], None]], now: Callable[[], T]
    ) -> None:
        self._join = join
        self._now = now
        self._changed = trio.Event()
        self._leave: Callable[[], None] | None = None

    def tell(self) -> None:
        self._changed.set()

    @property
    def is_behind(self) -> bool:
        """Whether there is a state that was not yet taken."""
        return self._changed.is_set()

    async def __aenter__(self) -> Watch[T]:
        if self._leave is not None:
            raise RuntimeError("expected a watch that is not entered yet; make another one")
        self._leave = self._join(self)
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
        self._leave = None

    def __aiter__(self) -> Watch[T]:
        return self

    async def __anext__(self) -> T:
        if self._leave is None:
            raise RuntimeError("expected `async with` around the watch before iterating over it")
        await self._changed.wait()
        self._changed = trio.Event()
        return self._now()
