"""Machine 5: the ring, as it is agreed on; and on the leader what is proposed for it.

    log ──▶ OwnershipMachine ──▶ Ring, a snapshot for look-ups, replaced as a whole
                  │
                  ▼ state
    Proposer ── Planner (a core) ──▶ submit ──▶ log
                  ▲
                  └ member table, reports of owners

What a command does is decided in `ring/epochs.py`, what is due in `ring/planner.py`;
here they meet log, clock and leadership.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator

import trio

from microos.clock import Clock
from microos.codec import Decoder, encode
from microos.errors import LimitError, RemoteProtocolError, UnavailableError, UncertainError
from microos.hashing import xxh3
from microos.raft.entry import Stamp
from microos.raft.machine import Outcome, Refused, pieces
from microos.ring.epochs import (
    Applied,
    Command,
    Denied,
    Done,
    RingState,
    apply,
    decode_command,
    frozen,
    thawed,
)
from microos.ring.notes import PlannerNote
from microos.ring.placement import Scores
from microos.ring.planner import Answered, Planner, Report, Seen
from microos.ring.ring import Ring
from microos.settings import RingSettings
from microos.types import Revision, SessionId, packed

NUMBER = 5

LOOK_GAP = 0.5
"""The leader looks at the members at least this often [s]."""

Result = Refused | Done
decode_answer: Decoder[Result] = Decoder(Result)


class OwnershipMachine:
    """Who owns which slot, on every member of the raft group."""

    number = NUMBER
    version = 1

    def __init__(self, on_change: Callable[[Ring], None] = lambda ring: None) -> None:
        """Make it empty.

        Args:
            on_change: Told each new snapshot, within the turn that applies.
        """
        self._on_change = on_change
        self._scores = Scores()
        self._state = RingState()
        self._ring = Ring()
        self._digest = 0

    # The machine.

    def apply(self, session: SessionId, command: bytes, stamp: Stamp) -> Outcome:
        """Do one command, whoever's it is. Cost: `Propose` a table, 5..20 ms; else 2 ms."""
        try:
            body = decode_command(command)
        except RemoteProtocolError:
            return Outcome(
                encode(
                    Refused(
                        "RejectedError", "bad_request", "expected a command of the ring machine"
                    )
                )
            )
        revision = Revision(packed(stamp.epoch, stamp.index))
        applied = self._apply(self._state, body, revision)
        if applied.state is not self._state:
            self._become(applied.state)
        match applied.result:
            case Denied(error, reason, message):
                return Outcome(encode(Refused(error, reason, message)))
            case Done() as done:
                return Outcome(encode(done), applied.notes)

    def _apply(self, state: RingState, command: Command, revision: Revision) -> Applied:
        return apply(state, command, revision, self._scores)

    def ended(self, sessions: tuple[SessionId, ...], stamp: Stamp) -> tuple[object, ...]:
        """Nothing here belongs to a session."""
        return ()

    def wake(self, stamp: Stamp) -> tuple[object, ...]:
        """Nothing here is ever due."""
        return ()

    def deadline(self) -> int | None:
        return None

    # Reads: local, as of what this member has applied.

    def ring(self) -> Ring:
        """Return the snapshot for look-ups; immutable."""
        return self._ring

    @property
    def state(self) -> RingState:
        """The whole state; immutable."""
        return self._state

    # Snapshots, digest, invariants.

    def freeze(self) -> Iterator[bytes]:
        """Return the state in chunks."""
        return pieces(frozen(self._state) if self._state.revision else b"")

    def restore(self, chunks: Iterable[bytes], version: int) -> None:
        """Replace the state.

        Raises:
            RemoteProtocolError: Not a frozen state of this machine, or of another version.
        """
        if version != self.version:
            raise RemoteProtocolError(f"expected a ring of version {self.version}, found {version}")
        data = b"".join(chunks)
        self._become(thawed(data) if data else RingState())

    def digest(self) -> int:
        """Return a number equal exactly where the state is. Cost: O(1)."""
        return self._digest

    def _become(self, state: RingState) -> None:
        self._state = state
        self._ring = state.ring(self._ring)
        self._digest = _digest(state)
        self._on_change(self._ring)

    def check(self) -> None:
        """Assert all invariants. Cost: O(slots), and a table."""
        self._state.check()
        self._ring.check()
        assert self._ring == self._state.ring()
        assert self._digest == _digest(self._state)


def _digest(state: RingState) -> int:
    return xxh3(frozen(state)) if state.revision else 0


class Proposer:
    """Submits what the planner finds due, while this node leads; sleeps everywhere else."""

    def __init__(
        self,
        *,
        clock: Clock,
        settings: RingSettings,
        state: Callable[[], RingState],
        seen: Callable[[], Seen],
        leads: Callable[[], bool],
        submit: Callable[[bytes], Awaitable[bytes]],
        observe: Callable[[PlannerNote], None],
    ) -> None:
        """Make it; `run` does the work.

        Args:
            clock: Time.
            settings: Of the ring.
            state: The machine's state, as applied here.
            seen: The member table and this node's own health score.
            leads: Whether this node leads the raft group.
            submit: Commits one command of machine 5 and returns its answer; raises the
                errors of `Kernel.submit`.
            observe: Told what the planner notes.
        """
        self._clock = clock
        self._settings = settings
        self._state = state
        self._seen = seen
        self._leads = leads
        self._submit = submit
        self._observe = observe
        self._planner: Planner | None = None
        self._hurry = trio.Event()

    def hurry(self) -> None:
        """Look now: leader, members or ring have changed."""
        self._hurry.set()

    def report(self, report: Report) -> None:
        """Take in what an owner says of its copies; for nothing where this node does not lead.

        Owners report again and again while a slot of theirs is joint, so a new leader learns.
        """
        if self._planner is not None:
            self._planner.receive(report, self._clock.now())
            self.hurry()

    async def run(self) -> None:
        """Look whenever something has changed or is due while leading; wait for news otherwise."""
        while True:
            self._hurry = trio.Event()
            if not self._leads():
                self._planner = None
                await self._hurry.wait()
                continue
            if self._planner is None:
                self._planner = Planner(self._settings)
            if not await self._look(self._planner):
                pause = min(self._planner.deadline, self._clock.now() + LOOK_GAP)
                with self._clock.timeout_at(pause):
                    await self._hurry.wait()

    async def _look(self, planner: Planner) -> bool:
        """Let the planner decide, and do it; return whether there was something to do."""
        now = self._clock.now()
        planner.receive(self._state(), now)
        planner.receive(self._seen(), now)
        planner.wake(now)
        effects = planner.take()
        for note in effects.notes:
            self._observe(note)
        if effects.command is None:
            return False
        done = await self._done(effects.command)
        now = self._clock.now()
        planner.receive(self._state(), now)
        planner.receive(Answered(done), now)
        return True

    async def _done(self, command: Command) -> bool:
        try:
            answer = decode_answer(await self._submit(encode(command)))
        except (UnavailableError, UncertainError, LimitError):
            return False  # The planner looks again; a command that did commit is then seen.
        return isinstance(answer, Done)
