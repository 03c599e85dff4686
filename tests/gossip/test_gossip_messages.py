from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.codec import encode
from microos.errors import RemoteProtocolError
from microos.gossip.messages import (
    Ack,
    Alive,
    BucketRecords,
    Dead,
    Evidence,
    Left,
    LinkMessage,
    Ping,
    PushPull,
    Record,
    RecordPart,
    Suspect,
    UserState,
    decode_datagram,
    decode_link,
)
from microos.types import BootId, Incarnation, NodeId

A = NodeId("a" * 32)
ALIVE = Alive(A, BootId(7), Incarnation(5), "a", "10.0.0.1", 80, {"zone": "x"}, 0, 0, b"")
NEWS: list[Record] = [
    ALIVE,
    Suspect(A, Incarnation(5), NodeId("b"), Evidence.REFUSED),
    Dead(A, Incarnation(5), (NodeId("b"),), Evidence.SILENCE, 1.5, "a", "10.0.0.1", 80),
    Left(A, Incarnation(6), 0.0),
    UserState(BootId(7), 3, 9, b"state"),
]


def test_what_is_sent_is_what_is_read() -> None:
    messages = [Ping(2**63, BootId(1), Incarnation(2), 3, 4, 2**64 - 1, 6), *NEWS]
    links: list[LinkMessage] = [PushPull(1, True, True, NEWS), RecordPart(A, 1, 0, 3, b"abc")]

    assert decode_datagram(encode(messages)) == (messages, 0)
    assert [decode_link(encode(message)) for message in links] == links


def test_messages_of_unknown_kinds_are_skipped() -> None:
    found, skipped = decode_datagram(encode([[99, "later"], ALIVE]))

    assert (found, skipped) == ([ALIVE], 1)


def test_fields_of_later_versions_are_ignored() -> None:
    longer = [*msgspec.to_builtins(NEWS[3]), "more", 1]

    assert decode_datagram(encode([longer])) == ([NEWS[3]], 0)


def test_a_ping_and_an_ack_are_small() -> None:
    numbers = (Incarnation(1_700_000_000_000), 0, 2**32 - 1, 2**64 - 1, 50)

    assert len(encode(Ping(2**62, BootId(2**64 - 1), *numbers))) <= 50
    assert len(encode(Ack(2**62, *numbers))) <= 42


@pytest.mark.parametrize(
    "wrong",
    [
        [5, "", 7, 5, "a", "h", 80, {}, 0, 0, b""],
        [5, "a", 0, 5, "a", "h", 80, {}, 0, 0, b""],
        [5, "a", 7, 2**63, "a", "h", 80, {}, 0, 0, b""],
        [5, "a", 7, 5, "a" * 129, "h", 80, {}, 0, 0, b""],
        [5, "a", 7, 5, "a", "h", 65_536, {}, 0, 0, b""],
        [5, "a", 7, 5, "a", "h", 80, {str(k): "" for k in range(65)}, 0, 0, b""],
        [5, "a", 7, 5, "a", "h", 80, {}, 0, 0, b"x" * 401],
        [7, "a", 5, [], 0, float("nan")],
        [9, 7, 64, 1, b""],
        [9, 7, 1, 1, b"x" * 201],
    ],
)
def test_what_is_out_of_bounds_is_skipped(wrong: list[object]) -> None:
    assert decode_datagram(encode([wrong])) == ([], 1)


@pytest.mark.prop
@settings(max_examples=100)
@given(
    st.binary(max_size=80),
    st.integers(0, 10_000),
    st.integers(0, 255),
)
def test_damaged_bytes_raise_nothing_but_our_error(noise: bytes, place: int, byte: int) -> None:
    whole = bytearray(encode(BucketRecords(1, 3, True, NEWS)))
    whole[place % len(whole)] = byte

    for data in (noise, bytes(whole), encode(NEWS)[: place % 100]):
        # Anything but our error fails the test; a lucky change may still be a message.
        with suppress(RemoteProtocolError):
            decode_datagram(data)
        with suppress(RemoteProtocolError):
            decode_link(data)


def test_more_messages_than_allowed_are_a_broken_sender() -> None:
    with pytest.raises(RemoteProtocolError, match="at most 256"):
        decode_datagram(encode([NEWS[3]] * 257))
