from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos import limits, wire
from microos.errors import RemoteProtocolError
from microos.types import BootId
from microos.wire import Channel, FrameReader, WrongClusterError

LABEL = 0xDEADBEEF
boots = st.integers(1, 2**64 - 1).map(BootId)
channels = st.sampled_from(list(Channel))


@pytest.mark.prop
@given(boots, st.integers(0, 2**64 - 1), st.binary())
def test_a_datagram_comes_back_as_packed(boot: BootId, counter: int, payload: bytes) -> None:
    data = wire.pack_datagram(LABEL, boot, counter, payload)

    assert wire.unpack_datagram(data, LABEL) == wire.Datagram(boot, counter, payload)
    assert len(data) == limits.DATAGRAM_HEAD + len(payload) + limits.DATAGRAM_TAIL


def test_the_head_of_a_datagram_has_its_documented_offsets() -> None:
    data = wire.pack_datagram(LABEL, BootId(0x0102030405060708), 9, b"payload")

    assert data[:9] == b"MO\x01\x00\xde\xad\xbe\xef\x00"
    assert data[9:17] == bytes(range(1, 9))
    assert data[17:25] == b"\x00" * 7 + b"\x09"
    assert data[25:-4] == b"payload"


@pytest.mark.prop
@given(st.binary(min_size=1, max_size=60), st.data())
def test_one_flipped_bit_is_never_taken_for_a_datagram(payload: bytes, data: st.DataObject) -> None:
    packet = bytearray(wire.pack_datagram(LABEL, BootId(7), 1, payload))
    bit = data.draw(st.integers(0, 8 * len(packet) - 1))
    packet[bit // 8] ^= 1 << bit % 8

    with pytest.raises(RemoteProtocolError):
        wire.unpack_datagram(bytes(packet), LABEL)


@pytest.mark.prop
@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda tail: b"MO\x01" + tail))
def test_foreign_datagrams_raise_only_our_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.unpack_datagram(data, LABEL)


def test_another_label_is_another_cluster() -> None:
    packet = wire.pack_datagram(LABEL + 1, BootId(7), 1, b"x")

    with pytest.raises(WrongClusterError):
        wire.unpack_datagram(packet, LABEL)
    with pytest.raises(WrongClusterError):
        wire.unpack_preface(wire.pack_preface(LABEL + 1), LABEL)


@given(st.integers(0, 255))
def test_a_preface_carries_its_flags(flags: int) -> None:
    assert wire.unpack_preface(wire.pack_preface(LABEL, flags), LABEL) == flags


@pytest.mark.prop
@given(
    frames=st.lists(st.tuples(channels, st.binary(min_size=1, max_size=300)), max_size=8),
    cuts=st.lists(st.integers(1, 100), min_size=1),
)
def test_frames_survive_any_chunking(frames: list[tuple[Channel, bytes]], cuts: list[int]) -> None:
    data = b"".join(wire.pack_frame(channel, body) for channel, body in frames)

    reader, found, at, turn = FrameReader(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1

    assert found == frames


@pytest.mark.prop
@given(st.binary(min_size=1, max_size=60), st.data())
def test_one_flipped_bit_never_passes_as_a_frame(body: bytes, data: st.DataObject) -> None:
    frame = bytearray(wire.pack_frame(Channel.RAFT, body))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8

    try:
        assert FrameReader().feed(bytes(frame)) == []
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize("channel", list(Channel))
def test_the_limit_of_a_channel_is_exact(channel: Channel) -> None:
    limit = wire.BODY_MAX[channel]
    body = b"x" * limit
    too_long = (limit + 1).to_bytes(4) + bytes([channel]) + b"\x00" * 7

    assert FrameReader().feed(wire.pack_frame(channel, body)) == [(channel, body)]
    with pytest.raises(RemoteProtocolError, match=f"1..{limit}"):
        FrameReader().feed(too_long)


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        FrameReader().feed(b"\x00" * 12)


def test_unknown_channels_are_skipped_only_if_marked() -> None:
    reader = FrameReader()

    known = wire.pack_frame(Channel.GOSSIP, b"known")
    found = reader.feed(wire.pack_frame(200, b"new", wire.FLAG_SKIPPABLE) + known)

    assert found == [(Channel.GOSSIP, b"known")]
    assert reader.skipped == 1
    with pytest.raises(RemoteProtocolError, match="known channel"):
        reader.feed(wire.pack_frame(200, b"new"))


def test_every_http_method_is_told_by_four_bytes() -> None:
    assert {len(method) for method in wire.HTTP_METHODS} == {4}
    assert not any(method.startswith(wire.MAGIC) for method in wire.HTTP_METHODS)
