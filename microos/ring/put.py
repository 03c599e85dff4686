"""A plain write or delete: to all owners at once, done at W of each row.

It has one version however often it is sent. If an owner had a newer one, perhaps somebody
was acknowledged before this write began: then it is sent once more, with a version above.
What turns up later than that is concurrent.

Source: the first phase of Attiya, Bar-Noy, Dolev, "Sharing Memory Robustly" (JACM 1995),
done only when it is needed; kv.md 5.2.
"""

from __future__ import annotations

from microos import limits
from microos.errors import LimitError, MicroosError, OverloadedError, UncertainError
from microos.ring.entry import (
    NOTHING,
    is_tombstone,
    number_of,
    stamp_of,
    version_bytes,
    version_of,
)
from microos.ring.messages import Answer, AnyAnswer, Code, Request, Write
from microos.ring.operation import Desk, Operation
from microos.ring.quorum import Votes
from microos.ring.ring import Owner


class Put(Operation):
    """A plain write of an entry, a tombstone included."""

    __slots__ = ("_entry", "_full", "_is_above", "_newest", "_sent", "acks")

    def __init__(
        self,
        desk: Desk,
        number: int,
        slot: int,
        name: bytes,
        entry: bytes,
        *,
        one: bool,
        deadline: float,
        is_repeat: bool = False,
        was_sent: bool = False,
    ) -> None:
        """Make it.

        Args:
            entry: As it travels, with its version; its time begins now.
            is_repeat: The version is that of an earlier call, and stays.
            was_sent: An owner may have kept it already.
        """
        super().__init__(desk, number, slot, name, one=one, deadline=deadline)
        self._entry = self._taken_in(entry)
        self._newest = NOTHING
        self._is_above = is_repeat
        self._full = False
        self._sent = was_sent
        """Whether an owner may have kept it, in this try or an earlier one."""
        self.acks = 0

    def begin(self, now: float) -> None:
        self._sent |= self._is_out()
        super().begin(now)

    def _is_out(self) -> bool:
        """Whether others than this node have been asked and owe an answer."""
        return any(owner != self.desk.me for owner in self._asked)

    def answered(self, owner: Owner, answer: AnyAnswer, now: float) -> None:
        # Also where the slot has changed: it is kept there, and does not count.
        self._sent |= not answer.code & (Code.FULL | Code.WRONG_BOOT)
        super().answered(owner, answer, now)

    def _begin(self, now: float) -> None:
        self.acks = 0
        up = self._vote(Votes(self.desk.ring.chains[self.slot], limits.RING_REPLICAS))
        if not up or not (self.one or self.votes.possible):
            self._impossible(now)
            return
        self._ask_all(up, now)

    def _request(self, owner: Owner, stamp: int) -> Request:
        entry = self._to_send(self._entry)
        return Write(owner.boot, self.revision, stamp, self.slot, self.name, entry)

    def _answered(self, owner: Owner, answer: Answer, now: float) -> None:
        code = answer.code
        if code & Code.FULL:
            self._full = True
            self._without(owner, now)
            return
        if code & Code.NEWER_VERSION:
            self._newest = max(self._newest, version_of(answer.entry))
        self.acks += 1
        self.votes.add(owner)
        if not (self.one or self.votes.done):
            return
        if self._newest > version_of(self._entry) and not self._is_above:
            # What was acknowledged before this write began is among the answers: stand above it.
            self._is_above = True
            stamp = self.desk.stamps.above(stamp_of(self._newest), now)
            version = version_bytes(stamp, self.desk.writer)
            self._entry = version + self._entry[len(version) :]
            self.begin(now)
            return
        self.desk.finish(self, number_of(version_of(self._entry)))

    def _note_sent(self) -> None:
        self._sent = True

    def _is_possible(self) -> bool:
        return bool(self._asked or self._again) if self.one else self.votes.possible

    def _impossible(self, now: float) -> None:
        if self._sent or self._is_out():
            version = number_of(version_of(self._entry))
            self.desk.finish(
                self,
                UncertainError(
                    f"expected a majority of owners to keep it, {self.acks} did before the "
                    "deadline: it may be seen; read it, or put it again with version=",
                    acks=self.acks,
                    version=version,
                ),
            )
        elif self._full:
            self.desk.finish(self, _no_room(self._entry))
        else:
            self.desk.finish(self, self._no_quorum(now))


def _no_room(entry: bytes) -> MicroosError:
    if is_tombstone(entry):
        return OverloadedError(
            "expected room for the trace of a delete, found too many that other owners have not "
            "confirmed: wait until all owners are back",
        )
    return LimitError(
        "expected room for the value, found kv.memory full at its owners: delete or raise it",
        reason="quota",
    )
