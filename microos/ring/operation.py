"""What every operation on a key has: whom it asks, whose answers count, when it gives up.

    Put     write to all owners ─▶ W in each row ─▶ (was newer there? once more, above) ─▶ version
    Get     read from R owners ─▶ alike? ─▶ entry      no: the newest to W first, then entry
    Atomic  prepare at W ─▶ what is there, does it fit? ─▶ accept at W ─▶ version
    Relay   let the first owner decide an atomic write

Whoever answers that the slot has changed makes the operation wait for that ring, and begin
anew on it (kv.md 4.3, rule 5). An owner that gives no answer is asked again as long as it
is up: asking twice is harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

from microos.errors import MicroosError, NoQuorumError
from microos.ring.entry import ended, incoming, is_newer, outgoing
from microos.ring.messages import Answer, AnyAnswer, Code, Request
from microos.ring.quorum import Votes
from microos.ring.ring import Owner, Ring
from microos.ring.stamps import Stamps
from microos.types import Random, Version

AGAIN_MIN = 0.02
AGAIN_MAX = 0.5
"""Pause before an owner that gave no answer is asked again: it doubles between these [s]."""


NOBODY = Votes((), 1)
"""Before and between tries: nobody has a vote."""


class Desk(Protocol):
    """What an operation may use of its keeper."""

    me: Owner
    stamps: Stamps
    random: Random
    writer: int
    """What of this node's id is part of its versions."""
    now: float

    @property
    def patience(self) -> float:
        """How long a read waits before it asks further owners [s]."""

    @property
    def ring(self) -> Ring: ...

    def ask(self, operation: Operation, owner: Owner, request: Request) -> None:
        """Send a request; the answer comes to `operation.answered` or `unanswered`."""

    def finish(self, operation: Operation, result: object) -> None:
        """End the operation with its result, or with an error."""

    def is_up(self, owner: Owner) -> bool:
        """Return whether that process may answer, as far as membership says."""

    def stamp(self) -> int:
        """Return what a message says of this node's clock."""

    def take_over(self, relay: Operation, entry: bytes, condition: Version) -> None:
        """Decide here what `relay` wanted another owner to decide."""


