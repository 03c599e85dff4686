"""What a feature may use of the node, and nothing more.

A feature joins by `attach(kernel, settings)` in its `attach.py`. It never sees
sockets, cores or drivers: it announces, submits commands, reads, and is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from microos.gossip.members import Member
from microos.node.runtime import Runtime
from microos.node.sessions import Session
from microos.raft.machine import Machine
from microos.types import NodeId


class Kernel(Protocol):
    """The node, as its features see it."""

    @property
    def runtime(self) -> Runtime: ...

    @property
    def node(self) -> NodeId:
        """This node's id."""

    def spawn(self, task: Callable[[], Awaitable[None]], name: str) -> None:
        """Run `task` beside the node; what leaves it stops the node."""

    def members(self) -> tuple[Member, ...]:
        """Return every known member, this node included: an immutable snapshot, no I/O."""

    def on_members(self, told: Callable[[], None]) -> None:
        """Call `told` after each change of `members()`."""

    def announce(self, record: bytes) -> None:
        """Replace this node's record (its services) everywhere.

        Raises:
            LimitError: More than `limits.RECORD_MAX`.
        """

    def register(self, machine: Machine) -> None:
        """Add a replicated machine; before the node opens only."""

    def on_applied(self, machine: int, told: Callable[[object], None]) -> None:
        """Call `told` with each event the machine returned, in log order, on this node."""

    async def submit(self, machine: int, command: bytes, *, timeout: float) -> object:
        """Commit a command exactly once; return the machine's result here.

        Raises:
            NoQuorumError: Not submitted: no leader was known by the deadline.
            UncertainError: Submitted and not answered by the deadline; it may still commit.
            OverloadedError: Too much is uncommitted.
        """

    async def barrier(self, *, timeout: float) -> None:
        """Wait until this node has applied all that was committed before the call (read index).

        Raises:
            NoQuorumError: Not confirmed by a majority by the deadline.
        """

    async def session(self, ttl: float) -> Session:
        """Return this node's session with that ttl, opening it if there is none."""
