"""A write under a condition: Paxos per key, whose ballots are the versions it writes.

    prepare(ballot) ─▶ W promise to refuse older ones, and say what is there
                       does it fit the condition? ─▶ accept(entry of that version) ─▶ W

So a later decision always has a higher version than an earlier one, and an old accept that
comes late is older than what it would undo. What is there without being known to a quorum
is written again under the own ballot before it counts: under its old one it could come after
a decision that was made without it. Users go on knowing it by the version it was written
with, which travels along (`entry.py`).

One that was refused somewhere may still have been kept elsewhere: the next try knows its
earlier ballots and does not do twice what has been done.

Source: Rystsov, "CASPaxos: Replicated State Machines without logs" (arXiv:1802.07000).
"""

from __future__ import annotations

from microos import limits
from microos.errors import ConflictError, MicroosError, UncertainError, by_name
from microos.ring.entry import (
    NOTHING,
    is_tombstone,
    number_of,
    renewed,
    shown_version_of,
    stamp_of,
    version_bytes,
    version_of,
)
from microos.ring.messages import Accept, Answer, Code, Did, Do, Prepare, Request
from microos.ring.operation import NOBODY, Desk, Operation, newest_of
from microos.ring.quorum import Votes
from microos.ring.ring import Owner
from microos.types import Version

DUEL_MIN = 0.005
DUEL_MAX = 0.2
"""Two atomic operations on one key refuse each other's ballots: each waits for a time drawn
between 0 and a bound that doubles between these [s]."""


RELAY_PAUSE = 0.1
"""Before the owner that is first by then is asked [s]."""


class Atomic(Operation):
    """A write under a condition; without a write, a read that settles what is there."""

    __slots__ = (
        "_accepting",
        "_acks",
        "_ballot",
        "_condition",
        "_duel",
        "_found",
        "_outcome",
        "_tried",
        "_write",
    )

    def __init__(
        self,
        desk: Desk,
        number: int,
        slot: int,
        name: bytes,
        *,
        write: bytes | None,
        condition: Version | None,
        deadline: float,
    ) -> None:
        """Make it.

        Args:
            write: The entry to write, as it travels; its version is set here. None: nothing.
            condition: The version that must be there, 0: no value; None: whatever is there.
        """
        super().__init__(desk, number, slot, name, one=False, deadline=deadline)
        self._write = None if write is None else self._taken_in(write)
        self._condition = condition
        self._found: dict[Owner, bytes] = {}
        self._ballot = NOTHING
        self._accepting: bytes | None = None
        self._acks = 0
        """Owners that have kept what is being accepted, or may have."""
        self._outcome: object = None
        """What it comes to once that is at a quorum."""
        self._tried: dict[bytes, None] = {}
        """Own ballots under which the caller's write may have been kept somewhere."""
        self._duel = DUEL_MIN

    def _begin(self, now: float) -> None:
        self._found.clear()
        self._accepting = None
        up = self._vote(Votes(self.desk.ring.chains[self.slot], limits.RING_REPLICAS))
        if not self.votes.possible:
            self._impossible(now)
            return
        self._ballot = version_bytes(self.desk.stamps.next(now), self.desk.writer)
        self._ask_all(up, now)

    def _request(self, owner: Owner, stamp: int) -> Request:
        boot, revision, entry = owner.boot, self.revision, self._accepting
        if entry is None:
            return Prepare(boot, revision, stamp, self.slot, self.name, self._ballot)
        return Accept(boot, revision, stamp, self.slot, self.name, self._to_send(entry))

    def _note_sent(self) -> None:
        self._acks += self._accepting is not None

    def _answered(self, owner: Owner, answer: Answer, now: float) -> None:
        code = answer.code
        if code & Code.BEHIND:
            self._ask_again(owner, now)
        elif code & (Code.REFUSED | Code.FULL):
            if answer.promised:
                self.desk.stamps.hear(stamp_of(answer.promised), now)
            self._without(owner, now)
        elif self._accepting is not None:
            self._acks += 1
            self.votes.add(owner)
            if self.votes.done:
                self.desk.finish(self, self._outcome)
        else:
            # What only a copy has that is not whole may have been deleted long ago.
            if answer.entry is not None and not code & Code.UNSYNCED:
                self._found[owner] = self._taken_in(answer.entry)
            self.votes.add(owner, synced=not code & Code.UNSYNCED)
            if self.votes.done:
                self._decide(now)
            else:
                self._lost(now)

    def _without(self, owner: Owner, now: float) -> None:
        self.votes.failed(owner)
        self._lost(now)

    def _lost(self, now: float) -> None:
        """If this ballot can no longer win, let the other one be done, and try again.

        An accept first hears from all: where nobody has kept it, nothing has happened.
        """
        if self.votes.possible or (self._accepting is not None and (self._asked or self._again)):
            return
        if self._acks == 0:
            self._tried.pop(self._ballot, None)
        self._begin_phase()
        self.votes = NOBODY
        self._wake_at(now + self.desk.random.random() * self._duel)
        self._duel = min(2 * self._duel, DUEL_MAX)

    def _woken(self, now: float) -> None:
        if self.votes is NOBODY:
            self.begin(now)

    def _decide(self, now: float) -> None:
        """Look at what is there, known to a quorum or not, and go on from it."""
        newest = newest_of(self._found.values())
        version = shown_version_of(newest)
        if self._write is None:
            self._settle(newest, newest, now)
        elif version in self._tried:
            # An earlier try of ours has been kept after all.
            self._settle(newest, number_of(version), now)
        elif conflict := self._conflict(newest):
            self._settle(newest, self._unclear() if self._tried else conflict, now)
        else:
            self._tried[self._ballot] = None
            entry = self._ballot + self._write[len(self._ballot) :]
            self._accept(entry, number_of(self._ballot), now)

    def _settle(self, newest: bytes | None, outcome: object, now: float) -> None:
        """Come to `outcome` once what is there is known to a quorum in each row."""
        agree = Votes(self.desk.ring.chains[self.slot], limits.RING_REPLICAS)
        for owner, entry in self._found.items():
            if version_of(entry) == version_of(newest):
                agree.add(owner)
        if newest is None or agree.done:
            self.desk.finish(self, outcome)
            return
        # Under its old ballot it could come after a write that was decided without it.
        again = renewed(newest, self._ballot)
        self._accept(again, again if outcome is newest else outcome, now)

    def _accept(self, entry: bytes, outcome: object, now: float) -> None:
        self._begin_phase()
        self._accepting, self._outcome, self._acks = entry, outcome, 0
        up = self._vote(Votes(self.desk.ring.chains[self.slot], limits.RING_REPLICAS))
        self._ask_all(up, now)

    def _conflict(self, newest: bytes | None) -> MicroosError | None:
        """Return why the condition does not hold; None: it does."""
        wanted = self._condition
        found = number_of(shown_version_of(newest)) if newest and not is_tombstone(newest) else 0
        if wanted is None or found == wanted:
            return None
        if wanted == 0:
            return ConflictError(
                f"expected no value, found version {found}; read it", reason="exists", version=found
            )
        return ConflictError(
            f"expected version {wanted}, found {found or 'no value'}; read it again",
            reason="version" if found else "absent",
            version=found,
        )

    def _unclear(self) -> UncertainError:
        return UncertainError(
            "the write under a condition was sent and its outcome is not known: read what is there"
        )

    def _impossible(self, now: float) -> None:
        self.desk.finish(self, self._unclear() if self._tried else self._no_quorum(now))


