"""Scenarios of one core or a few: each has hurt a real system (raft.md 12.3 has the numbers)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.codec import encode
from microos.errors import RemoteProtocolError
from microos.raft.core import Raft
from microos.raft.election import Role
from microos.raft.entry import (
    Applied,
    Change,
    Configuration,
    Entry,
    HardState,
    Kind,
    Persisted,
    SnapshotMark,
    SnapshotSent,
    Token,
    Unreachable,
)
from microos.raft.messages import (
    Append,
    AppendAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Message,
    PreVote,
    PreVoteAnswer,
    Propose,
    ReadIndex,
    Snapshot,
    TimeoutNow,
    TransferLeader,
    Vote,
    VoteAnswer,
    decode_message,
)
from microos.raft.notes import LateWake, Stalled, SteppedDown
from microos.raft.progress import State
from microos.raft.proposal import Dropped, Forwarded, Refused
from microos.settings import RaftSettings
from microos.types import Index, NodeId, Term
from tests.raft.network import E, Network, configuration, core, drain, entries, node, proposed


def lead(voters: str = "abc", *terms: int, settings: RaftSettings | None = None) -> Raft:
    """Return a core that has just been elected, everything of it durable."""
    raft = core(voters, *terms, settings=settings or RaftSettings())
    raft.campaign(100.0)
    drain(raft)
    for trial in (True, False):
        for voter in voters[1:]:
            status = raft.status()
            answer = (
                PreVoteAnswer(Term(status.term + 1), granted=True)
                if trial
                else VoteAnswer(status.term, granted=True)
            )
            raft.receive(answer, node(voter), 100.0)
        drain(raft)
    assert raft.status().role is Role.LEADER
    return raft


def acknowledge(raft: Raft, name: str, index: int) -> None:
    raft.receive(AppendAnswer(raft.status().term, Index(index)), node(name), 100.0)


def appends(messages: list[tuple[NodeId, Message]], to: str) -> list[Append]:
    return [m for name, m in messages if name == to and isinstance(m, Append)]


def add(name: str) -> Change:
    return Change(add_voters=(NodeId(name),))


# Elections.


def test_a_timeout_is_drawn_between_half_and_the_whole() -> None:
    draws = {core(id=name).deadline - 100.0 for name in "abc"}

    assert all(E / 2 <= draw < E for draw in draws)


def test_a_member_without_a_vote_wishes_no_waking() -> None:
    assert core("bc", id="a", learners="a").deadline == math.inf
    assert core("", id="a").deadline == math.inf


def test_a_vote_that_was_not_synced_has_left_nothing_behind() -> None:
    """Scenario 3: two grants in one term after a restart."""
    network = Network("abc")
    network["b"].slow = True
    ask = Vote(Term(1), Index(0), Term(0))
    network["b"].core.receive(ask, node("a"), network.now)
    network.turn(network["b"])
    network.settle()
    assert not network.wire

    network.crash("b")
    network.restart("b")
    network["b"].slow = False
    network["b"].core.receive(ask, node("c"), network.now)
    network.turn(network["b"])
    network.settle()

    assert network.votes == {("b", 1): "c"}


def test_a_vote_that_was_synced_is_remembered() -> None:
    network = Network("abc")
    network["b"].core.receive(Vote(Term(1), Index(0), Term(0)), node("a"), network.now)
    network.turn(network["b"])
    network.settle()

    network.crash("b")
    network.restart("b")

    assert network["b"].status.vote == "a"
    assert network["b"].status.term == 1


def test_a_candidate_asks_nobody_before_its_own_vote_is_durable() -> None:
    raft = core(settings=RaftSettings(pre_vote=False))

    raft.campaign(100.0)
    effects = raft.take()
    assert effects.messages == ()
    assert effects.persist is not None
    raft.receive(Persisted(effects.persist.token), raft.id, 100.0)

    assert {type(m) for _, m in raft.take().messages} == {Vote}


def test_pre_vote_and_check_quorum_do_not_refuse_each_other_for_ever() -> None:
    """Scenario 5: raft-rs#84, etcd#8501."""
    network = Network("abc")
    network.elect("a")
    network.isolate("c")
    network["b"].core.forget_leader(network.now)
    network.advance(3 * E)
    network.crash("a")
    network.heal()

    network.advance(4 * E)

    assert network.leader is not None
    assert network.leader.id in ("b", "c")


