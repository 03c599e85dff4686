"""Placement: the vectors every implementation must give, balance, movement, zones."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.hashing import xxh3
from microos.ring.placement import (
    SEED,
    Scores,
    Table,
    digest,
    quotas,
    scores,
    share,
    table,
)
from microos.ring.ring import SLOTS, Member, seed_of, slot_of
from microos.types import BootId, NodeId


def members(names: str, zones: str = "", weights: str = "") -> list[Member]:
    return [
        Member(NodeId(name), BootId(1), int(weight), zone)
        for name, zone, weight in zip(
            names, zones or [""] * len(names), weights or "1" * len(names), strict=True
        )
    ]


def cluster(chance: Random, count: int) -> list[Member]:
    return [Member(NodeId(f"{chance.getrandbits(128):032x}"), BootId(1)) for _ in range(count)]


def owned(found: Table) -> Counter[int]:
    return Counter(index for row in found for index in row)


@pytest.mark.parametrize(
    ("of", "replicas", "rows", "copies", "checksum"),
    [
        (members("abcde"), 3, "eba ebd eab ade ebc", "599 639 619 578 637", 0xBF764083C1F9EC94),
        (members("abcde"), 2, "eb eb ea ad eb", "401 421 419 391 416", 0x1B908B48D1F12E95),
        (
            members("abcdefg", "xxxyyzz", "1111221"),
            3,
            "ebf feb efa gad ebf",
            "326 350 348 324 700 677 347",
            0x54C62462DE655882,
        ),
        (
            members("abcdef", "xyxyxy"),
            3,
            "eba feb efa adf ebc",
            "500 517 525 505 528 497",
            0xA6E8264A41A7BA86,
        ),
        (members("ab"), 3, "ba ba ab ab ba", "1024 1024", 0x6214CB8E8DA3C7E6),
    ],
)
def test_tables_are_those_of_the_vectors(
    of: list[Member], replicas: int, rows: str, copies: str, checksum: int
) -> None:
    found = table(of, replicas)

    named = [[of[index].node for index in row] for row in found]
    assert ["".join(named[slot]) for slot in (0, 1, 2, 3, 1023)] == rows.split()
    assert [owned(found)[index] for index in range(len(of))] == [int(n) for n in copies.split()]
    assert xxh3("\n".join(",".join(row) for row in named).encode()) == checksum


def test_scores_are_those_of_the_vectors() -> None:
    assert xxh3(b"a", SEED) == 0xA4F418EA215B8BBD
    assert scores(NodeId("a"), 1)[0] == 0xD058FFDF4A7CD5EC
    assert scores(NodeId("e"), 2)[0] == 0xFC8C29A7CE8C2B13


def test_keys_fall_into_the_slots_of_the_vectors() -> None:
    keys = (("profiles", b"user:1"), ("profiles", b"user:2"), ("carts", b"user:1"))

    assert [slot_of(seed_of(bucket), key) for bucket, key in keys] == [445, 308, 474]


def test_nobody_is_to_hold_more_than_every_slot_once() -> None:
    quota = quotas(members("abcde", weights="11124"), 3)

    assert quota == [Fraction(4096, 10)] * 3 + [Fraction(8192, 10), Fraction(1024)]


def test_no_members_own_nothing() -> None:
    assert table([], 3) == ((),) * SLOTS


@pytest.mark.slow
@pytest.mark.criterion("KV-5")
def test_keys_are_spread_evenly_in_the_worst_of_twenty_clusters() -> None:
    seed = seed_of("carts")
    keys = Counter(slot_of(seed, b"key:%d" % number) for number in range(100_000))

    for number in range(20):
        found = table(cluster(Random(number), 10), 3)
        for rank in ((0,), (0, 1, 2)):
            load = Counter[int]()
            for slot, row in enumerate(found):
                load.update({row[place]: keys[slot] for place in rank})
            assert max(load.values()) * 10 <= 1.25 * load.total()


@pytest.mark.slow
def test_the_caps_are_reached_and_never_passed() -> None:
    primaries, copies = [], []
    for number in range(20):
        found = table(cluster(Random(number), 10), 3)
        primaries.append(max(Counter(row[0] for row in found).values()))
        copies.append(max(owned(found).values()))

    # A tenth of 1024 and of 3072, and a tenth more, rounded up.
    assert (max(primaries), max(copies)) == (113, 338)


@pytest.mark.slow
@pytest.mark.criterion("KV-5")
def test_twice_the_weight_gets_twice_the_keys() -> None:
    seed = seed_of("carts")
    keys = Counter(slot_of(seed, b"key:%d" % number) for number in range(100_000))

    for number in range(20):
        of = cluster(Random(number), 10)
        heavy, *others = of
        of = sorted(
            [Member(heavy.node, heavy.boot, weight=2), *others], key=lambda member: member.node
        )
        load = Counter[NodeId]()
        for slot, row in enumerate(table(of, 3)):
            load.update({of[index].node: keys[slot] for index in row})
        single = sum(load[member.node] for member in others) / 9
        assert 1.6 <= load[heavy.node] / single <= 2.4


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 10])
def test_joining_and_leaving_move_little_more_than_they_must(count: int) -> None:
    kept = Scores()
    for number in range(20):
        large = sorted(cluster(Random(number), count + 1), key=lambda member: member.node)
        small = large[: number % count] + large[number % count + 1 :]

        before, after = (
            [{of[index].node for index in row} for row in table(of, 3, kept)]
            for of in (small, large)
        )

        joined = sum(len(new - old) for old, new in zip(before, after, strict=True))
        left = sum(len(old - new) for old, new in zip(before, after, strict=True))
        assert joined == left <= 1.3 * 3 * SLOTS / (count + 1)


GROUPS = st.lists(
    st.builds(
        Member,
        node=st.sampled_from([NodeId(letter) for letter in "abcdefgh"]),
        boot=st.integers(1, 3).map(BootId),
        weight=st.integers(1, 4),
        zone=st.sampled_from("xyz"),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda member: member.node,
)


@given(GROUPS, st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_table_depends_on_the_members_alone(
    of: list[Member], replicas: int, chance: Random
) -> None:
    kept = Scores()
    table(members("abcd", weights="1234"), replicas, kept)
    shuffled = chance.sample(of, len(of))

    found = table(of, replicas)

    assert table(shuffled, replicas, kept) == table(of, replicas, kept) == found
    assert digest(shuffled, replicas) == digest(of, replicas)


@given(GROUPS, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_rows_name_each_owner_once_and_spread_zones_as_far_as_they_go(
    of: list[Member], replicas: int
) -> None:
    ordered = sorted(of, key=lambda member: member.node)
    zones = Counter(member.zone for member in of)
    wanted = min(replicas, len(of))
    # Most copies of a row that some zone must take, the other zones being as small as they are.
    most = -(-wanted // len(zones))
    tight = any(size < most for size in zones.values())

    for row in table(of, replicas):
        assert len(row) == len({*row}) == wanted
        in_zone = Counter(ordered[index].zone for index in row)
        assert tight or max(in_zone.values()) <= most


WEIGHTS = st.dictionaries(st.integers(0, 9), st.integers(1, 16), min_size=1, max_size=8)


@given(WEIGHTS, st.integers(0, 4096), st.integers(1, 2048))
@settings(max_examples=100, deadline=None)
def test_shares_are_by_weight_below_the_ceiling(
    weights: dict[int, int], total: int, ceiling: int
) -> None:
    parts = share(weights, Fraction(total), Fraction(ceiling))

    assert sum(parts.values()) == min(total, ceiling * len(weights))
    below = {parts[key] / weights[key] for key in weights if parts[key] < ceiling}
    assert len(below) <= 1
    assert all(part <= ceiling for part in parts.values())
    # Who is at the ceiling would have got at least that by weight.
    units = [parts[key] / weights[key] for key in weights if parts[key] == ceiling]
    assert not below or all(unit <= min(below) for unit in units)


def test_the_digest_tells_apart_what_changes_the_table() -> None:
    plain = members("abc")
    heavy = [*plain[:2], Member(NodeId("c"), BootId(1), weight=2)]
    zoned = [*plain[:2], Member(NodeId("c"), BootId(1), zone="x")]
    restarted = [*plain[:2], Member(NodeId("c"), BootId(2))]

    assert digest(restarted, 3) == digest(plain, 3)
    assert len({digest(of, 3) for of in (plain, heavy, zoned, plain[:2])} | {digest(plain, 2)}) == 5


def test_the_digest_is_of_the_bytes_described() -> None:
    found = digest([Member(NodeId("b"), BootId(9), 2, "zø"), Member(NodeId("a"), BootId(7))], 3)

    assert found == xxh3(b"\x31\x73\x6f\x6d\x00\x04\x03\x0a" + b"a\x01\x00" + b"b\x02\x03z\xc3\xb8")


def test_scores_of_who_is_no_member_are_forgotten() -> None:
    kept = Scores()
    first = kept.of(members("abc"))

    again = kept.of(members("bc"))
    returned = kept.of(members("abc"))

    assert again[0] is first[1]
    assert returned == first and returned[0] is not first[0]
