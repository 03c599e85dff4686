"""The lottery of one seed: how its world is made, and what will go wrong in it.

Each seed first draws which kinds of fault exist in it at all, then their rates and sizes:
a seed without partitions but with slow disks finds other bugs than one with everything
at once. Everything drawn stands in `Config` and the plan, so both outlive the lottery.
"""

from __future__ import annotations

from random import Random

import msgspec

from microos.settings import GossipSettings, KvSettings, RaftSettings, RingSettings
from microos.sim.faults import LEADER, Fault
from microos.sim.knobs import draw_gossip, draw_kv, draw_raft, draw_ring
from microos.sim.network import Weather
from microos.sim.world import MICROSECOND, MILLISECOND, SECOND, exponential, log_uniform

TAIL_MIN = 10 * SECOND
"""Least length of the quiet tail, which is the last third otherwise [ns]."""

KINDS = (
    *("cut", "partition", "isolate", "bridge", "clog"),
    *("crash", "pause", "slow", "wall"),
    *("stall", "full", "sync_error"),
    *("transfer", "change"),
)
"""Faults that a plan may hold."""

PPM = 1_000_000


class Store(msgspec.Struct, kw_only=True):
    """What is drawn of store and calls; a world without it has neither."""

    keys: int
    """Of each kind; few, so that few slots matter."""
    clients: int
    """Per node."""
    think_ns: int
    """Mean pause of a client between two operations."""
    call_ns: int
    """Mean pause of a node between two calls of a service; 0: it calls none."""
    ring: RingSettings
    kv: KvSettings
    dead_after_ns: int
    """Without gossip: who is silent for so long is held to be dead."""
    wrong_ppm: int
    """Without gossip: chance of a wrong belief, with each look."""