def test_a_long_log_of_a_low_term_does_not_block_a_high_term() -> None:
    """Scenario 6: openraft#1796, canonical/raft#279."""
    network = Network(
        "ab",
        logs={"a": entries(1, 1, 1, 1), "b": entries(1, 2)},
        states={"a": HardState(Term(1)), "b": HardState(Term(9))},
    )

    network.advance(6 * E)

    assert network["b"].status.role is Role.LEADER
    assert network["a"].status.last_index == network["b"].status.last_index


def test_a_leader_that_reaches_one_node_does_not_block_the_election() -> None:
    """Scenario 8: openraft#2080; a bridge sees both sides."""
    network = Network("abcde")
    network.elect("a")
    for name in "cde":
        network.cut("a", name)

    network.advance(5 * E)

    assert network["a"].status.role is not Role.LEADER
    assert network.leader is not None
    network.propose(network.leader.id, b"x")
    network.advance(E)
    assert network.leader.machine == [b"x"]


def test_a_removed_server_disrupts_nobody() -> None:
    """Scenario 9: dissertation §4.2.3."""
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    network.change("a", remove="c")
    network.settle()
    term = leader.status.term

    network.heal()
    network.advance(10 * E)

    assert leader.status.term == term
    assert leader.status.role is Role.LEADER


def test_a_removed_leader_does_not_count_itself() -> None:
    """Scenario 9: the rest must agree without it."""
    network = Network("ab")
    leader = network.elect("a")
    network.change("a", remove="a")
    network.settle()

    assert leader.status.role is Role.FOLLOWER
    assert not leader.status.promotable
    network.advance(3 * E)
    assert network["b"].status.role is Role.LEADER


def test_a_learner_that_does_not_know_of_its_promotion_votes() -> None:
    """Scenario 10: etcd#7625."""
    learner = core("bc", 1, id="a", learners="a")

    learner.receive(Vote(Term(2), Index(1), Term(1)), node("b"), 101.0)

    assert drain(learner) == [("b", VoteAnswer(Term(2), granted=True))]


def test_nobody_stands_with_a_change_committed_and_not_applied() -> None:
    """Scenario 11: two leaders, etcd-io/raft#456."""
    change = Entry(Term(1), Index(1), 0, Kind.CONFIGURATION, encode(configuration("abcd")))
    raft = core()
    raft.receive(Append(Term(1), Index(0), Term(0), Index(1), (change,)), node("b"), 100.0)
    effects = raft.take()
    assert effects.persist is not None
    raft.receive(Persisted(effects.persist.token), raft.id, 100.0)
    assert raft.take().committed == (change,)

    raft.campaign(102.0)
    assert raft.status().role is Role.FOLLOWER
    raft.receive(Applied(Index(1)), raft.id, 102.0)
    raft.campaign(102.0)

    assert raft.status().role is Role.PRE_CANDIDATE
    assert raft.status().configuration.voters == ("a", "b", "c", "d")


def test_votes_tell_what_is_committed() -> None:
    """Scenario 12: a member that cannot stand for want of that news, etcd#12359."""
    raft = core("abc", 1, 1, term=1)

    raft.receive(PreVote(Term(2), Index(2), Term(1), Index(2), Term(1)), node("b"), 101.0)
    assert raft.status().commit == 2
    raft.receive(PreVote(Term(2), Index(9), Term(1), Index(9), Term(1)), node("b"), 101.0)

    assert raft.status().commit == 2


def test_a_late_host_accuses_nobody() -> None:
    raft = core()

    raft.wake(raft.deadline + 0.3 * E)

    assert raft.status().role is Role.FOLLOWER
    assert any(isinstance(note, LateWake) for note in raft.take().notes)
    raft.wake(raft.deadline)
    assert raft.status().role is Role.PRE_CANDIDATE


