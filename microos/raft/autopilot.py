"""Keeps the voter group right: what change is due, as a pure function of what the leader sees.

Asked now and then on the leader; nothing is remembered between two questions. In
this order:

1. a leader that is leaving hands over;
2. live nodes that the group does not know become learners;
3. learners that left, or have been dead for long, are removed;
4. voters that left are replaced at once, or just removed, down to the last; voters
   dead for long are replaced by learners that have caught up. Without such a spare
   a dead voter stays, unless the group survives more without it (the two dead of
   five): deaths alone never make three voters into one;
5. learners are promoted, so that 1, 3 or 5 vote as the number of nodes suggests;
6. where nodes have left and too many vote, voters become learners.

5 and 6 wait until the group has been calm for a while. All of a step is one joint
change. A change is never proposed unless most of the voters after it are live and
have the log, so the group can always commit the next one.

Source: Ongaro, dissertation, §4.2.1 (catching up), §4.4; HashiCorp's
raft-autopilot for dead-server cleanup and stabilisation time.
"""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Literal

import msgspec

from microos.raft.bootstrap import voters_for
from microos.raft.entry import Change, Configuration
from microos.types import Index, NodeId

LAG_MAX = 1000
"""Entries behind the commit index that still count as caught up."""

LEARNERS_PER_CHANGE = 64
"""New learners in one change."""

CALM_RATIO = 1 / 3
"""A voluntary change waits for this × `dead_after` of calm; 10 s by default."""


class MemberView(msgspec.Struct, frozen=True):
    """One node as gossip sees it."""

    state: Literal["alive", "suspect", "dead", "left"]
    """`left` also for one that has said it is leaving."""
    since: float
    """When it came into this state, on the leader's clock [s]."""
    eligible: bool = True
    """Whether it may vote."""


class ProgressView(msgspec.Struct, frozen=True):
    """One node as the raft leader sees it."""

    match: Index
    """The last entry known to be in its log."""
    recent_active: bool
    """Heard within the last election timeout."""
    last_contact: float
    """When it was last heard, on the leader's clock [s]."""


class View(msgspec.Struct, frozen=True):
    """All that the decision depends on."""

    now: float
    """On the leader's clock [s]."""
    me: NodeId
    """The leader."""
    configuration: Configuration
    """As applied."""
    members: Mapping[NodeId, MemberView]
    """By gossip; the leader itself may be missing."""
    progress: Mapping[NodeId, ProgressView]
    """Of voters and learners; the leader itself may be missing."""
    commit: Index
    own_term_committed: bool
    """Whether an entry of the leader's own term is committed."""
    pending: bool
    """Whether a change or a transfer is under way."""
    healthy_since: float
    """Since when this leader has led with a majority of voters answering [s]."""
    dead_after: float
    """Dead in gossip and silent to the leader for this long: gone for good [s]."""
    wanted: int = 0
    """Voters wanted: 1, 3 or 5; 0: as the number of nodes suggests."""


class Transfer(msgspec.Struct, frozen=True):
    """Leadership should go to this voter."""

    to: NodeId


def due(view: View) -> Change | Transfer | None:
    """Return what should be changed now, None if nothing should or can be.

    Cost: O(members).
    """
    configuration = view.configuration
    if view.pending or not view.own_term_committed or configuration.outgoing:
        return None
    if 2 * sum(_is_able(view, node) for node in configuration.voters) <= len(configuration.voters):
        return None  # Nothing can be committed.
    if _has_left(view, view.me) or view.me not in configuration.voters:
        heirs = [n for n in configuration.voters if n != view.me and _is_healthy(view, n)]
        if heirs:
            return Transfer(min(heirs, key=lambda node: (-view.progress[node].match, node)))
    return _learners(view) or _voters(view)


# Learners.


def _learners(view: View) -> Change | None:
    known = dict.fromkeys(view.configuration.members())
    new = [n for n, m in view.members.items() if m.state == "alive" and n not in known]
    if new:
        return Change(add_learners=tuple(sorted(new)[:LEARNERS_PER_CHANGE]))
    gone = [n for n in view.configuration.learners if _is_gone(view, n) and n != view.me]
    return Change(remove=tuple(gone[:LEARNERS_PER_CHANGE])) if gone else None


# Voters.


def _voters(view: View) -> Change | None:
    """Return the change that makes the voters what they should be."""
    before = view.configuration.voters
    calm = view.now - view.healthy_since >= view.dead_after * CALM_RATIO
    voting = _without_gone(view)
    if calm and voting == list(before):
        voting = _grown(view)
    if calm or len(voting) < len(before):
        voting = _shrunk(view, voting)
    return _change(view, voting)


