"""What waits to be written to one node: bounded, most urgent first, order kept within each kind.

    urgent (raft)  ▶  normal  ▶  bulk (pieces of long bodies)

The bound counts frames and bytes. A full box refuses the newest, because whoever
sends can be told at once (raft then reports the node as unreachable, gossip repairs
by digest), whereas dropping the oldest would break order silently.
"""

from __future__ import annotations

from collections import deque

from microos import limits


class Outbox:
    """Packed frames on their way to one node."""

    def __init__(self) -> None:
        self._urgent: deque[bytes] = deque()
        self._normal: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._count = 0
        self.size_bytes = 0
        self.drops = 0
        """Frames refused or thrown away."""

    def __len__(self) -> int:
        return self._count

    def put(self, frame: bytes, *, urgent: bool = False, bulk: bool = False) -> bool:
        """Queue one packed frame; return False, and count it, if the box is full."""
        if (
            self._count >= limits.LINK_OUTBOX_FRAMES
            or self.size_bytes + len(frame) > limits.LINK_OUTBOX_BYTES
        ):
            self.drops += 1
            return False
        (self._urgent if urgent else self._bulk if bulk else self._normal).append(frame)
        self._count += 1
        self.size_bytes += len(frame)
        return True

    def take(self, size_max: int) -> list[bytes]:
        """Remove and return what goes into the next write: at least one frame if there is any.

        Args:
            size_max: Stop before this many bytes [bytes]; a first frame larger than it goes alone.
        """
        taken: list[bytes] = []
        size = 0
        for queue in (self._urgent, self._normal, self._bulk):
            while queue and (not taken or size + len(queue[0]) <= size_max):
                size += len(queue[0])
                taken.append(queue.popleft())
            if queue:
                break  # Nothing may overtake what did not fit.
        self._count -= len(taken)
        self.size_bytes -= size
        return taken

    def clear(self) -> None:
        """Throw everything away, and count it."""
        self.drops += len(self)
        self._urgent.clear()
        self._normal.clear()
        self._bulk.clear()
        self._count = 0
        self.size_bytes = 0

    def check(self) -> None:
        """Assert all invariants."""
        frames = (*self._urgent, *self._normal, *self._bulk)
        assert self.size_bytes == sum(len(frame) for frame in frames)
        assert len(frames) == self._count <= limits.LINK_OUTBOX_FRAMES
        assert self.size_bytes <= limits.LINK_OUTBOX_BYTES
