"""The leader's care for the configuration: when it looks, and what it is shown."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import trio
import trio.testing

from microos.clock import SystemClock
from microos.gossip.members import Member, State
from microos.node.consensus import Consensus
from microos.node.steward import Steward
from microos.raft.election import Role
from microos.raft.entry import Change, Configuration
from microos.raft.status import FollowerStatus, Status
from microos.settings import Settings
from microos.types import Address, BootId, Incarnation, Index, NodeId, Term

A, B, C, D = (NodeId(letter * 32) for letter in "abcd")
RAFT = dataclasses.replace(Settings.local().raft, dead_after=3.0)
E = RAFT.election_timeout_max


def member(node: NodeId, state: State = State.ALIVE, since: float = 0.0) -> Member:
    return Member(
        node=node,
        boot=BootId(1),
        name=node[:1],
        address=Address("127.0.0.1", 1),
        state=state,
        incarnation=Incarnation(1),
        labels={},
        record=b"",
        record_hash=0,
        states=(),
        since=since,
        score=0,
    )


class Group:
    """What a steward asks of consensus; all followers answer but the silent."""

    def __init__(self) -> None:
        self.leading = True
        self.configuration = Configuration(voters=(A, B, C))
        self.silent: dict[NodeId, float] = {}
        self.changes: list[Change] = []
        self.transfers: list[NodeId] = []
        self.looks = 0
        self.own_term_committed = True
        self.leader = A

    def leads(self) -> bool:
        return self.leading

    def change(self, change: Change) -> None:
        self.changes.append(change)

    def transfer(self, to: NodeId) -> None:
        self.transfers.append(to)

    def last_contact(self, node: NodeId) -> float | None:
        return self.silent.get(node, trio.current_time())

    def status(self) -> Status:
        self.looks += 1
        fields: dict[str, Any] = dict.fromkeys(Status.__struct_fields__)
        follower = dict.fromkeys(FollowerStatus.__struct_fields__, None)
        progress = FollowerStatus(**{**follower, "match": Index(9)})  # type: ignore[arg-type]
        fields |= {
            "role": Role.LEADER,
            "term": Term(2),
            "commit": Index(9),
            "applied": Index(9),
            "pending_change": Index(0),
            "configuration": self.configuration,
            "progress": {n: progress for n in self.configuration.members() if n != A},
        }
        return Status(**fields)


def steward(group: Group, members: list[Member]) -> Steward:
    return Steward(
        clock=SystemClock(),
        settings=RAFT,
        node=A,
        consensus=cast(Consensus, group),
        members=lambda: tuple(members),
    )


async def run_for(steward: Steward, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await steward.run()


async def test_only_a_leader_looks_once_per_election_timeout_and_at_news(
    autojump_clock: trio.testing.MockClock,
) -> None:
    group = Group()
    group.leading = False
    careful = steward(group, [member(A), member(B), member(C)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(careful.run)
        await trio.sleep(10 * E)
        assert group.looks == 0

        group.leading = True
        careful.hurry()
        await trio.sleep(9.5 * E)
        assert group.looks == 10
        careful.hurry()
        await trio.testing.wait_all_tasks_blocked()
        assert group.looks == 11
        nursery.cancel_scope.cancel()
    assert not group.changes


@pytest.mark.parametrize("state", [State.LEFT, State.DEAD])
async def test_who_left_is_replaced_at_once_and_the_dead_when_they_were_silent_for_long(
    state: State, autojump_clock: trio.testing.MockClock
) -> None:
    group = Group()
    group.configuration = Configuration(voters=(A, B, C), learners=(D,))
    now = trio.current_time()
    group.silent[C] = now
    members = [member(A), member(B), member(C, state, since=now), member(D)]
    careful = steward(group, members)

    await run_for(careful, RAFT.dead_after - E)
    early = list(group.changes)
    await run_for(careful, 2 * E)

    wanted = Change(add_voters=(D,), remove=(C,))
    assert early[:1] == ([wanted] if state == State.LEFT else [])
    assert wanted in group.changes


async def test_without_a_majority_that_answers_nothing_is_changed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    group = Group()
    group.configuration = Configuration(voters=(A, B, C), learners=(D,))
    group.silent = {B: trio.current_time(), C: trio.current_time()}
    members = [member(A), member(B), member(C, State.LEFT), member(D)]
    await trio.sleep(2 * E)

    await run_for(steward(group, members), 10 * RAFT.dead_after)

    assert group.changes == []
