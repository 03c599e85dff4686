"""What a member of a raft group has observed, as small frozen values.

The log prints them, metrics count them, the simulator's columns are made of
them, tests assert on them. A note is told with the effects of the turn it
belongs to and is never a reason to act.
"""

from typing import TypeAlias

import msgspec

from microos.raft.entry import Configuration
from microos.types import Index, NodeId, Term


class BecameFollower(msgspec.Struct, frozen=True):
    term: Term
    leader: NodeId | None


class BecamePreCandidate(msgspec.Struct, frozen=True):
    term: Term
    """The own term, not yet the one asked for."""


class BecameCandidate(msgspec.Struct, frozen=True):
    term: Term


class BecameLeader(msgspec.Struct, frozen=True):
    term: Term


class SteppedDown(msgspec.Struct, frozen=True):
    """No longer leader. `higher_term`, `quorum`, `removed`, `stalled`."""

    term: Term
    reason: str


class TermChanged(msgspec.Struct, frozen=True):
    term: Term


class LeaderChanged(msgspec.Struct, frozen=True):
    leader: NodeId | None
    term: Term


class VoteGranted(msgspec.Struct, frozen=True):
    term: Term
    to: NodeId


class Committed(msgspec.Struct, frozen=True):
    index: Index
    term: Term
    """Of the member, not of the entry."""


class Conflict(msgspec.Struct, frozen=True):
    """The own log was cut from `index` on: those entries were never committed."""

    index: Index


class ProbeStarted(msgspec.Struct, frozen=True):
    """A follower fell out of step."""

    node: NodeId
    next: Index


class SnapshotStarted(msgspec.Struct, frozen=True):
    """A follower needs a snapshot."""

    node: NodeId
    index: Index


class SnapshotRestored(msgspec.Struct, frozen=True):
    index: Index


class Compacted(msgspec.Struct, frozen=True):
    """The log now begins with `first`."""

    first: Index


class ConfigurationChanged(msgspec.Struct, frozen=True):
    configuration: Configuration
    index: Index


class ReadConfirmed(msgspec.Struct, frozen=True):
    """A majority has echoed `round`; `count` reads were answered by it."""

    round: int
    count: int


class Stalled(msgspec.Struct, frozen=True):
    """A write handed to storage is not durable after `age` [s]."""

    since: float
    age: float


class LateWake(msgspec.Struct, frozen=True):
    """We were woken this much too late [s], so nobody is accused of silence."""

    by: float


Note: TypeAlias = (
    BecameFollower
    | BecamePreCandidate
    | BecameCandidate
    | BecameLeader
    | SteppedDown
    | TermChanged
    | LeaderChanged
    | VoteGranted
    | Committed
    | Conflict
    | ProbeStarted
    | SnapshotStarted
    | SnapshotRestored
    | Compacted
    | ConfigurationChanged
    | ReadConfirmed
    | Stalled
    | LateWake
)
