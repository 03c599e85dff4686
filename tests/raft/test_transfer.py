from __future__ import annotations

from microos.raft.election import Role
from microos.raft.messages import TimeoutNow, Vote
from microos.raft.proposal import Dropped
from microos.types import Index, NodeId, Term
from tests.raft.network import E, Network, core, node, proposed


def transfer(network: Network, by: str, to: str) -> None:
    network[by].core.transfer(NodeId(to), network.now)
    network.turn(network[by])


def test_a_target_that_is_behind_catches_up_first() -> None:
    network = Network("abc")
    network.elect("a")
    network.isolate("b")
    network.propose("a", b"x")
    network.settle()
    network.heal()

    transfer(network, "a", "b")
    network.advance(0.4 * E)

    assert network["b"].status.role is Role.LEADER
    assert network["b"].machine == [b"x"]


def test_proposals_are_dropped_towards_the_target_meanwhile() -> None:
    network = Network("abc")
    network.elect("a")
    network.isolate("b")
    transfer(network, "a", "b")

    assert network.propose("a", b"x") == Dropped("transfer", node("b"))
    assert network.change("a", remove="c") == Dropped("transfer", node("b"))


def test_a_transfer_that_does_not_finish_is_given_up() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("b")
    transfer(network, "a", "b")

    network.advance(0.6 * E)

    assert leader.status.role is Role.LEADER
    assert leader.status.transferee is None
    proposed(network.propose("a", b"x"))


def test_neither_learners_nor_strangers_are_targets() -> None:
    network = Network("ab", "l")
    leader = network.elect("a")

    for name in ("l", "z", "a"):
        transfer(network, "a", name)

        assert leader.status.transferee is None


def test_a_follower_asks_the_leader_to_hand_over() -> None:
    network = Network("abc")
    network.elect("a")

    transfer(network, "c", "b")
    network.settle()

    assert network["b"].status.role is Role.LEADER


def test_a_target_that_is_removed_is_no_target_any_more() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("b")
    network.change("a", remove="b")
    transfer(network, "a", "b")
    assert leader.status.transferee == "b"

    network.settle()

    assert leader.status.transferee is None


def test_the_forced_vote_goes_through_a_lease() -> None:
    voter = core("abc", term=1)
    voter.receive(TimeoutNow(Term(1)), node("b"), 100.1)

    assert voter.status().role is Role.CANDIDATE

    heard = core("abc", term=1, grant_after=1000.0)
    heard.receive(Vote(Term(2), Index(0), Term(0)), node("b"), 100.1)
    assert heard.status().vote == ""
    heard.receive(Vote(Term(2), Index(0), Term(0), force=True), node("b"), 100.1)
    assert heard.status().vote == "b"


def test_a_learner_does_not_stand_even_when_told() -> None:
    learner = core("bc", id="a", learners="a", term=1)

    learner.receive(TimeoutNow(Term(1)), node("b"), 100.1)

    assert learner.status().role is Role.FOLLOWER
