"""Whole clusters of cores on virtual time, with faults."""

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.gossip import notes
from microos.gossip.core import Gossip
from microos.gossip.members import State
from microos.settings import GossipSettings
from tests.gossip.network import Process, World, address, alive, member, present

GOSSIP_SPREAD = 8 * 0.2
"""G for 50 nodes: ceil(log2(n) + 2) gossip intervals [s]."""


def ready(size: int, *, seed: int = 1, seeds: int = 1, loss: float = 0.0) -> World:
    world = World(seed, loss=loss)
    world.checked = size <= 10
    world.cluster(size, seeds=seeds)
    world.run_until(world.agree, 10.0)
    return world


@pytest.mark.sim
@pytest.mark.parametrize("size", [2, 3, 5, 50])
def test_nodes_started_together_find_each_other(size: int) -> None:
    world = World(1)
    world.checked = size <= 10

    world.cluster(size)
    world.run_until(world.agree, 2.0)
    world.run(5.0)

    assert world.agree()
    assert world.same()
    assert not world.notes(notes.Suspected)


@pytest.mark.sim
@pytest.mark.criterion("DISC-1")
def test_a_record_is_seen_by_fifty_nodes_within_a_spread_and_a_second() -> None:
    world = ready(50)
    first = world.running[0]

    for size in (300, 70_000):
        body = bytes(size)
        world.do(first, partial(_announce, body))
        world.run_until(partial(_all_hold, world, first, body), GOSSIP_SPREAD + 1.0)


def _announce(body: bytes, core: Gossip, now: float) -> None:
    core.announce(body, now)


def _all_hold(world: World, owner: Process, body: bytes) -> bool:
    return all(member(process, owner).record == body for process in world.running)


@pytest.mark.sim
@pytest.mark.criterion("DISC-7")
def test_after_a_join_both_sides_know_each_others_records() -> None:
    world = World(1)
    one, other = world.start(0), world.start(1)
    world.do(one, lambda core, now: core.announce(b"early", now))
    world.do(other, lambda core, now: core.announce(b"also early", now))

    world.do(other, lambda core, now: core.join([address(0)], now))
    world.run(1.0)
    world.do(one, lambda core, now: core.announce(b"late", now))
    world.run(1.0)

    assert member(other, one).record == b"late"
    assert member(one, other).record == b"also early"


@pytest.mark.sim
@pytest.mark.criterion("DISC-8")
@pytest.mark.parametrize("fresh", [False, True], ids=["same-identity", "new-identity"])
def test_the_cluster_is_whole_again_after_all_seeds_restart(fresh: bool) -> None:
    world = ready(9, seeds=3)
    world.run(5.0)

    for seed in world.running[:3]:
        world.crash(seed)
    for index in range(3):
        node = f"fresh-{index}" if fresh else f"node-{index:03}"
        world.start(index, seeds=range(3), node=node)

    world.run_until(lambda: world.agree() and world.same(), 10.0)
    assert len(world.running) == 9


@pytest.mark.sim
def test_seeds_that_come_back_late_are_found_by_those_who_stayed() -> None:
    world = ready(6, seeds=2)
    for seed in world.running[:2]:
        world.crash(seed, vanish=True)
    world.run(120.0)

    for index in range(2):
        world.start(index, seeds=range(2), node=f"late-{index}")

    world.run_until(world.agree, 10.0)


@pytest.mark.sim
@pytest.mark.criterion("DISC-2")
@pytest.mark.parametrize(("vanish", "within"), [(False, 0.5), (True, 12.0)])
def test_a_crash_is_one_death_on_every_other_node(vanish: bool, within: float) -> None:
    world = ready(5)
    world.run(5.0)
    victim = world.running[2]

    world.crash(victim, vanish=vanish)
    world.run_until(world.agree, within)
    world.run(10.0)

    deaths = [
        (process.me.node, note.node)
        for process in world.running
        for _, note in process.notes
        if isinstance(note, notes.Died)
    ]
    assert sorted(deaths) == [(process.me.node, victim.me.node) for process in world.running]


@pytest.mark.sim
@pytest.mark.criterion("DISC-2")
def test_a_leave_is_never_a_death() -> None:
    world = ready(10)
    leaver = world.running[3]

    world.do(leaver, lambda core, now: core.leave(now))
    world.run(0.1)
    assert notes.LeaveDone(3) in world.notes(notes.LeaveDone)
    leaver.running = False
    world.run(30.0)

    assert {member(p, leaver).state for p in world.running} == {State.LEFT}
    assert len(world.notes(notes.Left)) == 9
    assert not world.notes(notes.Died)
    assert not world.notes(notes.Suspected)


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_all_packets_lost_kills_nobody(seed: int) -> None:
    world = ready(10, seed=seed, loss=0.2)
    world.checked = False

    world.run(120.0)

    assert not world.notes(notes.Died)
    assert world.agree()


