"""What a leader knows of one follower, and how much it may have on the way to it.

          rejected, unreachable
        ┌──────────────────────────┐
        ▼                          │
      probe ──── acknowledged ─▶ replicate       next: the entry to send next
        │ ▲                        │             match: the last one known to be there
        │ └─ transfer over ─┐      │
        └──── entries ──▶ snapshot ◀┘
              forgotten

Probe sends one message and waits, because where the logs meet is not known.
Replicate sends ahead, as far as the window allows. Snapshot sends nothing until
the follower is connected to the log again.

    Invariant: 0 <= match < next

Source: Ongaro, dissertation, §10.2.1 (pipelining); etcd-io/raft, tracker/progress.go,
tracker/inflights.go and their rules on stale answers.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from microos.types import Index


class State(Enum):
    """How a leader sends to one follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Window:
    """Appends on their way to one follower: (last index, bytes) each, oldest first."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._sent: deque[tuple[Index, int]] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def full(self) -> bool:
        """Whether no further entries may leave. One message may overshoot the bytes."""
        return len(self._sent) >= self._count_max or self.bytes >= self._bytes_max

    def add(self, last: Index, size: int) -> None:
        assert not self.full
        assert not self._sent or last > self._sent[-1][0]
        self._sent.append((last, size))
        self.bytes += size

    def free(self, up_to: Index) -> None:
        """Forget what has been acknowledged by `up_to`."""
        while self._sent and self._sent[0][0] <= up_to:
            self.bytes -= self._sent.popleft()[1]

    def clear(self) -> None:
        self._sent.clear()
        self.bytes = 0


class Progress:
    """One follower in the eyes of its leader."""

    def __init__(self, next: Index, *, window: Window, active: bool = False) -> None:
        self.match = Index(0)
        self.next = next
        self.state = State.PROBE
        self.paused = False
        """Nothing leaves until an answer, of whatever kind, comes."""
        self.active = active
        """Heard since the last check of the quorum."""
        self.window = window
        self.snapshot = Index(0)
        """Index of the snapshot on its way; 0 if none."""
        self.sent_commit = Index(0)
        """Highest commit index that an append to it has carried."""

    @property
    def is_paused(self) -> bool:
        return self.paused or self.state is State.SNAPSHOT

    # What answers do.

    def acknowledge(self, index: Index) -> bool:
        """Take in that everything up to `index` is there; return whether that was news."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, Index(index + 1))
        self.paused = False
        return True

    def reject(self, rejected: Index, hint: Index) -> bool:
        """Go back after a refusal of the entry at `rejected`; return whether it was not stale.

        Args:
            rejected: The previous entry of the append refused.
            hint: The last entry at which both logs may be equal.
        """
        if self.state is State.SNAPSHOT:
            return False
        if self.state is State.REPLICATE:
            # Acknowledged since: the refusal was overtaken.
            if rejected <= self.match:
                return False
            self.become_probe()
            return True
        # One probe is on the way at a time; a refusal of another one is a late copy.
        if rejected != self.next - 1:
            return False
        self._move_next(max(min(rejected, Index(hint + 1)), Index(self.match + 1)))
        self.paused = False
        return True

    # The three states.

    def become_probe(self) -> None:
        after = max(self.match, self.snapshot) if self.state is State.SNAPSHOT else self.match
        self._reset(State.PROBE)
        self._move_next(Index(after + 1))

    def become_replicate(self) -> None:
        self._reset(State.REPLICATE)
        self.next = Index(self.match + 1)

    def become_snapshot(self, index: Index) -> None:
        self._reset(State.SNAPSHOT)
        self.snapshot = index
        self.next = max(Index(index + 1), Index(self.match + 1))
        self.sent_commit = index

    # What sending does.

    def sent(self, last: Index, count: int, size: int, commit: Index) -> None:
        """Take note that an append of `count` entries up to `last` leaves."""
        if self.state is State.REPLICATE:
            if count:
                self.next = Index(last + 1)
                self.window.add(last, size)
            # With a full window only empty appends leave, one per heartbeat's answer:
            # were they held back too, the loss of a whole window would be for ever.
            self.paused = self.window.full
        else:
            assert self.state is State.PROBE
            self.paused = True
        self.sent_commit = commit

    def can_move_commit(self, commit: Index) -> bool:
        """Return whether an append would tell it of a commit index it does not know."""
        return commit > self.sent_commit and self.sent_commit < self.next - 1

    def check(self) -> None:
        assert 0 <= self.match < self.next
        assert (self.snapshot != 0) == (self.state is State.SNAPSHOT)
        assert self.state is State.REPLICATE or not len(self.window)

    def _reset(self, state: State) -> None:
        self.state = state
        self.paused = False
        self.snapshot = Index(0)
        self.window.clear()

    def _move_next(self, index: Index) -> None:
        self.next = index
        self.sent_commit = min(self.sent_commit, Index(index - 1))
