"""Batches as bytes: whole or not at all, torn or damaged."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.storage.memory import MemoryDisk
from microos.storage.records import (
    HEADER_SIZE,
    Record,
    RecordKind,
    decode_header,
    encode_batch,
    encode_header,
    read_segment,
    salt_of,
)
from tests.storage.history import IDENTITY

HEADER = encode_header(IDENTITY, 7, 0x1234)
SALT = salt_of(HEADER)
SIZE = 8192

records = st.builds(Record, st.sampled_from(RecordKind), st.binary(max_size=700), st.booleans())
batches = st.lists(st.lists(records, min_size=1, max_size=3), max_size=4)


def segment(of: list[list[Record]], size: int = SIZE) -> bytes:
    parts = [encode_batch(batch, at + 1, SALT) for at, batch in enumerate(of)]
    return (HEADER + b"".join(parts)).ljust(size, b"\0")


@pytest.mark.prop
@settings(max_examples=100, deadline=None)
@given(batches)
def test_what_was_written_is_read(written: list[list[Record]]) -> None:
    contents = read_segment(segment(written), SALT)

    assert [list(batch.records) for batch in contents.batches] == written
    assert contents.damaged is None
    assert contents.end == contents.used == len(segment(written, 0))


@pytest.mark.prop
@settings(max_examples=100, deadline=None)
@given(batches, st.lists(records, min_size=1, max_size=3), st.integers(0, 2**32))
def test_a_torn_batch_is_there_as_a_whole_or_not_at_all(
    before: list[list[Record]], last: list[Record], seed: int
) -> None:
    whole = segment(before)
    start = len(segment(before, 0))
    torn = torn_write(whole, start, encode_batch(last, len(before) + 1, SALT), seed)

    contents = read_segment(torn, SALT)

    found = [list(batch.records) for batch in contents.batches]
    assert found in (before, [*before, last])
    assert contents.damaged is None


def torn_write(data: bytes, offset: int, written: bytes, seed: int) -> bytes:
    """Return what one write leaves behind at a power loss, from the platter's own rules."""
    platter = MemoryDisk()
    platter.restore({"a": data})
    write = platter.attach().open("a")
    with pytest.raises(StopIteration) as opened:
        write.send(None)
    with pytest.raises(StopIteration):
        opened.value.value.write([written], offset).send(None)
    platter.crash(random.Random(seed))
    return platter.durable()["a"]


@pytest.mark.prop
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(records, min_size=1, max_size=2), min_size=1, max_size=3),
    st.data(),
)
def test_one_wrong_byte_never_cuts_what_was_written(
    written: list[list[Record]], data: st.DataObject
) -> None:
    whole = bytearray(segment(written))
    at = data.draw(st.integers(HEADER_SIZE, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))

    contents = read_segment(bytes(whole), SALT)

    found = [list(batch.records) for batch in contents.batches]
    zeroed = any(bytes(256) in record.payload for record in written[-1])
    assert found == written or contents.damaged is not None or zeroed


def test_a_torn_end_that_was_half_made_zero_is_torn_still() -> None:
    """Found by a seeded world: the power went again while a torn end was cleared."""
    before = [[Record(RecordKind.ENTRIES, b"x" * 100)]]
    start = len(segment(before, 0))
    torn = bytearray(segment(before))
    torn[start : start + 20] = encode_batch([Record(RecordKind.ENTRIES, b"y" * 50)], 2, SALT)[:20]

    for cleared in range(16, 20):
        torn[start : start + cleared] = bytes(cleared)
        contents = read_segment(bytes(torn), SALT)
        assert contents.damaged is None
        assert contents.end == start


def test_a_zeroed_sector_under_a_later_batch_is_damage() -> None:
    big = [Record(RecordKind.ENTRIES, b"x" * 1200)]
    start = len(segment([big], 0))
    data = bytearray(segment([big, big, big]))
    sector = start // 512 * 512 + 512
    data[sector : sector + 512] = bytes(512)

    contents = read_segment(bytes(data), SALT)

    assert contents.damaged == start == contents.end


def test_records_of_another_segment_are_not_believed() -> None:
    other = encode_header(IDENTITY, 8, 0)
    data = HEADER + encode_batch([Record(1, b"x")], 1, salt_of(other))

    assert read_segment(data, SALT).batches == ()


def test_a_header_is_read_as_written() -> None:
    header = decode_header(HEADER)

    assert header is not None
    assert (header.sequence, header.previous, header.salt) == (7, 0x1234, SALT)
    assert (header.node, header.cluster, header.epoch) == (IDENTITY.node, IDENTITY.cluster, 1)


@pytest.mark.parametrize("at", range(64))
def test_a_header_with_a_wrong_byte_is_none(at: int) -> None:
    data = bytearray(HEADER)
    data[at] ^= 0x40

    assert decode_header(bytes(data)) is None
