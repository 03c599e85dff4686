"""The short way of reads and plain writes: one round with owners of a settled slot.

    gathered in one turn ─▶ one request to each owner asked ─┬─▶ enough agree ─▶ done
                                                             └─▶ any doubt ─▶ the long way

| begun at | a read asks | a write |
|---|---|---|
| an owner | another for its version; the value is at hand | is kept here, then sent to the others |
| any other node | one owner for the entry, one for its version | is sent to all owners |

Nearly all reads and writes end here, so there is no operation for each of them, no timer and
no message: under load a round costs a tenth of that. Whatever is out of the ordinary (a
slot that is changing, copies that differ or are not whole, silence) begins anew as a `Get`
or a `Put`, which know what to do.

Source: digest reads of Lakshman and Malik, "Cassandra: a decentralized structured storage
system" (LADIS 2009).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from microos import limits
from microos.ring.entry import ended, head_of, incoming, number_of, outgoing, version_of
from microos.ring.get import HEDGE
from microos.ring.messages import AnyAnswer, Found, Kept, ReadMany, Request, WriteMany
from microos.ring.passes import Job
from microos.ring.quorum import wanted
from microos.ring.replica import Replica
from microos.ring.ring import Owner

W = TypeVar("W")

RESEND = 0.25
"""A write that has too few acknowledgements by then goes the long way, at the earliest [s]."""

SLOW = 3.0
"""An answer is late once it has taken this many times as long as answers usually do."""

USUAL_MAX = 0.3
"""What is usual is no longer than this, however long answers take [s]."""


class Desk(Protocol):
    """What the short way may use of its keeper."""

    me: Owner
    replica: Replica
    now: float

    def is_up(self, owner: Owner) -> bool: ...
    def stamp(self) -> int: ...

    def ask_for(self, job: Job, owner: Owner, request: Request) -> None:
        """Send a request; its answer comes to the job, once."""

    def settle(self, number: int, result: object) -> None:
        """End what was begun under this number, whichever way it goes by now."""

    def read_in_full(
        self, number: int, slot: int, name: bytes, *, one: bool, deadline: float
    ) -> None:
        """Begin a `Get` for a read, if there is none yet."""

    def write_in_full(
        self, number: int, slot: int, name: bytes, entry: bytes, *, one: bool, deadline: float
    ) -> None:
        """Begin a `Put` for a write that has been sent."""


class Way(msgspec.Struct, frozen=True, gc=False):
    """How the owners of a settled slot are reached from here."""

    own: bool
    """Whether this node is one of them."""
    others: tuple[Owner, ...]
    """Those that are up."""
    needed: int
    """How many of the others, with the own copy if there is one, are a quorum."""


class Ways:
    """The ways to all slots, as long as neither the ring nor who is up changes."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._known: dict[int, Way | None] = {}

    def of(self, slot: int) -> Way | None:
        """Return the way; None if the slot is not settled."""
        try:
            return self._known[slot]
        except KeyError:
            way = self._known[slot] = self._find(slot)
            return way

    def _find(self, slot: int) -> Way | None:
        desk = self._desk
        chain = desk.replica.ring.chains[slot]
        if len(chain) != 1:
            return None
        row, me = chain[0], desk.me
        others = tuple([owner for owner in row if owner != me and desk.is_up(owner)])
        return Way(me in row, others, wanted(len(row)) - (me in row))

    def moved(self) -> None:
        """Take note that the ring has changed, or who is up."""
        self._known.clear()

    def check(self) -> None:
        """Assert that what is known is so."""
        assert all(self._find(slot) == way for slot, way in self._known.items())


class Batch:
    """What one owner is asked at once."""

    __slots__ = ("_sending", "at", "numbers", "revision", "sent")

    def __init__(
        self, sending: Sending[Any], numbers: list[int], revision: int, sent: float, at: float
    ) -> None:
        self._sending = sending
        self.numbers = numbers
        """Of what it is asked for, in order; none once there is an answer."""
        self.revision = revision
        """Of the ring they go by."""
        self.sent = sent
        self.at = at
        """When those without an answer go the long way [s]."""

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        numbers, self.numbers = self.numbers, []
        if answer is not None:
            self._sending.took(now - self.sent)
        self._sending.answered(numbers, answer, self.revision, now)


