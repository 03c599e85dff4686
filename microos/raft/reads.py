"""Reads that see every write acknowledged before they began, without writing.

A leader cannot know by itself that it still leads. So it notes its commit index,
sends a round of heartbeats, and once a majority has answered that round it knows
that it led when the round left: the index noted is safe. All reads of one turn
share a round, and a round's number is never used again, so that an answer to an
earlier one proves nothing for a later read.

    read a ─┐                         echoed by a majority
    read b ─┴─ round 7, commit 42 ──────────────────────────▶ a, b: read at 42
    read c ─── round 8, commit 45 ──▶ …

A read that comes before the leader has committed an entry of its own term waits
for it: until then its commit index may lag behind what was acknowledged (§6.4).
Others ask their leader for the index under a number of their own, begun at
random, so that an answer to an earlier life is not mistaken.

Source: Ongaro, dissertation, §6.4; etcd-io/raft, read_only.go; etcd#20418 for
what happens when a context is used again.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from microos.raft.entry import Configuration
from microos.raft.quorum import joint_reached
from microos.types import Index, NodeId

READS_MAX = 65_536
"""Reads waiting in one core; one more is dropped, as if the leader had changed."""


class Read(NamedTuple):
    """One wish to read. `requester` None: asked here."""

    requester: NodeId | None
    context: int


class _Round(NamedTuple):
    number: int
    at: Index
    reads: tuple[Read, ...]


class Reads:
    """The reads of one member: as leader in rounds, otherwise asked of the leader."""

    def __init__(self, nonce: int) -> None:
        self.round = 0
        """Number of the newest round sent; rises over all terms."""
        self._waiting: list[Read] = []
        self._rounds: deque[_Round] = deque()
        self._in_rounds = 0
        self._echoed: dict[NodeId, int] = {}
        self._number = nonce
        self._asked: dict[int, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + self._in_rounds + len(self._asked)

    @property
    def waiting(self) -> bool:
        """Whether reads wait for the next round."""
        return bool(self._waiting)

    # As leader.

    def wait(self, read: Read) -> bool:
        """Put `read` into the next round; False: too many already."""
        if len(self) >= READS_MAX:
            return False
        self._waiting.append(read)
        return True

    def open_round(self, commit: Index) -> int:
        """Begin a round with all that waits; return its number, which is to be sent."""
        assert self._waiting
        self.round += 1
        self._rounds.append(_Round(self.round, commit, tuple(self._waiting)))
        self._in_rounds += len(self._waiting)
        self._waiting.clear()
        return self.round

    def echo(self, node: NodeId, number: int) -> None:
        """Take in that `node` has answered round `number`; a number never sent is not believed."""
        if self._echoed.get(node, 0) < number <= self.round:
            self._echoed[node] = number

    def confirmed(self, configuration: Configuration) -> list[tuple[int, Index, tuple[Read, ...]]]:
        """Return, and forget, the rounds that majorities have echoed: (number, index, reads)."""
        if not self._rounds:
            return []
        reached = joint_reached(configuration, self._echoed)
        done: list[tuple[int, Index, tuple[Read, ...]]] = []
        while self._rounds and self._rounds[0].number <= reached:
            done.append(self._rounds.popleft())
            self._in_rounds -= len(done[-1][2])
        return done

    # As anyone else.

    def ask(self, context: int, now: float) -> int | None:
        """Return the number under which to ask the leader; None: too many already."""
        if len(self) >= READS_MAX:
            return None
        self._number += 1
        self._asked[self._number] = (context, now)
        return self._number

    def answered(self, number: int) -> int | None:
        """Return the context asked under `number`, once; None if nobody waits for it."""
        asked = self._asked.pop(number, None)
        return None if asked is None else asked[0]

    @property
    def oldest(self) -> float | None:
        """When the oldest question still open was asked [s]."""
        return next(iter(self._asked.values()))[1] if self._asked else None

    def expire(self, now: float, timeout: float) -> list[int]:
        """Forget what was asked `timeout` ago [s]; return the contexts."""
        contexts: list[int] = []
        while self._asked:
            number, (context, at) = next(iter(self._asked.items()))
            if at + timeout > now:
                break
            del self._asked[number]
            contexts.append(context)
        return contexts

    # As either.

    def drop(self) -> list[int]:
        """Forget everything after a change of role or leader; return the contexts asked here."""
        reads = [*self._waiting, *(read for each in self._rounds for read in each.reads)]
        contexts = [read.context for read in reads if read.requester is None]
        contexts.extend(context for context, _ in self._asked.values())
        self._waiting.clear()
        self._rounds.clear()
        self._in_rounds = 0
        self._echoed.clear()
        self._asked.clear()
        return contexts

    def check(self) -> None:
        assert len(self) <= READS_MAX
        assert self._in_rounds == sum(len(each.reads) for each in self._rounds)
        numbers = [each.number for each in self._rounds]
        assert numbers == sorted(set(numbers))
        assert not numbers or numbers[-1] <= self.round
        indexes = [each.at for each in self._rounds]
        assert indexes == sorted(indexes)
