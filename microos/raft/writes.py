"""What is on its way to storage, and what has to wait until it is durable.

    hand_out ──▶ batch 7 ─▶ batch 8 ─▶ batch 9 ──▶ storage
                   │          │
    promise ────▶ held       held ──Persisted(8)──▶ sent

A batch proves the log as it was when it was handed out. What a member promises
waits for the last batch that has to be synced, and leaves when it is durable. A
batch that stays away for too long is a stalled disk.

Source: the rules are those of etcd-io/raft, raft.go (asynchronous storage writes).
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from microos.raft.entry import HardState, Persist, Token
from microos.raft.log import Log
from microos.raft.messages import Message
from microos.types import Index, NodeId, Term


class Batch(NamedTuple):
    """One batch on its way to storage, and what its durability will prove."""

    number: int
    term: Term
    last: Index
    last_term: Term
    snapshot: Index
    must_sync: bool
    since: float


class Writes:
    """All batches of one member under way, and the promises that rest on them."""

    def __init__(self, hard_state: HardState, *, stall_after: float) -> None:
        """Begin with nothing under way.

        Args:
            hard_state: Durable.
            stall_after: A batch under way for longer is stalled [s].
        """
        self.handed = hard_state
        """What was last handed out."""
        self.batches: deque[Batch] = deque()
        self.stall_told = False
        """Whether the stall there is now was told."""
        self._stall_after = stall_after
        self._number = 0
        self._promises: list[tuple[NodeId, Message]] = []
        self._held: deque[tuple[int, NodeId, Message]] = deque()

    def promise(self, node: NodeId, message: Message) -> None:
        """Send once everything up to now is durable; to oneself: take it in then."""
        self._promises.append((node, message))

    @property
    def has_promises(self) -> bool:
        """Whether anything was promised this turn."""
        return bool(self._promises)

    def hand_out(self, state: HardState, log: Log, now: float) -> Persist | None:
        """Return what is new in `log` and `state` as one batch; None if nothing is."""
        entries, snapshot = log.hand_out()
        changed = state != self.handed
        if not entries and snapshot is None and not changed:
            return None
        voted = (state.term, state.vote) != (self.handed.term, self.handed.vote)
        must_sync = bool(entries) or snapshot is not None or voted
        self.handed = state
        self._number += 1
        # Each batch attests the whole log, in the present term: what an overwritten or
        # earlier batch can no longer prove, the next one does (the ABA race of etcd-io/raft).
        self.batches.append(
            Batch(
                self._number,
                state.term,
                log.last_index,
                log.last_term,
                snapshot.index if snapshot is not None else Index(0),
                must_sync,
                now,
            )
        )
        return Persist(
            token=Token(self._number, state.term),
            entries=entries,
            hard_state=state if changed else None,
            snapshot=snapshot,
            must_sync=must_sync,
        )

    def hold(self, id: NodeId) -> list[tuple[NodeId, Message]]:
        """Keep back what was promised this turn until the last batch it may rest on is durable.

        Args:
            id: Own id.

        Returns:
            What rests on nothing and leaves at once.
        """
        if not self._promises:
            return []
        rests_on = 0
        for batch in reversed(self.batches):
            if batch.must_sync:
                rests_on = batch.number
                break
        promises, self._promises = self._promises, []
        if not rests_on:
            assert all(node != id for node, _ in promises), "a vote for oneself is always new"
            return promises
        self._held.extend((rests_on, node, message) for node, message in promises)
        return []

    def persisted(self, token: Token, now: float) -> list[Batch]:
        """Return, and forget, the batches that are durable by `token`."""
        durable: list[Batch] = []
        while self.batches and self.batches[0].number <= token.number:
            durable.append(self.batches.popleft())
        self.stall_told = self.stall_told and self.is_stalled(now)
        return durable

    def released(self, token: Token) -> list[tuple[NodeId, Message]]:
        """Return, and forget, what was held until `token` is durable."""
        released: list[tuple[NodeId, Message]] = []
        while self._held and self._held[0][0] <= token.number:
            _, node, message = self._held.popleft()
            released.append((node, message))
        return released

    # Stalled disks.

    @property
    def oldest(self) -> float:
        """When the oldest write not yet durable was handed out [s]; inf if there is none."""
        for batch in self.batches:
            if batch.must_sync:
                return batch.since
        return math.inf

    def stalls_at(self, times: int = 1) -> float:
        """Return when the oldest write will have been on its way for too long, `times` over."""
        return self.oldest + times * self._stall_after

    def is_stalled(self, now: float, times: int = 1) -> bool:
        return now >= self.stalls_at(times)

    def tell_stall(self) -> bool:
        """Take note that the stall there is now is told; return whether it was not yet."""
        told, self.stall_told = self.stall_told, True
        return not told

    def check(self) -> None:
        numbers = [batch.number for batch in self.batches]
        assert numbers == list(range(self._number - len(numbers) + 1, self._number + 1))
        assert not self._held or self.batches
