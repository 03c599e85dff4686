"""What happened, one line each, in fixed columns: two runs compare by `diff`, one reads by eye.

 time [s]    event node boot source   what
12.340171 00018233 n3   b2   raft     BecameLeader(term=7)
"""

from __future__ import annotations

from collections import deque

from microos.sim.world import World

KEPT = 200
"""Lines kept for the report of a failure."""


class Columns:
    """The last lines, or all of them printed as they come."""

    def __init__(self, world: World, *, printed: bool = False) -> None:
        self._world = world
        self._printed = printed
        self._lines: deque[tuple[int, int, str, int, str, object]] = deque(maxlen=KEPT)

    def add(self, node: str, boot: int, source: str, what: object) -> None:
        """Add a line; `what` is turned into text only if somebody reads it."""
        line = (self._world.now, self._world.executed, node, boot, source, what)
        self._lines.append(line)
        if self._printed:
            print(_line(*line))

    def lines(self) -> list[str]:
        return [_line(*line) for line in self._lines]


def _line(now: int, event: int, node: str, boot: int, source: str, what: object) -> str:
    return f"{now / 1e9:>14.6f} {event:08d} {node:<4} b{boot:<3} {source:<8} {what}"
