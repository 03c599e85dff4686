from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos import limits
from microos.net.outbox import Outbox


@pytest.mark.prop
@given(
    puts=st.lists(st.tuples(st.binary(min_size=1, max_size=60), st.booleans()), max_size=60),
    size_max=st.integers(1, 200),
)
def test_what_goes_in_comes_out_urgent_first_and_in_order(
    puts: list[tuple[bytes, bool]], size_max: int
) -> None:
    outbox = Outbox()
    for frame, urgent in puts:
        assert outbox.put(frame, urgent=urgent)
        outbox.check()

    out: list[bytes] = []
    while taken := outbox.take(size_max):
        assert len(taken) == 1 or sum(map(len, taken)) <= size_max
        outbox.check()
        out += taken

    assert out == [f for f, urgent in puts if urgent] + [f for f, urgent in puts if not urgent]
    assert len(outbox) == outbox.size_bytes == outbox.drops == 0


def test_the_bound_on_bytes_holds() -> None:
    outbox = Outbox()
    frame = b"x" * limits.MIB

    taken = sum(outbox.put(frame, urgent=True) for _ in range(20))

    assert taken == limits.LINK_OUTBOX_BYTES // limits.MIB
    assert outbox.drops == 20 - taken
    outbox.check()


def test_what_is_thrown_away_is_counted() -> None:
    outbox = Outbox()
    for _ in range(limits.LINK_OUTBOX_FRAMES + 5):
        outbox.put(b"x", urgent=False)

    outbox.clear()

    assert outbox.drops == limits.LINK_OUTBOX_FRAMES + 5
    outbox.check()


def test_pieces_of_long_bodies_wait_for_everything_else() -> None:
    box = Outbox()
    box.put(b"piece", bulk=True)
    box.put(b"call")
    box.put(b"append", urgent=True)

    assert box.take(100) == [b"append", b"call", b"piece"]
    box.check()
