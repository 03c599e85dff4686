"""Founding: one cluster, whatever is lost, repeated, cut or restarted."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.codec import encode
from microos.errors import RemoteProtocolError
from microos.raft.bootstrap import (
    RANK_DELAY,
    Accept,
    Ballot,
    Chosen,
    Cluster,
    Founding,
    FoundingMessage,
    FoundingState,
    Prepare,
    Promise,
    Reject,
    SeatsChanged,
    SeatsDiffer,
    decode_founding_message,
    solo,
    voters_for,
)
from microos.raft.entry import Configuration, SnapshotMark
from microos.settings import RaftSettings
from microos.types import Address, Index, NodeId, Term

SETTINGS = RaftSettings()
FIVE = tuple(Address(f"10.0.0.{n}", 7000) for n in range(1, 6))


def node(seat: Address) -> NodeId:
    return NodeId(f"node-{seat.host}")


class World:
    """Seats, their disks, and a network that does what it is told to each message."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.seats = FIVE[:count]
        self.disks: dict[Address, FoundingState | None] = dict.fromkeys(self.seats)
        self.up: dict[Address, Founding] = {}
        self.reachable = {seat: set(self.seats) for seat in self.seats}
        self.mail: list[tuple[Address, Address, bytes]] = []
        self.founded: dict[Address, Cluster] = {}
        self.accepted: dict[tuple[Ballot, bytes], set[Address]] = {}
        self.now = 100.0
        for seat in self.seats:
            self.start(seat)

    def start(self, seat: Address) -> None:
        self.up[seat] = Founding(
            node(seat),
            seat,
            self.seats,
            self.disks[seat],
            settings=SETTINGS,
            random=self.random,
            cluster_id=self.random.randbytes(16),
            now=self.now,
        )
        self.look(seat)

    def look(self, seat: Address) -> None:
        seen = {s: node(s) for s in self.seats if s in self.reachable[seat] and s in self.up}
        self.up[seat].seen(seen, sorted(seen.values()), self.now)

    def look_all(self) -> None:
        for seat in list(self.up):
            self.look(seat)

    def turn(self, seat: Address, *, crash: str = "") -> None:
        """Do what a core wants done, or crash before or after its write."""
        core = self.up[seat]
        core.check()
        effects = core.take()
        if crash:
            del self.up[seat]
        if crash == "before":
            return
        if effects.persist is not None:
            self.disks[seat] = effects.persist
            if effects.persist.value is not None:
                key = (effects.persist.accepted, encode(effects.persist.value))
                self.accepted.setdefault(key, set()).add(seat)
        if effects.founded is not None:
            self.founded[seat] = effects.founded
        if not crash:
            self.mail += [(seat, to, encode(message)) for to, message in effects.messages]

    def wake(self, seat: Address, *, crash: str = "") -> None:
        self.up[seat].wake(self.now)
        self.turn(seat, crash=crash)

    def deliver(self, place: int, *, keep: bool = False, crash: str = "") -> None:
        sender, to, body = self.mail[place] if keep else self.mail.pop(place)
        if to in self.up and to in self.reachable[sender]:
            self.up[to].receive(decode_founding_message(body), sender, self.now)
            self.turn(to, crash=crash)

    def chosen(self) -> set[bytes]:
        majority = len(self.seats) // 2 + 1
        return {value for (_, value), by in self.accepted.items() if len(by) >= majority}

    def settle(self, until: float) -> None:
        """Run on a perfect network until `until`, or until all have the cluster."""
        while len(self.founded) < len(self.up):
            while self.mail:
                self.deliver(0)
            due = min(core.deadline for core in self.up.values())
            if due > until:
                return
            self.now = max(self.now, due)
            for seat in list(self.up):
                self.wake(seat)

    def heal(self) -> None:
        self.reachable = {seat: set(self.seats) for seat in self.seats}
        for seat in self.seats:
            if seat not in self.up:
                self.start(seat)
        self.look_all()


def test_all_seats_of_a_calm_network_found_one_cluster_after_quiet() -> None:
    world = World(5)
    world.look_all()

    world.settle(world.now + SETTINGS.quiet)

    clusters = {encode(cluster) for cluster in world.founded.values()}
    assert len(world.founded) == 5
    assert len(clusters) == 1
    assert world.founded[FIVE[0]].voters == tuple(node(seat) for seat in FIVE)
    assert world.now == 100.0 + SETTINGS.quiet


