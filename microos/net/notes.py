"""What the links tell: notes, the result of a dial, and figures. All frozen values."""

import msgspec

from microos import limits
from microos.types import Address, BootId, NodeId


class LinkUp(msgspec.Struct, frozen=True):
    """A process can be spoken to."""

    node: NodeId
    boot: BootId
    address: Address
    """Where it says it listens."""
    inbound: bool


class LinkLost(msgspec.Struct, frozen=True):
    """The link to a process has ended and no other took its place."""

    node: NodeId
    boot: BootId
    clean: bool
    """One side had said Bye. Otherwise it is a sign that the process may be gone."""


class DialFailed(msgspec.Struct, frozen=True):
    """What waited for a node was thrown away, because it could not be reached."""

    node: NodeId
    address: Address
    outcome: str
    """As in `DialResult`."""


class Foreign(msgspec.Struct, frozen=True):
    """Somebody does not speak our protocol, or speaks it for another cluster."""

    source: Address
    what: str
    """`http`, `foreign`, `malformed`, `silent`, `wrong_cluster`; about the seal: `plain`, `sealed`,
    `unauthenticated`, and of datagrams `unknown_key`, `forged`, `replayed`."""


LinkNote = LinkUp | LinkLost | DialFailed | Foreign


class DialResult(msgspec.Struct, frozen=True):
    """What one fresh dial has shown."""

    outcome: str
    """`ok`; `refused` (nobody listens), `reset` (somebody hung up), `timeout`, `failed` (no way
    there, or too many links here), `rejected:REASON` (somebody else lives there, or does not
    want us: `other`, `self`, `cluster`, `foreign`, or a reason of the other side)."""
    node: NodeId | None = None
    """Who answered."""
    boot: BootId | None = None
    rtt: float = 0.0
    """From our Hello to the answer [s]."""


class PeerStatistics(msgspec.Struct, frozen=True):
    """One link."""

    node: NodeId
    boot: BootId
    address: Address
    inbound: bool
    age: float
    """[s]"""
    silence: float
    """Since the last byte from there [s]."""
    frames_in: int
    frames_out: int
    bytes_in: int
    bytes_out: int
    writes: int
    """Frames that gather in one turn of the loop leave in one."""
    queue_frames: int
    queue_bytes: int
    queue_drops: int
    queue_frames_bound: int = limits.LINK_OUTBOX_FRAMES
    queue_bytes_bound: int = limits.LINK_OUTBOX_BYTES
    queue_policy: str = "refuse"


class LinkStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """All links of one node. Counters count from its start."""

    links: tuple[PeerStatistics, ...] = ()
    """In use, by node."""
    connections: int = 0
    """Open streams of every kind."""
    connections_bound: int = limits.LINKS_MAX
    drops: int = 0
    """Frames that were refused or thrown away."""
    accepted: int = 0
    dialled: int = 0
    dials_failed: int = 0
    refused: int = 0
    """Accepted beyond the bound, or while leaving."""
    rejected: int = 0
    """Hellos we answered with no."""
    lost: int = 0
    """Links that ended without Bye."""
    foreign: int = 0
    malformed: int = 0
    """Connections of ours that broke the protocol."""
    wrong_cluster: int = 0
    http: int = 0
    silent: int = 0
    """Connections that said nothing in time."""
    plain: int = 0
    """Connections without TLS at a node that has a secret."""
    sealed: int = 0
    """Connections with TLS at a node that has none."""
    unauthenticated: int = 0
    """TLS with somebody who is not of this cluster, or not who it says."""
    control: int = 0
    """Connections of the command line."""
    skipped: int = 0
    """Frames of channels we do not know, marked skippable."""
    failures: int = 0
    """Connections ended by a fault of ours; 0 in a node without bugs."""
    failure: str = ""
    """The last of them."""
