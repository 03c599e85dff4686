import random

import pytest

from microos.gossip.reconnect import Seed, call_share, full_sync_stretch


@pytest.mark.parametrize(
    ("count", "stretch"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3), (128, 3), (129, 4), (256, 4)]
)
def test_full_exchanges_stretch_with_the_cluster(count: int, stretch: int) -> None:
    assert full_sync_stretch(count) == stretch


def test_a_seed_is_tried_eagerly_for_a_minute_and_then_for_ever() -> None:
    seed, now, delays = Seed(0.0), 0.0, []
    chance = random.Random(1)

    while now < 200.0:
        delays.append(seed.next_delay(now, 5.0, chance))
        now += delays[-1]

    assert 0.16 <= delays[0] <= 0.24
    early = [d for d, at in zip(delays, _sums(delays), strict=True) if at < 60.0]
    assert max(early) <= 1.2
    assert all(4.0 <= d <= 6.0 for d in delays[len(early) :])


def test_the_dead_are_called_by_somebody_in_each_interval() -> None:
    assert call_share(1, 10) == 0.1
    assert call_share(20, 10) == 1.0
    assert call_share(3, 0) == 1.0


def _sums(delays: list[float]) -> list[float]:
    return [sum(delays[:k]) for k in range(len(delays))]