def test_the_founding_is_the_first_snapshot_of_its_voters() -> None:
    cluster = solo(NodeId("n"), bytes(16))

    configuration = Configuration(voters=(NodeId("n"),))

    assert cluster.mark() == SnapshotMark(Index(1), Term(1), configuration)


def test_a_minority_of_seats_never_proposes() -> None:
    world = World(5)
    for seat in FIVE[2:]:
        del world.up[seat]
    world.look_all()

    assert [core.deadline for core in world.up.values()] == [inf, inf]


def test_later_seats_wait_for_those_before_them() -> None:
    world = World(3)
    world.look_all()

    waits = [world.up[seat].deadline - world.now for seat in world.seats]

    assert waits == [SETTINGS.quiet + RANK_DELAY * rank for rank in range(3)]


def test_the_quiet_begins_when_a_majority_comes_in_sight() -> None:
    world = World(3)
    first = world.seats[0]
    world.reachable[first] = {first}
    world.look(first)
    world.now += 60.0
    assert world.up[first].deadline == inf

    world.reachable[first] = set(world.seats)
    world.look(first)

    assert world.up[first].deadline == world.now + SETTINGS.quiet


@pytest.mark.criterion("SYNC-15")
def test_a_node_that_hears_of_a_cluster_founds_none() -> None:
    world = World(3)
    heard = Cluster(b"x" * 16, 1)
    core = world.up[world.seats[0]]

    core.heard(heard, world.now)

    assert core.take().founded == heard
    assert core.take().founded is None
    assert core.deadline == inf


def test_an_accepted_founding_that_gossip_confirms_brings_its_voters() -> None:
    cluster = Cluster(b"x" * 16, 1, (NodeId("a"),), 7)
    state = FoundingState(FIVE[:3], Ballot(1, 0), Ballot(1, 0), cluster)
    core = founding(FIVE[1], state)

    core.heard(Cluster(cluster.id, 1), 0.0)

    assert core.take().founded == cluster


def founding(seat: Address | None, state: FoundingState | None = None) -> Founding:
    return Founding(
        NodeId("me"),
        seat,
        FIVE[:3],
        state,
        settings=SETTINGS,
        random=random.Random(1),
        cluster_id=b"i" * 16,
        now=0.0,
    )


def test_what_was_accepted_is_proposed_again_by_the_next() -> None:
    """Lamport, "Paxos Made Simple", §2.2: P2c."""
    world = World(3)
    world.look_all()
    first, second, _third = world.seats
    world.now += SETTINGS.quiet
    world.wake(first)
    while not any(state and state.value for state in world.disks.values()):
        world.deliver(0)
    value = world.disks[first]
    assert value is not None
    world.deliver(next(n for n, (_, to, _b) in enumerate(world.mail) if to == second))
    world.mail.clear()
    del world.up[first]
    world.look_all()

    world.settle(world.now + 20.0)

    assert {cluster.id for cluster in world.founded.values()} == {value.value and value.value.id}


def test_a_promise_is_durable_before_it_is_told() -> None:
    world = World(3)
    core = world.up[world.seats[1]]

    core.receive(Prepare(Ballot(3, 0), world.seats), world.seats[0], world.now)
    effects = core.take()

    assert effects.persist is not None
    assert effects.persist.promised == Ballot(3, 0)
    assert [type(message) for _, message in effects.messages] == [Promise]


def test_a_lower_ballot_is_rejected_with_what_was_promised() -> None:
    world = World(3)
    core = world.up[world.seats[1]]
    core.receive(Prepare(Ballot(3, 0), world.seats), world.seats[0], world.now)
    core.take()

    core.receive(Prepare(Ballot(2, 2), world.seats), world.seats[2], world.now)

    ((to, answer),) = core.take().messages
    assert to == world.seats[2]
    assert isinstance(answer, Reject)
    assert answer.promised == Ballot(3, 0)


def test_seats_with_different_lists_found_nothing_together() -> None:
    core = founding(FIVE[0])

    core.receive(Prepare(Ballot(1, 1), FIVE), FIVE[1], 0.0)
    core.receive(Accept(Ballot(1, 1), 99, solo(NodeId("a"), bytes(16))), FIVE[1], 0.0)

    effects = core.take()
    assert effects.messages == ()
    assert effects.persist is None
    assert effects.notes == (SeatsDiffer(FIVE[1], FIVE, FIVE[:3]),)


