import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.codec import encode
from microos.gossip.broadcast import Queue, pack, retransmit_limit


@pytest.mark.parametrize(
    ("counts", "limit"),
    [
        ((0,), 0),
        ((1,), 3),
        ((2, 3), 6),
        ((4, 7), 9),
        ((8, 15), 12),
        ((16, 31), 15),
        ((32, 63), 18),
        ((64, 127), 21),
        ((128,), 24),
        ((1000,), 30),
    ],
)
def test_the_limit_is_three_times_the_bits_of_the_size(counts: tuple[int, ...], limit: int) -> None:
    assert {retransmit_limit(count) for count in counts} == {limit}


def test_newer_news_of_a_subject_replaces_the_older() -> None:
    queue = Queue()

    queue.put(("member", "a"), b"old")
    queue.put(("member", "a"), b"newer")
    queue.check()

    assert queue.fill(100, count=10, limit=3) == [b"newer"]


def test_the_fewest_sent_goes_first() -> None:
    queue = Queue()
    queue.put(("member", "a"), b"often")
    queue.fill(100, count=10, limit=9, copies=3)

    queue.put(("member", "b"), b"fresh")

    assert queue.has_fresh
    assert queue.fill(5, count=10, limit=9) == [b"fresh"]
    assert not queue.has_fresh


def test_the_largest_that_fits_goes_first() -> None:
    queue = Queue()
    for size in (10, 30, 20):
        queue.put(("member", str(size)), bytes(size))

    assert [len(part) for part in queue.fill(35, count=10, limit=3)] == [30]
    assert [len(part) for part in queue.fill(35, count=10, limit=3)] == [20, 10]


def test_replaced_news_is_sent_afresh() -> None:
    queue = Queue()
    queue.put(("member", "a"), b"1")
    queue.fill(10, count=1, limit=3, copies=2)

    queue.put(("member", "a"), b"2")

    assert [queue.fill(10, count=1, limit=3) for _ in range(4)] == [[b"2"], [b"2"], [b"2"], []]


@pytest.mark.prop
@settings(max_examples=80)
@given(
    sizes=st.lists(st.integers(1, 60), max_size=30),
    rooms=st.lists(st.integers(0, 150), max_size=40),
    limit=st.integers(1, 6),
)
def test_packets_never_overflow_and_no_item_outlives_its_limit(
    sizes: list[int], rooms: list[int], limit: int
) -> None:
    queue = Queue()
    sends: dict[bytes, int] = {}
    for number, size in enumerate(sizes):
        data = bytes([number]) * size
        queue.put(("member", str(number)), data)
        sends[data] = 0

    for room in rooms + [10_000] * limit:
        parts = queue.fill(room, count=20, limit=limit)
        queue.check()
        assert sum(map(len, parts)) <= room
        assert len(parts) <= 20
        for part in parts:
            sends[part] += 1

    assert all(count <= limit for count in sends.values())
    assert len(queue) == sum(count < limit for count in sends.values())


@pytest.mark.prop
@settings(max_examples=40)
@given(st.lists(st.integers(0, 2**60), min_size=1, max_size=256))
def test_a_packet_is_one_array_of_its_messages(values: list[int]) -> None:
    packet = pack([encode([value]) for value in values])

    assert msgspec.msgpack.decode(packet) == [[value] for value in values]
