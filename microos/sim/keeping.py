"""The store of one boot in layer `cores`: its keeper, and what the ring's leader proposes.

What `kv/keeping.py` and `node/ownership.py` do on trio is done here on the plain heap: the
keeper, the planner and the ring's machine are the real ones.

    log ─▶ SharingMachine ─▶ Moved ─▶ Keeper ─ asks ─▶ Calls ─▶ Keeper of another
    views (late, wrong) ─▶ Up ─────────┘ └ report ─▶ leader: Planner ─▶ command ─▶ log
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import msgspec

from microos.codec import encode
from microos.errors import MicroosError, UnavailableError
from microos.node.ownership import decode_answer as decode_result
from microos.node.participation import decode_report
from microos.raft.entry import Configuration
from microos.ring.epochs import Done
from microos.ring.keeper import Ask, Keeper, KeeperSettings, Moved, Silent, Told, Up
from microos.ring.messages import Code, decode_answer, decode_request
from microos.ring.planner import Answered, Planner, Report, Seen, View
from microos.ring.ring import Owner, slot_set
from microos.settings import KvSettings, RingSettings
from microos.sim.calls import Answer, Calls, Outcome
from microos.sim.hearsay import boot_of
from microos.sim.host import Host
from microos.sim.rings import Rings, SharingMachine
from microos.sim.world import SECOND
from microos.types import BootId, NodeId

KV = "microos.kv"
REPORT = "microos.ring.report"

UP_EVERY = SECOND // 4
REPORT_GAP = SECOND // 8
REPORT_AGAIN = SECOND
LOOK_GAP = 0.25
"""The leader looks at the members at least this often [s]."""

Views = Callable[[], tuple[View, ...]]
Submit = Callable[[bytes, Callable[[bytes | None], None]], None]


class Keeping:
    """The keeper of one boot.

    Args:
        views: The members, as they are seen here.
        leader: Who leads the raft group, as far as is known here.
        turn_ns: Longest turn of the loop, in which operations gather [ns].
    """

    def __init__(
        self,
        host: Host,
        calls: Calls,
        machine: SharingMachine,
        rings: Rings,
        settings: KvSettings,
        *,
        views: Views,
        leader: Callable[[], NodeId | None],
        turn_ns: int,
    ) -> None:
        self.host = host
        self.proposing: Proposing | None = None
        self._calls = calls
        self._rings = rings
        self._views = views
        self._leader = leader
        self._world = host.world
        self._boot = host.boot
        self._gate = host.gate
        self._waiting: dict[int, Callable[[object], None]] = {}
        self._later: dict[int, Answer] = {}
        self._handle = 0
        self._pumping = False
        self._armed = inf
        self._up: dict[NodeId, BootId] = {}
        self._reported: tuple[int, int] = (0, 0)
        self._reporting = False
        self._turn_ns = turn_ns
        self._turns = host.random("turns")
        self.keeper = Keeper(
            Owner(host.id, boot_of(host)),
            KeeperSettings(
                size_max=settings.memory,
                compare_interval=settings.compare_interval,
                drop_grace=settings.drop_grace,
                tombstone_window=settings.tombstone_window,
                transfer_rate=settings.transfer_rate,
            ),
            random=host.random("keeper"),
            now=host.line.now(),
            wall=host.line.wall(),
        )
        calls.serve(KV, self._request)
        calls.serve(REPORT, self._told_report)
        machine.told = self._moved
        if machine.state.revision:
            self._moved(machine.moved)
        self._look()
        self._arm()

    @property
    def owner(self) -> Owner:
        return self.keeper.me

    def is_alive(self) -> bool:
        return self.host.is_running(self._boot)

    # What the node tells.

    def _moved(self, moved: Moved) -> None:
        if self.is_alive():
            self.keeper.receive(moved, self._now())
            self._pump()

    def _look(self) -> None:
        """Take in who is up, now and then."""
        if not self.is_alive():
            return
        up = {view.node: view.boot for view in self._views() if view.state in ("alive", "suspect")}
        if up != self._up:
            self._up = up
            self.keeper.receive(Up(up), self._now())
            self._pump()
        self._later_on(UP_EVERY, self._look)

    # Operations.

    def run(self, begin: Callable[[Keeper, float], int], done: Callable[[object], None]) -> None:
        """Begin an operation of the keeper; `done` is told its result.

        Raises:
            OverloadedError: Too many are in flight.
        """
        number = begin(self.keeper, self._now())
        self._waiting[number] = done
        if self._turn_ns:
            # As in a node, where what begins in one turn of the loop is sent when the turn ends.
            self._later_on(1 + self._turns.randrange(self._turn_ns), self._pump)
        else:
            self._pump()

    def _request(self, body: bytes, sender: NodeId, answer: Answer) -> bytes | None:
        self._handle += 1
        request = decode_request(body)
        found = self.keeper.serve(request, sender, self._now(), self._handle)
        if found is None:
            self._later[self._handle] = answer
        if request.boot != self.owner.boot and (found is None or not found.code & Code.WRONG_BOOT):
            self._world.fail("safety", "kv.boot", f"{self.owner} answers {request}")
        self._pump()
        return None if found is None else encode(found)

    # Turns of the keeper.

    def _pump(self) -> None:
        """Do what the keeper wants done, until it wants nothing more."""
        if self._pumping:
            return
        self._pumping = True
        keeper = self.keeper
        while keeper.has_effects:
            effects = keeper.take()
            for ask in effects.asks:
                self._ask(ask)
            for number, result in effects.done:
                done = self._waiting.pop(number, None)
                if done is not None:
                    done(result)
            for handle, answer in effects.answers:
                self._later.pop(handle)(encode(answer))
            for state in effects.fetched:
                moved = self._rings.moved(self._rings.thawed(state))
                self._world.sometimes("ring.fetched")
                keeper.receive(moved, self._now())
        self._pumping = False
        revision, ready = keeper.report()
        if ready and (revision, len(ready)) != self._reported and not self._reporting:
            self._reporting = True
            self._later_on(REPORT_GAP, self._report)
        if self._world.executed & 127 == 0:
            keeper.check()
        self._arm()

    def _ask(self, ask: Ask) -> None:
        token = ask.token

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, MicroosError):
                sent = not isinstance(outcome, UnavailableError)
                self.keeper.receive(Silent(token, sent), self._now())
            else:
                self.keeper.receive(Told(token, decode_answer(outcome)), self._now())
            self._pump()

        self._calls.post(ask.owner.node, KV, encode(ask.request), ask.deadline, done)

    # Reports.

    def _report(self) -> None:
        """Tell the leader which copies are whole, and again while it matters."""
        revision, ready = self.keeper.report()
        self._reporting = False
        self._reported = (revision, len(ready))
        if not ready:
            return
        self._reporting = True
        self._later_on(REPORT_AGAIN, self._report)
        report = Report(self.owner, revision, slot_set(ready))
        leader = self._leader()
        if leader == self.host.id:
            self._take_report(report)
        elif leader is not None:
            self._calls.post(leader, REPORT, encode(report), self._now() + 1.0, _nothing)

    def _told_report(self, body: bytes, sender: NodeId, answer: Answer) -> bytes:
        self._take_report(decode_report(body))
        return b"\xc0"

    def _take_report(self, report: Report) -> None:
        if self.proposing is not None:
            self.proposing.report(report)

    # Time.

    def _now(self) -> float:
        return self.host.line.now()

    def _arm(self) -> None:
        deadline = self.keeper.deadline
        if deadline >= self._armed:
            return
        self._armed = deadline

        def ring() -> None:
            if self._armed == deadline:
                self._armed = inf
            self._gate(self._ring)

        self._world.at(self.host.line.when(deadline), ring)

    def _ring(self) -> None:
        if self.is_alive():
            if self._now() >= self.keeper.deadline:
                self.keeper.wake(self._now())
                self._pump()
            self._arm()

    def _later_on(self, delay: int, fn: Callable[[], None]) -> None:
        self._world.after(delay, lambda: self._gate(fn))


class Proposing:
    """What a member proposes for the ring while it leads.

    Args:
        submit: Commits a command of the ring's machine; the result, or None, is told later.
        soon: Asks for a turn of the member.
    """

    def __init__(
        self,
        host: Host,
        machine: SharingMachine,
        settings: RingSettings,
        *,
        views: Views,
        submit: Submit,
        soon: Callable[[], None],
    ) -> None:
        self._host = host
        self._machine = machine
        self._settings = settings
        self._views = views
        self._submit = submit
        self._soon = soon
        self._planner: Planner | None = None
        self._looked = -inf
        self._flying = False

    def turned(self, leads: bool, configuration: Configuration) -> None:
        """Look, if this member leads and something may be due."""
        if not leads:
            self._planner = None
            self._flying = False
            return
        if self._planner is None:
            self._planner = Planner(self._settings)
            self._looked = -inf
        if self._host.line.now() >= self.deadline:
            self._look(self._planner, configuration)

    @property
    def deadline(self) -> float:
        """When to look next, on the host's clock [s]."""
        if self._planner is None or self._flying:
            return inf
        return min(self._planner.deadline, self._looked + LOOK_GAP)

    def report(self, report: Report) -> None:
        if self._planner is not None:
            self._planner.receive(report, self._host.line.now())
            self._soon()

    def _look(self, planner: Planner, configuration: Configuration) -> None:
        now = self._looked = self._host.line.now()
        inside = configuration.members()
        views = tuple(
            msgspec.structs.replace(view, participate=view.node in inside) for view in self._views()
        )
        planner.receive(self._machine.state, now)
        planner.receive(Seen(views, 0), now)
        planner.wake(now)
        planner.check()
        effects = planner.take()
        for note in effects.notes:
            self._host.note("ring", note)
        if effects.command is None:
            return
        self._flying = True

        def told(result: bytes | None) -> None:
            if self._planner is not planner:
                return
            self._flying = False
            done = result is not None and isinstance(decode_result(result), Done)
            at = self._host.line.now()
            planner.receive(self._machine.state, at)
            planner.receive(Answered(done), at)
            self._soon()

        self._host.note("ring", type(effects.command).__name__)
        self._submit(encode(effects.command), told)


def _nothing(outcome: Outcome) -> None:
    """Nobody waits for it."""
