import pytest

from microos.gossip.awareness import Awareness, lag_floor


def awareness() -> Awareness:
    return Awareness(score_count=8, interval=1.0)


def test_the_score_stays_in_its_range() -> None:
    node = awareness()
    scores = []

    for change in (0, -1, -10, 1, -1, 10, -1):
        node.change(change)
        node.check()
        scores.append(node.score)

    assert scores == [0, 0, 0, 1, 0, 7, 6]


@pytest.mark.parametrize(("lag", "floor"), [(0.1, 0), (0.25, 1), (0.6, 2), (1.0, 4), (2.0, 7)])
def test_a_late_loop_sets_a_floor(lag: float, floor: int) -> None:
    assert lag_floor(lag, 1.0, 7) == floor


def test_the_greatest_lateness_counts_for_three_intervals() -> None:
    node = awareness()

    node.late(1.0, now=10.0)
    node.late(0.3, now=11.0)
    node.check()

    assert node.used(13.0) == 4
    assert node.used(13.5) == 1
    assert node.used(14.5) == 0


def test_the_grain_of_timers_is_no_lag() -> None:
    node = awareness()

    node.late(0.0005, now=1.0)

    assert node.lag(1.0) == 0.0
