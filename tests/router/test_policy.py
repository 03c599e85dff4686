"""Routing policies are values that cannot be wrong."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from microos.router import Breaker, LeastLoad, Policy, Random, Retry, RoundRobin


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (Retry, "attempts", (0, 101, 1.5, True, "3", None)),
        (Retry, "budget", (-0.1, 1.1, math.nan, math.inf, "0.1")),
        (Breaker, "failure_ratio", (0.0, 1.01, math.nan)),
        (Breaker, "window", (0.0, -1.0, math.inf, math.nan)),
        (Breaker, "cooldown", (0.0, 30.1, math.nan)),
        (Breaker, "minimum", (0, 2.5)),
        (Breaker, "consecutive", (0, -1)),
        (Breaker, "probes", (0, False)),
        (Breaker, "eject_max", (-0.1, 1.1, math.nan)),
    ],
)
def test_a_wrong_value_is_refused_by_name(kind: Any, field: str, values: tuple[object]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{kind.__name__}\.{field} must be .+, found ") as e:
            kind(**{field: value})
        assert str(e.value).endswith(f"found {value!r}")


def test_the_edges_of_the_ranges_are_within() -> None:
    assert Retry(attempts=1, budget=0.0).attempts == 1
    assert Retry(attempts=100, budget=1).budget == 1
    assert Breaker(failure_ratio=1, cooldown=30.0, eject_max=0.0, probes=1).cooldown == 30.0


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("pick", "LeastLoad or RoundRobin or Random"),
        ("retry", "Retry or None"),
        ("breaker", "Breaker or None"),
    ],
)
def test_a_part_of_another_kind_is_refused(field: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"Policy.{field} must be {wanted}, found 3"):
        Policy(**{field: 3})  # type: ignore[arg-type]


def test_the_defaults_are_those_of_the_design() -> None:
    assert Policy() == Policy(
        pick=LeastLoad(),
        retry=Retry(attempts=3, budget=0.1),
        breaker=Breaker(0.5, 10.0, 1.0, 20, 5, 1, 0.5),
    )
    assert Policy(pick=RoundRobin(), retry=None, breaker=None) != Policy(pick=Random())


def test_a_policy_cannot_change() -> None:
    with pytest.raises(AttributeError):
        Policy().retry = None  # type: ignore[misc]
    assert msgspec.structs.replace(Policy(), retry=None).retry is None
