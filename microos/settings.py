"""How one node runs: read once, frozen, checked as a whole before any socket opens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GossipSettings:
    """Membership: SWIM with Lifeguard."""

    probe_interval: float = 1.0
    """Time between two probes of one node, T [s]. Lower finds the dead sooner and costs more."""

    probe_timeout_min: float = 0.02
    """Least wait for an ack [s], while our own loop is not late; on a busy host the longest."""

    probe_timeout_max: float = 0.5
    """Longest wait for an ack before others are asked [s]. Below `probe_interval`."""

    indirect_probes: int = 3
    """Members asked to probe on our behalf. SWIM's k."""

    verifiers: int = 6
    """Nearest predecessors that probe a fresh suspect at once."""

    suspicion_factor: float = 4.0
    """Shortest suspicion = factor × max(1, log10 n) × T. memberlist's multiplier."""

    suspicion_ceiling_factor: float = 6.0
    """Longest suspicion = this × the shortest; Lifeguard's 6."""

    confirmations_wanted: int = 3
    """Accusers beyond the first that bring the wait down to the shortest. Lifeguard's K."""

    awareness_max: int = 8
    """Local health is a score of 0..this - 1."""

    stall_ratio: float = 0.5
    """A wake-up later than this × T means that we were away, not the others."""

    refused_wait: float = 0.2
    """Least time between the first refused dial and death by refusals [s]."""

    dial_timeout_min: float = 0.05
    """Least wait for a dial made as a probe [s]."""

    retransmit_factor: int = 3
    """A broadcast is sent factor × ceil(log2(n + 1)) times by each node."""

    eager_delay: float = 0.002
    """How long fresh news waits for company before it leaves [s]."""

    gossip_interval: float = 0.2
    """Time between repeats of news while there is any [s]."""

    gossip_fanout: int = 3
    """Members that get each repeat."""

    full_sync_interval: float = 300.0
    """Time between full exchanges of tables, the safety net [s]."""

    exchange_timeout: float = 5.0
    """Longest wait for an answer on a stream [s]."""

    reconnect_interval: float = 5.0
    """Time between calls to one of the dead, and to seeds nobody answers for [s]."""

    reconnect_timeout: float = 86_400.0
    """How long the dead and the left stay known [s]."""

    leave_timeout: float = 1.0
    """Longest wait for others to take note of a leave [s]."""

    datagram_size: int = 1200
    """Largest UDP payload sent [bytes]. IPv6 guarantees 1,232."""


@dataclass(frozen=True, kw_only=True)
class RaftSettings:
    """Consensus."""

    election_timeout_max: float = 1.0
    """E: the timeout is drawn from [E/2, E) [s]. etcd draws from 1–2 s."""

    heartbeat_interval: float = 0.1
    """Time between two heartbeats of a leader [s]. At most E/8."""

    pre_vote: bool = True
    """Ask before raising the term, so that a cut-off node disturbs nobody (dissertation §9.6)."""

    check_quorum: bool = True
    """A leader that does not hear a majority for E/2 steps down."""

    append_bytes_max: int = 1024 * 1024
    """Entries per message [bytes]; a single larger entry still goes."""

    append_entries_max: int = 4096
    """Entries per message."""

    inflight_max: int = 256
    """Appends on their way to one follower."""

    inflight_bytes_max: int = 8 * 1024 * 1024
    """Their bytes; at least the largest entry."""

    uncommitted_bytes_max: int = 64 * 1024 * 1024
    """Proposals beyond it are dropped: `OverloadedError` [bytes]."""

    apply_bytes_max: int = 1024 * 1024
    """Handed out and not yet applied [bytes]."""

    late_ratio: float = 0.25
    """A wake-up later than this × E starts no election: we were away, not the leader."""

    stall_after_ratio: float = 0.5
    """A write older than this × E is a stalled disk: no candidacy, a leader hands over."""

    clock_drift_max: float = 0.10
    """Relative difference between any two clocks that leases still survive."""

    snapshot_after_entries: int = 20_000
    """Entries applied since the last snapshot that call for the next."""

    snapshot_after_bytes: int = 4 * 1024 * 1024
    """Bytes of log since the last snapshot that call for the next."""

    trailing_entries: int = 2_000
    """Entries kept behind a snapshot for slow followers."""

    voters: int = 0
    """Voters wanted: 1, 3 or 5; 0 chooses by the cluster's size: 1, from three 3, from five 5."""

    dead_after: float = 30.0
    """A voter dead in gossip and silent for this long is replaced [s]. At least 10 E."""

    quiet: float = 2.0
    """How long a seed listens for an existing cluster before it founds one [s]."""

    evidence: bool = True
    """A leader whose process is proven dead is replaced at once."""


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """Locks."""

    ttl: float = 15.0
    """How long a lease lives without a sign of its owner [s]. At least 2 E."""

    wait: float = 15.0
    """How long taking a lock waits by default [s]; 0 tries, inf waits."""

    command_ttl: float = 60.0
    """The same for a node's own session, which carries its plain commands [s]."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything one node is told at start. Presets: `local()`, `lan()`, `wan()`."""

    name: str = ""
    """For people; unique among live members. Empty: host name and four digits of the node id."""

    bind: str = "127.0.0.1:0"
    """HOST:PORT for datagrams and streams alike; port 0 takes a free one."""

    seeds: tuple[str, ...] = ()
    """HOST:PORT of some nodes to begin with; the same list everywhere. Empty: found alone."""

    bootstrap: Literal["seeds", "solo", "join"] = "seeds"
    """Who founds the raft group: a majority of the seeds, this node alone, or never this node."""

    cluster: str = "local"
    """The cluster's label. Nodes with different labels never meet."""

    data_dir: Path | None = None
    """Where identity, log and snapshots are kept. None: in memory, a new node at each start."""

    gossip: GossipSettings = field(default_factory=GossipSettings)
    raft: RaftSettings = field(default_factory=RaftSettings)
    sync: SyncSettings = field(default_factory=SyncSettings)
