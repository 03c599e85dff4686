"""Votes: a quorum in every row of the chain, or none can be had any more."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.ring.quorum import Votes, sources, wanted
from microos.ring.ring import Chain, Owner, Row
from microos.types import BootId, NodeId

A, B, C, D = OWNERS = [Owner(NodeId(letter), BootId(1)) for letter in "abcd"]

rows = st.lists(st.sampled_from(OWNERS), unique=True, min_size=1, max_size=3).map(tuple)
chains = st.lists(rows, max_size=2).map(tuple)
said = st.lists(st.tuples(st.sampled_from(OWNERS), st.sampled_from(["yes", "unsynced", "failed"])))


def votes(chain: Chain, *owners: Owner, replicas: int = 3) -> Votes:
    made = Votes(chain, replicas)
    for owner in owners:
        made.add(owner)
    made.check()
    return made


def test_two_of_three_two_of_two_and_one_of_one_are_wanted() -> None:
    assert [wanted(count) for count in (1, 2, 3, 5)] == [1, 2, 2, 3]


@pytest.mark.parametrize("count", range(1, 6))
def test_quorums_meet_each_other_and_enough_sources(count: int) -> None:
    quorums = [{*chosen} for chosen in combinations(range(count), wanted(count))]
    asked = [{*chosen} for chosen in combinations(range(count), sources(count))]

    assert all(one & other for one in quorums for other in [*quorums, *asked])


def test_one_answer_counts_in_every_row_of_its_owner() -> None:
    joint = ((A, B, C), (A, B, D))

    assert votes(joint, A, B).done
    assert not votes(joint, A, C).done
    assert votes(joint, A, C, D).done


def test_an_owner_counts_once_and_strangers_never() -> None:
    assert not votes(((A, B, C),), A, A, D).done


def test_a_bucket_with_fewer_replicas_asks_the_first_owners_alone() -> None:
    assert votes(((A, B, C),), A, replicas=1).done
    assert not votes(((A, B, C),), B, C, replicas=1).done
    assert votes(((A, B, C), (B, A, C)), replicas=2).owners == (A, B)


def test_an_unsynced_copy_answers_reads_for_next_alone() -> None:
    settled, joint = votes(((A, B, C),), A), votes(((A, B, C), (A, B, D)), A, B)
    settled.add(B, synced=False)
    assert not settled.done and settled.possible
    settled.add(C)
    assert settled.done

    again = votes(((A, B, C), (A, D, B)), A, B)
    again.add(D, synced=False)
    assert again.done and joint.done


def test_nobody_can_answer_before_the_first_epoch() -> None:
    none = votes((), A)

    assert not none.done and not none.possible and none.owners == ()


def count(row: Row, answers: dict[Owner, set[str]], counting: set[str]) -> int:
    return sum(bool(answers[owner] & counting) for owner in row)


@given(chains, said, st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_votes_are_as_counted_by_hand(
    chain: Chain, said: list[tuple[Owner, str]], replicas: int
) -> None:
    made = Votes(chain, replicas)
    answers: dict[Owner, set[str]] = {owner: set() for owner in OWNERS}
    for owner, how in said:
        answers[owner].add(how)
        if how == "failed":
            made.failed(owner)
        else:
            made.add(owner, synced=how == "yes")
    made.check()

    trimmed = [row[:replicas] for row in chain]
    counting = [{"yes"}, {"yes", "unsynced"}]
    needs = [len(row) // 2 + 1 for row in trimmed]
    have = [count(row, answers, by) for row, by in zip(trimmed, counting, strict=False)]
    assert made.done == (bool(chain) and all(h >= n for h, n in zip(have, needs, strict=True)))
    # Who has said nothing yet may still say anything.
    silent = [owner for owner in OWNERS if not answers[owner]]
    best = False
    choices: tuple[set[str], set[str]] = ({"yes"}, set())
    for chosen in product(choices, repeat=len(silent)):
        then = {**answers, **dict(zip(silent, chosen, strict=True))}
        have = [count(row, then, by) for row, by in zip(trimmed, counting, strict=False)]
        best |= all(h >= n for h, n in zip(have, needs, strict=True))
    assert made.possible == (bool(chain) and best)
