from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from microos.raft.effects import ReadReady
from microos.raft.election import Role
from microos.raft.entry import HardState
from microos.raft.messages import Heartbeat, HeartbeatAnswer, ReadIndex, ReadIndexAnswer
from microos.raft.reads import READS_MAX, Read, Reads
from microos.types import Index, NodeId, Term
from tests.raft.network import E, Network, configuration, core, drain, entries, node


def test_a_read_is_answered_after_a_majority_has_echoed_its_round() -> None:
    network = Network("abc")
    leader = network.elect("a")

    context = network.read("a")
    assert leader.reads == []
    network.settle()

    assert leader.reads == [ReadReady(context, leader.status.commit)]


def test_all_reads_of_a_turn_share_one_round() -> None:
    network = Network("abc")
    leader = network.elect("a")
    for context in (1001, 1002, 1003):
        leader.core.read(context, network.now)

    sent = [m for _, m in leader.core.take().messages if isinstance(m, Heartbeat)]

    assert len(sent) == 2
    assert len({m.round for m in sent}) == 1


def test_a_read_waits_for_an_entry_of_the_own_term() -> None:
    """Scenario 20: before it the commit index may lag behind what was acknowledged."""
    logs = {name: entries(1) for name in "abc"}
    network = Network("abc", logs=logs, states=dict.fromkeys("abc", HardState(Term(1))))
    leader = network["a"]
    leader.slow = True
    for member in network.members.values():
        member.slow = member.id != "a"
    leader.slow = False
    leader.core.campaign(network.now)
    network.turn(leader)
    for _ in range(20):
        network.settle()
        for name in "bc":
            if leader.status.role is not Role.LEADER:
                network.persist(network[name])
    assert leader.status.role is Role.LEADER
    assert leader.status.commit == 0

    network.read("a")
    network.settle()
    assert leader.reads == []
    network["b"].slow = False
    network.settle()

    assert [ready.index for ready in leader.reads] == [2]


def test_a_single_voter_answers_in_the_same_turn() -> None:
    network = Network("a")
    network.elect("a")

    context = network.read("a")

    assert network["a"].reads == [ReadReady(context, Index(1))]


def test_a_leader_that_was_replaced_answers_nothing() -> None:
    """Scenario 20: read served by a paused leader."""
    network = Network("abc")
    old = network.elect("a")
    network.isolate("a")
    network.elect("b")
    network.propose("b", b"newer")
    network.settle()

    context = network.read("a")
    network.heal()
    network.advance(E)

    assert old.reads == []
    assert old.dropped == [context]


def test_an_echo_of_an_earlier_round_confirms_nothing() -> None:
    """Scenario 20: etcd#20418."""
    network = Network("abc")
    leader = network.elect("a")
    network.read("a")
    network.settle()
    echo = HeartbeatAnswer(leader.status.term, 1)
    before = len(leader.reads)

    network.read("a")
    for name in "bc":
        leader.core.receive(echo, node(name), network.now)
    assert not leader.core.take().reads
    network.settle()

    assert len(leader.reads) == before + 1


def test_followers_and_learners_ask_the_leader() -> None:
    network = Network("abc", "l")
    leader = network.elect("a")
    network.propose("a", b"x")
    network.settle()

    for name in "bl":
        context = network.read(name)
        network.settle()

        assert network[name].reads == [ReadReady(context, leader.status.commit)]


def test_a_read_without_a_leader_is_dropped_at_once() -> None:
    network = Network("abc")

    context = network.read("b")

    assert network["b"].dropped == [context]


def test_a_question_that_got_lost_is_dropped_within_the_election_timeout() -> None:
    network = Network("abc")
    network.elect("a")
    context = network.read("b")
    network.wire.clear()

    network.advance(1.01 * E)

    assert network["b"].dropped == [context]


def test_a_question_to_a_leader_that_is_given_up_is_dropped() -> None:
    network = Network("abc")
    network.elect("a")
    context = network.read("b")

    network["b"].core.forget_leader(network.now)
    network.turn(network["b"])

    assert network["b"].dropped == [context]


def test_a_read_at_a_leader_that_hands_over_is_dropped_not_wrong() -> None:
    """Scenario 20: redisraft#19."""
    network = Network("abc")
    leader = network.elect("a")
    leader.core.transfer(node("b"), network.now)
    network.turn(leader)
    network.blocked = {(NodeId(n), NodeId("a")) for n in "bc"}
    context = network.read("a")
    network.settle()
    network.heal()

    network.advance(E)

    assert network["b"].status.role is Role.LEADER
    assert leader.dropped == [context]


def test_an_answer_to_an_earlier_life_is_not_taken() -> None:
    follower = core("abc", term=1)
    follower.receive(Heartbeat(Term(1), Index(0), 0), node("b"), 100.1)
    drain(follower)
    follower.read(1, 100.1)
    [(_, asked)] = follower.take().messages
    assert isinstance(asked, ReadIndex)

    follower.receive(ReadIndexAnswer(Term(1), 1, Index(5)), node("b"), 100.2)
    assert not follower.take().reads
    follower.receive(ReadIndexAnswer(Term(1), asked.context, Index(7)), node("b"), 100.2)

    assert follower.take().reads == (ReadReady(1, Index(7)),)


@given(st.lists(st.tuples(st.sampled_from("rroeab"), st.integers(0, 9)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_read_is_answered_by_a_round_sent_before_it(steps: list[tuple[str, int]]) -> None:
    reads, group = Reads(random.Random(1).randrange(99)), configuration("abc")
    asked: dict[int, int] = {}
    for at, (kind, number) in enumerate(steps):
        match kind:
            case "r":
                asked[at] = reads.round
                reads.wait(Read(None, at))
            case "o" if reads.waiting:
                reads.echo(node("a"), reads.open_round(Index(at)))
            case "e":
                reads.echo(node("b"), number)
            case _:
                reads.echo(node("c"), number)

        for round, _, done in reads.confirmed(group):
            assert all(round > asked.pop(read.context) for read in done)
        reads.check()

    assert sorted(reads.drop()) == sorted(asked)


def test_reads_are_bounded() -> None:
    reads = Reads(0)

    taken = sum(reads.wait(Read(None, at)) for at in range(READS_MAX + 5))

    assert taken == READS_MAX
    assert reads.ask(1, 0.0) is None
