from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos import limits
from microos.errors import RemoteProtocolError
from microos.rpc.arrivals import Arrivals, Progress
from microos.rpc.messages import Answer, Chunk


def begun(size: int = 6, body: bytes = b"ab") -> Arrivals[Answer]:
    arrivals: Arrivals[Answer] = Arrivals()
    arrivals.begin(Answer(1, None, size, body))
    return arrivals


def chunk(at: int, data: bytes, id: int = 1) -> Chunk:
    return Chunk(id, False, at, data)


@given(body=st.binary(min_size=2, max_size=60), cuts=st.sets(st.integers(1, 59)))
def test_pieces_in_order_make_the_body(body: bytes, cuts: set[int]) -> None:
    ends = [*sorted(cut for cut in cuts if cut < len(body)), len(body)]
    begin = min(ends[0], len(body) - 1)
    arrivals = begun(len(body), body[:begin])

    progress = [
        arrivals.add(chunk(at, body[at:end]))
        for at, end in zip([begin, *ends], ends, strict=False)
        if at < end
    ]

    assert progress == [Progress.MORE] * (len(progress) - 1) + [Progress.WHOLE]
    assert arrivals.pop(1) == (Answer(1, None, len(body), body[:begin]), body)
    assert arrivals.size_bytes == 0


def test_a_gap_means_that_a_piece_is_missing() -> None:
    arrivals = begun()

    assert arrivals.add(chunk(4, b"ef")) is Progress.MISSING


@pytest.mark.parametrize(("at", "data"), [(0, b"ab"), (1, b"bc"), (2, b"cdefg"), (5, b"xx")])
def test_a_piece_twice_or_too_much_breaks_the_protocol(at: int, data: bytes) -> None:
    arrivals = begun()

    with pytest.raises(RemoteProtocolError, match=r"expected bytes 2\.\.6"):
        arrivals.add(chunk(at, data))

    arrivals.check()


@pytest.mark.parametrize("size", [1, 2])
def test_a_beginning_is_less_than_the_whole(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="beginning"):
        begun(size)


def test_the_bytes_of_incomplete_bodies_are_bounded() -> None:
    arrivals: Arrivals[Answer] = Arrivals()
    piece = b"x" * limits.RPC_CHUNK
    each = limits.RPC_BODY_MAX // limits.RPC_CHUNK - 1  # One piece short of whole.
    found = []

    for id in range(1, 10):
        arrivals.begin(Answer(id, None, limits.RPC_BODY_MAX, b""))
        found += [arrivals.add(chunk(n * limits.RPC_CHUNK, piece, id)) for n in range(each)]
        arrivals.check()

    room = limits.RPC_ARRIVING_MAX // limits.RPC_CHUNK
    assert found == [Progress.MORE] * room + found[room:]
    assert Progress.FULL in found
    assert arrivals.size_bytes <= limits.RPC_ARRIVING_MAX
