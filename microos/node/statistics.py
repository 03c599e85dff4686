"""What a running node says of itself: frozen values, built from what its parts know.

Every queue of the node is listed with its bound, its policy and its drops, so
that nothing can grow without somebody seeing where.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from microos.gossip.members import Member, State
from microos.net.notes import LinkStatistics
from microos.raft.configuration import voters as everybody
from microos.raft.status import Status
from microos.types import Address, NodeId


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


def node_statistics(
    *,
    node: NodeId,
    name: str,
    address: Address,
    cluster: bytes,
    ready: bool,
    reason: str,
    members: Sequence[Member],
    status: Status | None,
    sessions: int,
    score: int,
    storage: str,
    queues: Sequence[QueueStatistics],
    counters: Counter[str],
) -> NodeStatistics:
    """Compose what a node says of itself.

    Args:
        status: Of this node's raft core; None before there is one.
        counters: All of the node; those at 0 are as good as absent.
    """
    names = _names(members)
    counts = Counter(member.state for member in members)
    configuration = status.configuration if status is not None else None
    return NodeStatistics(
        node=node,
        name=name,
        address=str(address),
        cluster=cluster.hex(),
        ready=ready,
        reason=reason,
        role=status.role.value if status is not None else "",
        leader=names.get(status.leader, status.leader) if status and status.leader else "",
        raft_term=status.term if status is not None else 0,
        raft_commit_index=status.commit if status is not None else 0,
        raft_applied_index=status.applied if status is not None else 0,
        raft_last_index=status.last_index if status is not None else 0,
        voters=tuple(names.get(n, n) for n in everybody(configuration)) if configuration else (),
        learners=tuple(names.get(n, n) for n in configuration.learners) if configuration else (),
        members_alive=counts[State.ALIVE],
        members_suspect=counts[State.SUSPECT],
        members_dead=counts[State.DEAD],
        members_left=counts[State.LEFT],
        sessions=sessions,
        health_score=score,
        storage=storage,
        queues=tuple(queues),
        counters=dict(sorted(counters.items())),
    )


def link_queues(links: LinkStatistics, members: Sequence[Member]) -> Iterator[QueueStatistics]:
    """Yield the queue of each link under the name of who is at its other end."""
    names = _names(members)
    for link in links.links:
        yield QueueStatistics(
            f"links.{names.get(link.node, link.node)}",
            link.queue_frames,
            link.queue_frames_bound,
            "refuse",
            link.queue_drops,
        )


def link_counters(links: LinkStatistics) -> Counter[str]:
    """Return the counters of all links under their names."""
    names = "accepted dialled dials_failed refused rejected lost foreign malformed wrong_cluster"
    names += " plain sealed unauthenticated http silent failures drops"
    return Counter({f"links.{name}": getattr(links, name) for name in names.split()})


def _names(members: Sequence[Member]) -> dict[NodeId, str]:
    return {member.node: member.name for member in members}