class Config(msgspec.Struct, kw_only=True):
    """Everything drawn for one world besides its plan."""

    seed: int
    nodes: int
    seconds: int
    layer: str
    weather: Weather
    raft: RaftSettings
    gossip: GossipSettings
    ppm: list[int]
    """Drift of each node's clock."""
    offsets_ns: list[int]
    """What each node's monotonic clock shows at the beginning."""
    sync_ns: int
    """Mean time of a sync."""
    sync_rare: bool
    """One sync in 256 takes 50 times as long."""
    turn_ns: int
    """How long messages gather at a node before it takes a turn."""
    segment_bytes: int
    triggers_ppm: int
    """Chance of a crash at each sync, answer and applied entry."""
    clients: int
    """Per node."""
    keys: int
    locks: int
    think_ns: int
    """Mean pause of a client between two operations."""
    ttl: float
    """Of the clients' sessions [s]."""
    members: int = 0
    """Members of the gossip group, `nodes` included; 0: no gossip in this world."""

    store: Store | None = None

    @property
    def end_ns(self) -> int:
        return self.seconds * SECOND

    @property
    def tail_ns(self) -> int:
        """When the quiet tail begins [ns]."""
        return self.end_ns - max(self.end_ns // 3, min(TAIL_MIN, self.end_ns))


def draw(seed: int, nodes: int, seconds: int, layer: str) -> tuple[Config, list[Fault]]:
    """Return configuration and plan of a seed; the same for the same arguments."""
    chance = Random(f"{seed}/{nodes}/{seconds}/{layer}/swarm")
    config = _config(chance, seed, nodes, seconds, layer)
    plan = _plan(chance, config)
    # From a stream of its own: worlds keep the luck they had before there was a store.
    config.store = _store(Random(f"{seed}/{nodes}/{seconds}/{layer}/store"))
    return config, plan


def tail_weather(timeout: int) -> Weather:
    """Return the weather of the quiet tail for an election timeout of `timeout` [ns]."""
    return Weather(
        latency_min_ns=timeout // 400, latency_mean_ns=timeout // 400, rare=False, bias=False
    )


def calmed(config: Config, timeout: int) -> Config:
    """Return the configuration of the quiet tail: quick disks, short turns."""
    return msgspec.structs.replace(
        config,
        sync_ns=max(1, timeout // 80),
        sync_rare=False,
        turn_ns=min(config.turn_ns, MILLISECOND),
    )


def _config(chance: Random, seed: int, nodes: int, seconds: int, layer: str) -> Config:
    tail = max(seconds * SECOND // 3, TAIL_MIN)
    drifting = chance.choice((0, 0, 10_000, 45_000))
    raft = draw_raft(chance, tail)
    return Config(
        seed=seed,
        nodes=nodes,
        seconds=seconds,
        layer=layer,
        weather=Weather(
            latency_mean_ns=_lu(chance, 200 * MICROSECOND, 100 * MILLISECOND),
            loss_ppm=chance.choice((0, 0, 10_000, 50_000, 200_000, 350_000)),
            duplication_ppm=chance.choice((0, 10_000, 200_000, 500_000)),
            corruption_ppm=chance.choice((0, 0, 1_000, 50_000)),
        ),
        raft=raft,
        gossip=draw_gossip(chance, tail, nodes),
        ppm=[chance.randrange(-drifting, drifting + 1) for _ in range(nodes)],
        offsets_ns=[chance.randrange(10 * SECOND) for _ in range(nodes)],
        sync_ns=_lu(chance, 200 * MICROSECOND, 200 * MILLISECOND),
        sync_rare=chance.random() < 0.5,
        turn_ns=chance.choice((0, 0, _lu(chance, 1 * MICROSECOND, 5 * MILLISECOND))),
        segment_bytes=chance.choice((1 << 14, 1 << 16, 1 << 18)),
        triggers_ppm=chance.choice((0, 0, 1_000, 10_000)),
        clients=chance.choice((1, 1, 2)),
        keys=chance.choice((1, 4, 16)),
        locks=chance.choice((1, 2, 4)),
        think_ns=_lu(chance, 50 * MILLISECOND, SECOND),
        ttl=raft.election_timeout_max * chance.choice((4, 8, 12)),
        members=chance.choice((0, 0, nodes, nodes + 1, 8)),
    )


def _store(chance: Random) -> Store | None:
    if chance.random() < 0.2:
        return None
    return Store(
        keys=chance.choice((1, 1, 2, 4)),
        clients=chance.choice((1, 1, 2)),
        think_ns=_lu(chance, 50 * MILLISECOND, SECOND),
        call_ns=chance.choice((0, 1)) * _lu(chance, 50 * MILLISECOND, SECOND),
        ring=draw_ring(chance),
        kv=draw_kv(chance),
        dead_after_ns=_lu(chance, 500 * MILLISECOND, 4 * SECOND),
        wrong_ppm=chance.choice((0, 0, 1_000, 10_000)),
    )


def _plan(chance: Random, config: Config) -> list[Fault]:
    kinds = [kind for kind in KINDS if chance.random() < 0.5]
    if not kinds:
        return []
    interval = _lu(chance, 100 * MILLISECOND, 8 * SECOND)
    mean = _lu(chance, 2 * MILLISECOND, 8 * SECOND)
    plan: list[Fault] = []
    at = exponential(chance.getrandbits(64), interval)
    while at < config.tail_ns:
        kind = chance.choice(kinds)
        lasts = 1 + min(exponential(chance.getrandbits(64), mean), config.tail_ns - at)
        plan.extend(_faults(chance, config, kind, at, lasts))
        at += 1 + exponential(chance.getrandbits(64), interval)
    return plan


def _faults(chance: Random, config: Config, kind: str, at: int, lasts: int) -> list[Fault]:
    nodes = config.nodes
    node = chance.choice((LEADER, *range(nodes)))
    match kind:
        case "cut":
            a, b = chance.sample(range(nodes), 2) if nodes > 1 else (0, 0)
            return [Fault(at, kind, {"from": a, "to": b, "for_ns": lasts})]
        case "partition":
            side = sorted(chance.sample(range(nodes), chance.randrange(1, max(2, nodes))))
            return [Fault(at, kind, {"side": list(side), "for_ns": lasts})]
        case "isolate":
            way = chance.choice((0, 0, 1, 2))
            return [Fault(at, kind, {"node": node, "one_way": way, "for_ns": lasts})]
        case "bridge":
            order = chance.sample(range(nodes), nodes)
            half = sorted(order[1 : 1 + nodes // 2])
            return [Fault(at, kind, {"node": order[0], "side": list(half), "for_ns": lasts})]
        case "crash":
            return _crashes(chance, nodes, node, at, lasts)
        case "slow":
            delay = _lu(chance, MILLISECOND, 200 * MILLISECOND)
            return [Fault(at, kind, {"node": node, "delay_ns": delay, "for_ns": lasts})]
        case "wall":
            jump = chance.randrange(-30, 31) * SECOND
            return [Fault(at, kind, {"node": node, "jump_ns": jump})]
        case "transfer":
            return [Fault(at, kind, {"to": chance.randrange(nodes)})]
        case "change":
            number = chance.randrange(1 << 30)
            return [Fault(at, kind, {"node": LEADER, "number": number})]
        case _:
            return [Fault(at, kind, {"node": node, "for_ns": lasts})]


def _crashes(chance: Random, nodes: int, node: int, at: int, lasts: int) -> list[Fault]:
    """One, several within 20 ms, or all."""
    many = chance.choice((0, 0, 0, 0, 2, nodes))
    silent = chance.randrange(2)
    if many == 0:
        return [Fault(at, "crash", {"node": node, "silent": silent, "for_ns": lasts})]
    hit = chance.sample(range(nodes), min(many, nodes))
    return [
        Fault(
            at + chance.randrange(20 * MILLISECOND),
            "crash",
            {"node": one, "silent": silent, "for_ns": lasts + chance.randrange(lasts + 1)},
        )
        for one in hit
    ]


def _lu(chance: Random, low: int, high: int) -> int:
    return log_uniform(chance.getrandbits(64), low, high)