def _without_gone(view: View) -> list[NodeId]:
    """Return the voters with those that are gone replaced or left out."""
    before = view.configuration.voters
    voting = [node for node in before if not _has_left(view, node)]
    dead = [node for node in voting if _is_gone(view, node)]
    if not dead and len(voting) == len(before):
        return voting
    spares = _spares(view)
    missing = max(0, min(len(before), _size(view)) - len(voting))
    voting += spares[:missing]
    swaps = dict(zip(dead, spares[missing:], strict=False))
    voting = [swaps.get(node, node) for node in voting]
    dead = dead[len(swaps) :]
    # Without a spare the dead are dropped as far as the group then survives more: one of an
    # even number (majorities of 4 and of 5 are equally large), two of an odd one.
    while len(dead) >= (drop := 1 + len(voting) % 2):
        voting = [node for node in voting if node not in dead[:drop]]
        dead = dead[drop:]
    return voting


def _grown(view: View) -> list[NodeId]:
    """Return the voters and such spares as have been there for a while; an odd number."""
    voting = list(view.configuration.voters)
    aged = view.now - view.dead_after * CALM_RATIO
    spares = [node for node in _spares(view) if view.members[node].since <= aged]
    size = voters_for(max(1, min(_size(view), len(voting) + len(spares))), view.wanted)
    return voting + spares[: max(0, size - len(voting))]


def _shrunk(view: View, voting: list[NodeId]) -> list[NodeId]:
    """Return `voting` without those that are too many; the least useful go, the leader never."""
    dead = sum(_is_gone(view, node) for node in voting)
    # The dead that were kept count as there: their death is no reason for fewer voters.
    excess = len(voting) - voters_for(max(1, _present(view) + dead), view.wanted)
    order = sorted((node for node in voting if node != view.me), reverse=True)
    order.sort(
        key=lambda node: (
            not _is_gone(view, node),
            _is_eligible(view, node),
            _is_healthy(view, node),
        )
    )
    out = order[: max(0, excess)]
    live = [node for node in out if _is_healthy(view, node)]
    spared = live[max(1, (len(view.configuration.voters) - 1) // 2) :]
    return [node for node in voting if node not in out or node in spared]


def _change(view: View, voting: Iterable[NodeId]) -> Change | None:
    """Return the change that makes these the voters, if the group can go on after it."""
    before = view.configuration.voters
    after = tuple(sorted(voting))
    if after == before or 2 * sum(_is_healthy(view, node) for node in after) <= len(after):
        return None
    dropped = [node for node in before if node not in after]
    return Change(
        add_voters=tuple(node for node in after if node not in before),
        add_learners=tuple(node for node in dropped if not _is_gone(view, node)),
        remove=tuple(node for node in dropped if _is_gone(view, node)),
    )


# What is known of one node, and of all.


def _is_able(view: View, node: NodeId) -> bool:
    """Whether it answers and has the log: it counts for a majority, leaving or not."""
    if node == view.me:
        return True
    progress = view.progress.get(node)
    if progress is None or not progress.recent_active:
        return False
    return progress.match + LAG_MAX >= view.commit


def _is_healthy(view: View, node: NodeId) -> bool:
    """Whether the group may rely on it from here on."""
    member = view.members.get(node)
    if member is None:
        return node == view.me
    if node == view.me:
        return member.state != "left"
    return member.state in ("alive", "suspect") and _is_able(view, node)


def _has_left(view: View, node: NodeId) -> bool:
    member = view.members.get(node)
    return member is not None and member.state == "left"


def _is_gone(view: View, node: NodeId) -> bool:
    """Whether it left, or has been dead in gossip and silent here for `dead_after`."""
    if node == view.me or _has_left(view, node):
        return _has_left(view, node)
    member = view.members.get(node)
    progress = view.progress.get(node)
    if (member is not None and member.state != "dead") or (progress and progress.recent_active):
        return False
    dead_since = -inf if member is None else member.since
    silent_since = view.healthy_since if progress is None else progress.last_contact
    return view.now - max(dead_since, silent_since) >= view.dead_after


def _is_eligible(view: View, node: NodeId) -> bool:
    member = view.members.get(node)
    return member is None or member.eligible


def _spares(view: View) -> list[NodeId]:
    """Return the learners that could vote at once, those there for longest first."""
    able = [
        node
        for node in view.configuration.learners
        if node in view.members and _is_eligible(view, node) and _is_healthy(view, node)
    ]
    return sorted(able, key=lambda node: (view.members[node].since, node))


def _present(view: View) -> int:
    """Return how many nodes there are that may vote; those away for a moment count."""
    living = [n for n, m in view.members.items() if m.state in ("alive", "suspect")]
    known = dict.fromkeys((*living, *view.configuration.members(), view.me))
    return sum(not _is_gone(view, node) and _is_eligible(view, node) for node in known)


def _size(view: View) -> int:
    """Return how many voters there should be."""
    return voters_for(max(1, _present(view)), view.wanted)
