"""Going through a slot that another owner keeps, page by page: to take over, or to hand over.

    List ─▶ names and versions of a page ─▶ Fetch what is newer there ─▶ … ─▶ next page
                                         └─▶ or put there what is newer here, then drop

New writes meanwhile are no matter: whoever makes them is told that the slot has changed,
or they are compared again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from microos import limits
from microos.ring.entry import (
    ended,
    is_atomic,
    is_tombstone,
    outgoing,
    stamp_of,
    version_of,
)
from microos.ring.messages import (
    Answer,
    AnyAnswer,
    Code,
    Entries,
    Fetch,
    Keep,
    List,
    Listing,
    Purge,
    Request,
)
from microos.ring.replica import Replica
from microos.ring.ring import Owner
from microos.types import Random

WAY_MAX = 0.05
"""No value ends earlier than this for the time its copy was under way [s]."""


class Job(Protocol):
    """Something that waits for one answer after the other."""

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        """Take in an answer; None: there will be none."""


class Desk(Protocol):
    """What upkeep may use of its keeper."""

    replica: Replica
    random: Random

    def ask_for(self, job: Job, owner: Owner, request: Request) -> None:
        """Send a request; its answer comes to the job, once."""

    def is_up(self, owner: Owner) -> bool: ...
    def stamp(self) -> int: ...

    def hand_over(self, slot: int, name: bytes, entry: bytes, job: Handing) -> None:
        """Put an entry, with its version, at the owners; then tell `job.handed`."""

    def decide(self, slot: int, name: bytes) -> None:
        """Let an atomic operation decide what is there."""


class Upkeep(Protocol):
    """What a pass may use of the upkeep it belongs to."""

    desk: Desk
    replica: Replica

    def may_fetch(self, work: Pulling, now: float) -> bool: ...
    def fetched(self, size: int) -> None: ...
    def confirm(self, slot: int, names: Iterable[bytes] | None) -> None: ...
    def count(self, slot: int, owner: Owner, revision: int, synced: bool, now: float) -> None: ...
    def dropped(self, slot: int) -> None: ...
    def before(self, now: float) -> int: ...
    def ended(self, work: Pass, now: float) -> None: ...
    def purged(self) -> None: ...


class Pass:
    """One way through the names of a slot that another owner keeps, page by page."""

    def __init__(self, upkeep: Upkeep, slot: int, owner: Owner) -> None:
        self.upkeep = upkeep
        self.slot = slot
        self.owner = owner
        self._after = b""

    def begin(self, now: float) -> None:
        """Ask for the first page."""
        self._list()

    def _list(self) -> None:
        replica = self.upkeep.replica
        digest = replica.store.digest(self.slot)
        self._ask(List, self.slot, digest, self._after)

    def _ask(self, kind: type[List | Fetch], *fields: object) -> None:
        desk, ring = self.upkeep.desk, self.upkeep.replica.ring
        request = kind(self.owner.boot, ring.revision, desk.stamp(), *fields)  # type: ignore[arg-type]
        desk.ask_for(self, self.owner, request)

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        raise NotImplementedError


class Pulling(Pass):
    """Takes over what is newer there."""

    def __init__(self, upkeep: Upkeep, slot: int, owner: Owner) -> None:
        super().__init__(upkeep, slot, owner)
        self._wanted: list[bytes] = []
        self._is_fetching = False
        self._fetched_at = 0.0
        self._listing: Listing | None = None
        self._first: Listing | None = None
        """The first page: what the source went by when it began."""

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        if self._is_fetching:
            self._is_fetching = False
            entries = answer.entries if isinstance(answer, Entries) else ()
            self.upkeep.fetched(sum(len(name) + len(entry) for name, entry in entries))
        match answer:
            case Listing(code=0 | Code.UNSYNCED, equal=True):
                if answer.code == Code.OK:
                    self.upkeep.confirm(self.slot, None)
                self._end(answer, now)
            case Listing(code=0 | Code.UNSYNCED):
                self._first = self._first or answer
                self._listing = answer
                if answer.code == Code.OK:
                    self.upkeep.confirm(self.slot, (name for name, _ in answer.names))
                self._wanted = self._newer(answer, now)
                self._go_on(now)
            case Entries():
                self._take(answer, now)
                self._go_on(now)
            case _:
                self.upkeep.ended(self, now)

    def _newer(self, listing: Listing, now: float) -> list[bytes]:
        store, at = self.upkeep.replica.store, int(now * 1000.0)
        return [
            name
            for name, version in listing.names
            if version > version_of(store.get(self.slot, name, at))
        ]

    def _take(self, answer: Entries, now: float) -> None:
        replica = self.upkeep.replica
        # What is left of their time was told when the answer began its way.
        then = now - min((now - self._fetched_at) / 2, WAY_MAX)
        bows = len(replica.ring.chains[self.slot]) == 1 and self.slot in replica.synced
        for name, entry in answer.entries:
            if not replica.take_pulled(self.slot, name, entry, then, bows=bows):
                self.upkeep.desk.decide(self.slot, name)
        last = answer.entries[-1][0] if answer.entries else None
        if last in self._wanted:
            del self._wanted[: self._wanted.index(last) + 1]
        else:
            self._wanted.clear()  # They are gone there.

    def _go_on(self, now: float) -> None:
        """Fetch what is wanted of this page, then list the next; at the end count the source."""
        listing = self._listing
        assert listing is not None
        if self._wanted:
            self.fetch(now)
        elif listing.last:
            self._end(self._first or listing, now)
        else:
            self._after = listing.names[-1][0]
            self._list()

    def fetch(self, now: float) -> None:
        """Ask for the next entries wanted, when the transfer rate allows."""
        if self.upkeep.may_fetch(self, now):
            self._is_fetching, self._fetched_at = True, now
            self._ask(Fetch, self.slot, tuple(self._wanted[: limits.KV_PAGE_NAMES]))

    def _end(self, begun: Listing, now: float) -> None:
        synced = begun.code == Code.OK
        self.upkeep.count(self.slot, self.owner, begun.revision, synced, now)
        self.upkeep.ended(self, now)


class Handing(Pass):
    """Puts at the owners what is newer here than with one of them, then drops the slot.

    Only plain writes: an atomic one that was acknowledged is at a quorum of its owners, and
    has been pulled; and only young ones: an older one may have been deleted since, and the
    trace of that be gone.
    """

    def __init__(self, upkeep: Upkeep, slot: int, owner: Owner) -> None:
        super().__init__(upkeep, slot, owner)
        self._theirs: dict[bytes, bytes] = {}
        self._left = 0
        self._failed = False

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        match answer:
            case Listing(code=0, equal=True):
                self.upkeep.dropped(self.slot)
                self.upkeep.ended(self, now)
            case Listing(code=0):
                self._theirs.update(answer.names)
                if answer.last:
                    self._hand(now)
                else:
                    self._after = answer.names[-1][0]
                    self._list()
            case _:
                self.upkeep.ended(self, now)

    def _hand(self, now: float) -> None:
        replica, at = self.upkeep.replica, int(now * 1000.0)
        before = self.upkeep.before(now)
        lacking = [
            (name, outgoing(ended(entry, at), at))
            for name, entry in replica.store.entries(self.slot)
            if version_of(entry) > self._theirs.get(name, b"")
            and not is_atomic(entry)
            and stamp_of(version_of(entry)) >= before
        ]
        self._theirs.clear()
        self._left = len(lacking) + 1
        for name, entry in lacking:
            self.upkeep.desk.hand_over(self.slot, name, entry, self)
        self.handed(True, now)

    def handed(self, done: bool, now: float) -> None:
        """One of the entries is at the owners, or could not be put there."""
        self._failed |= not done
        self._left -= 1
        if self._left == 0:
            if not self._failed:
                self.upkeep.dropped(self.slot)
            self.upkeep.ended(self, now)


class Purging:
    """Makes sure that all owners have some tombstones; then they may be forgotten."""

    def __init__(
        self,
        upkeep: Upkeep,
        slot: int,
        owners: tuple[Owner, ...],
        old: list[tuple[bytes, bytes]],
    ) -> None:
        self._upkeep = upkeep
        self._slot = slot
        self._others = [owner for owner in owners if owner != upkeep.replica.me]
        self._old = tuple(old)
        self._left = len(self._others)
        self._failed = False
        self._told = False

    def begin(self) -> None:
        """Give the tombstones to all owners."""
        replica = self._upkeep.replica
        entries = tuple(
            (name, entry) for name, version in self._old if (entry := self._entry(name))
        )
        if not self._others:
            self._forget()
        for owner in self._others:
            self._ask(
                Keep(owner.boot, replica.ring.revision, self._stamp(), self._slot, entries), owner
            )

    def _entry(self, name: bytes) -> bytes | None:
        entry = self._upkeep.replica.store.get(self._slot, name, 0)
        return entry if entry is not None and is_tombstone(entry) else None

    def _stamp(self) -> int:
        return self._upkeep.desk.stamp()

    def _ask(self, request: Request, owner: Owner) -> None:
        self._upkeep.desk.ask_for(self, owner, request)

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        """Count an owner that has them all."""
        if self._told:
            return
        self._failed |= not isinstance(answer, Answer) or answer.code != 0
        self._left -= 1
        if self._left == 0:
            if self._failed:
                self._upkeep.purged()
            else:
                self._forget()

    def _forget(self) -> None:
        replica = self._upkeep.replica
        self._told = True
        for owner in self._others:
            self._ask(
                Purge(owner.boot, replica.ring.revision, self._stamp(), self._slot, self._old),
                owner,
            )
        for name, version in self._old:
            replica.store.purge(self._slot, name, version)
        self._upkeep.purged()
