"""Reads that one other owner confirms: the short way of `Get`, where nothing is in doubt.

    slot settled, own copy whole ─▶ own entry ─┬─▶ of the same version elsewhere ─▶ done
                                               └─▶ anything else ─▶ `Get`, from the start

Two of up to three owners are a quorum. Where this node is one of them its own copy is at
hand, and the other need only say what version it has: no value travels, and what many
reads ask of one owner in one turn is one request. No operation is kept until there is doubt.

Source: digest reads of Lakshman and Malik, "Cassandra: a decentralized structured storage
system" (LADIS 2009).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf
from typing import Protocol

from microos import limits
from microos.ring.entry import head_of
from microos.ring.get import HEDGE
from microos.ring.messages import AnyAnswer, Found, Request, Versions
from microos.ring.passes import Job
from microos.ring.quorum import wanted
from microos.ring.replica import Replica
from microos.ring.ring import Owner


class Desk(Protocol):
    """What these reads may use of their keeper."""

    me: Owner
    replica: Replica
    now: float

    def is_up(self, owner: Owner) -> bool: ...
    def stamp(self) -> int: ...

    def ask_for(self, job: Job, owner: Owner, request: Request) -> None:
        """Send a request; its answer comes to the job, once."""

    def confirmed(self, number: int, entry: bytes | None) -> None:
        """End a read with the entry kept here."""

    def read_in_full(self, number: int, slot: int, name: bytes, deadline: float) -> None:
        """Begin a `Get` for a read, if there is none yet."""


class Batch:
    """What one owner is asked at once."""

    __slots__ = ("_reads", "at", "numbers", "revision")

    def __init__(self, reads: Reads, numbers: list[int], revision: int, at: float) -> None:
        self._reads = reads
        self.numbers = numbers
        """The reads, in order; none once there is an answer."""
        self.revision = revision
        """Of the ring they go by."""
        self.at = at
        """When those without an answer go the long way as well [s]."""

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        self._reads.answered(self, answer, now)


class Reads:
    """All such reads of one keeper."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._waiting: dict[int, tuple[int, bytes, float]] = {}
        """Reads not confirmed yet: slot, name, deadline."""
        self._gathered: dict[Owner, list[int]] = {}
        """Reads whose question is still to be sent, by whom it is for."""
        self._batches: deque[Batch] = deque()
        """Those whose `at` is still to come, earliest first."""
        self._others: dict[int, tuple[Owner, ...]] = {}
        """By slot: who may confirm; nobody is needed where it is empty."""

    def begin(self, number: int, slot: int, name: bytes, deadline: float) -> bool:
        """Begin a read; return False if it must go the long way. Cost: 1 µs."""
        others = self._others.get(slot)
        if others is None:
            others = self._find(slot)
            if others is None:
                return False
            self._others[slot] = others
        desk = self._desk
        if not others:
            at = int(desk.now * 1000.0)
            desk.confirmed(number, desk.replica.store.get(slot, name, at))
            return True
        if deadline < desk.now + HEDGE:
            return False
        self._waiting[number] = (slot, name, deadline)
        owner = others[number % len(others)]  # So that no owner serves all reads.
        gathered = self._gathered.get(owner)
        if gathered is None:
            self._gathered[owner] = [number]
        else:
            gathered.append(number)
        return True

    def _find(self, slot: int) -> tuple[Owner, ...] | None:
        """Return who may confirm a read of a slot; None if that would not do."""
        desk = self._desk
        chain = desk.replica.ring.chains[slot]
        if len(chain) != 1 or slot not in desk.replica.synced:
            return None
        row = chain[0]
        if wanted(len(row)) == 1:
            return ()
        others = tuple(owner for owner in row if owner != desk.me and desk.is_up(owner))
        return others if others and wanted(len(row)) == 2 else None

    def send(self) -> None:
        """Ask what has been gathered."""
        desk = self._desk
        revision, stamp, at = desk.replica.ring.revision, desk.stamp(), desk.now + HEDGE
        gathered, self._gathered = self._gathered, {}
        for owner, numbers in gathered.items():
            for part, names in self._parts(numbers):
                batch = Batch(self, part, revision, at)
                self._batches.append(batch)
                desk.ask_for(batch, owner, Versions(owner.boot, revision, stamp, names))

    def _parts(
        self, numbers: list[int]
    ) -> Iterator[tuple[list[int], tuple[tuple[int, bytes], ...]]]:
        """Give those still wanted, with slot and name: few enough, in few enough bytes."""
        waiting = self._waiting
        part: list[int] = []
        names: list[tuple[int, bytes]] = []
        size = 0
        for number in numbers:
            read = waiting.get(number)
            if read is None:
                continue
            slot, name, _ = read
            size += len(name)
            if part and (len(part) == limits.KV_TOGETHER or size > limits.KV_PAGE_BYTES):
                yield part, tuple(names)
                part, names, size = [], [], len(name)
            part.append(number)
            names.append((slot, name))
        if part:
            yield part, tuple(names)

    def answered(self, batch: Batch, answer: AnyAnswer | None, now: float) -> None:
        """End the reads that are confirmed; the others go the long way.

        Both copies had this version while the read lasted, so a quorum has it; where the slot
        has changed since the question, they may be no quorum any more.
        """
        numbers, batch.numbers = batch.numbers, []
        heads: tuple[bytes, ...] = ()
        if isinstance(answer, Found) and len(answer.heads) == len(numbers):
            heads = answer.heads
        desk, waiting, at = self._desk, self._waiting, int(now * 1000.0)
        store, positions = desk.replica.store, desk.replica.ring.positions
        for index, number in enumerate(numbers):
            read = waiting.pop(number, None)
            if read is None:
                continue
            slot, name, deadline = read
            entry = store.get(slot, name, at)
            if heads and heads[index] == head_of(entry) and positions[slot] <= batch.revision:
                desk.confirmed(number, entry)
            else:
                desk.read_in_full(number, slot, name, deadline)

    def wake(self, now: float) -> None:
        """Let the reads that wait for long go the long way as well; either may end them."""
        while self._batches and self._batches[0].at <= now:
            for number in self._batches.popleft().numbers:
                read = self._waiting.get(number)
                if read is not None:
                    self._desk.read_in_full(number, *read)

    @property
    def deadline(self) -> float:
        """When `wake` is next wanted [s]."""
        while self._batches and not self._batches[0].numbers:
            self._batches.popleft()
        return self._batches[0].at if self._batches else inf

    def forget(self, number: int) -> None:
        """Wait for a read no longer, if it is one of these."""
        self._waiting.pop(number, None)

    def moved(self) -> None:
        """Take note that the ring has changed, or who is up."""
        self._others.clear()

    @property
    def has_gathered(self) -> bool:
        return bool(self._gathered)

    def __len__(self) -> int:
        return len(self._waiting)

    def check(self) -> None:
        """Assert all invariants."""
        assert all(self._find(slot) == others for slot, others in self._others.items())
        ats = [batch.at for batch in self._batches]
        assert ats == sorted(ats)
