"""The lottery: what it may draw, and that what it drew can be written down."""

from __future__ import annotations

from dataclasses import fields
from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.settings import GossipSettings, KvSettings, RaftSettings, RingSettings, Settings
from microos.sim.faults import Fault
from microos.sim.knobs import (
    FIXED,
    GOSSIP_DRAWN,
    KV_DRAWN,
    RAFT_DRAWN,
    RING_DRAWN,
    draw_gossip,
    draw_kv,
    draw_raft,
    draw_ring,
)
from microos.sim.swarm import TAIL_MIN, Config, draw
from microos.sim.world import SECOND

SEEDS = st.integers(0, 2**32)


def test_every_setting_is_a_knob_or_fixed_for_a_reason() -> None:
    kinds = (RaftSettings, GossipSettings, RingSettings, KvSettings)
    names = {field.name for kind in kinds for field in fields(kind)}

    assert names == {*RAFT_DRAWN, *GOSSIP_DRAWN, *RING_DRAWN, *KV_DRAWN, *FIXED}
    assert all(len(reason) > 10 for reason in FIXED.values())


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_drawn_settings_are_legal_and_their_bounds_fit_the_quiet_tail(seed: int) -> None:
    chance = Random(seed)
    raft, gossip = draw_raft(chance, TAIL_MIN), draw_gossip(chance, TAIL_MIN, 5)
    ring, kv = draw_ring(chance), draw_kv(chance)

    assert Settings(raft=raft, gossip=gossip, ring=ring, kv=kv).faults() == []
    assert raft.election_timeout_max * 25 * SECOND <= TAIL_MIN + SECOND


@given(SEEDS, st.integers(1, 7), st.integers(15, 40))
@settings(max_examples=100, deadline=None)
def test_a_drawn_world_survives_being_written_down(seed: int, nodes: int, seconds: int) -> None:
    config, plan = draw(seed, nodes, seconds, "cores")

    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config
    assert msgspec.json.decode(msgspec.json.encode(plan), type=list[Fault]) == plan
    assert (config, plan) == draw(seed, nodes, seconds, "cores")


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_no_fault_is_planned_in_the_quiet_tail(seed: int) -> None:
    config, plan = draw(seed, 5, 20, "cores")

    assert all(fault.at_ns < config.tail_ns + SECOND // 50 for fault in plan)
    assert config.end_ns - config.tail_ns >= TAIL_MIN
