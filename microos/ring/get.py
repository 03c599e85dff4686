"""A read: from R owners of each row, the newest wins.

If they differ, the newest is brought to W of each row before it is answered: what one
reader has seen no later one may miss.

Source: the second phase of Attiya, Bar-Noy, Dolev, "Sharing Memory Robustly" (JACM 1995);
Cassandra's blocking read repair; kv.md 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from microos import limits
from microos.ring.entry import version_of
from microos.ring.messages import Answer, Code, Read, Request, Write
from microos.ring.operation import NOBODY, Desk, Operation, newest_of
from microos.ring.quorum import Votes, wanted
from microos.ring.ring import Chain, Owner

UNDECIDED = object()
"""The result of a read that must be done as an atomic operation."""


HEDGE = 0.05
"""A read that has no quorum by then asks the other owners as well, at the earliest [s]."""

YIELDS = 4
YIELD_MIN = 0.005
"""How often a read lets an atomic write that is under way go on before it outbids it, and the
least and half the most that it waits at first: it doubles each time [s]."""


class Get(Operation):
    """A read. Its result is the entry, a tombstone included, or None."""

    __slots__ = ("_chain", "_found", "_partial", "_repairing", "_rest", "_yields")

    def __init__(
        self, desk: Desk, number: int, slot: int, name: bytes, *, one: bool, deadline: float
    ) -> None:
        super().__init__(desk, number, slot, name, one=one, deadline=deadline)
        self._chain: Chain = ()
        self._found: dict[Owner, bytes | None] = {}
        self._partial: dict[Owner, None] = {}
        """Who has answered from a copy that is not whole."""
        self._rest: list[Owner] = []
        """Owners not asked yet."""
        self._repairing: bytes | None = None
        """What is being brought to a quorum before the read is answered."""
        self._yields = 0

    def _begin(self, now: float) -> None:
        self._found.clear()
        self._partial.clear()
        self._repairing = None
        chain = self._chain = self.desk.ring.chains[self.slot]
        up = self._vote(Votes(chain, limits.RING_REPLICAS))
        if not up or not (self.one or self.votes.possible):
            self._impossible(now)
            return
        first = self._first(up, chain)
        self._rest = [owner for owner in up if owner not in first]
        self._wake_at(now + self.desk.patience)
        self._ask_all(first, now)

    def _first(self, up: Sequence[Owner], chain: Chain) -> list[Owner]:
        """Return whom to ask first: as few as may do, oneself among them, asked last."""
        me = self.desk.me
        others = [owner for owner in up if owner != me]
        # So that no owner serves all reads; and first not who was to confirm it (`short.py`).
        at = (self.number + 1) % max(1, len(others))
        order = [me, *others[at:], *others[:at]] if me in up else others[at:] + others[:at]
        if self.one:
            return order[:1]
        if len(chain) == 1:
            first = order[: wanted(len(chain[0]))]
        else:
            first = _joint(order, chain)
        if first[0] == me:
            del first[0]
            first.append(me)
        return first

    def _request(self, owner: Owner, stamp: int) -> Request:
        repairing = self._repairing
        if repairing is None:
            return Read(owner.boot, self.revision, stamp, self.slot, self.name)
        entry = self._to_send(repairing)
        return Write(owner.boot, self.revision, stamp, self.slot, self.name, entry, True)

    def unanswered(self, owner: Owner, sent: bool, now: float) -> None:
        super().unanswered(owner, sent, now)
        if self._repairing is None and self._rest:
            self._ask_rest(now)

    def _answered(self, owner: Owner, answer: Answer, now: float) -> None:
        if self._repairing is not None:
            self._repaired(self._repairing, owner, answer, now)
            return
        self._found[owner] = None if answer.entry is None else self._taken_in(answer.entry)
        whole = not answer.code & (Code.UNSYNCED | Code.BEHIND)
        self.votes.add(owner, synced=whole)
        if whole:
            self._partial.pop(owner, None)
        else:
            self._partial[owner] = None
        if self.votes.done or (self.one and whole):
            self._decide(now)
        elif not self._asked:
            self._ask_rest(now)

    def _ask_rest(self, now: float) -> None:
        """Ask those not asked yet; if there are none, those again whose copies are not whole."""
        rest, self._rest = (self._rest[:1], self._rest[1:]) if self.one else (self._rest, [])
        if rest:
            self._ask_all(rest, now)
        elif self._asked or self._again:
            pass  # They may still answer.
        elif self.one and self._found:
            self._decide(now)
        elif self._partial:
            for owner in self._partial:
                self._ask_again(owner, now)
        else:
            self._give_up(now)

    def _without(self, owner: Owner, now: float) -> None:
        self.votes.failed(owner)
        if not self.one and self._partial.pop(owner, self) is None:
            del self._found[owner]
        if not (self.one or self._is_possible()):
            self._give_up(now)
        elif self._repairing is None:
            self._ask_rest(now)

    def _is_possible(self) -> bool:
        """Whether there can be a quorum, if copies that are not whole yet become so."""
        if self._repairing is not None:
            return self.votes.possible
        votes = Votes(self._chain, limits.RING_REPLICAS)
        known = {**self._found, **self._asked, **self._again, **dict.fromkeys(self._rest)}
        for owner in votes.owners:
            if owner not in known:
                votes.failed(owner)
        return votes.possible

    def _woken(self, now: float) -> None:
        if self.votes is NOBODY:
            self.begin(now)
        elif self._repairing is None and self._rest:
            self._ask_rest(now)

    def _expired(self, now: float) -> None:
        if self.one and self._found:
            self._decide(now)
        else:
            self._impossible(now)

    def _decide(self, now: float) -> None:
        """Answer, if the newest is known to a quorum; else bring it there first.

        What only a copy has that is not whole may have been deleted long ago: it has no say.
        """
        heard = self._found.items()
        newest = newest_of(e for o, e in heard if self.one or o not in self._partial)
        version = version_of(newest)
        behind = [owner for owner, entry in heard if version_of(entry) < version]
        if newest is None or self.one or not behind:
            self.desk.finish(self, newest)
            return
        # What one owner has and another has not may be seen by one reader and not by the next.
        self._begin_phase()
        self._repairing = newest
        found = self._found
        up = self._vote(Votes(self.desk.ring.chains[self.slot], limits.RING_REPLICAS))
        for owner in up:
            if owner in found and owner not in behind:
                self.votes.add(owner)
        if self.votes.done:
            self.desk.finish(self, newest)
        else:
            self._ask_all([o for o in up if o not in found or o in behind], now)

    def _repaired(self, entry: bytes, owner: Owner, answer: Answer, now: float) -> None:
        if answer.code & Code.REFUSED:
            self._yield(now)
        elif answer.code & Code.FULL:
            self._without(owner, now)
        else:
            self.votes.add(owner)
            if self.votes.done:
                self.desk.finish(self, entry)

    def _yield(self, now: float) -> None:
        """Let an atomic write that is under way be done, and look again.

        If it never is, perhaps because its coordinator is gone, only a ballot above its can say
        what is true. To bid at once would make all readers and the writer refuse each other.
        """
        if self._yields == YIELDS:
            self.desk.finish(self, UNDECIDED)
            return
        self._begin_phase()
        self.votes = NOBODY
        pause = YIELD_MIN * 2**self._yields
        self._wake_at(now + pause * (1.0 + self.desk.random.random()))
        self._yields += 1


def _joint(order: list[Owner], chain: Chain) -> list[Owner]:
    """Return the first of `order` that are a quorum of each row, those of both rows first."""
    ordered = sorted(order, key=lambda owner: -sum(owner in row for row in chain))
    trial = Votes(chain, limits.RING_REPLICAS)
    first: list[Owner] = []
    for owner in ordered:
        if trial.done:
            break
        trial.add(owner)
        first.append(owner)
    return first
