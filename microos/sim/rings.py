"""The ring's machine for worlds of many members: each state is computed once and shared.

Applying a command of the ring is a pure function of state and command, and a snapshot for
look-ups costs a millisecond; a world of seven members and an oracle would pay for each of
them eight times. So all machines of one world share what the first of them has computed.
That equal commands make equal states is tested where nothing is shared: in `tests/ring` and
in layer `node`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from microos.errors import RemoteProtocolError
from microos.hashing import xxh3
from microos.node.ownership import OwnershipMachine
from microos.raft.machine import pieces
from microos.ring.epochs import Applied, Command, RingState, apply, frozen, thawed
from microos.ring.keeper import Moved
from microos.ring.placement import Scores
from microos.ring.ring import Ring
from microos.types import Revision


class Rings:
    """Every ring state of one world, with what is made of it."""

    def __init__(self) -> None:
        self._scores = Scores()
        self._applied: dict[tuple[Revision, Revision, Command], Applied] = {}
        self._moved: dict[Revision, Moved] = {}
        self._states: dict[bytes, RingState] = {}
        self._newest = Ring()

    def apply(self, state: RingState, command: Command, revision: Revision) -> Applied:
        """Do one command, or what it came to when another member did it on the same state.

        All states of a world come from here, so its revision names a state.
        """
        key = (state.revision, revision, command)
        found = self._applied.get(key)
        if found is None:
            found = self._applied[key] = apply(state, command, revision, self._scores)
        return found

    def moved(self, state: RingState) -> Moved:
        """Return what a keeper is told of a state."""
        found = self._moved.get(state.revision)
        if found is None:
            ring = self._newest = state.ring(self._newest)
            ring.check()
            found = self._moved[state.revision] = Moved(ring, frozen(state))
            self._states[found.state] = state
        return found

    def thawed(self, data: bytes) -> RingState:
        """Return the state of such bytes: the one they were made of."""
        state = self._states.get(data)
        return thawed(data) if state is None else state


class SharingMachine(OwnershipMachine):
    """The ring's machine of one member; `told` each ring that it comes to."""

    def __init__(self, rings: Rings) -> None:
        super().__init__()
        self._rings = rings
        self.told: Callable[[Moved], None] = _nobody

    @property
    def moved(self) -> Moved:
        """The present ring, as a keeper is told of it."""
        return self._rings.moved(self._state)

    def _apply(self, state: RingState, command: Command, revision: Revision) -> Applied:
        return self._rings.apply(state, command, revision)

    def freeze(self) -> Iterator[bytes]:
        return pieces(self.moved.state if self._state.revision else b"")

    def restore(self, chunks: Iterable[bytes], version: int) -> None:
        if version != self.version:
            raise RemoteProtocolError(f"expected a ring of version {self.version}, found {version}")
        data = b"".join(chunks)
        self._become(self._rings.thawed(data) if data else RingState())

    def _become(self, state: RingState) -> None:
        moved = self._rings.moved(state)
        self._state, self._ring = state, moved.ring
        self._digest = xxh3(moved.state) if state.revision else 0
        self.told(moved)


def _nobody(moved: Moved) -> None:
    """Tell nobody."""
