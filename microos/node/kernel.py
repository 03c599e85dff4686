"""What a feature may use of the node, and nothing more.

A feature joins by `attach(kernel, ...)` in its `attach.py`. It never sees
sockets, cores or drivers: it announces, submits commands, reads, and is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from microos.gossip.members import Member
from microos.node.calls import Handler, Inline, Outcome
from microos.node.runtime import Runtime
from microos.node.sessions import Session
from microos.node.statistics import QueueStatistics
from microos.raft.machine import Machine
from microos.ring.epochs import RingState
from microos.ring.planner import Report
from microos.ring.ring import Owner, Ring
from microos.rpc.messages import Reply
from microos.types import NodeId


class Kernel(Protocol):
    """The node, as its features see it."""

    @property
    def runtime(self) -> Runtime: ...

    @property
    def node(self) -> NodeId:
        """This node's id."""

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run `task` beside the node; an exception that leaves it stops the node."""

    def members(self) -> tuple[Member, ...]:
        """Return every known member, this node included: an immutable snapshot, no I/O."""

    def on_members(self, told: Callable[[], None]) -> None:
        """Call `told` after each change of `members()`."""

    def announce(self, record: bytes) -> None:
        """Replace this node's record (its services) everywhere.

        Raises:
            LimitError: More than `limits.RECORD_MAX`.
        """

    def register(self, machine: Machine, told: Callable[[object], None]) -> None:
        """Add a replicated machine before the node starts.

        `told` gets each event the machine returns on this node, in log order.
        """

    def serve(self, endpoint: str, handler: Handler) -> None:
        """Answer calls of `endpoint` by `handler`, each in its task; refused while leaving."""

    def serve_inline(self, endpoint: str, handler: Inline) -> None:
        """Answer requests of our own at once: bounded, never waiting, also while leaving."""

    def post(
        self,
        node: NodeId,
        endpoint: str,
        body: bytes,
        deadline: float,
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """Make one attempt without waiting for it; `done` gets the outcome; return its cancel."""

    async def attempt(
        self,
        node: NodeId,
        endpoint: str,
        body: bytes,
        deadline: float,
        *,
        attempt: int = 1,
        metadata: Mapping[str, str] | None = None,
    ) -> Reply:
        """Make one attempt at one node; errors as the callee raised them, or of the attempt."""

    @property
    def owner(self) -> Owner:
        """This process as the ring names it; from the start on."""

    def ring(self) -> tuple[Ring, RingState]:
        """Return the ring as this node has applied it, and its state."""

    def on_ring(self, told: Callable[[], None]) -> None:
        """Call `told` after each change of `ring()`."""

    def takes_part(self, node: NodeId) -> bool:
        """Return whether a node says that it is to own slots; one that leaves says no."""

    def report(self, report: Report) -> None:
        """Tell the leader which copies of this node are whole."""

    def on_start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run `task` beside the node from its start on."""

    def on_leave(self, task: Callable[[], Awaitable[None]]) -> None:
        """Let `task` end before the node leaves the group; the node bounds it."""

    def add_queues(self, queues: Callable[[], tuple[QueueStatistics, ...]]) -> None:
        """List a feature's queues in the node's statistics."""

    async def submit(self, machine: int, command: bytes, *, timeout: float) -> bytes:
        """Commit a command exactly once; return the machine's answer.

        Raises:
            NoQuorumError: Not submitted: no leader was known by the deadline.
            UncertainError: Submitted and not answered by the deadline; it may still commit.
            OverloadedError: Too much is uncommitted.
            LimitError: The command is too big, or the node's disk is full.
        """

    async def barrier(self, *, timeout: float) -> None:
        """Wait until this node has applied all that was committed before the call (read index).

        Raises:
            NoQuorumError: Not confirmed by a majority by the deadline.
        """

    async def session(self, ttl: float, *, timeout: float) -> Session:
        """Return this node's session with that ttl, opening it if there is none.

        Args:
            ttl: Raised to two election timeouts if it is less [s].
            timeout: Longest wait for the opening [s].

        Raises:
            NoQuorumError, UncertainError, OverloadedError: It could not be opened in time.
        """

    async def submit_in(
        self, session: Session, machine: int, command: bytes, *, timeout: float
    ) -> bytes:
        """Commit a command exactly once under a given session; errors as `submit`."""