def test_a_seat_that_accepted_under_another_list_proposes_no_more() -> None:
    cluster = solo(NodeId("a"), bytes(16))

    core = founding(FIVE[0], FoundingState(FIVE, Ballot(1, 0), Ballot(1, 0), cluster))
    core.seen({seat: node(seat) for seat in FIVE[:3]}, [], 0.0)

    assert core.deadline == inf
    assert core.take().notes == (SeatsChanged(FIVE, FIVE[:3]),)


def test_who_has_no_seat_listens() -> None:
    core = founding(None)
    core.seen({seat: node(seat) for seat in FIVE[:3]}, [], 0.0)
    assert core.deadline == inf
    cluster = solo(NodeId("a"), bytes(16))

    core.receive(Chosen(cluster), FIVE[0], 1.0)

    assert core.take().founded == cluster


def test_a_single_seat_founds_alone() -> None:
    world = World(1)
    world.look_all()

    world.settle(world.now + SETTINGS.quiet)

    assert world.founded[FIVE[0]].voters == (node(FIVE[0]),)


def test_voters_are_odd_and_no_more_than_there_are() -> None:
    assert [voters_for(n) for n in range(1, 8)] == [1, 1, 3, 3, 5, 5, 5]
    assert [voters_for(n, 3) for n in range(1, 6)] == [1, 1, 3, 3, 3]
    assert voters_for(9, 1) == 1


_unsound = [
    Chosen(Cluster(bytes(16), 1, ())),
    Chosen(Cluster(bytes(16), 1, (NodeId("b"), NodeId("a"), NodeId("c")))),
    Chosen(Cluster(bytes(16), 1, (NodeId("a"), NodeId("b")))),
    Accept(Ballot(9, 2), 0, solo(NodeId("a"), bytes(16))),
    Prepare(Ballot(9, 99), FIVE[:3]),
    Prepare(Ballot(9, 2), FIVE[:3]),
]


@pytest.mark.parametrize("message", _unsound)
def test_nonsense_from_the_wire_changes_nothing(message: FoundingMessage) -> None:
    core = founding(FIVE[0])

    core.receive(message, FIVE[1], 0.0)

    effects = core.take()
    assert (effects.persist, effects.messages, effects.founded) == (None, (), None)


@pytest.mark.parametrize("body", [b"", b"\xc1", encode([1, [-1, 0], []]), encode([6, [b"x", 1]])])
def test_what_is_no_founding_message_is_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_founding_message(body)


@pytest.mark.prop
@pytest.mark.criterion("SYNC-15")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from([3, 5]), st.integers(0, 2**32), st.integers(100, 400))
def test_any_schedule_chooses_at_most_one_cluster_and_a_healed_one_exactly_one(
    count: int, seed: int, steps: int
) -> None:
    world = World(count, seed)
    chance = world.random
    for _ in range(steps):
        world.now += chance.choice([0.0, 0.01, 0.3, 1.5])
        seat = chance.choice(world.seats)
        crash = chance.choice(["", "", "", "", "", "", "before", "after"])
        match chance.randrange(10):
            case 0:  # Cut one seat off in one direction or both, or join it again.
                world.reachable[seat] = set(chance.sample(world.seats, chance.randrange(count + 1)))
                world.reachable[seat].add(seat)
            case 1 | 2 | 3 if seat in world.up:
                world.look(seat)
                world.wake(seat, crash=crash)
            case 1 | 2 | 3:
                world.start(seat)
            case 4 if world.mail:
                world.mail.pop(chance.randrange(len(world.mail)))
            case 5 if world.mail:
                world.deliver(chance.randrange(len(world.mail)), keep=True)
            case _ if world.mail:
                world.deliver(chance.randrange(len(world.mail)), crash=crash)
        assert len(world.chosen()) <= 1
        assert {encode(cluster) for cluster in world.founded.values()} <= world.chosen()

    world.heal()
    for seat in list(world.founded):
        world.up[seat].heard(world.founded[seat], world.now)
        world.turn(seat)
    world.settle(world.now + 120.0)

    assert len(world.founded) == count
    assert {encode(cluster) for cluster in world.founded.values()} == world.chosen()
    assert len(world.chosen()) == 1
