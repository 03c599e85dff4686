"""Ring epochs: chains of at most two rows, each slot on its own way, proof before loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos import limits
from microos.codec import encode
from microos.errors import RemoteProtocolError
from microos.ring.epochs import (
    Command,
    Denied,
    Gone,
    Pause,
    Proof,
    Propose,
    Resume,
    RingState,
    Settle,
    apply,
    decode_command,
    frozen,
    thawed,
)
from microos.ring.notes import (
    CopiesLost,
    EpochProposed,
    OwnersGone,
    RingPaused,
    RingResumed,
    SlotsSettled,
)
from microos.ring.placement import Scores, digest, table
from microos.ring.ring import SLOTS, Member, Owner, Row, slot_set, slots_in
from microos.types import BootId, Incarnation, NodeId, Revision
from tests.ring.log import Log, members, owner, proposal


def rows(names: str) -> list[Row]:
    of = members(names)
    return [tuple(of[index].owner for index in row) for row in table(of, 3)]


# Proposals.


def test_the_first_epoch_is_settled_at_once() -> None:
    log = Log().propose("abcd")

    assert list(log.state.current) == rows("abcd")
    assert log.state.joint() == ()
    assert log.state.positions == (1,) * SLOTS
    assert log.notes == [EpochProposed(1, Revision(1), 4, SLOTS, 0)]


def test_a_change_makes_joint_the_slots_whose_owners_it_changes() -> None:
    log = Log().propose("abcd").propose("abcde")

    for slot, (old, new) in enumerate(zip(rows("abcd"), rows("abcde"), strict=True)):
        assert log.state.chain(slot) == ((old,) if old == new else (old, new))
        assert log.state.positions[slot] == (1 if old == new else 2)
    joint = len(log.state.joint())
    assert 0 < joint < SLOTS
    assert log.notes[-1] == EpochProposed(2, Revision(2), 5, joint, joint)


def test_another_order_of_the_same_owners_is_a_change() -> None:
    log = Log().propose("abc")
    heavy = (Member(NodeId("a"), BootId(1), weight=9), *members("abc")[1:])
    log.done(Propose(2, heavy, (), digest(heavy, 3)))

    joint = log.state.joint()
    assert joint
    assert all({*log.state.current[slot]} == {*log.state.next[slot]} for slot in joint)


def test_a_restart_changes_owners_and_not_the_table() -> None:
    log = Log().propose("abcd").propose("ab2cd")

    for slot, row in enumerate(rows("abcd")):
        renamed = tuple(owner("b", 2) if one == owner("b") else one for one in row)
        assert log.state.chain(slot) == ((row,) if renamed == row else (row, renamed))
    assert log.state.gone == {owner("b"): Proof.BOOT}
    assert log.notes[-1] == OwnersGone(Revision(2), (owner("b"),))


def test_a_newer_row_takes_the_place_of_next() -> None:
    log = Log().propose("abc").propose("abcd").propose("abce")

    for slot, (old, new) in enumerate(zip(rows("abc"), rows("abce"), strict=True)):
        assert log.state.chain(slot) == ((old,) if old == new else (old, new))


def test_going_back_settles_a_joint_slot_again() -> None:
    log = Log().propose("abc").propose("abcd")
    joint = log.state.joint()

    log.propose("abc")

    assert log.state.joint() == ()
    assert list(log.state.current) == rows("abc")
    assert all(log.state.positions[slot] == (3 if slot in joint else 1) for slot in range(SLOTS))


def test_slots_in_change_pin_no_epoch_however_many_follow() -> None:
    log = Log().propose("abc")
    for number in range(30):
        log.propose("abcde" if number % 2 else "bcdef")

    assert all(row == old for row, old in zip(log.state.current, rows("abc"), strict=True))
    assert len(frozen(log.state)) < 32 * limits.KIB


@pytest.mark.parametrize(
    ("command", "error", "reason"),
    [
        (proposal(3, "abc"), "ConflictError", "version"),
        (proposal(1, "abc"), "ConflictError", "version"),
        (Propose(2, ()), "LimitError", "count"),
        (proposal(2, "acb"), "RejectedError", "bad_request"),
        (proposal(2, "aab"), "RejectedError", "bad_request"),
        (proposal(2, "a0b"), "RejectedError", "bad_request"),
        (Propose(2, members("abc"), (), 5), "RejectedError", "bad_request"),
        (proposal(2, "abc", gone=(owner("a"),)), "RejectedError", "bad_request"),
        (Propose(2, (Member(NodeId("a"), BootId(1), 17),)), "RejectedError", "bad_request"),
        (Propose(2, (Member(NodeId("a"), BootId(1), 0),)), "RejectedError", "bad_request"),
        (Propose(2, (Member(NodeId(""), BootId(1)),)), "RejectedError", "bad_request"),
        (
            Propose(2, (Member(NodeId("a"), BootId(1), 1, "ø" * 128),)),
            "RejectedError",
            "bad_request",
        ),
        (Settle(b"\xff" * 127, Revision(1)), "RejectedError", "bad_request"),
        (Settle(b"\xff" * 128, Revision(1), b"\xff"), "RejectedError", "bad_request"),
        (Pause(""), "RejectedError", "bad_request"),
        (Pause("x" * 256), "RejectedError", "bad_request"),
    ],
)
def test_what_is_not_acceptable_is_refused_and_changes_nothing(
    command: Command, error: str, reason: str
) -> None:
    log = Log().propose("abcd")

    denied = log.denied(command)

    assert (denied.error, denied.reason) == (error, reason)


def test_more_members_than_the_limit_are_refused() -> None:
    count = limits.RING_MEMBERS_MAX + 1
    many = tuple(Member(NodeId(f"{number:04}"), BootId(1)) for number in range(count))

    denied = Log().denied(Propose(1, many, (), digest(many, 3)))

    assert denied.error == "LimitError"


# Proof of death.


def test_an_older_boot_proves_nothing_against_a_newer_one() -> None:
    log = Log().propose("abc").propose("a2bc")
    log.settle()

    denied = log.denied(proposal(3, "abc"))

    assert denied.error == "ConflictError"
    assert owner("a", 2) not in log.state.gone


def test_nor_once_the_newer_one_is_an_owner_and_no_member() -> None:
    log = Log().propose("a2bc").propose("bc")

    assert log.denied(proposal(3, "abc")).error == "ConflictError"
    log.propose("a3bc")

    assert log.state.gone == {owner("a", 2): Proof.BOOT}


def test_who_has_left_is_gone_and_forgotten_once_nothing_refers_to_it() -> None:
    log = Log().propose("abcd").propose("abc", gone=(owner("d"), owner("z")))
    assert log.state.gone == {owner("d"): Proof.LEFT}

    log.settle()

    assert log.state.gone == {}
    assert list(log.state.newest) == ["a", "b", "c"]


def test_an_operators_word_counts_for_owners_alone() -> None:
    log = Log().propose("abc")

    done = log.done(Gone((owner("b"), owner("b", 2), owner("z"))))
    again = log.done(Gone((owner("b"),)))

    assert (done.count, again.count) == (1, 0)
    assert log.state.gone == {owner("b"): Proof.WORD}
    assert log.notes[-1] == OwnersGone(Revision(2), (owner("b"),))
    assert log.state.revision == 2
    assert log.state.positions == (1,) * SLOTS


def test_who_is_gone_is_no_member_of_the_next_epoch() -> None:
    log = Log().propose("abc")
    log.done(Gone((owner("b"),)))

    assert log.denied(proposal(2, "abcd")).error == "ConflictError"
    log.propose("ab2c")

    assert log.state.gone == {owner("b"): Proof.BOOT}


# Settling.


def test_settling_makes_next_current() -> None:
    log = Log().propose("abcd").propose("abcde")
    some = log.state.joint()[:3]

    assert log.settle(some) == 3

    assert all(log.state.chain(slot) == (rows("abcde")[slot],) for slot in some)
    assert all(log.state.positions[slot] == 3 for slot in some)
    left = len(log.state.joint())
    assert left and log.notes[-1] == SlotsSettled(Revision(3), 3, left)


def test_slots_not_joint_or_changed_meanwhile_stay() -> None:
    log = Log().propose("abcd").propose("abcde").propose("abcdef")
    changed = [slot for slot in log.state.joint() if log.state.positions[slot] == 3]
    assert changed and len(changed) < len(log.state.joint())

    done = log.done(Settle(b"\xff" * 128, Revision(2)))

    assert done.count > 0
    assert list(log.state.joint()) == changed
    assert log.done(Settle(b"\xff" * 128, Revision(2))).count == 0
    assert log.state.revision == 4


def test_a_lossy_settle_names_what_is_lost() -> None:
    log = Log().propose("abc").propose("c", gone=(owner("a"), owner("b")))
    slot = log.state.joint()[0]

    log.settle([slot], lossy=[slot, 1023])

    assert log.notes[-1] == CopiesLost(Revision(3), (slot,), (owner("a"), owner("b")))


# Pausing.


def test_a_paused_ring_settles_and_takes_words_and_proposes_nothing() -> None:
    log = Log().propose("abcd").propose("abcde")
    log.done(Pause("operator"))
    revision = log.state.revision

    assert log.done(Pause("operator")).revision == revision
    assert log.denied(proposal(3, "abc")).error == "ConflictError"
    assert log.settle() > 0
    log.done(Resume())
    log.done(Resume())
    log.propose("abc")

    told = [note for note in log.notes if isinstance(note, RingPaused | RingResumed)]
    assert told == [RingPaused("operator"), RingResumed()]


# All of it, in any order.


@dataclass
class Model:
    """What the rules say, one slot at a time."""

    number: int = 0
    boots: dict[NodeId, int] = field(default_factory=dict)
    current: dict[int, Row] = field(default_factory=dict)
    next: dict[int, Row] = field(default_factory=dict)

    def propose(self, command: Propose) -> None:
        self.number = command.number
        for slot, indexes in enumerate(table(command.members, 3)):
            new = tuple(command.members[index].owner for index in indexes)
            if slot not in self.current:
                self.current[slot] = new
            elif new == self.current[slot]:
                self.next.pop(slot, None)
            else:
                self.next[slot] = new

    def settle(self, slots: list[int]) -> None:
        for slot in slots:
            self.current[slot] = self.next.pop(slot)


groups = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(1, 3)),
    min_size=1,
    max_size=5,
    unique_by=lambda one: one[0],
).map(lambda found: "".join(f"{name}{boot}" for name, boot in sorted(found)))
owners = st.builds(owner, st.sampled_from("abcdef"), st.integers(1, 3))
some_slots = st.one_of(
    st.just(slot_set(range(SLOTS))), st.sets(st.integers(0, 1023), max_size=20).map(slot_set)
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("propose"), groups, st.lists(owners, max_size=2).map(tuple)),
        st.tuples(st.just("propose"), groups, st.just(())),
        st.tuples(st.just("settle"), some_slots, st.integers(0, 2)),
        st.tuples(st.just("gone"), st.lists(owners, max_size=2).map(tuple), st.none()),
        st.tuples(st.just("pause"), st.booleans(), st.none()),
    ),
    max_size=14,
)


def command_of(step: tuple[str, object, object], state: RingState) -> Command:
    match step:
        case ("propose", str(names), tuple(gone)):
            return proposal(state.number + 1, names, gone)
        case ("settle", bytes(slots), int(age)):
            return Settle(slots, Revision(state.revision - age))
        case ("gone", tuple(gone), None):
            return Gone(gone)
        case ("pause", bool(on), None):
            return Pause("operator") if on else Resume()
    raise AssertionError(step)


@given(steps)
@settings(max_examples=60, deadline=None)
def test_every_slot_follows_the_rules_whatever_comes(
    steps: list[tuple[str, object, object]],
) -> None:
    log, twin, model = Log(), RingState(), Model()
    seen = {frozen(log.state): log.state}
    for step in steps:
        before = log.state
        command = command_of(step, before)
        assert decode_command(encode(command)) == command

        applied = log.do(command)
        twin = apply(twin, decode_command(encode(command)), log.revision).state
        state = log.state
        if not isinstance(applied.result, Denied):
            match command:
                case Propose():
                    model.propose(command)
                case Settle():
                    fresh = [s for s in before.joint() if before.positions[s] <= command.seen]
                    model.settle([slot for slot in slots_in(command.slots) if slot in fresh])
                case _:
                    pass

        # Two who apply the same log agree, bytes and all; and equal bytes are equal states.
        assert twin == state == thawed(frozen(state))
        assert frozen(twin) == frozen(state)
        assert seen.setdefault(frozen(state), state) == state
        assert (state is before) == (state.revision < log.revision)
        assert state.number == model.number
        for slot in range(SLOTS):
            assert state.current[slot] == model.current.get(slot, ())
            assert state.next[slot] == model.next.get(slot, ())
            same = state.chain(slot) == before.chain(slot)
            assert state.positions[slot] == (before.positions[slot] if same else log.revision)
        state.ring(before.ring()).check()


@given(steps)
@settings(max_examples=40, deadline=None)
def test_a_living_boot_is_never_proven_dead(steps: list[tuple[str, object, object]]) -> None:
    log = Log()
    highest: dict[NodeId, int] = {}
    for step in steps:
        if step[0] == "gone":
            continue  # An operator may be wrong.
        if step[0] == "propose":
            step = (step[0], step[1], ())
        applied = log.do(command_of(step, log.state))
        if step[0] == "propose" and not isinstance(applied.result, Denied):
            for member in log.state.members:
                highest[member.node] = max(highest.get(member.node, 0), member.boot)

        for one in log.state.gone:
            assert one.boot < highest[one.node]


def test_states_that_differ_in_anything_differ_in_their_bytes() -> None:
    log = Log().propose("abcd").propose("ab2cd")
    state = log.state
    changes = {
        "revision": Revision(9),
        "number": 9,
        "members": state.members[1:],
        "current": state.next,
        "next": state.current,
        "positions": (Revision(1),) * SLOTS,
        "gone": {},
        "newest": {NodeId("a"): (Incarnation(7), BootId(1))},
        "paused": "operator",
    }
    assert {*changes} == {*RingState.__struct_fields__}

    others = [msgspec.structs.replace(state, **{name: new}) for name, new in changes.items()]

    assert len({frozen(one) for one in [state, *others]}) == len(changes) + 1


@pytest.mark.parametrize("field", [4, 5, 6])
def test_rows_and_positions_of_fewer_slots_are_no_state(field: int) -> None:
    parts = msgspec.msgpack.decode(frozen(Log().propose("abcd").state))
    parts[field] = parts[field][: len(parts[field]) // 2]

    with pytest.raises(RemoteProtocolError):
        thawed(encode(parts))


LAST = Log().propose("abcd").propose("ab2cde").state
FROZEN = frozen(LAST)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_are_a_protocol_error_or_another_state(data: st.DataObject) -> None:
    whole = bytearray(FROZEN)
    at = data.draw(st.integers(0, 200) | st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))

    try:
        state = thawed(bytes(whole[:cut]))
    except RemoteProtocolError:
        return
    assert state != LAST


def test_kept_scores_change_nothing_but_the_cost() -> None:
    one = apply(RingState(), proposal(1, "abc"), Revision(1))
    kept = Scores()
    apply(RingState(), proposal(1, "abcdef"), Revision(1), kept)

    assert apply(RingState(), proposal(1, "abc"), Revision(1), kept) == one


def test_owners_are_compared_by_boot_as_well() -> None:
    assert Owner(NodeId("a"), BootId(1)) != Owner(NodeId("a"), BootId(2))
