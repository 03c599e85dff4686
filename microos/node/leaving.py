"""How a node leaves: nothing it keeps or leads goes with it.

    begin no more handlers; what is kept here moves to others   (HAND_OVER_TIMEOUT)
    leadership to a voter that stays, let go by the group,
    everyone told                                               (LEAVE_TIMEOUT)
    goodbye on every link

Each wait is bounded; what is not done by then the others do as after a crash.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from microos.clock import Clock
from microos.gossip.members import State
from microos.net.links import Links
from microos.node.calls import Calls
from microos.node.consensus import Consensus
from microos.node.membership import Membership
from microos.node.participation import Participation
from microos.raft.configuration import voters as everybody
from microos.raft.entry import Configuration
from microos.settings import Settings
from microos.types import NodeId

HAND_OVER_TIMEOUT = 15.0
"""Longest wait until what a leaving node keeps is with others [s]."""

LEAVE_TIMEOUT = 5.0
"""Longest wait for the group to let a leaving voter go [s]."""


class Leaving:
    """One node's way out.

    Args:
        tasks: End before the node leaves the group: what features have asked for.
        consensus: This node's part in raft; None before there is one.
        configuration: Who is in the group, as this node has applied it.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        settings: Settings,
        node: NodeId,
        membership: Membership,
        links: Links,
        calls: Calls,
        participation: Participation,
        tasks: Sequence[Callable[[], Awaitable[None]]],
        consensus: Callable[[], Consensus | None],
        configuration: Callable[[], Configuration],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._node = node
        self._membership = membership
        self._links = links
        self._calls = calls
        self._participation = participation
        self._tasks = tasks
        self._consensus = consensus
        self._configuration = configuration
        self._told = trio.Event()
        self.going = False
        """Whether what was kept here is handed over, and nothing may bring this node back."""

    def told(self) -> None:
        """Say that gossip has told everyone."""
        self._told.set()

    async def run(self) -> None:
        """Hand over what this node keeps and leads, be let go, tell everyone, hang up."""
        await self._drain()
        self.going = True
        others = [
            member
            for member in self._membership.members
            if member.state == State.ALIVE and member.node != self._node
        ]
        with self._clock.timeout_at(self._clock.now() + LEAVE_TIMEOUT):
            if others:
                await self._hand_over()
            self._membership.ask(lambda gossip, now: gossip.leave(now))
            if others:
                await self._wait_let_go()
                await self._told.wait()
        await self._links.bye(self._settings.gossip.leave_timeout)

    async def _drain(self) -> None:
        """Begin no more handlers, let those that run end, hand over what is kept here."""
        now = self._clock.now()
        self._participation.end()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._calls.drain, now + self._settings.rpc.grace)
            with self._clock.timeout_at(now + HAND_OVER_TIMEOUT):
                for task in self._tasks:
                    await task()

    async def _hand_over(self) -> None:
        """Give leadership to a voter that stays, the one that has most of the log."""
        consensus = self._consensus()
        while consensus is not None and consensus.leads():
            progress = consensus.status().progress
            heirs = {
                node: progress[node].match
                for node in self._staying()
                if node in progress and node in self._voters()
            }
            if not heirs:
                return
            consensus.transfer(max(heirs, key=lambda node: (heirs[node], node)))
            await self._clock.sleep_until(
                self._clock.now() + self._settings.raft.election_timeout_max / 2
            )

    async def _wait_let_go(self) -> None:
        """Wait until the group's configuration is without this node, or nobody is left to do it."""
        pause = self._settings.raft.heartbeat_interval
        while self._node in self._voters() and self._staying():
            await self._clock.sleep_until(self._clock.now() + pause)

    def _staying(self) -> list[NodeId]:
        """Return the others of the group that are alive and stay; a learner may vote soon."""
        group = self._configuration().members()
        return [
            member.node
            for member in self._membership.members
            if member.state == State.ALIVE and member.node in group and member.node != self._node
        ]

    def _voters(self) -> tuple[NodeId, ...]:
        """Return who votes; while a change is joint, both halves."""
        return everybody(self._configuration())
