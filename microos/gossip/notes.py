"""What the gossip core observed: read by log, metrics, dashboard, simulator and tests."""

import msgspec

from microos.gossip.members import State
from microos.types import Address, BootId, Incarnation, NodeId


class Joined(msgspec.Struct, frozen=True, gc=False):
    """A member that was unknown, or had left, is alive."""

    node: NodeId
    name: str
    address: Address


class Updated(msgspec.Struct, frozen=True, gc=False):
    """A member changed its labels, or a newer record of it has arrived here."""

    node: NodeId


class Moved(msgspec.Struct, frozen=True, gc=False):
    """A member listens elsewhere now."""

    node: NodeId
    old: Address
    new: Address


class Restarted(msgspec.Struct, frozen=True, gc=False):
    """A member is a new process: the old one is gone for certain."""

    node: NodeId
    old: BootId
    new: BootId


class Suspected(msgspec.Struct, frozen=True, gc=False):
    """A member is suspected for the first time in this incarnation."""

    node: NodeId
    incarnation: Incarnation
    by: NodeId
    refused: bool


class Refuted(msgspec.Struct, frozen=True, gc=False):
    """A member that was suspect or dead here has shown that it lives."""

    node: NodeId
    was: State


class Died(msgspec.Struct, frozen=True, gc=False):
    """A member is dead: once per death, never for one that left."""

    node: NodeId
    boot: BootId
    refused: bool
    """Proven by refused connections rather than by time."""


class Left(msgspec.Struct, frozen=True, gc=False):
    """A member has left, or was forgotten by command."""

    node: NodeId


class Forgotten(msgspec.Struct, frozen=True, gc=False):
    """The time of a tombstone is over."""

    node: NodeId


class Accused(msgspec.Struct, frozen=True, gc=False):
    """We were held to be suspect, dead or left, and said no."""

    by: NodeId | None
    incarnation: Incarnation
    """Ours, from now on."""


class LeaveDone(msgspec.Struct, frozen=True, gc=False):
    """Our leave is known to `acknowledged` others, or its time is over: links may close."""

    acknowledged: int


class NameConflict(msgspec.Struct, frozen=True, gc=False):
    """Two members that take part have one name."""

    name: str
    nodes: tuple[NodeId, NodeId]


class IdentityConflict(msgspec.Struct, frozen=True, gc=False):
    """Another live process has our node id: a copied data directory."""

    boot: BootId


class ClusterMismatch(msgspec.Struct, frozen=True, gc=False):
    """A node of another cluster speaks to us; nothing of it is merged. Once per process."""

    boot: BootId
    theirs: int


class UdpBlocked(msgspec.Struct, frozen=True, gc=False):
    """A member answers streams, not datagrams. Once until it answers one."""

    node: NodeId


class Stalled(msgspec.Struct, frozen=True, gc=False):
    """This node was away; nothing that fell due meanwhile is held against others."""

    gap: float
    """How long [s]."""


class DigestRepaired(msgspec.Struct, frozen=True, gc=False):
    """An exchange with another member changed what is known here."""

    count: int


class Refused(msgspec.Struct, frozen=True, gc=False):
    """We may not join: a member or a greeting said no."""

    reason: str
    """`name`, `cluster`, or what the greeting said."""
    by: NodeId | None
    address: Address


class Dropped(msgspec.Struct, frozen=True, gc=False):
    """Input that was well formed and yet not acceptable."""

    kind: str


Note = (
    Joined
    | Updated
    | Moved
    | Restarted
    | Suspected
    | Refuted
    | Died
    | Left
    | Forgotten
    | Accused
    | LeaveDone
    | NameConflict
    | IdentityConflict
    | ClusterMismatch
    | UdpBlocked
    | Stalled
    | DigestRepaired
    | Refused
    | Dropped
)
