"""One core, told messages by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.errors import LimitError, RejectedError
from microos.gossip import notes
from microos.gossip.core import Gossip
from microos.gossip.members import Known, Me, Member, Remembered, State
from microos.gossip.messages import (
    Ack,
    Alive,
    DatagramMessage,
    Dead,
    DeadNotice,
    Dialled,
    Evidence,
    Left,
    LinkLost,
    Nack,
    NackReason,
    Ping,
    PingReq,
    PushPull,
    Record,
    Refuse,
    Sender,
    Suspect,
    UserState,
    decode_datagram,
)
from microos.gossip.outbox import Effects
from microos.settings import GossipSettings
from microos.types import Address, BootId, Incarnation, NodeId

ME = Me(NodeId("me"), BootId(1), "me", Address("10.0.0.1", 1), {})
WALL = 1000


def core(remembered: Remembered | None = None, wall_ms: int = WALL) -> Gossip:
    return Gossip(
        ME,
        settings=GossipSettings(),
        random=random.Random(1),
        now=0.0,
        wall_ms=wall_ms,
        remembered=remembered,
    )


def address(node: str) -> Address:
    return Address("10.0.0.2", ord(node[0]))


def sender(node: str, *, boot: int | None = None, link: bool = False) -> Sender:
    return Sender(BootId(boot or ord(node[0])), address(node), NodeId(node) if link else None)


def alive(
    node: str, incarnation: int = 10, *, boot: int | None = None, port: int | None = None
) -> Alive:
    return Alive(
        NodeId(node),
        BootId(boot or ord(node[0])),
        Incarnation(incarnation),
        node,
        "10.0.0.2",
        port or ord(node[0]),
        {},
        0,
        0,
        b"",
    )


def suspect(node: str, incarnation: int, by: str) -> Suspect:
    return Suspect(NodeId(node), Incarnation(incarnation), NodeId(by), Evidence.SILENCE)


def dead(node: str, incarnation: int) -> Dead:
    return Dead(NodeId(node), Incarnation(incarnation), (), Evidence.SILENCE, 0.0)


def left(node: str, incarnation: int) -> Left:
    return Left(NodeId(node), Incarnation(incarnation), 0.0)


def user_state(node: str, kind: int, version: int) -> UserState:
    return UserState(BootId(ord(node)), kind, version, bytes([version]))


def knowing(*others: str) -> Gossip:
    node = core()
    for other in others:
        node.receive(alive(other), sender(other), 0.0)
    run(node, 0.01)
    return node


def run(node: Gossip, until: float) -> list[Effects]:
    """Wake on time until then; return the effects, notes and all."""
    found = [node.take()]
    while node.deadline <= until:
        node.wake(node.deadline)
        node.check()
        found.append(node.take())
    return found


def said(effects: Effects, to: str | None = None) -> list[DatagramMessage]:
    return [
        message
        for where, payload in effects.datagrams
        if to is None or where == address(to)
        for message in decode_datagram(payload)[0]
    ]


def state(node: Gossip, other: str) -> Member:
    return next(member for member in node.members() if member.node == other)


def test_an_accusation_is_refuted_at_once_to_the_accuser() -> None:
    node = knowing("a")

    node.receive(suspect("me", WALL, by="a"), sender("a"), 0.1)
    effects = node.take()

    answer = said(effects, to="a")[0]
    assert isinstance(answer, Alive)
    assert answer.incarnation == WALL + 1
    assert notes.Accused(NodeId("a"), Incarnation(WALL + 1)) in effects.notes
    assert node.score == 1


def test_an_old_accusation_changes_nothing() -> None:
    node = knowing("a")

    node.receive(suspect("me", WALL - 1, by="a"), sender("a"), 0.1)

    assert state(node, "me").incarnation == WALL
    assert node.score == 0


def test_a_dead_notice_is_refuted() -> None:
    node = knowing("a")

    node.receive(DeadNotice(Incarnation(WALL + 7), 2), sender("a"), 0.1)

    assert state(node, "me").incarnation == WALL + 8


def test_a_ping_is_acknowledged_with_the_digest() -> None:
    node = knowing("a")

    node.receive(Ping(5, ME.boot, Incarnation(1), 0, 0, 0, 0), sender("a"), 0.1)

    [ack] = [m for m in said(node.take(), to="a") if isinstance(m, Ack)]
    assert (ack.seq, ack.count) == (5, 2)


def test_a_ping_meant_for_another_process_is_refused_with_our_news() -> None:
    node = knowing("a")

    node.receive(Ping(5, BootId(99), Incarnation(1), 0, 0, 0, 0), sender("a"), 0.1)

    nack, news = said(node.take(), to="a")[:2]
    assert nack == Nack(5, NackReason.NOT_ME)
    assert isinstance(news, Alive)
    assert news.node == ME.node


def probe_of(node: Gossip, other: str, until: float) -> tuple[Ping, float]:
    """Wake until the next Ping to `other`, all else being answered; return it with its time."""
    while node.deadline <= until:
        now = node.deadline
        node.wake(now)
        for where, payload in node.take().datagrams:
            for message in decode_datagram(payload)[0]:
                if isinstance(message, Ping) and where == address(other):
                    return message, now
                if isinstance(message, Ping):
                    ack = Ack(message.seq, Incarnation(1), 0, 0, 0, 0)
                    node.receive(ack, sender(chr(where.port)), now)
    raise AssertionError("no probe")


def test_silence_makes_a_suspect_and_then_a_death() -> None:
    node = knowing("a")
    probe_of(node, "a", 2.0)

    effects = run(node, 8.0)

    told = [note for each in effects for note in each.notes]
    assert [type(n) for n in told if isinstance(n, notes.Suspected | notes.Died)] == [
        notes.Suspected,
        notes.Died,
    ]
    assert state(node, "a").state is State.DEAD


def test_only_the_process_probed_can_vouch_for_itself() -> None:
    node = knowing("a", "b")
    ping, now = probe_of(node, "a", 4.0)

    node.receive(Ack(ping.seq, Incarnation(1), 0, 0, 0, 0), sender("b"), now + 0.1)
    run(node, now + 1.1)

    assert state(node, "a").state is State.SUSPECT


def test_a_relay_that_was_asked_can_vouch() -> None:
    node = knowing("a", "b")
    ping, now = probe_of(node, "a", 4.0)
    asked = [m for e in run(node, now + 0.55) for m in said(e, to="b") if isinstance(m, PingReq)]

    node.receive(Ack(ping.seq, Incarnation(1), 0, 0, 0, 0), sender("b"), now + 0.6)
    run(node, now + 1.05)

    assert [request.target for request in asked] == [BootId(ord("a"))]
    assert state(node, "a").state is State.ALIVE


def test_a_relay_probes_and_passes_the_answer_on() -> None:
    node = knowing("a", "b")

    node.receive(PingReq(77, BootId(ord("b")), "10.0.0.2", ord("b"), 500), sender("a"), 0.02)
    [ping] = [m for m in said(node.take(), to="b") if isinstance(m, Ping)]
    node.receive(Ack(ping.seq, Incarnation(1), 0, 0, 0, 0), sender("b"), 0.03)

    assert [m.seq for m in said(node.take(), to="a") if isinstance(m, Ack)] == [77]


def test_a_relay_that_hears_nothing_says_so_in_time() -> None:
    node = knowing("a", "b")

    node.receive(PingReq(77, BootId(ord("b")), "10.0.0.2", ord("b"), 500), sender("a"), 0.02)
    told = [m for effects in run(node, 0.43) for m in said(effects, to="a")]

    assert Nack(77, NackReason.SILENCE) in told


def test_a_probe_under_way_cannot_accuse_the_successor() -> None:
    node = knowing("a")
    _, now = probe_of(node, "a", 2.0)

    node.receive(alive("a", 20, boot=500), sender("a", boot=500), now + 0.1)
    told = [n for effects in run(node, now + 0.95) for n in effects.notes]

    assert notes.Restarted(NodeId("a"), BootId(ord("a")), BootId(500)) in told
    assert state(node, "a").state is State.ALIVE


def test_a_moved_member_is_believed_at_once() -> None:
    node = knowing("a")

    node.receive(alive("a", 11, port=9), sender("a"), 0.1)

    moved = notes.Moved(NodeId("a"), address("a"), Address("10.0.0.2", 9))
    assert moved in node.take().notes
    assert state(node, "a").address.port == 9


def refuse(node: Gossip, other: str, now: float) -> Effects:
    node.receive(Dialled(address(other), None, None, "refused"), None, now)
    node.check()
    return node.take()


def test_two_refusals_in_a_pair_are_death_within_a_quarter_second() -> None:
    node = knowing("a")

    node.receive(LinkLost(NodeId("a"), BootId(ord("a")), False), None, 0.1)
    assert [dial.purpose for dial in node.take().dials] == ["evidence"]
    refuse(node, "a", 0.101)
    assert [dial.purpose for e in run(node, 0.152) for dial in e.dials] == ["evidence"]
    refuse(node, "a", 0.153)
    told = [note for effects in run(node, 0.36) for note in effects.notes]

    assert notes.Died(NodeId("a"), BootId(ord("a")), True) in told


def test_one_accuser_of_three_nodes_cannot_prove_a_death() -> None:
    node = knowing("a", "b")

    for now in (0.1, 0.16, 0.22):
        refuse(node, "a", now)
    run(node, 0.9)

    assert state(node, "a").state is State.SUSPECT


def test_a_clean_goodbye_is_no_evidence() -> None:
    node = knowing("a")

    node.receive(LinkLost(NodeId("a"), BootId(ord("a")), True), None, 0.1)

    assert node.take().dials == ()


def test_a_dial_that_answers_closes_the_case() -> None:
    node = knowing("a")
    refuse(node, "a", 0.1)

    node.receive(Dialled(address("a"), NodeId("a"), BootId(ord("a")), "ok"), None, 0.15)
    refuse(node, "a", 0.2)

    assert state(node, "a").state is State.ALIVE


def test_a_join_is_answered_with_the_whole_table() -> None:
    node = knowing("a", "b")

    node.receive(PushPull(0, True, True, [alive("c")]), sender("c", link=True), 0.1)

    [answer] = [m for to, m in node.take().streams if isinstance(m, PushPull) and to == "c"]
    assert not answer.wants
    assert {r.node for r in answer.records if isinstance(r, Alive)} == {"me", "a", "b", "c"}


def test_a_name_in_use_is_refused() -> None:
    node = knowing("a")
    twin = Alive(NodeId("x"), BootId(9), Incarnation(5), "a", "10.0.0.2", 9, {}, 0, 0, b"")

    node.receive(PushPull(0, True, True, [twin]), sender("x", boot=9, link=True), 0.1)

    effects = node.take()
    assert (NodeId("x"), Refuse("name")) in effects.streams
    assert [member.node for member in node.members()] == ["a", "me"]


def test_nothing_is_merged_from_another_cluster() -> None:
    node = knowing("a")
    node.set_cluster(5, 0.1)

    node.receive(PushPull(6, True, True, [alive("c")]), sender("c", link=True), 0.1)
    ping = Ping(1, ME.boot, Incarnation(1), 0, 6, 0, 0)
    node.receive_batch([alive("d"), ping], sender("d"), 0.1)

    effects = node.take()
    assert (NodeId("c"), Refuse("cluster")) in effects.streams
    assert [member.node for member in node.members()] == ["a", "me"]
    assert len([n for n in effects.notes if isinstance(n, notes.ClusterMismatch)]) == 2


def test_a_death_told_in_an_exchange_is_looked_at_first() -> None:
    node = knowing("a", "b")

    records: list[Record] = [alive("a"), dead("b", 10)]
    node.receive(PushPull(0, False, False, records), sender("a", link=True), 0.1)
    assert any(isinstance(m, Ping) for m in said(node.take(), to="b"))
    assert state(node, "b").state is State.SUSPECT
    run(node, 1.2)

    assert state(node, "b").state is State.DEAD


def test_several_deaths_told_in_an_exchange_are_passed_on_first() -> None:
    node = knowing("a", "b", "c")

    records: list[Record] = [alive("a"), dead("b", 10), dead("c", 10)]
    node.receive(PushPull(0, False, False, records), sender("a", link=True), 0.1)
    effects = node.take()

    for other in "bc":
        assert DeadNotice(Incarnation(10), 2) in said(effects, to=other)
        assert state(node, other).state is State.ALIVE


def test_the_dead_are_told_once_a_second_and_not_believed() -> None:
    node = knowing("a", "b")
    node.receive(dead("a", 10), sender("b"), 0.1)
    node.take()

    for now in (0.2, 0.3):
        node.receive_batch([suspect("b", 10, by="a")], sender("a"), now)
    told = [m for m in said(node.take(), to="a") if isinstance(m, DeadNotice)]

    assert told == [DeadNotice(Incarnation(10), 2)]
    assert state(node, "b").state is State.ALIVE
    node.receive(alive("a", 11), sender("a"), 0.4)
    assert state(node, "a").state is State.ALIVE


def test_who_leaves_accuses_nobody() -> None:
    node = knowing("a", "b")

    node.receive(Left(NodeId("a"), Incarnation(11), 0.0), sender("b"), 0.1)
    node.receive(suspect("b", 10, by="a"), sender("b"), 0.2)

    assert state(node, "a").state is State.LEFT
    assert state(node, "b").state is State.ALIVE


def test_a_leave_is_done_when_it_is_known_and_may_be_undone() -> None:
    node = knowing("a")

    node.leave(0.1)
    effects = node.take()
    [ping] = [m for m in said(effects, to="a") if isinstance(m, Ping)]
    node.receive(Ack(ping.seq, Incarnation(1), 0, 0, 0, 0), sender("a"), 0.11)

    assert effects.persist is not None
    assert effects.persist.members == ()
    assert notes.LeaveDone(1) in node.take().notes
    node.join([address("a")], 0.2)
    assert state(node, "me").state is State.ALIVE
    assert state(node, "me").incarnation == WALL + 2
    node.check()


def test_a_leave_that_nobody_hears_ends_by_time() -> None:
    node = knowing("a")

    node.leave(0.1)
    told = [n for effects in run(node, 1.2) for n in effects.notes]

    assert notes.LeaveDone(0) in told


def test_who_was_away_judges_nobody() -> None:
    node = knowing("a", "b")
    probe_of(node, "a", 4.0)
    node.receive(suspect("b", 10, by="a"), sender("a"), 4.0)
    node.take()

    node.wake(60.0)
    effects = node.take()

    assert [type(n) for n in effects.notes] == [notes.Stalled]
    assert {member.state for member in node.members()} == {State.ALIVE, State.SUSPECT}
    assert state(node, "b").state is State.SUSPECT


def test_incarnations_are_reserved_before_they_are_used() -> None:
    node = core()

    first = node.take().persist
    assert first is not None
    assert first.reserved == WALL + 1024
    again = core(first, wall_ms=5)

    assert state(again, "me").incarnation == WALL + 1025


def test_the_reserve_is_renewed_long_before_its_end() -> None:
    node = knowing("a")

    node.receive(DeadNotice(Incarnation(WALL + 600), 2), sender("a"), 0.1)

    persist = node.take().persist
    assert persist is not None
    assert persist.reserved == WALL + 601 + 1024


def test_those_of_a_former_life_are_tried_when_no_seed_answers() -> None:
    known = Known(NodeId("a"), "a", address("a"), State.DEAD)
    node = core(Remembered(Incarnation(5), (known,)))

    first, *later = run(node, 1.5)

    assert first.persist is not None
    assert first.persist.members == (known,)
    assert [dial.address for effects in later for dial in effects.dials] == [address("a")]


def test_a_forgotten_member_has_left() -> None:
    node = knowing("a", "b")
    node.receive(dead("a", 10), sender("b"), 0.1)

    node.forget(NodeId("a"), 0.2)

    assert state(node, "a").state is State.LEFT
    with pytest.raises(RejectedError, match="expected another known member"):
        node.forget(NodeId("nobody"), 0.3)


def test_tombstones_end() -> None:
    node = Gossip(
        ME,
        settings=GossipSettings(reconnect_timeout=4.0),
        random=random.Random(1),
        now=0.0,
        wall_ms=WALL,
    )
    node.receive(alive("a"), sender("a"), 0.0)
    node.receive(dead("a", 10), sender("a"), 0.1)

    told = [n for effects in run(node, 4.2) for n in effects.notes]

    assert notes.Forgotten(NodeId("a")) in told
    assert [member.node for member in node.members()] == ["me"]


def test_too_much_is_a_limit_error() -> None:
    node = core()

    with pytest.raises(LimitError):
        node.announce(b"x" * (1024 * 1024 + 1), 0.0)
    with pytest.raises(LimitError):
        node.set_state(1, b"x" * 201, 0.0)
    with pytest.raises(LimitError):
        node.set_state(64, b"", 0.0)


def test_members_are_the_same_object_until_something_changes() -> None:
    node = knowing("a")
    before = node.members()

    node.receive(alive("a"), sender("a"), 0.1)
    assert node.members() is before
    node.receive(UserState(BootId(ord("a")), 3, 1, b"x"), sender("a"), 0.1)

    assert node.members() is not before
    assert state(node, "a").states == ((3, b"x"),)


NEWS = st.one_of(
    st.builds(alive, st.sampled_from("abc"), st.integers(1, 5)),
    st.builds(suspect, st.sampled_from("abc"), st.integers(1, 5), st.sampled_from("xyz")),
    st.builds(dead, st.sampled_from("abc"), st.integers(1, 5)),
    st.builds(left, st.sampled_from("abc"), st.integers(1, 5)),
    st.builds(user_state, st.sampled_from("xyz"), st.integers(0, 2), st.integers(1, 5)),
)


@pytest.mark.prop
@settings(max_examples=100, deadline=None)
@given(news=st.lists(NEWS, max_size=14), chance=st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_of_news_ends_in_the_same_table(
    news: list[DatagramMessage], chance: random.Random
) -> None:
    tables = []
    shuffled = news + news[: len(news) // 2]
    chance.shuffle(shuffled)

    for sequence in (news, shuffled):
        node = core()
        for other in "xyzabc":
            node.receive(alive(other, 0), sender(other), 0.0)
        for message in sequence:
            node.receive(message, sender("x"), 0.0)
            node.check()
        tables.append([(m.node, m.state, m.incarnation, m.states) for m in node.members()])

    assert tables[0] == tables[1]
