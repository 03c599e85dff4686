import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.gossip.suspicion import Suspicion, base_wait, timeout, wanted_confirmations
from microos.settings import GossipSettings
from microos.types import Incarnation, NodeId

LAN = GossipSettings()


def suspicion(
    *, wanted: int = 3, base: float = 2.0, ceiling: float = 12.0, since: float = 100.0
) -> Suspicion:
    return Suspicion(
        Incarnation(1),
        since=since,
        wanted=wanted,
        base=base,
        ceiling=ceiling,
        accusers={NodeId("a")},
    )


@pytest.mark.parametrize(
    ("wanted", "base", "ceiling", "elapsed", "remaining"),
    [
        (3, 2.0, 30.0, (0, 2, 3, 4, 5, 10), (30.0, 14.0, 4.810, -2.0, -3.0, -8.0)),
        (3, 2.0, 30.0, (0,) * 6, (30.0, 16.0, 7.810, 2.0, 2.0, 2.0)),
        (3, 0.5, 2.0, (0,) * 4, (2.0, 1.25, 0.811, 0.5)),
        (3, 0.5, 1.0, (0,) * 5, (1.0, 0.75, 0.604, 0.5, 0.5)),
        (0, 0.5, 2.0, (0,), (0.5,)),
    ],
)
def test_what_remains_follows_the_vectors(
    wanted: int,
    base: float,
    ceiling: float,
    elapsed: tuple[int, ...],
    remaining: tuple[float, ...],
) -> None:
    suspect = suspicion(wanted=wanted, base=base, ceiling=ceiling, since=0.0)

    for count, (passed, left) in enumerate(zip(elapsed, remaining, strict=True)):
        if count:
            suspect.confirm(NodeId(f"c{count}"))
        assert suspect.deadline - passed == pytest.approx(left, abs=1e-3)


@pytest.mark.parametrize(
    ("count", "factor"), [(5, 1), (10, 1), (20, 1.30103), (50, 1.69897), (100, 2), (1000, 3)]
)
def test_base_grows_with_the_logarithm(count: int, factor: float) -> None:
    assert base_wait(count, LAN) == pytest.approx(4.0 * factor, abs=1e-4)


def test_small_clusters_want_no_confirmations() -> None:
    assert [wanted_confirmations(n, LAN) for n in (2, 3, 4, 5, 100)] == [0, 0, 0, 3, 3]


def test_the_same_accuser_counts_once() -> None:
    suspect = suspicion()

    assert not suspect.confirm(NodeId("a"))
    assert suspect.confirm(NodeId("b"))
    assert not suspect.confirm(NodeId("b"))
    assert suspect.confirmations == 1


def test_a_fourth_confirmation_is_no_news() -> None:
    suspect = suspicion()

    told = [suspect.confirm(NodeId(accuser)) for accuser in "bcde"]

    assert told == [True, True, True, False]
    assert suspect.deadline == 102.0


def test_one_refusal_waits_the_base() -> None:
    suspect = suspicion()

    assert suspect.refuse(NodeId("a"), 100.0)

    assert suspect.deadline == 102.0
    assert not suspect.proven


def test_two_refusals_prove_it_after_a_short_wait() -> None:
    suspect = suspicion()

    suspect.refuse(NodeId("a"), 100.0)
    suspect.refuse(NodeId("b"), 100.1)

    assert suspect.proven
    assert suspect.deadline == pytest.approx(100.2)


def test_an_ack_takes_refusals_back() -> None:
    suspect = suspicion()
    suspect.refuse(NodeId("a"), 100.0)
    suspect.refuse(NodeId("b"), 100.1)

    suspect.vouched = True

    assert suspect.deadline == 112.0


@pytest.mark.prop
@settings(max_examples=60)
@given(wanted=st.integers(1, 50), base=st.floats(0.01, 60.0), spread=st.floats(0.0, 600.0))
def test_more_confirmations_never_wait_longer(wanted: int, base: float, spread: float) -> None:
    waits = [timeout(c, wanted=wanted, base=base, ceiling=base + spread) for c in range(wanted + 1)]

    assert waits == sorted(waits, reverse=True)
    assert waits[0] == base + spread
    assert waits[-1] == pytest.approx(base)
