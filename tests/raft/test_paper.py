"""What the paper and the dissertation promise, one sentence each.

[P] Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm"
(extended version, 2014); [D] Ongaro, "Consensus: Bridging Theory and Practice" (2014).
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from microos.raft.election import Role
from microos.raft.entry import HardState, Kind
from microos.raft.messages import Append, AppendAnswer, Vote, VoteAnswer
from microos.raft.notes import BecameLeader, SteppedDown
from microos.types import Index, NodeId, Term
from tests.raft.network import E, Network, core, drain, entries, node


def test_each_server_votes_for_at_most_one_candidate_in_a_term() -> None:
    """[P] §5.2: on a first-come-first-served basis."""
    voter = core()

    voter.receive(Vote(Term(1), Index(0), Term(0)), node("b"), 101.0)
    voter.receive(Vote(Term(1), Index(0), Term(0)), node("c"), 101.0)

    answers = [(to, m.granted) for to, m in drain(voter) if isinstance(m, VoteAnswer)]
    assert answers == [("b", True), ("c", False)]


def test_a_candidate_wins_with_votes_of_a_majority_of_the_full_cluster() -> None:
    """[P] §5.2."""
    network = Network("abcde")
    network.isolate("a", "b", "c")
    network.elect("a")

    network.isolate("d", "e")
    network["d"].core.campaign(network.now)
    network.turn(network["d"])
    network.settle()

    assert network["d"].status.role is not Role.LEADER


def test_a_split_vote_is_resolved_by_randomized_timeouts() -> None:
    """[P] §5.2: each candidate restarts its randomized election timeout."""
    network = Network("abcd")
    for name in "ab":
        network[name].core.campaign(network.now)
    for name in "ab":
        network.turn(network[name])

    network.advance(5 * E)

    assert [m.status.role for m in network.members.values()].count(Role.LEADER) == 1


def test_a_stale_leader_reverts_to_follower() -> None:
    """[P] §5.1: if a candidate or leader discovers that its term is out of date."""
    network = Network("abc")
    network.elect("a")
    network.isolate("a")
    network.elect("b")

    network.heal()
    network.advance(E)

    assert network["a"].status.role is Role.FOLLOWER
    assert network["a"].status.leader == "b"


def test_a_request_with_a_stale_term_is_rejected() -> None:
    """[P] §5.1."""
    follower = core("abc", 1, term=3)
    sent = Append(Term(2), Index(1), Term(1), Index(1), entries(2, first=2))

    follower.receive(sent, node("b"), 101.0)

    assert drain(follower) == [("b", AppendAnswer(Term(3), Index(0)))]
    assert follower.log.last_index == 1


def test_a_minority_never_commits() -> None:
    """[P] §5.3: committed once the leader has replicated it on a majority."""
    network = Network("abcde")
    network.elect("a")
    network.isolate("a", "b")
    commit = network["a"].status.commit

    network.propose("a", b"lost")
    network.settle()

    assert network["a"].status.commit == network["b"].status.commit == commit


FIGURE_7 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


def test_a_leader_makes_every_log_of_figure_7_its_own() -> None:
    """[P] §5.3, figure 7: the leader handles inconsistencies by forcing its own log."""
    logs = {name: entries(*terms) for name, terms in FIGURE_7.items()}
    logs["l"] = entries(1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    network = Network("abcdefl", logs=logs, states=dict.fromkeys("abcdefl", HardState(Term(7))))

    leader = network.elect("l")
    network.advance(E)

    own = leader.core.log.slice(Index(1), leader.status.last_index)
    assert own[:10] == logs["l"]
    assert all(m.platter.entries == list(own) for m in network.members.values())


def test_a_voter_denies_its_vote_to_an_older_log() -> None:
    """[P] §5.4.1: later last term first, then the longer log."""
    for index, term, granted in [(9, 1, False), (2, 2, False), (3, 2, True), (1, 3, True)]:
        voter = core("abc", 1, 1, 2)

        voter.receive(Vote(Term(9), Index(index), Term(term)), node("b"), 101.0)

        [(_, answer)] = drain(voter)
        assert isinstance(answer, VoteAnswer)
        assert answer.granted is granted


def test_figure_8_an_old_entry_is_not_committed_by_counting() -> None:
    """[P] §5.4.2, figure 8 (c): on a majority, and still not committed."""
    logs = {"a": entries(1, 2), "b": entries(1, 2), "c": entries(1), "d": entries(1)}
    logs["e"] = entries(1, 3)
    network = Network("abcde", logs=logs, states=dict.fromkeys("abcde", HardState(Term(3))))
    network.isolate("a", "b", "c")
    network["a"].core.campaign(network.now)
    network.turn(network["a"])

    # Let (2, term 2) reach a majority, but nothing of term 4.
    def is_new(message: object) -> bool:
        return isinstance(message, Append) and any(e.term == 4 for e in message.entries)

    leader = network["a"]
    for _ in range(200):
        if network.wire:
            packet = network.wire.popleft()
            if is_new(packet.message):
                assert isinstance(packet.message, Append)
                old = tuple(e for e in packet.message.entries if e.term < 4)
                sent = packet.message
                cut = Append(sent.term, sent.previous_index, sent.previous_term, sent.commit, old)
                packet = packet._replace(message=cut)
            network.deliver(packet)
        for member in network.running():
            network.persist(member)

    assert leader.status.role is Role.LEADER
    held = [m for m in network.members.values() if m.platter.entries[1:2] == [logs["a"][1]]]
    assert len(held) == 3
    assert leader.status.commit == 0

    # (e): with an entry of its own term on a majority both are committed.
    network.advance(E)
    assert leader.status.commit == 3


def test_a_leader_begins_its_term_with_an_empty_entry() -> None:
    """[P] §8: a blank no-op, to know which entries are committed."""
    network = Network("abc")

    leader = network.elect("a")

    [first] = leader.core.log.slice(Index(1), leader.status.last_index)
    assert (first.kind, first.term) == (Kind.EMPTY, leader.status.term)
    assert leader.status.commit == 1


@given(terms=st.lists(st.integers(1, 3), min_size=1, max_size=6).map(sorted), at=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_append_is_idempotent(terms: list[int], at: int) -> None:
    """[P] §5.5: if a follower receives entries already in its log, it ignores them."""
    at = min(at, len(terms))
    follower = core("abc", *terms, term=3)
    part = entries(*terms)[at:]
    previous = Term(terms[at - 1] if at else 0)

    for _ in range(2):
        sent = Append(Term(3), Index(at), previous, Index(0), part)
        follower.receive(sent, node("b"), 101.0)

    assert follower.log.slice(Index(1), follower.log.last_index) == entries(*terms)
    answers = [m for _, m in drain(follower)]
    assert answers == [AppendAnswer(Term(3), Index(len(terms)))] * 2


def test_a_server_that_hears_its_leader_disregards_votes() -> None:
    """[D] §4.2.3: within the minimum election timeout of hearing from a leader."""
    network = Network("abc")
    network.elect("a")
    voter = network["b"]
    wanted = Vote(Term(voter.status.term + 5), Index(99), Term(voter.status.term))

    voter.core.receive(wanted, node("c"), network.now + 0.4 * E)
    assert voter.status.term == wanted.term - 5
    voter.core.receive(wanted, node("c"), network.now + 0.6 * E)

    assert voter.status.vote == "c"


def test_a_returning_server_does_not_disrupt() -> None:
    """[D] §9.6: Pre-Vote."""
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    network.advance(10 * E)

    network.heal()
    network.advance(2 * E)

    assert leader.status.role is Role.LEADER
    assert network["c"].status.term == leader.status.term
    assert network["c"].status.leader == "a"


def test_a_leader_without_a_majority_steps_down() -> None:
    """[D] §6.2: if an election timeout elapses without a round of heartbeats to a majority."""
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("a")

    network.advance(1.1 * E)

    assert leader.status.role is not Role.LEADER
    assert any(isinstance(n, SteppedDown) and n.reason == "quorum" for n in leader.notes)


def test_a_new_server_catches_up_before_it_counts() -> None:
    """[D] §4.2.1: it joins as a non-voting member; a learner is in no majority."""
    network = Network("ab", others="c")
    network.elect("a")
    network.change("a", add_learners="c")
    network.settle()
    assert network["c"].status.commit == network["a"].status.commit
    network.isolate("a", "c")
    commit = network["a"].status.commit

    network.propose("a", b"x")
    network.settle()

    assert network["c"].status.last_index == commit + 1
    assert network["a"].status.commit == commit


def test_a_leader_that_is_removed_steps_down_once_that_is_committed() -> None:
    """[D] §4.2.2: it manages a cluster that does not include itself, and does not count."""
    network = Network("abc")
    leader = network.elect("a")

    network.change("a", remove="a")
    assert network.leader is leader
    network.advance(3 * E)

    assert leader.status.role is Role.FOLLOWER
    assert network.leader is not None
    assert network.leader.id in ("b", "c")
    assert network["b"].status.configuration.voters == ("b", "c")


def test_arbitrary_changes_go_through_a_joint_configuration() -> None:
    """[D] §4.3: then the new configuration alone."""
    network = Network("abc", others="de")
    leader = network.elect("a")

    network.change("a", add_voters="de", remove="bc")
    network.advance(E)

    assert leader.status.configuration.voters == ("a", "d", "e")
    assert not leader.status.configuration.outgoing
    kinds = [e.kind for e in leader.platter.entries]
    assert kinds.count(Kind.CONFIGURATION) == 2


def test_a_joint_configuration_needs_both_majorities() -> None:
    """[D] §4.3: agreement requires separate majorities from both."""
    network = Network("abc", others="de")
    leader = network.elect("a")
    network.isolate("a", "d", "e")

    network.change("a", add_voters="de", remove="bc")
    network.settle()
    change = leader.status.last_index
    assert leader.status.commit < change

    network.heal()
    network.isolate("a", "b", "c")
    network.advance(0.3 * E)
    # The old majority was enough to enter it, but is not to leave it.
    assert leader.status.commit == change
    assert leader.status.configuration.outgoing


def test_leadership_is_handed_over_without_waiting_for_a_timeout() -> None:
    """[D] §3.10."""
    network = Network("abc")
    network.elect("a")

    network["a"].core.transfer(node("b"), network.now)
    network.turn(network["a"])
    network.settle()

    assert network["b"].status.role is Role.LEADER
    assert network["a"].status.leader == "b"


def test_a_snapshot_brings_a_follower_that_is_too_far_behind() -> None:
    """[P] §7: the leader must occasionally send snapshots to followers that lag behind."""
    network = Network("abc")
    network.elect("a")
    network.isolate("c")
    for at in range(5):
        network.propose("a", b"%d" % at)
    network.settle()
    network.compact("a")

    network.heal()
    network.advance(E)
    network.propose("a", b"after")
    network.advance(E)

    assert network["c"].status.snapshot_index > 0
    assert network["c"].machine == network["a"].machine
    assert network["c"].status.commit == network["a"].status.commit


def test_a_single_server_elects_itself_and_commits() -> None:
    """[P] §5.2 with a majority of one."""
    network = Network("a")
    network.advance(E)

    network.propose("a", b"x")
    network.settle()

    assert network["a"].machine == [b"x"]
    assert any(isinstance(note, BecameLeader) for note in network["a"].notes)


def test_a_leader_never_overwrites_its_own_log() -> None:
    """[P] §5.3, Leader Append-Only: nor can another leader of the same term."""
    network = Network("abc")
    leader = network.elect("a")
    term = leader.status.term
    before = leader.core.log.slice(Index(1), leader.status.last_index)

    forged = Append(term, Index(0), Term(0), Index(0), entries(term))
    leader.core.receive(forged, NodeId("b"), network.now)

    assert leader.core.log.slice(Index(1), leader.status.last_index) == before
    assert leader.status.role is Role.LEADER
