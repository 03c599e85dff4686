"""A ring state and the log that makes it, for tests: names for nodes, digits for boots."""

from __future__ import annotations

from collections.abc import Iterable

from microos.ring.epochs import Applied, Command, Denied, Done, Propose, RingState, Settle, apply
from microos.ring.notes import Note
from microos.ring.placement import Scores, digest
from microos.ring.ring import SLOTS, Member, Owner, slot_set
from microos.types import BootId, Incarnation, NodeId, Revision


def owner(name: str, boot: int = 1) -> Owner:
    return Owner(NodeId(name), BootId(boot))


def members(names: str) -> tuple[Member, ...]:
    """Return members by node: `"ab2c"` is a and c in their first boot and b in its second."""
    found: list[Member] = []
    for letter in names:
        if letter.isdigit():
            node = found.pop().node
            found.append(Member(node, BootId(int(letter)), incarnation=Incarnation(int(letter))))
        else:
            found.append(Member(NodeId(letter), BootId(1), incarnation=Incarnation(1)))
    return tuple(found)


def proposal(number: int, names: str, gone: tuple[Owner, ...] = ()) -> Propose:
    return Propose(number, members(names), gone, digest(members(names), 3))


class Log:
    """Applies one command after another, revisions 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.state = RingState()
        self.revision = Revision(0)
        self.kept = Scores()
        self.notes: list[Note] = []

    def do(self, command: Command) -> Applied:
        self.revision = Revision(self.revision + 1)
        applied = apply(self.state, command, self.revision, self.kept)
        self.state = applied.state
        self.notes += applied.notes
        self.state.check()
        return applied

    def done(self, command: Command) -> Done:
        result = self.do(command).result
        assert isinstance(result, Done), result
        return result

    def denied(self, command: Command) -> Denied:
        before = self.state
        result = self.do(command).result
        assert isinstance(result, Denied)
        assert self.state is before
        return result

    def propose(self, names: str, gone: tuple[Owner, ...] = ()) -> Log:
        self.done(proposal(self.state.number + 1, names, gone))
        return self

    def settle(self, slots: Iterable[int] = range(SLOTS), lossy: Iterable[int] = ()) -> int:
        lost = slot_set(lossy)
        settle = Settle(slot_set(slots), self.state.revision, lost if any(lost) else b"")
        return self.done(settle).count
