"""From which ranges the settings of a simulated cluster are drawn.

Averages hide bugs: figure 8 of the Raft paper is invisible at 64 entries per append and
found in minutes at one. So each knob keeps its default with probability ½ and is drawn
otherwise. `FIXED` names every other setting, with the reason why it is not drawn; a test
compares both with the settings there are.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from microos.settings import GossipSettings, KvSettings, RaftSettings, RingSettings
from microos.sim.world import MILLISECOND, SECOND, log_uniform

RAFT_DRAWN = (
    "heartbeat_interval",
    "election_timeout_max",
    "append_entries_max",
    "inflight_max",
    "apply_bytes_max",
    "snapshot_after_entries",
    "trailing_entries",
)
GOSSIP_DRAWN = (
    "probe_interval",
    "probe_timeout_max",
    "indirect_probes",
    "verifiers",
    "retransmit_factor",
    "gossip_fanout",
    "datagram_size",
    "eager_delay",
)
RING_DRAWN = ("batch_window", "batch_window_max", "replace_after")
KV_DRAWN = ("timeout", "compare_interval", "drop_grace")
FIXED = {
    "participate": "every member keeps copies; who is no longer in the group takes no part",
    "weight": "placement has tests of its own",
    "zone": "placement has tests of its own",
    "memory": "a full store has tests of its own",
    "transfer_rate": "bytes beyond what a world moves",
    "tombstone_window": "longer than any world: a late message must find the trace of a delete",
    "pre_vote": "switches a promise off",
    "check_quorum": "switches a promise off",
    "inflight_bytes_max": "at least the largest entry",
    "append_bytes_max": "batches of one entry come from `append_entries_max`",
    "uncommitted_bytes_max": "reached by the workload only with entries of megabytes",
    "late_ratio": "a ratio of the drawn timeout",
    "stall_after_ratio": "a ratio of the drawn timeout",
    "clock_drift_max": "a promise about the clocks, which the faults keep",
    "snapshot_after_bytes": "snapshots are called for by entries first",
    "voters": "all members vote in these worlds",
    "dead_after": "12 election timeouts, so that replacement happens within a world",
    "quiet": "short, so that founding happens early in a world",
    "evidence": "a switch of the driver",
    "probe_timeout_min": "at most the drawn maximum",
    "suspicion_factor": "the accuracy promised rests on it",
    "suspicion_ceiling_factor": "the accuracy promised rests on it",
    "confirmations_wanted": "the accuracy promised rests on it",
    "awareness_max": "the accuracy promised rests on it",
    "stall_ratio": "a ratio of the drawn interval",
    "refused_wait": "the accuracy promised rests on it",
    "dial_timeout_min": "at most a probe's time",
    "gossip_interval": "scaled with the probe interval",
    "full_sync_interval": "scaled with the probe interval",
    "exchange_timeout": "scaled with the probe interval",
    "reconnect_interval": "scaled with the probe interval",
    "reconnect_timeout": "longer than any world",
    "leave_timeout": "the driver's",
}


def draw_raft(chance: Random, tail: int) -> RaftSettings:
    """Return settings whose liveness bounds fit into a quiet tail of `tail` [ns]."""
    longest = min(SECOND, tail // 25)
    timeout = log_uniform(chance.getrandbits(64), 120 * MILLISECOND, longest) / SECOND
    drawn = RaftSettings(
        election_timeout_max=timeout,
        dead_after=12 * timeout,
        quiet=0.5,
        heartbeat_interval=timeout / chance.choice((8, 8, 8, 16)),
    )
    knobs: dict[str, Any] = {}
    for name, choices in (
        ("append_entries_max", (1, 1, 2, 64)),
        ("inflight_max", (1, 2, 8)),
        ("apply_bytes_max", (1, 200)),
        ("snapshot_after_entries", (4, 16, 64, 200)),
        ("trailing_entries", (0, 1, 10)),
    ):
        if chance.random() < 0.5:
            knobs[name] = chance.choice(choices)
    return replace(drawn, **knobs)


def draw_gossip(chance: Random, tail: int, nodes: int) -> GossipSettings:
    """Return settings whose bounds fit into a quiet tail of `tail` [ns]."""
    del nodes
    interval = log_uniform(chance.getrandbits(64), 100 * MILLISECOND, tail // 50) / SECOND
    drawn = GossipSettings(
        probe_interval=interval,
        probe_timeout_max=interval / 2,
        probe_timeout_min=min(0.02, interval / 5),
        gossip_interval=interval / 5,
        full_sync_interval=interval * 30,
        exchange_timeout=interval * 5,
        reconnect_interval=interval * 5,
    )
    knobs: dict[str, Any] = {}
    for name, choices in (
        ("indirect_probes", (1, 2, 3)),
        ("verifiers", (1, 2, 6)),
        ("retransmit_factor", (2, 3, 4)),
        ("gossip_fanout", (1, 2, 3)),
        ("datagram_size", (1200, 1400)),
    ):
        if chance.random() < 0.5:
            knobs[name] = chance.choice(choices)
    return replace(drawn, **knobs, eager_delay=chance.choice((0.0, 0.002, 0.01)))


def draw_ring(chance: Random) -> RingSettings:
    """Return settings under which the ring has moved on several times by the end of a world."""
    window = chance.choice((0.1, 0.3, 0.5))
    return RingSettings(
        batch_window=window,
        batch_window_max=window * chance.choice((1, 2)),
        replace_after=chance.choice((0.5, 1.0, 3.0)),
    )


def draw_kv(chance: Random) -> KvSettings:
    """Return settings whose bounds fit into a quiet tail."""
    grace = chance.choice((0.2, 1.0, 3.0))
    return KvSettings(
        timeout=grace / 2, compare_interval=chance.choice((0.5, 1.0)), drop_grace=grace
    )