class Operation:
    """What all operations have. `wake` comes at `at`, the earlier of pause and deadline."""

    __slots__ = (
        "_again",
        "_asked",
        "_pause",
        "at",
        "deadline",
        "desk",
        "generation",
        "name",
        "number",
        "one",
        "revision",
        "slot",
        "votes",
        "wants_ring",
    )

    answer_type: ClassVar[type[AnyAnswer]] = Answer
    """What its requests are answered by."""

    def __init__(
        self, desk: Desk, number: int, slot: int, name: bytes, *, one: bool, deadline: float
    ) -> None:
        """Make it; `begin` starts it.

        Args:
            one: Content with a single owner.
            deadline: On the keeper's clock [s].
        """
        self.desk = desk
        self.number = number
        self.slot = slot
        self.name = name
        self.one = one
        self.deadline = deadline
        self.at = deadline
        self.generation = 0
        """Answers to an earlier try do not count."""
        self.revision = 0
        """Of the ring it goes by."""
        self.wants_ring = 0
        """Revision it waits for before it begins anew; 0: none."""
        self.votes = NOBODY
        self._asked: dict[Owner, None] = {}
        """Who owes an answer."""
        self._again: dict[Owner, None] = {}
        """Who is to be asked again."""
        self._pause = AGAIN_MIN

    # What happens to it.

    def begin(self, now: float) -> None:
        """Begin, or begin anew on the ring as it is now."""
        self._begin_phase()
        self.revision = self.desk.ring.revision
        self.wants_ring = 0
        self.at = self.deadline
        if self.revision == 0:
            # Before the first ring epoch nobody owns the key: it will not be long.
            self.wants_ring = 1
        else:
            self._begin(now)

    def answered(self, owner: Owner, answer: AnyAnswer, now: float) -> None:
        """Take in an answer to the present try."""
        self._asked.pop(owner, None)
        code = answer.code
        if code & Code.WRONG_BOOT:
            self._without(owner, now)
        elif code & Code.NEWER_SLOT:
            self.wants_ring = answer.revision
            if self.desk.ring.revision >= answer.revision:
                self.begin(now)
        elif not self.wants_ring:
            self._answered(owner, answer, now)

    def unanswered(self, owner: Owner, sent: bool, now: float) -> None:
        """Take note that no answer will come, though the request may have been `sent`."""
        self._asked.pop(owner, None)
        if sent:
            self._note_sent()
        if self.desk.is_up(owner):
            self._ask_again(owner, now)
        else:
            self._without(owner, now)

    def wake(self, now: float) -> None:
        """Do what is due: give up, or ask again."""
        if now >= self.deadline:
            self._expired(now)
            return
        self.at = self.deadline
        if self.wants_ring:
            return
        again, self._again = self._again, {}
        generation = self.generation
        for owner in again:
            if self.generation != generation:
                return
            if self.desk.is_up(owner):
                self._ask(owner)
            else:
                self._without(owner, now)
        if self.generation == generation:
            self._woken(now)

    # Parts of it.

    def _begin(self, now: float) -> None:
        raise NotImplementedError

    def _request(self, owner: Owner, stamp: int) -> Request:
        raise NotImplementedError

    def _answered(self, owner: Owner, answer: Any, now: float) -> None:
        raise NotImplementedError

    def _without(self, owner: Owner, now: float) -> None:
        """Go on without an owner that is gone."""
        self.votes.failed(owner)
        if not self._is_possible():
            self._give_up(now)

    def _give_up(self, now: float) -> None:
        """End it, unless the slot has moved on since it began: there it may be possible."""
        if self.desk.ring.positions[self.slot] > self.revision:
            self.begin(now)
        else:
            self._impossible(now)

    def _woken(self, now: float) -> None:
        """Do what else is due."""

    def _note_sent(self) -> None:
        """Take note that something may have happened at an owner that did not answer."""

    def _is_possible(self) -> bool:
        return self.votes.possible

    def _expired(self, now: float) -> None:
        self._impossible(now)

    def _impossible(self, now: float) -> None:
        self.desk.finish(self, self._no_quorum(now))

    def _begin_phase(self) -> None:
        """Forget who was asked: answers to what was asked before count no more."""
        self.generation += 1
        self._asked.clear()
        self._again.clear()

    def _ask_all(self, owners: Sequence[Owner], now: float) -> None:
        """Ask owners one after the other, until an answer at once has ended or moved it on."""
        generation = self.generation
        for owner in owners:
            if self.generation == generation:
                self._ask(owner)

    def _ask(self, owner: Owner) -> None:
        self._asked[owner] = None
        self.desk.ask(self, owner, self._request(owner, self.desk.stamp()))

    def _ask_again(self, owner: Owner, now: float) -> None:
        """Ask an owner once more after a pause."""
        self._again[owner] = None
        self._wake_at(now + self._pause)
        self._pause = min(2 * self._pause, AGAIN_MAX)

    def _taken_in(self, entry: bytes) -> bytes:
        """Return an entry that has come, its end on the clock here: it may wait for long."""
        return incoming(entry, int(self.desk.now * 1000.0))

    def _to_send(self, entry: bytes) -> bytes:
        """Return an entry of ours as it travels now."""
        at = int(self.desk.now * 1000.0)
        return outgoing(ended(entry, at), at)

    def _wake_at(self, at: float) -> None:
        self.at = min(self.at, at)

    def _vote(self, votes: Votes) -> tuple[Owner, ...]:
        """Begin to vote; return who is up and may be asked, oneself last."""
        self.votes = votes
        desk, up = self.desk, []
        for owner in votes.owners:
            if desk.is_up(owner):
                up.append(owner)
            else:
                votes.failed(owner)
        if desk.me in up:
            # Oneself answers at once: by then all others must have been asked.
            up.remove(desk.me)
            up.append(desk.me)
        return tuple(up)

    def _no_quorum(self, now: float) -> MicroosError:
        ring, desk = self.desk.ring, self.desk
        if not ring.chains[self.slot]:
            return NoQuorumError(
                "expected a ring to keep the key, found none yet: wait until the node is ready",
                reason="replicas",
            )
        owners = ring.everyone[self.slot]
        up = [owner.node for owner in owners if desk.is_up(owner)]
        silent = [owner.node for owner in self._asked]
        return NoQuorumError(
            f"expected answers of a majority of the {len(owners)} owners of slot {self.slot}, "
            f"found up {up or 'none'}, without an answer {silent or 'none'}; is the network split?",
            reason="replicas",
        )


def newest_of(entries: Iterable[bytes | None]) -> bytes | None:
    """Return the newest of some entries; None if there is none."""
    newest: bytes | None = None
    for entry in entries:
        if entry is not None and is_newer(entry, newest):
            newest = entry
    return newest
