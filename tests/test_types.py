from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos.types import INDEX_BITS, Address, Random, packed, parse_address, unpacked

epochs = st.integers(1, 2**25 - 1)
indexes = st.integers(0, 2**INDEX_BITS - 1)


@pytest.mark.prop
@given(epochs, indexes, epochs, indexes)
def test_packed_numbers_order_by_epoch_then_index(e1: int, i1: int, e2: int, i2: int) -> None:
    assert unpacked(packed(e1, i1)) == (e1, i1)
    assert (packed(e1, i1) < packed(e2, i2)) == ((e1, i1) < (e2, i2))
    assert 0 < packed(e1, i1) < 2**63


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_address_reads_as_it_is_written(host: object, port: int) -> None:
    address = Address(str(host), port)

    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":80", "h:x", "h:-1", "h:65536", "h: 80", "[]:80", "h:٣"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_address(text)


def test_the_standard_generator_is_a_random() -> None:
    chance: Random = random.Random(1)

    assert 0.0 <= chance.random() < 1.0