def test_a_late_leader_asks_before_it_steps_down() -> None:
    network = Network("abc")
    leader = network.elect("a")

    network.now += 30 * E
    network.wake(leader)
    assert leader.status.role is Role.LEADER
    network.settle()
    network.advance(0.4 * E)

    assert leader.status.role is Role.LEADER


def test_a_late_leader_gets_its_time_back_and_no_more() -> None:
    raft = lead("abc")

    raft.wake(130.0)
    assert raft.status().role is Role.LEADER
    for at in range(1, 6):
        raft.wake(130.0 + at * E / 10)

    assert raft.status().role is Role.FOLLOWER


def test_a_pre_vote_of_a_lower_term_is_told_the_own_one() -> None:
    """Scenario 6: silence would leave its sender behind for ever."""
    raft = core("abc", 5)

    raft.receive(PreVote(Term(3), Index(9), Term(2)), node("b"), 101.0)

    assert drain(raft) == [("b", PreVoteAnswer(Term(5), granted=False))]


# Changes.


def test_a_new_leader_refuses_changes_until_its_log_is_applied() -> None:
    """Scenario 2: Ongaro's bug of 2015, majorities that do not meet."""
    raft = lead("abc", 1, 1)
    assert raft.change(add("d"), 100.0) == Refused("pending")
    acknowledge(raft, "b", raft.status().last_index)
    drain(raft)

    proposed(raft.change(add("d"), 100.0))
    assert raft.change(add("e"), 100.0) == Refused("pending")
    acknowledge(raft, "b", raft.status().last_index)
    drain(raft)
    assert raft.status().configuration == configuration("abcd")


def test_two_changes_at_once_are_refused_and_nothing_is_forwarded() -> None:
    network = Network("abc", others="d")
    network.elect("a")

    assert network.change("b", add_voters="d") == Dropped("not_leader", node("a"))
    network.change("a", add_voters="d")
    assert network.change("a", remove="c") == Refused("pending")


def test_a_new_leader_ends_the_joint_change_of_the_old_one() -> None:
    network = Network("abc", others="de")
    network.elect("a")
    network.change("a", add_voters="de", remove="c")
    network.crash("a")
    for _ in range(3):
        network.settle()
    network.restart("a")

    network.advance(8 * E)

    assert network.leader is not None
    found = network.leader.status.configuration
    assert found in (configuration("abc"), configuration("abde"))


# Appends and answers.


def test_a_late_append_does_not_cut_an_acknowledged_suffix() -> None:
    """Scenario 15: PySyncObj, async-raft."""
    raft = core("abc", 1, 1, 1, term=1)

    late = Append(Term(1), Index(0), Term(0), Index(0), entries(1))
    raft.receive(late, node("b"), 100.0)

    assert raft.status().last_index == 3
    assert drain(raft) == [("b", AppendAnswer(Term(1), Index(1)))]


def test_an_append_below_the_commit_index_is_not_looked_at() -> None:
    raft = core("abc", 1, 1, 1, term=2, commit=2, applied=2)

    lie = Append(Term(2), Index(0), Term(0), Index(0), entries(2, 2))
    raft.receive(lie, node("b"), 100.0)

    assert drain(raft) == [("b", AppendAnswer(Term(2), Index(2)))]
    assert raft.log.last_term == 1


def test_an_acknowledgement_of_an_earlier_term_commits_nothing() -> None:
    """Scenario 15: an entry nobody else has (PySyncObj)."""
    raft = lead("abc", 1)
    raft.propose([b"x"], 100.0)
    drain(raft)

    for name in "bc":
        raft.receive(AppendAnswer(Term(1), raft.status().last_index), node(name), 100.0)

    assert raft.status().commit == 0


def test_nobody_acknowledges_what_the_leader_does_not_have() -> None:
    raft = lead("abc")

    acknowledge(raft, "b", 99)

    raft.check()
    assert raft.status().progress[node("b")].match == 0