class Relay(Operation):
    """An atomic write that another node decides."""

    __slots__ = ("_condition", "_entry", "_sent")

    answer_type = Did

    def __init__(
        self,
        desk: Desk,
        number: int,
        slot: int,
        name: bytes,
        entry: bytes,
        condition: Version,
        *,
        deadline: float,
    ) -> None:
        super().__init__(desk, number, slot, name, one=True, deadline=deadline)
        self._entry = self._taken_in(entry)
        self._condition = condition.to_bytes(len(NOTHING), "big")
        self._sent = False

    def _begin(self, now: float) -> None:
        """Ask the first owner that is up; if there is none, say so."""
        desk = self.desk
        if self._sent:
            self._impossible(now)
            return
        up = [owner for owner in desk.ring.current(self.slot) if desk.is_up(owner)]
        if not up:
            desk.finish(self, self._no_quorum(now))
        elif up[0] == desk.me:
            desk.take_over(self, self._to_send(self._entry), number_of(self._condition))
        else:
            self._ask(up[0])

    def _request(self, owner: Owner, stamp: int) -> Request:
        left = max(0.0, self.deadline - self.desk.now)
        return Do(
            owner.boot,
            self.revision,
            stamp,
            self.slot,
            self.name,
            self._to_send(self._entry),
            self._condition,
            int(left * 1000.0),
        )

    def _answered(self, owner: Owner, answer: Did, now: float) -> None:
        version = number_of(answer.version)
        if answer.error:
            error = by_name(answer.error, answer.message, answer.reason)
            if version:
                error.facts["version"] = version
            self.desk.finish(self, error)
        else:
            self.desk.finish(self, version)

    def _without(self, owner: Owner, now: float) -> None:
        if self._sent:
            self._impossible(now)
        else:
            self._wake_at(now + RELAY_PAUSE)

    def _note_sent(self) -> None:
        self._sent = True

    def _ask_again(self, owner: Owner, now: float) -> None:
        # By then another owner may be first.
        self._without(owner, now)

    def _woken(self, now: float) -> None:
        if not self._asked:
            self._begin(now)

    def _impossible(self, now: float) -> None:
        if self._sent or self._asked:
            self.desk.finish(
                self,
                UncertainError(
                    "the write under a condition was sent and its outcome is not known: "
                    "read what is there"
                ),
            )
        else:
            self.desk.finish(self, self._no_quorum(now))
