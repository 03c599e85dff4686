"""What happened to the ring: read by log, metrics, dashboard, simulator and tests."""

import msgspec

from microos.ring.ring import Owner
from microos.types import NodeId, Revision


class EpochProposed(msgspec.Struct, frozen=True):
    """A ring epoch was agreed on."""

    number: int
    revision: Revision
    members: int
    """How many nodes take part."""
    changed: int
    """Slots whose chain it changed."""
    joint: int
    """Slots that are joint now."""


class SlotsSettled(msgspec.Struct, frozen=True):
    """What was next is current in these slots."""

    revision: Revision
    count: int
    joint: int
    """Slots that are still joint."""


class CopiesLost(msgspec.Struct, frozen=True):
    """So many owners of these slots are gone that what only they had is lost."""

    revision: Revision
    slots: tuple[int, ...]
    owners: tuple[Owner, ...]
    """The former owners that are gone."""


class OwnersGone(msgspec.Struct, frozen=True):
    """These owners are dead for good, by proof or by the operator's word."""

    revision: Revision
    owners: tuple[Owner, ...]


class RingPaused(msgspec.Struct, frozen=True):
    """Nothing is proposed until the ring is resumed."""

    reason: str


class RingResumed(msgspec.Struct, frozen=True):
    """Changes are proposed again."""


class RemovalsHeld(msgspec.Struct, frozen=True):
    """Too many members are dead at once to be removed without a word of the operator."""

    dead: tuple[NodeId, ...]
    limit: int
    """How many may be removed within a minute."""


Note = EpochProposed | SlotsSettled | CopiesLost | OwnersGone | RingPaused | RingResumed
"""Of the replicated state, on every node."""

PlannerNote = RemovalsHeld
"""Of the planner, on the leader alone."""