def test_a_repeated_answer_to_a_probe_does_not_move_next_below_match() -> None:
    """Scenario 16: etcd-io/raft#149."""
    raft = lead("abc", 1, 1, 1, 1)
    refusal = AppendAnswer(raft.status().term, Index(4), True, Index(1), Term(1))
    raft.receive(refusal, node("b"), 100.0)
    drain(raft)
    acknowledge(raft, "b", 5)

    raft.receive(refusal, node("b"), 100.0)
    raft.take()

    raft.check()
    found = raft.status().progress[node("b")]
    assert (found.match, found.next, found.state) == (5, 6, State.REPLICATE.value)


def test_a_window_full_of_lost_messages_is_not_the_end() -> None:
    """Scenario 17: etcd PR 14633."""
    network = Network("ab", settings=RaftSettings(inflight_max=2))
    network.elect("a")
    for at in range(4):
        network.propose("a", b"%d" % at)
    network.wire.clear()
    assert network["a"].status.progress[node("b")].paused

    network.advance(0.4 * E)

    assert network["b"].machine == [b"0", b"1", b"2", b"3"]


def test_proposals_of_one_turn_are_one_message_per_follower() -> None:
    raft = lead("abc")
    for name in "bc":
        acknowledge(raft, name, 1)
    drain(raft)

    raft.propose([b"a", b"b"], 100.0)
    raft.propose([b"c"], 100.0)

    sent = raft.take().messages
    assert [len(found[0].entries) for found in (appends(list(sent), n) for n in "bc")] == [3, 3]
    assert len(sent) == 2


def test_an_unreachable_follower_is_probed() -> None:
    raft = lead("abc")
    acknowledge(raft, "b", 1)
    drain(raft)

    raft.receive(Unreachable(node("b")), raft.id, 100.0)

    assert raft.status().progress[node("b")].state == "probe"


def test_a_heartbeat_never_names_more_than_was_acknowledged() -> None:
    raft = lead("abc")
    acknowledge(raft, "b", 1)
    drain(raft)

    raft.wake(raft.deadline)

    commits = {n: m.commit for n, m in raft.take().messages if isinstance(m, Heartbeat)}
    assert commits == {"b": 1, "c": 0}


def test_a_follower_commits_no_further_than_the_message_has_shown() -> None:
    raft = core("abc", 1, 1, 1, term=2)

    raft.receive(Append(Term(2), Index(1), Term(1), Index(3), ()), node("b"), 100.0)

    assert raft.status().commit == 1


# Durability.


def test_a_single_node_applies_nothing_before_it_is_durable() -> None:
    """Scenario 19: etcd#14370."""
    network = Network("a")
    network.elect("a")
    network["a"].slow = True

    network.propose("a", b"x")
    network.settle()
    assert network["a"].machine == []
    network["a"].slow = False
    network.settle()

    assert network["a"].machine == [b"x"]


def test_an_acknowledgement_waits_for_every_write_before_it() -> None:
    raft = core("abc", term=1)
    tokens = []
    for at in (1, 2):
        previous = (Index(at - 1), Term(at - 1 and 1))
        raft.receive(Append(Term(1), *previous, Index(0), entries(1, first=at)), node("b"), 100.0)
        effects = raft.take()
        assert effects.messages == ()
        assert effects.persist is not None
        tokens.append(effects.persist.token)

    for at, token in enumerate(tokens, start=1):
        raft.receive(Persisted(token), raft.id, 100.0)
        assert raft.take().messages == (("b", AppendAnswer(Term(1), Index(at))),)


def test_an_answer_that_waited_into_another_term_is_not_sent() -> None:
    """Seed 429: it named entries that the later term's leader had had cut meanwhile."""
    raft = core("abc")
    tokens = []
    for leader, term, count in (("b", 1, 3), ("c", 2, 1)):
        sent = Append(Term(term), Index(0), Term(0), Index(0), entries(*[term] * count))
        raft.receive(sent, node(leader), 100.0)
        effects = raft.take()
        assert effects.persist is not None
        tokens.append(effects.persist.token)

    # Both were joined into one write.
    for token in tokens:
        raft.receive(Persisted(token), raft.id, 100.0)

    assert raft.take().messages == (("c", AppendAnswer(Term(2), Index(1))),)


