"""The snapshot: look-ups agree with the state they are made of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from microos.ring.epochs import RingState
from microos.ring.ring import SET_BYTES, SLOTS, Ring, slot_set, slots_in
from tests.ring.log import Log, owner


def test_before_the_first_epoch_nobody_owns_anything() -> None:
    ring = Ring()
    ring.check()

    assert ring == RingState().ring()
    assert ring.chain(7) == ()
    assert ring.current(7) == ring.next(7) == ring.owners(7) == ()
    assert ring.position(7) == 0
    assert ring.slots_of(owner("a")) == ()


def test_a_settled_slot_has_one_row_and_a_joint_one_two() -> None:
    log = Log().propose("abcd").propose("abcde")
    ring = log.state.ring()
    joint, settled = log.state.joint()[0], min({*range(SLOTS)} - {*log.state.joint()})
    ring.check()

    assert ring.chain(settled) == (ring.current(settled),) == (ring.owners(settled),)
    assert ring.next(settled) == ()
    assert ring.chain(joint) == (ring.current(joint), ring.next(joint))
    assert ring.owners(joint)[:3] == ring.current(joint)
    assert {*ring.owners(joint)} == {*ring.current(joint), *ring.next(joint)}
    assert (ring.position(settled), ring.position(joint)) == (1, 2)


def test_an_owner_finds_its_slots_of_both_rows() -> None:
    log = Log().propose("abcd").propose("abce")
    ring = log.state.ring()

    for name in "abcde":
        mine = [slot for slot in range(SLOTS) if owner(name) in ring.owners(slot)]
        assert ring.slots_of(owner(name)) == tuple(mine)


def test_snapshots_share_the_chains_that_did_not_change() -> None:
    log = Log().propose("abcd")
    before = log.state.ring()
    log.propose("abcde")

    after = log.state.ring(before)

    assert after == log.state.ring()
    joint = {*log.state.joint()}
    assert all(
        (after.chain(slot) is before.chain(slot)) == (slot not in joint) for slot in range(SLOTS)
    )


@given(st.sets(st.integers(0, SLOTS - 1), max_size=40))
def test_sets_of_slots_come_back_rising(slots: set[int]) -> None:
    found = slot_set(slots)

    assert len(found) == SET_BYTES
    assert list(slots_in(found)) == sorted(slots)
    assert all(bool(found[slot // 8] >> slot % 8 & 1) == (slot in slots) for slot in range(SLOTS))
