from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos import limits
from microos.codec import encode
from microos.errors import RemoteProtocolError
from microos.rpc.messages import (
    FACT_BYTES,
    FACTS_BYTES,
    FOREVER_MS,
    MESSAGE_BYTES,
    METADATA_KEY_TEXT,
    Answer,
    Call,
    Cancel,
    CancelReason,
    Chunk,
    Failure,
    Goaway,
    Load,
    decode_frame,
)

FRAMES = [
    Call(2**63 - 1, "payments.charge", FOREVER_MS, 1, {"zone": "eu"}, 70_000, b"body"),
    Call(1, "s.f", 0, 2, None, 0, b""),
    Answer(1, Load(3, 250, 1, 0), 0, b"result"),
    Answer(1, None, 70_000, b""),
    Failure(1, None, "LimitError", "size", "too big", 0.5, {"a": 1, "b": None, "c": True}),
    Failure(1, Load(0, 0), "RemoteError", "handler", "oops", -1.0, None, {"id": b"\xff"}),
    Chunk(1, True, 65_536, b"more"),
    Cancel(1, CancelReason.HEDGE),
    Goaway(10_000),
]


def test_what_is_sent_is_what_is_read() -> None:
    assert [decode_frame(encode(frame)) for frame in FRAMES] == FRAMES


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_the_oracle_reads_and_writes_the_same_array(frame: msgspec.Struct) -> None:
    array = msgpack.unpackb(encode(frame))

    assert array == msgspec.to_builtins(frame, builtin_types=(bytes,))
    assert decode_frame(msgpack.packb(array)) == frame


@settings(max_examples=50)
@given(
    frame=st.one_of(
        st.builds(
            Call,
            id=st.integers(1, 2**63 - 1),
            endpoint=st.text(max_size=limits.ENDPOINT_TEXT),
            budget_ms=st.integers(0, FOREVER_MS),
            attempt=st.integers(0, 9),
            metadata=st.none() | st.dictionaries(st.text(max_size=9), st.text(max_size=9)),
            size=st.integers(0, 2**63 - 1),
            body=st.binary(),
        ),
        st.builds(
            Failure,
            id=st.integers(1, 2**63 - 1),
            load=st.none(),
            error=st.text(max_size=9),
            reason=st.text(max_size=9),
            message=st.text(max_size=99),
            retry_after=st.floats(-1.0, 1e9),
            facts=st.dictionaries(
                st.text(max_size=9),
                st.text() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False),
            ),
            blobs=st.dictionaries(st.text(max_size=9), st.binary()),
        ),
    )
)
def test_any_frame_means_the_same_to_the_oracle(frame: Call | Failure) -> None:
    assert decode_frame(msgpack.packb(msgpack.unpackb(encode(frame)))) == frame


@pytest.mark.parametrize(
    "wrong",
    [
        [1, 0, "f", 1, 1, None, 0, b""],
        [1, 2**63, "f", 1, 1, None, 0, b""],
        [1, 1, "f" * (limits.ENDPOINT_TEXT + 1), 1, 1, None, 0, b""],
        [1, 1, "f", -1, 1, None, 0, b""],
        [1, 1, "f", FOREVER_MS + 1, 1, None, 0, b""],
        [1, 1, "f", 1, 1, {"k" * (METADATA_KEY_TEXT + 1): ""}, 0, b""],
        [1, 1, "f", 1, 1, {str(n): "" for n in range(65)}, 0, b""],
        [1, 1, "f", 1, 1, None, -1, b""],
        [1, 1, "f", 1, 1, None, 0, b"x" * (limits.RPC_CHUNK + 1)],
        [2, 1, [-1, 0, 1, 0], 0, b""],
        [3, 1, None, "E" * 65, "", "", -1.0, None],
        [3, 1, None, "E", "", "m" * (MESSAGE_BYTES + 1), -1.0, None],
        [3, 1, None, "E", "", "", float("nan"), None],
        [3, 1, None, "E", "", "", -1.0, {"f": [1]}],
        [3, 1, None, "E", "", "", -1.0, {"f": "x" * (FACT_BYTES + 1)}],
        [4, 1, True, 0, b""],
        [4, 1, True, -1, b"x"],
        [6, -1],
        [7, 1],
    ],
)
def test_what_is_out_of_bounds_breaks_the_protocol(wrong: list[Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="expected"):
        decode_frame(encode(wrong))


def test_fields_and_words_of_later_versions_are_read_over() -> None:
    assert decode_frame(encode([2, 1, [3, 250, 1, 0, "new"], 0, b"", "new"])) == Answer(
        1, Load(3, 250), 0, b""
    )
    assert decode_frame(encode([5, 1, 99])) == Cancel(1, CancelReason.UNKNOWN)
    assert decode_frame(encode([3, 1, None, "E", "r", "m"])) == Failure(1, None, "E", "r", "m")


def test_the_largest_frames_fit_the_limit_of_the_channel() -> None:
    widest = "\U0001f600"
    pairs = {f"{n:02}": "x" * (limits.RPC_METADATA_MAX // 64 - 2) for n in range(64)}
    call = Call(2**62, widest * limits.ENDPOINT_TEXT, 1, 1, pairs, 2**62, b"x" * limits.RPC_CHUNK)
    chunk = Chunk(2**62, True, 2**62, b"x" * limits.RPC_CHUNK)
    facts = {str(n): "x" * FACT_BYTES for n in range(FACTS_BYTES // FACT_BYTES)}
    failure = Failure(2**62, None, "E" * 64, "r" * 64, "m" * MESSAGE_BYTES, 1.5, dict(facts))

    for frame in (call, chunk, failure):
        assert len(encode(frame)) <= limits.RPC_FRAME_MAX


def test_a_call_costs_few_bytes_beside_its_body() -> None:
    call = Call(100_000, "", 5000, 1, None, 0, b"x" * 100)
    answer = Answer(100_000, Load(3, 250, 1, 0), 0, b"x" * 100)

    assert len(encode(call)) <= 100 + 16
    assert len(encode(answer)) <= 100 + 16