def test_durability_reported_for_an_earlier_term_does_not_count() -> None:
    """Scenario 18: ABA; overwritten twice, the same length again."""
    raft = core("abc")
    tokens: list[Token] = []
    for term in (1, 2, 3):
        sent = Append(Term(term), Index(0), Term(0), Index(0), entries(1 if term != 2 else 2))
        if term == 3:
            sent = Append(Term(3), Index(0), Term(0), Index(0), entries(1))
        raft.receive(sent, node("b"), 100.0)
        effects = raft.take()
        assert effects.persist is not None
        tokens.append(effects.persist.token)

    # The first report names the very entry that is there now, but the disk goes on to (1, 2).
    for token, stable in zip(tokens, (0, 0, 1), strict=True):
        raft.receive(Persisted(token), raft.id, 100.0)
        assert raft.status().stable_index == stable


def test_a_moved_commit_index_alone_needs_no_sync_and_holds_nothing_up() -> None:
    raft = core("abc", 1, term=1)
    raft.receive(Append(Term(1), Index(1), Term(1), Index(1), ()), node("b"), 100.0)

    effects = raft.take()

    assert effects.persist is not None
    assert not effects.persist.must_sync
    assert effects.messages == (("b", AppendAnswer(Term(1), Index(1))),)


def test_what_is_handed_out_to_be_applied_is_bounded() -> None:
    network = Network("a", settings=RaftSettings(apply_bytes_max=100))
    network.elect("a")
    network.propose("a", *[b"x" * 50] * 4)
    member = network["a"]
    while network.persist(member):
        pass

    assert len(member.applying) == 1
    network.settle()
    assert len(member.machine) == 4


@pytest.mark.parametrize("alone", [True, False])
def test_a_leader_whose_disk_stalls_makes_room(alone: bool) -> None:
    """Scenario 23: hashicorp/raft#503; who votes alone has nobody to make room for."""
    network = Network("a" if alone else "abc")
    leader = network.elect("a")
    leader.slow = True
    network.propose("a", b"x")

    network.advance(1.5 * E)

    assert any(isinstance(note, Stalled) for note in leader.notes)
    assert (leader.status.role is Role.LEADER) == alone
    assert leader.status.stalled_since is not None
    leader.slow = False
    network.advance(E)
    assert leader.status.stalled_since is None


def test_a_stalled_leader_without_an_heir_steps_down() -> None:
    settings = RaftSettings(check_quorum=False)
    network = Network("abc", settings=settings)
    leader = network.elect("a")
    network.isolate("a")
    network.advance(E)
    leader.slow = True
    network.propose("a", b"x")

    network.advance(1.1 * E)

    assert any(isinstance(n, SteppedDown) and n.reason == "stalled" for n in leader.notes)


# Snapshots.


def snapshot(index: int, term: int, voters: str = "abc") -> SnapshotMark:
    return SnapshotMark(Index(index), Term(term), configuration(voters))


def test_a_snapshot_over_a_divergent_log_discards_it() -> None:
    """Scenario 14: hashicorp/raft#697, PySyncObj; and nothing is applied before it is restored."""
    raft = core("abc", 1, 1, 1, term=3)
    raft.receive(Snapshot(Term(3), snapshot(2, 2)), node("b"), 100.0)

    effects = raft.take()
    assert effects.persist is not None
    assert effects.persist.snapshot == snapshot(2, 2)
    assert (effects.committed, effects.messages) == ((), ())
    assert raft.status().last_index == 2
    raft.campaign(102.0)
    assert raft.status().role is Role.FOLLOWER
    raft.receive(Persisted(effects.persist.token), raft.id, 102.0)

    assert raft.status().applied == 2
    assert drain(raft) == [("b", AppendAnswer(Term(3), Index(2)))]


