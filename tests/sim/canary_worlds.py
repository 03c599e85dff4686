"""The worlds in which canaries die: each is a number's world of one layer, kept small.

Imported only after the hook of `canaries.py` is in place, since what is imported here is
what is mutated.
"""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec

from microos.settings import RaftSettings
from microos.sim.cores import CoresWorld
from microos.sim.faults import LEADER, Fault
from microos.sim.network import Weather
from microos.sim.nodes import NodesWorld
from microos.sim.swarm import Config, draw
from microos.sim.world import MILLISECOND, SECOND


class Fate(msgspec.Struct, frozen=True):
    """What came of one world."""

    number: int
    cause: str = ""
    """Kind and invariant of what failed; empty: the world passed."""
    detail: str = ""


def _cores(config: Config, plan: list[Fault]) -> Fate:
    world = CoresWorld(config, plan)
    world.run()
    failure = world.world.failure
    if failure is None:
        return Fate(config.seed)
    return Fate(config.seed, f"{failure.kind} {failure.invariant}", failure.detail)


def _nodes(config: Config, plan: list[Fault]) -> Fate:
    world = NodesWorld(config, plan)
    world.run()
    failure = world.world.failure
    if failure is None:
        return Fate(config.seed)
    return Fate(config.seed, f"{failure.kind} {failure.invariant}", failure.detail)


def swarm(number: int) -> Fate:
    """A seed of layer `cores`, as the lottery draws it."""
    return _cores(*draw(number, 3 + number % 2 * 2, 20, "cores"))


def nodes(number: int) -> Fate:
    """A seed of layer `node`, as the lottery draws it."""
    return _nodes(*draw(number, 3, 16, "node"))


def quarrel(number: int) -> Fate:
    """A group whose leader is cut off, crashed or deposed before it has finished, again and again.

    Entries travel one by one, so logs come to differ, and old leaders go on for a while.
    """
    chance = random.Random(f"quarrel/{number}")
    config, _ = draw(number, 3, 18, "cores")
    timeout = 0.2
    config = msgspec.structs.replace(
        config,
        weather=Weather(latency_mean_ns=chance.choice((1, 10)) * MILLISECOND, bias=False),
        raft=replace(
            config.raft,
            election_timeout_max=timeout,
            heartbeat_interval=timeout / 8,
            append_entries_max=1,
            inflight_max=chance.choice((1, 8)),
            snapshot_after_entries=1000,
        ),
        sync_ns=MILLISECOND,
        sync_rare=False,
        turn_ns=0,
        clients=2,
        keys=1,
        think_ns=30 * MILLISECOND,
        ttl=1.0,
        triggers_ppm=0,
    )
    plan: list[Fault] = []
    at = SECOND
    while at < config.tail_ns:
        lasts = chance.randrange(50, 600) * MILLISECOND
        one_way = chance.choice((0, 0, 1))
        what: dict[str, int | list[int]] = {
            "node": chance.choice((LEADER, 0, 1, 2)),
            "for_ns": lasts,
        }
        kind = chance.choice(("isolate", "isolate", "crash"))
        plan.append(Fault(at, kind, {**what, "one_way": one_way} if kind == "isolate" else what))
        at += chance.randrange(20, 400) * MILLISECOND
    return _cores(config, plan)


def restless(number: int) -> Fate:
    """Whole nodes under load on slow disks, crashed in the middle of it again and again."""
    config, _ = draw(number, 3, 16, "node")
    config = msgspec.structs.replace(
        _calm(config, timeout=0.5), sync_ns=30 * MILLISECOND, clients=4, think_ns=20 * MILLISECOND
    )
    chance = random.Random(f"restless/{number}")
    plan: list[Fault] = []
    at = 3 * SECOND
    while at < config.tail_ns:
        what: dict[str, int | list[int]] = {"node": chance.choice((LEADER, 0, 1, 2))}
        plan.append(Fault(at, "crash", {**what, "for_ns": 50 * MILLISECOND}))
        at += chance.randrange(200, 900) * MILLISECOND
    return _nodes(config, plan)


def parted(number: int) -> Fate:
    """Whole nodes that take locks with short leases, one of them cut off again and again."""
    timeout = 0.5
    config, _ = draw(number, 3, 18, "node")
    config = msgspec.structs.replace(
        _calm(config, timeout=timeout),
        ppm=[45_000, -45_000, 0],
        clients=2,
        locks=1,
        ttl=2 * timeout,
        think_ns=100 * MILLISECOND,
    )
    chance = random.Random(f"parted/{number}")
    plan: list[Fault] = []
    at = 2 * SECOND
    while at < config.tail_ns:
        lasts = chance.randrange(1000, 2500) * MILLISECOND
        kind, where = chance.choice((("isolate", LEADER), ("isolate", 0), ("isolate", 1)))
        plan.append(Fault(at, kind, {"node": where, "for_ns": lasts}))
        at += lasts + chance.randrange(200, 900) * MILLISECOND
    return _nodes(config, plan)


def _calm(config: Config, *, timeout: float) -> Config:
    """Return a configuration without bad weather and lottery: what happens is in the plan."""
    raft = RaftSettings(
        election_timeout_max=timeout,
        heartbeat_interval=timeout / 8,
        dead_after=12 * timeout,
        quiet=0.5,
    )
    return msgspec.structs.replace(
        config,
        weather=Weather(rare=False, bias=False),
        raft=raft,
        sync_ns=MILLISECOND,
        sync_rare=False,
        turn_ns=0,
        triggers_ppm=0,
    )
