"""Two connections and what is between them: nothing lost, bulk overtaken by the rest."""

from __future__ import annotations

from collections import deque
from itertools import count

from microos.rpc.core import Connection
from microos.rpc.effects import Event


class Side:
    """One end: its core, what it has sent and is on its way, and what it was told."""

    def __init__(self, first_id: int) -> None:
        self.core = Connection(count(first_id))
        self.frames: deque[bytes] = deque()
        self.chunks: deque[tuple[int, bytes]] = deque()
        """Each with how many frames must have arrived before it."""
        self.sent = 0
        self.arrived = 0

    def take(self) -> list[Event]:
        """Put on its way what the core wants sent; return what it tells."""
        effects = self.core.take()
        self.frames.extend(effects.frames)
        self.sent += len(effects.frames)
        self.chunks.extend((self.sent, chunk) for chunk in effects.chunks)
        return list(effects.events)

    def next(self, *, bulk: bool) -> bytes | None:
        """Return what arrives next at the other end; None if nothing is on its way."""
        if self.chunks and self.chunks[0][0] <= self.arrived and (bulk or not self.frames):
            return self.chunks.popleft()[1]
        if not self.frames:
            return None
        self.arrived += 1
        return self.frames.popleft()

    def pop(self) -> bytes:
        """Take back the last frame that is on its way."""
        self.sent -= 1
        self.chunks = deque((min(after, self.sent), chunk) for after, chunk in self.chunks)
        return self.frames.pop()

    def lose(self) -> None:
        """Lose all that is on its way, and the link."""
        self.frames.clear()
        self.chunks.clear()
        self.arrived = self.sent
        self.core.end()


class Pair:
    """Caller and callee, on one clock."""

    def __init__(self) -> None:
        self.a, self.b = Side(1), Side(1)
        self.now = 100.0

    def move(self, source: Side, target: Side) -> list[Event]:
        """Let everything that `source` has sent arrive; return what `target` tells."""
        told = source.take()
        assert not told, told
        while (frame := source.next(bulk=False)) is not None:
            target.core.receive(frame, self.now)
            target.core.check()
        return target.take()

    def out(self) -> list[Event]:
        return self.move(self.a, self.b)

    def back(self) -> list[Event]:
        return self.move(self.b, self.a)

    def call(self, body: bytes = b"question", timeout: float = 1.0) -> int:
        return self.a.core.call("s.f", body, deadline=self.now + timeout, now=self.now)

    def wake(self, side: Side, now: float) -> list[Event]:
        self.now = now
        side.core.wake(now)
        side.core.check()
        return side.take()