class Sending(Generic[W]):
    """What reads and writes share: what is gathered for one owner in one turn travels together.

    Args:
        patience: How long a batch may be without an answer; longer where answers take long [s].
    """

    def __init__(self, desk: Desk, ways: Ways, patience: float) -> None:
        self._desk = desk
        self._ways = ways
        self._patience = patience
        self._usual = 0.0
        """How long answers take, smoothed [s]."""
        self._waiting: dict[int, W] = {}
        """What is not done yet and goes this way, by number."""
        self._gathered: dict[tuple[Owner, bool], tuple[list[int], list[Any]]] = {}
        """Numbers and items still to be sent, by whom they are for, and whether all is wanted."""
        self._revision = 0
        """Of the ring the first of them went by: what has changed since puts all in doubt."""
        self._batches: deque[Batch] = deque()
        """Those whose time is still to come, earliest first."""

    @property
    def patience(self) -> float:
        """How long to wait for an answer before somebody else is asked [s]."""
        return max(self._patience, SLOW * self._usual)

    def took(self, seconds: float) -> None:
        """Take note of how long an answer took."""
        self._usual += (min(seconds, USUAL_MAX) - self._usual) / 8.0

    def _gather(self, owner: Owner, whole: bool, number: int, item: Any) -> None:
        found = self._gathered.get((owner, whole))
        if found is None:
            if not self._gathered:
                self._revision = self._desk.replica.ring.revision
            self._gathered[owner, whole] = [number], [item]
        else:
            found[0].append(number)
            found[1].append(item)

    def send(self) -> None:
        """Send what has been gathered, in pages."""
        gathered, self._gathered = self._gathered, {}
        desk, at = self._desk, self._desk.now + self.patience
        if self._batches:
            at = max(at, self._batches[-1].at)  # In order, though patience changes.
        revision, stamp = self._revision, desk.stamp()
        for (owner, whole), (numbers, items) in gathered.items():
            for start, end in _pages([self._size(item) for item in items]):
                batch = Batch(self, numbers[start:end], revision, desk.now, at)
                self._batches.append(batch)
                those = tuple(items[start:end])
                desk.ask_for(batch, owner, self._request(owner, revision, stamp, those, whole))

    def _size(self, item: Any) -> int:
        raise NotImplementedError

    def _request(
        self, owner: Owner, revision: int, stamp: int, items: tuple[Any, ...], whole: bool
    ) -> Request:
        raise NotImplementedError

    def answered(
        self, numbers: list[int], answer: AnyAnswer | None, revision: int, now: float
    ) -> None:
        """Take in what an owner says of these, asked by a ring's revision; None: nothing."""
        raise NotImplementedError

    def _overdue(self, now: float) -> Iterator[tuple[int, W]]:
        """Give what has waited for too long."""
        while self._batches and self._batches[0].at <= now:
            for number in self._batches.popleft().numbers:
                if number in self._waiting:
                    yield number, self._waiting[number]

    @property
    def deadline(self) -> float:
        """When `wake` is next wanted [s]."""
        while self._batches and not self._batches[0].numbers:
            self._batches.popleft()
        return self._batches[0].at if self._batches else inf

    def forget(self, number: int) -> None:
        """Wait no longer for this, if it goes this way; what was sent may be done."""
        self._waiting.pop(number, None)

    @property
    def has_gathered(self) -> bool:
        return bool(self._gathered)

    def __len__(self) -> int:
        return len(self._waiting)

    def check(self) -> None:
        """Assert that batches are in order of time."""
        ats = [batch.at for batch in self._batches]
        assert ats == sorted(ats)


class Reading(msgspec.Struct, gc=False):
    """A read that goes the short way."""

    slot: int
    name: bytes
    deadline: float
    one: bool
    own: bool
    left: int
    """How many answers are still to come; all of them are wanted."""
    head: bytes | None = None
    """What those that have come agree on."""
    entry: bytes | None = None
    """That of the owner asked for it."""


class Reads(Sending[Reading]):
    """All reads that go the short way."""

    def __init__(self, desk: Desk, ways: Ways) -> None:
        super().__init__(desk, ways, HEDGE)

    def begin(self, number: int, slot: int, name: bytes, *, one: bool, deadline: float) -> bool:
        """Begin a read; return False if it must go the long way. Cost: 1 µs."""
        desk, way = self._desk, self._ways.of(slot)
        if way is None or deadline < desk.now + self.patience:
            return False
        own, others = way.own, way.others
        if own and slot not in desk.replica.synced:
            return False
        if own and (one or not way.needed):
            desk.settle(number, desk.replica.store.get(slot, name, int(desk.now * 1000.0)))
            return True
        left = 1 if one else way.needed
        if left > len(others):
            return False
        self._waiting[number] = Reading(slot, name, deadline, one, own, left)
        for at in range(number, number + left):  # In turn, so that no owner serves all reads.
            self._gather(others[at % len(others)], at == number and not own, number, (slot, name))
        return True

    def _size(self, item: tuple[int, bytes]) -> int:
        return len(item[1])

    def _request(
        self, owner: Owner, revision: int, stamp: int, items: tuple[Any, ...], whole: bool
    ) -> Request:
        return ReadMany(owner.boot, revision, stamp, items, whole)

    def answered(
        self, numbers: list[int], answer: AnyAnswer | None, revision: int, now: float
    ) -> None:
        """Take in what an owner has; end the reads on which all who were asked agree.

        All of them had this version while the read lasted, so a quorum has it; where the slot
        has changed since the question, they may be no quorum any more.
        """
        desk, waiting, at = self._desk, self._waiting, int(now * 1000.0)
        store, positions = desk.replica.store, desk.replica.ring.positions
        heads: tuple[bytes, ...] = ()
        entries: tuple[bytes | None, ...] = ()
        if isinstance(answer, Found) and len(answer.heads) == len(numbers):
            heads, entries = answer.heads, answer.entries
        for index, number in enumerate(numbers):
            read = waiting.get(number)
            if read is None:
                continue
            head = heads[index] if heads else b""
            if not head or head != (read.head or head) or positions[read.slot] > revision:
                self._give_up(number, read)
                continue
            read.left -= 1
            read.head = head
            entry = read.entry
            if index < len(entries):
                entry = entries[index]
                read.entry = entry = None if entry is None else incoming(entry, at)
            if read.left:
                continue
            if read.own:
                entry = store.get(read.slot, read.name, at)
            if head == head_of(entry):
                del waiting[number]
                desk.settle(number, entry)
            else:
                self._give_up(number, read)

    def _give_up(self, number: int, read: Reading) -> None:
        del self._waiting[number]
        self._begin_in_full(number, read)

    def _begin_in_full(self, number: int, read: Reading) -> None:
        self._desk.read_in_full(number, read.slot, read.name, one=read.one, deadline=read.deadline)

    def wake(self, now: float) -> None:
        """Let reads that wait for long go the long way as well: either may end them."""
        for number, read in self._overdue(now):
            self._begin_in_full(number, read)


