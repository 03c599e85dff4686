"""One sentence of a paper each.

SWIM: Das, Gupta, Motivala (DSN 2002). Lifeguard: Dadgar, Phillips, Currey (arXiv:1707.00788).
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.gossip import notes
from microos.gossip.members import Entry, State
from microos.gossip.suspicion import timeout
from microos.types import Address, BootId, Incarnation, NodeId
from tests.gossip.network import World


def entry(incarnation: int, state: State) -> Entry:
    return Entry(
        node=NodeId("m"),
        boot=BootId(1),
        name="m",
        address=Address("h", 1),
        labels={},
        incarnation=Incarnation(incarnation),
        state=state,
        since=0.0,
        content=incarnation,
    )


@pytest.mark.prop
@settings(max_examples=80)
@given(held=st.integers(0, 5), told=st.integers(0, 5))
def test_swim_4_2_what_overrides_what(held: int, told: int) -> None:
    """{Alive, inc=i} overrides Suspect j and Alive j for i > j; {Suspect, inc=i} overrides
    Suspect j for i > j and Alive j for i >= j."""
    assert entry(held, State.SUSPECT).beaten_by(told, State.ALIVE) == (told > held)
    assert entry(held, State.ALIVE).beaten_by(told, State.ALIVE) == (told > held)
    assert entry(held, State.SUSPECT).beaten_by(told, State.SUSPECT) == (told > held)
    assert entry(held, State.ALIVE).beaten_by(told, State.SUSPECT) == (told >= held)


def test_swim_4_2_only_a_member_itself_raises_its_incarnation() -> None:
    world = World(3)
    nodes = world.cluster(5)
    world.run(5.0)
    before = {member.node: member.incarnation for member in nodes[0].core.members()}

    world.crash(nodes[4], vanish=True)
    world.run(20.0)

    after = {member.node: member.incarnation for member in nodes[0].core.members()}
    assert after == before


def test_swim_3_1_indirect_probes_save_a_member_behind_one_bad_path() -> None:
    world = World(4)
    nodes = world.cluster(6)
    world.run(5.0)

    world.sever(nodes[0], nodes[1])
    world.run(60.0)

    assert not world.notes(notes.Died)
    assert world.agree()


def test_lifeguard_the_suspicion_timeout_decays_logarithmically() -> None:
    """timeout = max(min, max - (max - min) * log(C + 1) / log(K + 1))"""
    for confirmations in range(4):
        share = math.log(confirmations + 1) / math.log(4)
        expected = max(2.0, 12.0 - 10.0 * share)
        found = timeout(confirmations, wanted=3, base=2.0, ceiling=12.0)
        assert found == pytest.approx(expected)


def test_lifeguard_a_slow_member_doubts_itself() -> None:
    world = World(5)
    nodes = world.cluster(6)
    world.run(5.0)

    world.pause(nodes[2], 3.0)
    world.run(3.01)

    assert nodes[2].core.score >= 4
    world.run(20.0)
    assert nodes[2].core.score == 0
