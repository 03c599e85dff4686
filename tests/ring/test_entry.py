"""An entry: its fields, which of two is newer, and its time, which travels as what is left."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos.ring.entry import (
    ATOMIC,
    HEAD,
    TIME_MAX,
    TOMBSTONE,
    VERSION,
    end_of,
    ended,
    incoming,
    is_atomic,
    is_newer,
    is_tombstone,
    milliseconds,
    number_of,
    outgoing,
    pack,
    renewed,
    shown_version_of,
    stamp_of,
    tombstone,
    value_of,
    version_bytes,
    version_of,
    writer_of,
)
from microos.types import NodeId

stamps = st.integers(0, (1 << 63) - 1)
writers = st.integers(0, (1 << 64) - 1)
versions = st.builds(version_bytes, stamps, writers)
few_versions = st.sampled_from(
    [version_bytes(stamp, writer) for stamp in (1, 2) for writer in (1, 2)]
)
ends = st.just(0) | st.integers(1, 10_000_000)
flags = st.sampled_from([0, TOMBSTONE, ATOMIC, TOMBSTONE | ATOMIC])
entries = st.builds(
    lambda version, end, flag, value: pack(version, end=end, flags=flag, value=value),
    few_versions,
    ends,
    flags,
    st.binary(max_size=4),
)


def test_the_layout_is_as_documented() -> None:
    entry = pack(version_bytes(0x0102, 0x0304), end=0x0506, flags=ATOMIC, value=b"value")

    assert entry.hex(" ", 1) == (
        "00 00 00 00 00 00 01 02 00 00 00 00 00 00 03 04 00 00 00 00 05 06 02 01 76 61 6c 75 65"
    )


@given(entries, st.lists(versions, min_size=1, max_size=3))
def test_a_renewed_entry_goes_by_its_ballot_and_is_known_by_the_version_it_was_written_with(
    entry: bytes, ballots: list[bytes]
) -> None:
    again = entry
    for ballot in ballots:
        again = renewed(again, ballot)

    assert version_of(again) == ballots[-1]
    assert shown_version_of(again) == shown_version_of(entry) == version_of(entry)
    assert is_atomic(again)
    assert is_tombstone(again) == is_tombstone(entry)
    assert (end_of(again), value_of(again)) == (end_of(entry), value_of(entry))
    assert len(again) == len(entry) + VERSION


@given(stamps, writers, ends, flags, st.binary(max_size=100))
def test_fields_come_back(stamp: int, writer: int, end: int, flag: int, value: bytes) -> None:
    version = version_bytes(stamp, writer)
    entry = pack(version, end=end, flags=flag, value=value)

    assert len(entry) == HEAD + len(value)
    assert (version_of(entry), stamp_of(entry), end_of(entry)) == (version, stamp, end)
    assert (is_tombstone(entry), is_atomic(entry)) == (bool(flag & TOMBSTONE), bool(flag & ATOMIC))
    assert value_of(entry) == value
    assert number_of(version) == stamp << 64 | writer


def test_the_writer_is_the_end_of_the_nodes_id() -> None:
    assert writer_of(NodeId("f" * 16 + "0123456789abcdef")) == 0x0123456789ABCDEF


@given(versions, versions)
def test_versions_compare_as_bytes_as_they_do_as_numbers(one: bytes, other: bytes) -> None:
    assert (one < other) == (number_of(one) < number_of(other))


@given(entries, entries, entries)
def test_newer_is_an_order_in_which_any_two_meet_alike(a: bytes, b: bytes, c: bytes) -> None:
    """So copies that have seen the same entries, in any order, keep the same version."""
    assert is_newer(a, None)
    assert not is_newer(a, a)
    assert not (is_newer(a, b) and is_newer(b, a))
    if is_newer(a, b) and is_newer(b, c):
        assert is_newer(a, c)
    if not is_newer(a, b) and not is_newer(b, a):
        assert (version_of(a), is_tombstone(a)) == (version_of(b), is_tombstone(b))


def test_at_equal_versions_a_tombstone_wins() -> None:
    value = pack(version_bytes(5, 1), end=0, flags=0, value=b"v")
    dead = tombstone(version_bytes(5, 1))

    assert is_newer(dead, value)
    assert not is_newer(value, dead)
    assert is_newer(pack(version_bytes(5, 2), end=0, flags=0, value=b"v"), dead)


@given(entries, st.integers(0, 20_000_000))
def test_what_is_over_is_a_tombstone_of_the_values_version(entry: bytes, now: int) -> None:
    after = ended(entry, now)

    if end_of(entry) and end_of(entry) <= now:
        assert is_tombstone(after)
        assert (version_of(after), is_atomic(after)) == (version_of(entry), is_atomic(entry))
        assert (end_of(after), value_of(after)) == (0, b"")
    else:
        assert after is entry


@pytest.mark.criterion("KV-6")
@given(
    st.integers(1, 10_000_000),
    st.integers(0, 1 << 40),
    st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 2000)), max_size=5),
)
def test_a_time_survives_any_number_of_hops_between_clocks(
    left: int, begun: int, hops: list[tuple[int, int]]
) -> None:
    """Each hop keeps it for a while; clocks differ by anything; nobody ends it too early."""
    entry = incoming(pack(version_bytes(1, 1), end=left, flags=0, value=b"v"), begun)
    clock, spent = begun, 0
    for other, stay in hops:
        clock, spent = clock + stay, spent + stay
        if is_tombstone(ended(entry, clock)):
            break
        entry, clock = incoming(outgoing(entry, clock), other), other

    if is_tombstone(ended(entry, clock)):
        assert spent >= left
    else:
        assert end_of(entry) - clock == left - spent


def test_what_never_ends_travels_as_it_is() -> None:
    entry = pack(version_bytes(1, 1), end=0, flags=0, value=b"v")

    assert incoming(entry, 5) is entry
    assert outgoing(entry, 5) is entry


def test_an_end_beyond_the_field_is_the_last_there_is() -> None:
    entry = pack(version_bytes(1, 1), end=TIME_MAX, flags=0, value=b"v")

    assert end_of(incoming(entry, 1000)) == TIME_MAX


@pytest.mark.parametrize(
    ("seconds", "left"), [(0.05, 50), (1e-9, 1), (1.0001, 1001), (3600.0, 3_600_000), (inf, 0)]
)
def test_a_time_to_live_is_rounded_up_to_a_millisecond(seconds: float, left: int) -> None:
    assert milliseconds(seconds) == left