def test_a_snapshot_that_agrees_keeps_the_suffix() -> None:
    raft = core("abc", 1, 1, 1, term=1)

    raft.receive(Snapshot(Term(1), snapshot(2, 1)), node("b"), 100.0)

    assert raft.status().last_index == 3
    assert raft.status().commit == 2
    assert raft.take().persist is not None
    assert raft.log.pending is None


def test_an_old_snapshot_changes_nothing() -> None:
    raft = core("abc", 1, 1, term=1, commit=2, applied=2)

    raft.receive(Snapshot(Term(1), snapshot(1, 1)), node("b"), 100.0)

    assert drain(raft) == [("b", AppendAnswer(Term(1), Index(2)))]


def test_entries_applied_while_a_snapshot_arrives_are_not_lost_track_of() -> None:
    raft = core("abc", 1, 1, term=1)
    raft.receive(Append(Term(1), Index(2), Term(1), Index(2), ()), node("b"), 100.0)
    effects = raft.take()
    assert len(effects.committed) == 2

    raft.receive(Snapshot(Term(1), snapshot(9, 1, "abcd")), node("b"), 100.0)
    raft.receive(Applied(Index(1)), raft.id, 100.0)
    drain(raft)
    raft.receive(Applied(Index(2)), raft.id, 100.0)

    raft.check()
    assert (raft.status().applied, raft.status().applying) == (9, 9)
    assert raft.status().configuration == configuration("abcd")


@pytest.mark.parametrize("heard", [True, False])
def test_a_snapshot_is_sent_only_to_whom_was_heard_lately(heard: bool) -> None:
    raft = lead("abc", 1, 1)
    acknowledge(raft, "b", 3)
    acknowledge(raft, "c", 2)
    drain(raft)
    raft.compact(snapshot(3, raft.status().term), Index(4))
    for at in range(1, 2 if heard else 6):
        raft.wake(100.0 + at * E / 10)
    raft.receive(Unreachable(node("c")), raft.id, 100.0)
    raft.propose([b"x"], 100.0)

    sent = [to for to, message in raft.take().messages if isinstance(message, Snapshot)]

    assert raft.status().role is Role.LEADER
    assert sent == (["c"] if heard else [])


def test_a_failed_transfer_of_a_snapshot_is_tried_again() -> None:
    raft = lead("abc", 1, 1)
    for name in "bc":
        raft.receive(HeartbeatAnswer(raft.status().term, 0), node(name), 100.0)
    acknowledge(raft, "b", 3)
    drain(raft)
    raft.compact(snapshot(3, raft.status().term), Index(4))
    refused = AppendAnswer(raft.status().term, Index(2), True, Index(0), Term(0))
    raft.receive(refused, node("c"), 100.0)
    assert [type(m) for to, m in raft.take().messages if to == "c"] == [Snapshot]

    raft.receive(SnapshotSent(node("c"), False), raft.id, 100.0)
    assert raft.status().progress[node("c")].state == "probe"
    raft.receive(HeartbeatAnswer(raft.status().term, 0), node("c"), 100.0)

    assert [type(m) for to, m in raft.take().messages if to == "c"] == [Snapshot]


# Proposals.


def test_a_follower_forwards_once_and_never_back() -> None:
    network = Network("abc")
    network.elect("a")

    assert network.propose("b", b"x") == Forwarded(node("a"))
    network.settle()
    assert network["c"].machine == [b"x"]
    network["c"].core.receive(Propose(Term(1), (b"y",)), node("b"), network.now)

    assert network["c"].core.take().messages == ()


def test_a_proposal_without_a_leader_is_dropped() -> None:
    network = Network("abc")

    assert network.propose("a", b"x") == Dropped("no_leader", None)
    network.elect("a")
    assert network["b"].core.propose([b"x"], network.now, leader_only=True) == Dropped(
        "not_leader", node("a")
    )