class Writing(msgspec.Struct, gc=False):
    """A write that goes the short way."""

    item: tuple[int, bytes, bytes]
    """Slot, name, and entry as it travelled."""
    since: int
    """When it did [ms]."""
    deadline: float
    one: bool
    needed: int
    """How many acknowledgements are still wanted."""
    left: int
    """How many owners owe an answer."""


class Writes(Sending[Writing]):
    """All writes that go the short way."""

    def __init__(self, desk: Desk, ways: Ways) -> None:
        super().__init__(desk, ways, RESEND)

    def begin(
        self, number: int, slot: int, name: bytes, entry: bytes, *, one: bool, deadline: float
    ) -> bool:
        """Begin a write; return False if it must go the long way.

        Args:
            entry: As it travels; its time begins now.
        """
        desk, way = self._desk, self._ways.of(slot)
        if way is None or deadline < desk.now + self.patience:
            return False
        own, others = way.own, way.others
        needed = (0 if own else 1) if one else way.needed
        if needed > len(others):
            return False
        if own and desk.replica.take(slot, name, entry, desk.now, bows=False) is not None:
            return False
        item = slot, name, entry
        if needed:
            since = int(desk.now * 1000.0)
            self._waiting[number] = Writing(item, since, deadline, one, needed, len(others))
        else:
            desk.settle(number, number_of(version_of(entry)))
        for owner in others:
            self._gather(owner, True, number, item)
        return True

    def _size(self, item: tuple[int, bytes, bytes]) -> int:
        return len(item[1]) + len(item[2])

    def _request(
        self, owner: Owner, revision: int, stamp: int, items: tuple[Any, ...], whole: bool
    ) -> Request:
        return WriteMany(owner.boot, revision, stamp, items)

    def answered(
        self, numbers: list[int], answer: AnyAnswer | None, revision: int, now: float
    ) -> None:
        """Count an owner's acknowledgements; end the writes that have enough."""
        desk, waiting = self._desk, self._waiting
        positions = desk.replica.ring.positions
        codes = b""
        if isinstance(answer, Kept) and len(answer.codes) == len(numbers):
            codes = answer.codes
        for index, number in enumerate(numbers):
            write = waiting.get(number)
            if write is None:
                continue
            write.left -= 1
            if codes:
                if codes[index] or positions[write.item[0]] > revision:
                    self._give_up(number, write)
                    continue
                write.needed -= 1
                if not write.needed:
                    del waiting[number]
                    desk.settle(number, number_of(version_of(write.item[2])))
                    continue
            if write.left < write.needed:
                self._give_up(number, write)

    def _give_up(self, number: int, write: Writing) -> None:
        """Let a write go the long way: from there on only its answers count."""
        del self._waiting[number]
        slot, name, entry = write.item
        at = int(self._desk.now * 1000.0)
        entry = outgoing(ended(incoming(entry, write.since), at), at)
        self._desk.write_in_full(number, slot, name, entry, one=write.one, deadline=write.deadline)

    def wake(self, now: float) -> None:
        """Let writes that wait for long go the long way."""
        for number, write in self._overdue(now):
            self._give_up(number, write)


def _pages(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Give where pages begin and end: few enough items of these sizes, in few enough bytes."""
    start = size = 0
    for at, more in enumerate(sizes):
        size += more
        if at > start and (at - start == limits.KV_TOGETHER or size > limits.KV_PAGE_BYTES):
            yield start, at
            start, size = at, more
    if sizes:
        yield start, len(sizes)
