import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.gossip.probe import RoundTrips, Schedule, ack_timeout, verdict_after
from microos.settings import GossipSettings
from microos.types import NodeId

LAN = GossipSettings()


def test_few_samples_wait_the_longest() -> None:
    trips = RoundTrips()

    trips.add(0.001)
    trips.add(0.001)

    assert trips.high is None
    assert ack_timeout(trips.high, 0.0, LAN) == 0.5


@pytest.mark.parametrize(
    ("high", "wait"), [(0.001, 0.02), (0.05, 0.15), (0.3, 0.5)], ids=["least", "three", "most"]
)
def test_the_wait_is_three_of_the_longest_round_trips(high: float, wait: float) -> None:
    assert ack_timeout(high, 0.0, LAN) == pytest.approx(wait)


def test_a_late_loop_waits_the_longest() -> None:
    assert ack_timeout(0.001, 0.05, LAN) == 0.5


def test_the_longest_of_the_last_32_counts() -> None:
    trips = RoundTrips()

    trips.add(0.4)
    for _ in range(31):
        trips.add(0.001)
    assert trips.high == 0.4
    trips.add(0.001)

    assert trips.high == 0.001


@pytest.mark.parametrize(("wait", "verdict"), [(0.02, 0.5), (0.4, 0.8), (0.5, 1.0)])
def test_the_verdict_is_between_half_an_interval_and_one(wait: float, verdict: float) -> None:
    assert verdict_after(wait, LAN) == verdict


@pytest.mark.prop
@settings(max_examples=40)
@given(size=st.integers(4, 30), seed=st.integers(0, 2**32))
def test_every_member_is_probed_in_bounded_time(size: int, seed: int) -> None:
    schedule = Schedule(random.Random(seed))
    others = [NodeId(f"n{k}") for k in range(size - 1)]
    last = dict.fromkeys(others, 0)

    # SWIM §4.3: at most 2n - 1 rounds apart, here in every third slot.
    for slot in range(1, 12 * size):
        node = schedule.next(others[:2], size, lambda _: True)
        if node is None:
            schedule.refill(list(others))
            continue
        assert slot - last[node] <= 3 * (2 * size - 1) + 6
        last[node] = slot

    assert all(last.values())


def test_two_slots_of_three_go_to_the_monitored() -> None:
    schedule = Schedule(random.Random(1))
    others = [NodeId(f"n{k}") for k in range(9)]
    schedule.refill(list(others))

    probed = [schedule.next(others[:2], 10, lambda _: True) for _ in range(6)]

    assert probed[0] == probed[3] == others[0]
    assert probed[1] == probed[4] == others[1]
