"""Keeps the voter group as it should be; works on the leader, sleeps everywhere else.

What change is due is decided by a pure function (`raft/autopilot.py`) of what the
leader sees; here it is asked once in a while and its answer is proposed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import trio

from microos.clock import Clock
from microos.gossip.members import Member, State
from microos.node.consensus import Consensus
from microos.raft.autopilot import MemberView, ProgressView, Transfer, View, due
from microos.raft.entry import Change
from microos.settings import RaftSettings
from microos.types import NodeId

STATES: dict[State, Literal["alive", "suspect", "dead", "left"]] = {
    State.ALIVE: "alive",
    State.SUSPECT: "suspect",
    State.DEAD: "dead",
    State.LEFT: "left",
}


class Steward:
    """The leader's care for the configuration."""

    def __init__(
        self,
        *,
        clock: Clock,
        settings: RaftSettings,
        node: NodeId,
        consensus: Consensus,
        members: Callable[[], tuple[Member, ...]],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._node = node
        self._consensus = consensus
        self._members = members
        self._hurry = trio.Event()
        self._healthy_since: float | None = None

    def hurry(self) -> None:
        """Look now: there is a new leader, or a member has come or gone."""
        self._hurry.set()

    async def run(self) -> None:
        """Look once per election timeout while leading; wait for news otherwise."""
        while True:
            self._hurry = trio.Event()
            if not self._consensus.leads():
                self._healthy_since = None
                await self._hurry.wait()
                continue
            self._look()
            pause = self._clock.now() + self._settings.election_timeout_max
            with self._clock.timeout_at(pause):
                await self._hurry.wait()

    def _look(self) -> None:
        match due(self._view()):
            case Change() as change:
                self._consensus.change(change)
            case Transfer(to):
                self._consensus.transfer(to)
            case None:
                pass

    def _view(self) -> View:
        now = self._clock.now()
        status = self._consensus.status()
        progress = {
            node: ProgressView(
                follower.match,
                now - heard < self._settings.election_timeout_max,
                heard,
            )
            for node, follower in status.progress.items()
            if (heard := self._consensus.last_contact(node)) is not None
        }
        answering = [
            node
            for node in status.configuration.voters
            if node == self._node or (node in progress and progress[node].recent_active)
        ]
        healthy = 2 * len(answering) > len(status.configuration.voters)
        if not healthy:
            self._healthy_since = None
        elif self._healthy_since is None:
            self._healthy_since = now
        return View(
            now=now,
            me=self._node,
            configuration=status.configuration,
            members={
                member.node: MemberView(STATES[member.state], member.since)
                for member in self._members()
            },
            progress=progress,
            commit=status.commit,
            own_term_committed=self._consensus.own_term_committed,
            pending=status.transferee is not None or status.applied < status.pending_change,
            healthy_since=now if self._healthy_since is None else self._healthy_since,
            dead_after=self._settings.dead_after,
            wanted=self._settings.voters,
        )
