"""Everything that can be asked of a member, as one frozen value."""

from collections.abc import Mapping

import msgspec

from microos.raft.election import Role
from microos.raft.entry import Configuration
from microos.raft.progress import Progress
from microos.types import Index, NodeId, Term


class FollowerStatus(msgspec.Struct, frozen=True, gc=False):
    """One follower, or the leader itself, in the leader's eyes."""

    match: Index
    next: Index
    state: str
    """`probe`, `replicate`, `snapshot`."""
    recent_active: bool
    paused: bool
    inflight: int
    inflight_bytes: int
    snapshot: Index
    """Index of the snapshot on its way; 0 if none."""


class Status(msgspec.Struct, frozen=True):
    """Everything that can be asked of a member. Points in time are on its own clock [s]."""

    id: NodeId
    term: Term
    vote: NodeId
    """Empty: nobody."""
    role: Role
    leader: NodeId | None
    promotable: bool
    """Whether it would stand for election if its timer fired now."""
    commit: Index
    applied: Index
    applying: Index
    """Last index handed out to be applied."""
    first_index: Index
    last_index: Index
    last_term: Term
    stable_index: Index
    """Last index known durable here."""
    snapshot_index: Index
    """0: no snapshot yet."""
    snapshot_term: Term
    pending_snapshot: Index
    """A snapshot received and not yet restored; 0 if none."""
    configuration: Configuration
    pending_change: Index
    progress: dict[NodeId, FollowerStatus]
    """Leader only; everyone in the configuration, itself included."""
    transferee: NodeId | None
    uncommitted_bytes: int
    reads_pending: int
    last_leader_contact: float
    """-inf: never."""
    deadline: float
    stalled_since: float | None
    """When the oldest write not yet durable was handed out, if that is too long ago."""
    unpersisted: int
    """Batches on their way to storage."""


def follower_statuses(followers: Mapping[NodeId, Progress]) -> dict[NodeId, FollowerStatus]:
    """Return the status of each follower."""
    return {
        node: FollowerStatus(
            match=progress.match,
            next=progress.next,
            state=progress.state.value,
            recent_active=progress.active,
            paused=progress.is_paused,
            inflight=len(progress.window),
            inflight_bytes=progress.window.bytes,
            snapshot=progress.snapshot,
        )
        for node, progress in followers.items()
    }
