"""Who votes and who listens, as functions from one frozen configuration to the next.

One item is a simple change: at most one voter differs, so that the old and the
new majorities meet. Several items go through a joint configuration, in which
both the old and the new voters must agree, and which the leader leaves by itself
as soon as it has been applied.

    voters a b c ──{add d, remove a}──▶ voters b c d + outgoing a b c ──left──▶ voters b c d

A voter that becomes a learner while its old half still votes waits in
`learners_next`: nobody is voter and learner at once.

Source: Ongaro, dissertation, §4.1-4.3; etcd-io/raft, confchange/confchange.go.
"""

from __future__ import annotations

from microos.raft.entry import Change, Configuration
from microos.types import NodeId


def is_joint(configuration: Configuration) -> bool:
    """Return whether decisions need two majorities."""
    return bool(configuration.outgoing)


def is_voter(configuration: Configuration, node: NodeId) -> bool:
    """Return whether `node` votes, in either half."""
    return node in configuration.voters or node in configuration.outgoing


def voters(configuration: Configuration) -> tuple[NodeId, ...]:
    """Return the voters of both halves, sorted, each once."""
    return tuple(sorted({*configuration.voters, *configuration.outgoing}))


def refusal(configuration: Configuration, change: Change) -> str:
    """Return why `change` is impossible here, one word; empty if it is possible.

    `joint`: a joint change is not over. `not_joint`: nothing to leave.
    `overlap`: a node is named twice. `voters`: nobody would vote. `unchanged`:
    it is so already.
    """
    named = (*change.add_voters, *change.add_learners, *change.remove)
    if is_joint(configuration):
        return "joint" if named else ""
    if not named:
        return "not_joint"
    if len(set(named)) < len(named):
        return "overlap"
    wanted = left(_next(configuration, change, joint=len(named) > 1))
    if not wanted.voters:
        return "voters"
    return "unchanged" if wanted == configuration else ""


def changed(configuration: Configuration, change: Change) -> Configuration:
    """Return the configuration that `change` leads to first: simple, joint, or left.

    Args:
        configuration: As applied.
        change: One item: simple. Several: joint. None: leave the joint configuration.
            `refusal` must have nothing against it.
    """
    assert not refusal(configuration, change)
    items = len(change.add_voters) + len(change.add_learners) + len(change.remove)
    if not items:
        return left(configuration)
    return _next(configuration, change, joint=items > 1)


def left(configuration: Configuration) -> Configuration:
    """Return the configuration after its joint change; itself if it is not joint."""
    return Configuration(
        voters=configuration.voters,
        learners=tuple(sorted({*configuration.learners, *configuration.learners_next})),
    )


def _next(configuration: Configuration, change: Change, *, joint: bool) -> Configuration:
    gone = {*change.remove}
    demoted = {node for node in change.add_learners if node in configuration.voters}
    voting = {*configuration.voters, *change.add_voters} - gone - demoted
    learning = {*configuration.learners, *change.add_learners} - gone - {*change.add_voters}
    return Configuration(
        voters=tuple(sorted(voting)),
        outgoing=configuration.voters if joint else (),
        learners=tuple(sorted(learning - demoted if joint else learning)),
        learners_next=tuple(sorted(demoted)) if joint else (),
    )


def check(configuration: Configuration) -> None:
    """Assert what every configuration must satisfy."""
    for part in (
        configuration.voters,
        configuration.outgoing,
        configuration.learners,
        configuration.learners_next,
    ):
        assert part == tuple(sorted(set(part)))
    assert not {*configuration.learners} & {*voters(configuration)}
    assert {*configuration.learners_next} <= {*configuration.outgoing}
    assert not {*configuration.learners_next} & {*configuration.voters}