def test_uncommitted_bytes_are_bounded_but_the_first_batch_fits() -> None:
    raft = lead("abc", settings=RaftSettings(uncommitted_bytes_max=10))

    proposed(raft.propose([b"x" * 100], 100.0))
    assert raft.propose([b"y"], 100.0) == Dropped("uncommitted", node("a"))
    drain(raft)
    acknowledge(raft, "b", raft.status().last_index)

    assert raft.status().uncommitted_bytes == 0
    proposed(raft.propose([b"y"], 100.0))


def test_log_time_never_falls_and_follows_the_leaders_clock() -> None:
    raft = lead("abc", 1)
    raft.propose([b"x"], 102.5)
    raft.propose([b"y"], 101.0)

    times = [entry.time for entry in raft.log.slice(Index(1), raft.status().last_index)]

    assert times == [0, 0, 2_500_000, 2_500_000]


# Hostile input.

numbers = st.integers(0, 6)
terms = numbers.map(Term)
indexes = numbers.map(Index)
hostile: st.SearchStrategy[Message] = st.one_of(
    st.builds(PreVote, terms, indexes, terms, indexes, terms),
    st.builds(PreVoteAnswer, terms, st.booleans(), indexes, terms),
    st.builds(Vote, terms, indexes, terms, indexes, terms, st.booleans()),
    st.builds(VoteAnswer, terms, st.booleans(), indexes, terms),
    st.builds(Append, terms, indexes, terms, indexes, st.just(())).filter(
        lambda m: (m.previous_index == 0) == (m.previous_term == 0)
    ),
    st.builds(AppendAnswer, terms, indexes, st.booleans(), indexes, terms),
    st.builds(Heartbeat, terms, indexes, numbers),
    st.builds(HeartbeatAnswer, terms, numbers),
    st.builds(TimeoutNow, terms),
    st.builds(TransferLeader, terms, st.sampled_from("abcz").map(NodeId)),
    st.builds(Propose, terms, st.just((b"x",))),
    st.builds(ReadIndex, terms, numbers),
)


@given(
    messages=st.lists(st.tuples(st.sampled_from("bcz"), hostile), max_size=30),
    leading=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_message_of_a_known_form_breaks_a_member(
    messages: list[tuple[str, Message]], leading: bool
) -> None:
    raft = lead("abc", 1, 1) if leading else core("abc", 1, 1)
    before = raft.status().commit

    for name, message in messages:
        raft.receive(decode_message(encode(message)), node(name), 100.0)
        raft.check()
        drain(raft)

    assert raft.status().commit >= before


@pytest.mark.parametrize(
    "message",
    [
        Append(Term(2), Index(0), Term(0), Index(0), entries(1, first=2)),
        Append(Term(2), Index(0), Term(0), Index(0), entries(3)),
        Append(Term(2), Index(1), Term(2), Index(0), entries(1, first=2)),
        Append(Term(2), Index(1), Term(0), Index(0), ()),
        Append(Term(2), Index(0), Term(0), Index(0), (Entry(Term(1), Index(1), 0, 9, b""),)),
        Append(Term(2), Index(0), Term(0), Index(0), (Entry(Term(1), Index(1), -1, 0, b""),)),
        Append(Term(2), Index(0), Term(0), Index(0), (Entry(Term(1), Index(1), 0, 1, b"x"),)),
        Snapshot(Term(2), SnapshotMark(Index(1), Term(1), Configuration())),
        Snapshot(Term(2), snapshot(1, 3)),
        Snapshot(Term(2), snapshot(0, 1)),
        Propose(Term(1), ()),
        Heartbeat(Term(-1), Index(0), 0),
    ],
)
def test_a_message_no_honest_member_sends_is_refused_at_the_border(message: Message) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_message(encode(message))


@given(st.binary(max_size=64))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        decode_message(data)
    except RemoteProtocolError:
        return


def test_looking_changes_nothing() -> None:
    raft = lead("abc", 1)
    before = raft.status()

    raft.check()

    assert raft.status() == before
    assert before.progress[node("a")].match == before.last_index
    assert raft.take().notes == ()
