"""What a running node says of itself: frozen values, built from what its parts know.

Every queue of the node is listed with its bound, its policy and its drops, so
that nothing can grow without somebody seeing where.
"""

from typing import Literal

import msgspec


class QueueStatistics(msgspec.Struct, frozen=True):
    """One bounded queue."""

    name: str
    size: int
    bound: int
    policy: Literal["refuse", "drop_newest", "drop_oldest", "latest"]
    """What a full queue does: refuse the caller, drop one end, or keep the newest state only."""
    drops: int


class NodeStatistics(msgspec.Struct, frozen=True):
    """One node, as it sees itself and the cluster now."""

    node: str
    name: str
    address: str
    cluster: str
    """The cluster id in hex; empty until founded."""
    ready: bool
    reason: str
    """Why the node is not ready or has no leader, in one sentence; empty if all is well."""
    role: str
    leader: str
    """Name of the raft leader, empty if none is known."""
    raft_term: int
    raft_commit_index: int
    raft_applied_index: int
    raft_last_index: int
    voters: tuple[str, ...]
    """Whose votes are needed: while a change of the group is under way, of both halves."""
    learners: tuple[str, ...]
    members_alive: int
    members_suspect: int
    members_dead: int
    members_left: int
    sessions: int
    health_score: int
    """Lifeguard's awareness: 0 is well; more means that our own timing is not to be trusted."""
    storage: str
    """`ok`, or why the node no longer writes."""
    queues: tuple[QueueStatistics, ...]
    counters: dict[str, int]
