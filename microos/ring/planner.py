"""What the Raft leader proposes for the ring next: new epochs, settled slots, a pause.

    member table ─┐                        ┌▶ Propose   members have come, gone, restarted
    ring state ───┼─▶ receive, wake, take ─┼▶ Settle    owners of next have what they need
    reports ──────┘                        └▶ Pause, Resume   too many are dead at once

A change of members waits for others to join it, a second after the last, two after the
first, so that nodes that start together make one epoch. Who is suspect is left as it is:
neither taken in, nor dropped, nor waited for. Who is dead is replaced after a while,
longer if the leader's own health is poor, and not at all if it is bad. Who has left, has
restarted or takes part no more is replaced at once.

At most a minority is removed as dead within a minute. A minority of nodes that happens
to hold a majority of voters would otherwise rebuild the cluster on itself; so the ring is
paused, until an operator resumes it or no member is dead any more.

A slot settles when every living owner of next, and a quorum of them, has reported its
copy synced. A report counts only for slots whose position its sender knew; one that knew
more than we do is harmless, since `Settle` names what we have seen.

One command at a time; who drives this says `Answered` when it is over. A new leader
begins with an empty planner and counts anew.

Source: kv.md 4.4; Lifeguard's local health (arXiv:1707.00788) for the wait.
"""

from collections import deque
from math import inf
from typing import Literal

import msgspec

from microos import limits
from microos.ring.epochs import (
    REPLICAS,
    Command,
    Pause,
    Propose,
    Resume,
    RingState,
    Settle,
    is_sound,
)
from microos.ring.notes import PlannerNote, RemovalsHeld
from microos.ring.placement import digest
from microos.ring.quorum import sources, wanted
from microos.ring.ring import SET_BYTES, Member, Owner, slot_set
from microos.settings import RingSettings
from microos.types import BootId, Incarnation, NodeId, Revision

SETTLE_GAP = 0.25
"""Least time between two looks for slots to settle, and before a failed command's successor [s]."""

REPORTS_MAX = 4 * limits.RING_MEMBERS_MAX
"""Kept at once: members and former ones, some in two boots."""

REMOVAL_WINDOW = 60.0
"""Within this time at most a minority is removed as dead [s]."""

SCORE_MAX = 4
"""From this score of its own health on a leader removes nobody."""

REMOVALS = "removals"
"""Why the planner pauses the ring; it resumes no other pause."""


class View(msgspec.Struct, frozen=True):
    """One node as gossip and its own word have it."""

    node: NodeId
    boot: BootId
    """0: not known."""
    incarnation: Incarnation
    state: Literal["alive", "suspect", "dead", "left"]
    since: float
    """When it came into this state, on the leader's clock [s]."""
    participate: bool = True
    """Whether it says that it owns keys, and has not said that it is leaving."""
    weight: int = 1
    zone: str = ""


