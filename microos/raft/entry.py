"""The values of consensus: entries, configurations, what to persist, what to send, what to tell.

One codec serves the log on disk and the wire: every value here that travels is a
msgspec Struct written as a MessagePack array. Indexes are 1-based; index 0, term 0
is the empty beginning of every log (Ongaro, "Consensus: Bridging Theory and
Practice", 2014).
"""

from enum import IntEnum

import msgspec

from microos.codec import Decoder
from microos.types import Index, NodeId, Term


class Kind(IntEnum):
    """What an entry carries."""

    COMMAND = 0
    CONFIGURATION = 1
    EMPTY = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the replicated log."""

    term: Term
    index: Index
    time: int
    """Log time [µs]: the cluster's own clock, set by leaders, never falling."""
    kind: int
    data: bytes
    """A `Command`, a `Configuration`, or nothing."""


class Command(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a machine is to do, and whose it is (dissertation §6.3)."""

    machine: int
    """Which named machine: 0 system, 1 sync, 2 config; 256 and above are the user's."""
    session: int
    """The session it belongs to; 0: not exactly-once (opening a session alone)."""
    sequence: int
    answered: int
    """All sequences up to it have been answered to the client."""
    body: bytes


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Who votes and who listens; each tuple sorted. Joint while `outgoing` is not empty."""

    voters: tuple[NodeId, ...] = ()
    outgoing: tuple[NodeId, ...] = ()
    """The old voters during a joint change; decisions then need both majorities."""
    learners: tuple[NodeId, ...] = ()
    learners_next: tuple[NodeId, ...] = ()
    """Voters that become learners when the joint change ends."""

    def members(self) -> tuple[NodeId, ...]:
        """Return everyone in it, sorted, each once."""
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners, *self.learners_next}))


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A wanted change of the configuration. Several items are one joint change."""

    add_voters: tuple[NodeId, ...] = ()
    add_learners: tuple[NodeId, ...] = ()
    remove: tuple[NodeId, ...] = ()


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What a member must never forget."""

    term: Term = Term(0)
    vote: NodeId = NodeId("")
    """Whom it voted for in `term`; empty: nobody."""
    commit: Index = Index(0)


class SnapshotMark(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot covers: everything up to `index`."""

    index: Index
    term: Term
    configuration: Configuration
    time: int = 0
    """Log time of the last entry covered [µs]."""


class Token(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Names one batch handed to storage. Numbers rise by one."""

    number: int
    term: Term


class Persist(msgspec.Struct, frozen=True):
    """To storage, at once, in the order handed out."""

    token: Token
    entries: tuple[Entry, ...]
    """An index at or below the last one written replaces the log from there on."""
    hard_state: HardState | None
    snapshot: SnapshotMark | None
    """A received snapshot: replaces log and state. Persisted once the machines are restored."""
    must_sync: bool
    """False if only the commit index moved."""


# What the shell has finished or found out comes back through `receive`, like a message.


class Persisted(msgspec.Struct, frozen=True, gc=False):
    """The batch is durable. Once per token, in order."""

    token: Token


class Applied(msgspec.Struct, frozen=True, gc=False):
    """The machines have applied everything up to `index`."""

    index: Index


class Unreachable(msgspec.Struct, frozen=True, gc=False):
    """A message to this node could not be sent."""

    node: NodeId


class SnapshotSent(msgspec.Struct, frozen=True, gc=False):
    """The transfer of a snapshot to this node has ended."""

    node: NodeId
    ok: bool


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """Where in the log a command stands: all that `apply` may know besides its bytes."""

    epoch: int
    """Cluster epoch."""
    index: Index
    term: Term
    time: int
    """Log time [µs]."""


decode_command: Decoder[Command] = Decoder(Command)
decode_configuration: Decoder[Configuration] = Decoder(Configuration)
