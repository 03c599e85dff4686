"""MessagePack as we write it is what everybody reads: the package `msgpack` is the oracle."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.codec import BatchDecoder, Decoder, encode
from microos.errors import RemoteProtocolError

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


class Point(msgspec.Struct, frozen=True, array_like=True, tag=1):
    x: int
    y: int = 0


class Name(msgspec.Struct, frozen=True, array_like=True, tag=2):
    text: str


decode_any: Decoder[Any] = Decoder(Any)
decode_point: Decoder[Point] = Decoder(Point)
decode_batch: BatchDecoder[Point | Name] = BatchDecoder(Point | Name, limit=4)


@pytest.mark.prop
@settings(max_examples=40)
@given(values)
def test_the_oracle_reads_what_we_write(value: Any) -> None:
    assert msgpack.unpackb(encode(value), strict_map_key=False) == value


@pytest.mark.prop
@settings(max_examples=40)
@given(values)
def test_we_read_what_the_oracle_writes(value: Any) -> None:
    assert decode_any(msgpack.packb(value)) == value


@given(st.dictionaries(st.text(), st.integers(-9, 9), min_size=2), st.randoms())
def test_equal_values_give_equal_bytes(value: dict[str, int], chance: Any) -> None:
    items = list(value.items())
    chance.shuffle(items)

    assert encode(dict(items)) == encode(value)


@pytest.mark.prop
@given(st.binary(max_size=80))
def test_foreign_bytes_raise_only_our_error(data: bytes) -> None:
    for decode in (decode_any, decode_point, decode_batch):
        try:
            decode(data)
        except RemoteProtocolError:
            pass


@pytest.mark.parametrize("data", [b"\x91" * 5000 + b"\x90", b"\xa2\xff\xfe", b"", b"\xdd\xff\xff"])
def test_deep_broken_and_empty_bytes_are_our_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="expected"):
        decode_any(data)


def test_new_fields_at_the_end_are_ignored_and_missing_ones_have_defaults() -> None:
    assert decode_point(encode([1, 3, 4, "from a newer version"])) == Point(3, 4)
    assert decode_point(encode([1, 3])) == Point(3)


def test_unknown_messages_of_a_batch_are_skipped_and_counted() -> None:
    batch = encode([Point(1, 2), [77, "new"], Name("n"), [2, 5]])

    assert decode_batch(batch) == ([Point(1, 2), Name("n")], 2)


@pytest.mark.parametrize("batch", [[Point(1)] * 5, [[77]] * 5, [Point(1)] * 4 + [[77]]])
def test_a_batch_has_a_limit(batch: list[Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="at most 4"):
        decode_batch(encode(batch))
