"""Many callers and many instances on the real pick and breaker, in virtual time (`model.py`)."""

from __future__ import annotations

import pytest

from microos.router import Policy, RoundRobin
from microos.router.breaker import BreakerMoved
from tests.router.model import DEADLINE, Model

pytestmark = pytest.mark.sim


@pytest.mark.criterion("ROUT-2")
@pytest.mark.slow
@pytest.mark.parametrize("callers", [1, 3, 10, 30])
@pytest.mark.parametrize("seed", range(2))
def test_a_slow_instance_is_spared_and_gets_its_share_back(callers: int, seed: int) -> None:
    model = Model(seed, instances=5, callers=callers, load=0.5)
    model.run(until=10.0)
    assert model.share(0) > 0.15

    model.servers[0].speed = 0.1
    model.run(until=12.0)
    model.run(until=30.0)
    assert model.share(0) <= 0.08

    model.servers[0].speed = 1.0
    model.run(until=35.0)
    model.run(until=40.0)
    assert model.share(0) >= 0.15


@pytest.mark.criterion("ROUT-2")
@pytest.mark.slow
def test_a_slow_instance_does_not_make_the_calls_slow() -> None:
    model = Model(1, instances=5, callers=10, load=0.5, workers=4)
    model.run(until=5.0)
    model.servers[0].speed = 0.1
    model.run(until=7.0)

    model.run(until=17.0)

    assert model.quantile(0.99) <= 1.5 * model.quantile(0.99, without=0)


@pytest.mark.criterion("ROUT-5")
@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("seed", range(2))
def test_equal_instances_get_equal_shares(seed: int, load: float) -> None:
    model = Model(seed, instances=10, callers=10, load=load)

    model.run(until=10_200 * 0.01288 / (10 * load))

    assert model.picked.total() >= 10_000
    assert max(model.picked.values()) / (model.picked.total() / 10) <= 1.15


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fails", "is_mute"])
def test_one_bad_instance_of_ten_costs_few_calls(how: str) -> None:
    model = Model(1, instances=10, callers=10, load=0.7, workers=4)
    setattr(model.servers[0], how, True)

    model.run(until=10.0)

    assert model.failures / model.picked.total() <= 0.002
    assert model.quantile(0.99) < 0.1


@pytest.mark.slow
def test_it_is_quicker_than_round_robin_among_unequal_instances() -> None:
    tails = []
    for policy in (Policy(), Policy(pick=RoundRobin())):
        model = Model(2, instances=8, callers=4, load=0.6, workers=4, policy=policy)
        for number in range(2):
            model.servers[number].speed = 1 / 16
        model.run(until=2.0)
        model.run(until=10.0)
        tails.append(model.quantile(0.99))

    assert tails[0] < 0.1
    assert tails[1] > 0.9 * DEADLINE


@pytest.mark.slow
def test_with_every_instance_failing_the_breakers_stop_the_calls() -> None:
    model = Model(1, instances=5, callers=5, load=0.5)
    for server in model.servers:
        server.fails = True
    model.run(until=10.0)

    model.run(until=40.0)
    assert model.refused > 50 * model.picked.total() > 0
    assert {type(note) for note in model.notes} == {BreakerMoved}

    for server in model.servers:
        server.fails = False
    model.run(until=90.0)
    model.run(until=100.0)
    assert (model.failures, model.refused) == (0, 0)