class Seen(msgspec.Struct, frozen=True):
    """The member table, as a whole."""

    members: tuple[View, ...]
    score: int
    """The leader's own health, 0 is well."""


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What one owner has of its slots; the newest replaces those before."""

    owner: Owner
    revision: Revision
    """Of the ring it knew."""
    synced: bytes
    """Bit set of the slots, in whose chain it is, of which its copy may vote."""


class Answered(msgspec.Struct, frozen=True):
    """The command taken last is over."""

    done: bool
    """False: refused, or nobody knows."""


Message = RingState | Seen | Report | Answered


class Effects(msgspec.Struct, frozen=True):
    """What is to be done."""

    command: Command | None = None
    """To be submitted; the next one comes only after its `Answered`."""
    notes: tuple[PlannerNote, ...] = ()


class Planner:
    """Decides on the leader; forgets everything with it."""

    def __init__(self, settings: RingSettings) -> None:
        self._settings = settings
        self._state = RingState()
        self._views: dict[NodeId, View] = {}
        self._score = 0
        self._missing: dict[NodeId, float] = {}
        """Members of the ring that gossip does not know, and since when."""
        self._owners: dict[Owner, None] = {}
        """Of any slot, now."""
        self._reports: dict[Owner, Report] = {}
        self._wish: tuple[tuple[Member, ...], tuple[Owner, ...]] | None = None
        """Members and gone owners to propose once their window has closed."""
        self._wish_since = self._wish_changed = -inf
        self._epoch_at = -inf
        """When the newest epoch was heard of."""
        self._removing: tuple[NodeId, ...] = ()
        """The dead that the last proposal leaves out."""
        self._removed: deque[float] = deque()
        """When members were removed as dead."""
        self._settle_at = -inf
        """When slots to settle may be looked for again."""
        self._rest_until = -inf
        self._flying = False
        """Whether a command is under way."""
        self._deadline = inf
        self._command: Command | None = None
        self._notes: list[PlannerNote] = []

    # The core's verbs.

    def receive(self, message: Message, now: float) -> None:
        """Take in what has changed; `wake` acts on it."""
        match message:
            case RingState() if message is self._state:
                pass
            case RingState():
                self._on_state(message, now)
            case Seen():
                self._views = {view.node: view for view in message.members}
                self._score = message.score
            case Report():
                self._on_report(message)
            case Answered():
                self._flying = False
                if not message.done:
                    self._rest_until = now + SETTLE_GAP
        self._note_missing(now)
        self._deadline = min(self._deadline, now)

    def wake(self, now: float) -> None:
        """Decide what is due. Cost: O(members + joint slots) where something may be."""
        if now < self._deadline:
            return
        self._deadline = inf
        if self._flying:
            return
        if now < self._rest_until:
            self._look_at(self._rest_until)
            return
        self._command = self._propose(now) or self._settle(now)
        self._flying = self._command is not None

    @property
    def deadline(self) -> float:
        """When `wake` is next wanted [s]; inf: not before something is received."""
        return self._deadline

    def take(self) -> Effects:
        """Hand over what is to be submitted and told."""
        effects = Effects(self._command, tuple(self._notes))
        self._command = None
        self._notes = []
        return effects

    # What is told.

    def _on_state(self, state: RingState, now: float) -> None:
        if state.number != self._state.number:
            self._epoch_at = now
            left_in = {member.node for member in state.members}
            self._removed.extend(now for node in self._removing if node not in left_in)
            self._removing = ()
            self._wish = None
        self._state = state
        self._owners = dict.fromkeys(state.owners())
        self._reports = {
            owner: report for owner, report in self._reports.items() if self._is_of_use(report)
        }

    def _on_report(self, report: Report) -> None:
        known = self._reports.get(report.owner)
        if len(report.synced) != SET_BYTES or not self._is_of_use(report):
            return
        if known is None and len(self._reports) >= REPORTS_MAX:
            return
        if known is None or known.revision <= report.revision:
            self._reports[report.owner] = report

    def _is_of_use(self, report: Report) -> bool:
        """Whether it is of an owner, or of one that knows a newer ring in which it may be."""
        return report.owner in self._owners or report.revision > self._state.revision

    def _note_missing(self, now: float) -> None:
        self._missing = {
            member.node: self._missing.get(member.node, now)
            for member in self._state.members
            if member.node not in self._views
        }

    def _look_at(self, time: float) -> None:
        self._deadline = min(self._deadline, time)

    # Epochs.

    def _propose(self, now: float) -> Propose | Pause | Resume | None:
        state = self._state
        dead = self._dead()
        if state.paused:
            return Resume() if state.paused == REMOVALS and not dead else None
        due = self._due(dead, now)
        limit = self._limit(now)
        if due and len(dead) + len(self._removed) > limit:
            self._notes.append(RemovalsHeld(tuple(dead), limit))
            return Pause(REMOVALS)
        members = self._members(due)
        wish = (members, self._left(members))
        if wish == (state.members, ()) or not wish[0]:
            self._wish = None
            return None
        if self._wish is None:
            self._wish_since = now
        if wish != self._wish:
            self._wish, self._wish_changed = wish, now
        opens = min(
            self._wish_changed + self._settings.batch_window,
            self._wish_since + self._settings.batch_window_max,
        )
        opens = max(opens, self._epoch_at + self._settings.batch_window_max)
        if now < opens:
            self._look_at(opens)
            return None
        self._removing = tuple(due)
        return Propose(state.number + 1, *wish, digest(wish[0], REPLICAS))

    def _dead(self) -> dict[NodeId, float]:
        """Return the members that are dead, and since when."""
        found: dict[NodeId, float] = {}
        for member in self._state.members:
            view = self._views.get(member.node)
            if member.owner in self._state.gone:
                continue
            if view is None:
                found[member.node] = self._missing[member.node]
            elif view.state == "dead" and not self._is_old(view):
                found[member.node] = view.since
        return found

    def _due(self, dead: dict[NodeId, float], now: float) -> list[NodeId]:
        """Return those of the dead that have been so for long enough."""
        if self._score >= SCORE_MAX:
            return []
        wait = self._settings.replace_after * (1 + self._score)
        for since in dead.values():
            if since + wait > now:
                self._look_at(since + wait)
        return [node for node, since in dead.items() if since + wait <= now]

    def _limit(self, now: float) -> int:
        """Return how many members may be removed as dead within the window."""
        while self._removed and self._removed[0] + REMOVAL_WINDOW <= now:
            self._removed.popleft()
        return max(1, (len(self._state.members) + len(self._removed) - 1) // 2)

    def _members(self, due: list[NodeId]) -> tuple[Member, ...]:
        """Return who should take part, by node; those that are `due` do not."""
        members = {member.node: member for member in self._state.members}
        for node in due:
            del members[node]
        for member in self._state.members:
            view = self._views.get(member.node)
            left = view is not None and view.state == "left" and not self._is_old(view)
            if left or member.owner in self._state.gone:
                members.pop(member.node, None)
        for view in self._views.values():
            if view.state != "alive" or self._is_old(view):
                continue
            before = members.pop(view.node, None)
            incarnation = view.incarnation
            if before is not None and before.boot == view.boot:
                incarnation = before.incarnation
            member = Member(view.node, view.boot, view.weight, view.zone, incarnation)
            if (
                view.participate
                and is_sound(member)
                and member.owner not in self._state.gone
                and len(members) < limits.RING_MEMBERS_MAX
            ):
                members[view.node] = member
        return tuple(members[node] for node in sorted(members))

    def _left(self, members: tuple[Member, ...]) -> tuple[Owner, ...]:
        """Return the owners that are gone and not yet known to be, besides those that `members`
        replace: they have left, or their node has restarted and does not take part."""
        found = []
        boots = {member.node: member.boot for member in members}
        for owner in self._owners:
            view = self._views.get(owner.node)
            if view is None or self._is_old(view) or owner in self._state.gone:
                continue
            restarted = view.boot not in (0, owner.boot) and owner.node not in boots
            if view.state == "left" or restarted:
                found.append(owner)
        return tuple(found)

    def _is_old(self, view: View) -> bool:
        """Whether the ring knows a newer boot of this node than gossip does here."""
        incarnation, boot = self._state.newest.get(view.node, (view.incarnation, view.boot))
        return view.boot != boot and view.incarnation < incarnation

    # Slots.

    def _settle(self, now: float) -> Settle | None:
        state = self._state
        joint = state.joint()
        if not joint:
            return None
        if now < self._settle_at:
            self._look_at(self._settle_at)
            return None
        self._settle_at = now + SETTLE_GAP
        living = {owner: self._is_living(owner) for owner in self._owners}
        synced = {
            owner: (report.revision, int.from_bytes(report.synced, "little"))
            for owner, report in self._reports.items()
        }
        slots, lossy = [], []
        for slot in joint:
            row, position = state.next[slot], state.positions[slot]
            alive = [owner for owner in row if living[owner]]
            have = 0
            for owner in alive:
                revision, bits = synced.get(owner, (Revision(-1), 0))
                have += revision >= position and bits >> slot & 1
            if have < len(alive) or have < wanted(len(row)):
                continue
            slots.append(slot)
            former = state.current[slot]
            if sum(owner not in state.gone for owner in former) < sources(len(former)):
                lossy.append(slot)
        if not slots:
            return None
        return Settle(slot_set(slots), state.revision, slot_set(lossy) if lossy else b"")

    def _is_living(self, owner: Owner) -> bool:
        """Whether this owner is to be waited for: it may answer yet."""
        view = self._views.get(owner.node)
        if owner in self._state.gone or view is None:
            return False
        if view.boot != owner.boot and not self._is_old(view):
            return False
        return self._is_old(view) or view.state in ("alive", "suspect")

    def check(self) -> None:
        """Assert all invariants."""
        assert self._command is None or self._flying
        assert len(self._reports) <= REPORTS_MAX
        assert all(self._is_of_use(report) for report in self._reports.values())
        assert list(self._owners) == list(self._state.owners())
        assert list(self._removed) == sorted(self._removed)
        assert all(node not in self._views for node in self._missing)
        assert self._wish is None or self._wish_since <= self._wish_changed