@pytest.mark.sim
@pytest.mark.parametrize(("size", "cut"), [(3, 1), (5, 2), (20, 10)])
def test_a_partition_heals_by_itself(size: int, cut: int) -> None:
    world = ready(size)
    sides = world.running[:cut], world.running[cut:]
    world.split(*sides)
    world.run(60.0)
    assert {len(present(p)) for p in sides[0]} == {cut}
    assert {len(present(p)) for p in sides[1]} == {size - cut}
    suspected = len(world.notes(notes.Suspected))

    world.heal()
    world.run_until(world.agree, 10.0)
    world.run(10.0)

    assert world.agree()
    assert world.same()
    # Whoever was cut off takes its next incarnation before the halves merge: few flap.
    assert len(world.notes(notes.Suspected)) - suspected <= size


@pytest.mark.sim
def test_a_paused_node_refutes_and_accuses_nobody() -> None:
    world = ready(7)
    world.run(5.0)
    paused = world.running[2]

    world.pause(paused, 2.5)
    world.run(12.0)

    accusers = {note.by for note in world.notes(notes.Suspected)}
    assert any(isinstance(note, notes.Stalled) for _, note in paused.notes)
    assert any(isinstance(note, notes.Accused) for _, note in paused.notes)
    assert paused.me.node not in accusers
    assert not world.notes(notes.Died)
    assert world.agree()


@pytest.mark.sim
@pytest.mark.slow
def test_nodes_that_keep_stalling_kill_nobody_healthy() -> None:
    world = ready(12)
    stalling = world.running[:3]
    world.checked = False

    for _ in range(7):
        for process in stalling:
            world.pause(process, 8.0)
        world.run(9.0)
    world.run(15.0)

    victims = {note.node for note in world.notes(notes.Suspected)}
    assert victims <= {process.me.node for process in stalling}
    assert world.agree()


@pytest.mark.sim
def test_a_restarted_node_is_replaced_at_once_and_never_suspected_again() -> None:
    world = ready(6)
    world.run(5.0)

    again = world.restart(world.running[3])
    world.run_until(lambda: all(member(p, again).boot == again.me.boot for p in world.running), 1.0)
    suspected = len(world.notes(notes.Suspected))
    world.run(10.0)

    assert len(world.notes(notes.Suspected)) == suspected
    assert world.agree()


@pytest.mark.sim
def test_what_gossip_missed_the_digest_repairs() -> None:
    world = ready(6)
    world.run(10.0)
    world.loss = 1.0
    one = world.running[1]

    world.do(one, lambda core, now: core.set_state(5, b"news", now))
    world.run_until(lambda: one.core.queued == 0, 5.0)
    world.loss = 0.0
    assert not any(member(p, one).states for p in world.running if p is not one)

    world.run_until(lambda: all(member(p, one).states for p in world.running), 8.0)
    assert world.notes(notes.DigestRepaired)
    assert not world.notes(notes.Died)


@pytest.mark.sim
def test_all_seeds_gone_for_good_the_member_file_leads_back() -> None:
    world = ready(4)
    world.run(15.0)
    world.crash(world.running[0], vanish=True)
    world.run(30.0)

    world.restart(world.running[0], seeds=[0])

    world.run_until(world.agree, 10.0)


@pytest.mark.sim
def test_a_process_of_another_identity_takes_over_an_address() -> None:
    world = ready(5)
    world.run(5.0)
    old = world.running[4]

    world.crash(old)
    world.start(4, seeds=[0], node="newcomer", name=old.me.name)

    world.run_until(world.agree, 5.0)
    assert member(world.running[0], old).state is State.DEAD


@pytest.mark.sim
def test_an_idle_cluster_sends_one_ping_and_one_ack_per_node_and_interval() -> None:
    world = ready(8)
    world.run(20.0)
    before = sum(process.packets for process in world.running)

    world.run(100.0)

    packets = sum(process.packets for process in world.running) - before
    assert 0.97 * 2 * 8 * 100 <= packets <= 2 * 8 * 101


Fault = Callable[[World, Process], object]
FAULTS: list[Fault] = [
    lambda world, process: world.crash(process),
    lambda world, process: world.crash(process, vanish=True),
    lambda world, process: world.pause(process, 3.0),
    lambda world, process: world.restart(process, seeds=range(3)),
    lambda world, process: world.split([], [process]),
    lambda world, process: world.heal(),
    lambda world, process: world.do(process, lambda core, now: core.announce(b"x" * 500, now)),
    lambda world, process: world.do(process, lambda core, now: core.set_state(1, b"y", now)),
]


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.prop
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.1]),
    plan=st.lists(
        st.tuples(st.sampled_from(FAULTS), st.integers(0, 4), st.floats(0.0, 4.0)), max_size=6
    ),
)
def test_after_any_faults_all_who_run_agree(
    seed: int, loss: float, plan: list[tuple[Fault, int, float]]
) -> None:
    world = World(seed, loss=loss, settings=GossipSettings(reconnect_interval=2.0))
    world.cluster(5, seeds=3)

    for fault, victim, wait in plan:
        process = world.processes[list(world.processes)[victim]]
        if process.running and not process.paused and len(world.running) > 2:
            fault(world, process)
        world.run(wait)
    world.loss = 0.0
    world.heal()
    world.run(40.0)

    assert world.agree(), {p.me.node: alive(p) for p in world.running}
    assert world.same()
