"""How calls are routed, as values: what to pick by, how often to retry, when to stop trying.

    node.router.apply("payments.*", Policy(retry=Retry(attempts=2)))

Each part can be None: no retries, no breaker. Values are checked when they are made,
so a wrong one never reaches a call.
"""

from collections.abc import Callable

import msgspec

COOLDOWN_MAX = 30.0
"""Longest wait of an open breaker before its jitter [s]."""

ATTEMPTS_MAX = 100
WINDOW_MAX = 3600.0


def _check(where: str, wanted: str, found: float, fits: Callable[[float], bool]) -> None:
    """Raise unless `found` is a number that fits; a NaN fits nothing."""
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if not number or not fits(found):
        raise ValueError(f"{where} must be {wanted}, found {found!r}")


def _check_count(where: str, least: int, most: int, found: int) -> None:
    wanted = f"a whole number of {least}..{most}"
    _check(where, wanted, found, lambda n: isinstance(n, int) and least <= n <= most)


class LeastLoad(msgspec.Struct, frozen=True):
    """Pick the instance that should answer soonest (`mo4p`, see `router/pick.py`)."""


class RoundRobin(msgspec.Struct, frozen=True):
    """Pick the instances in turn, by node id."""


class Random(msgspec.Struct, frozen=True):
    """Pick any instance, each as likely."""


class Retry(msgspec.Struct, frozen=True):
    """When a call that failed is tried again, on another instance."""

    attempts: int = 3
    """Attempts of one call, the first included. Range 1..100."""

    budget: float = 0.1
    """Retries allowed, as a share of the calls of the last 10 s, beyond a reserve of 10.
    Range 0..1. Google's SRE book has 0.1, Finagle 0.2."""

    def __post_init__(self) -> None:
        _check_count("Retry.attempts", 1, ATTEMPTS_MAX, self.attempts)
        _check("Retry.budget", "0..1", self.budget, lambda n: 0.0 <= n <= 1.0)


class Breaker(msgspec.Struct, frozen=True):
    """When an instance is no longer called, and how it comes back."""

    failure_ratio: float = 0.5
    """Failures / calls within `window` that open it. Above 0, at most 1."""

    window: float = 10.0
    """How far back is counted, in two halves [s]. Above 0, at most 3600."""

    cooldown: float = 1.0
    """First wait of an open breaker; doubled each time, at most 30, ± 50 % [s]."""

    minimum: int = 20
    """Calls within `window` below which the ratio says nothing. At least 1."""

    consecutive: int = 5
    """Failures in a row that open it. At least 1; Envoy has 5."""

    probes: int = 1
    """Calls at a time let through to see whether the instance is well again. At least 1."""

    eject_max: float = 0.5
    """Share of the instances that may be out while others are well. Range 0..1."""

    def __post_init__(self) -> None:
        most = 1_000_000
        ratio, window, cooldown = self.failure_ratio, self.window, self.cooldown
        _check("Breaker.failure_ratio", "above 0, at most 1", ratio, lambda n: 0.0 < n <= 1.0)
        wanted = f"above 0, at most {WINDOW_MAX:g} seconds"
        _check("Breaker.window", wanted, window, lambda n: 0.0 < n <= WINDOW_MAX)
        wanted = f"above 0, at most {COOLDOWN_MAX:g} seconds"
        _check("Breaker.cooldown", wanted, cooldown, lambda n: 0.0 < n <= COOLDOWN_MAX)
        _check_count("Breaker.minimum", 1, most, self.minimum)
        _check_count("Breaker.consecutive", 1, most, self.consecutive)
        _check_count("Breaker.probes", 1, most, self.probes)
        _check("Breaker.eject_max", "0..1", self.eject_max, lambda n: 0.0 <= n <= 1.0)


class Policy(msgspec.Struct, frozen=True):
    """How the calls of some endpoints are routed."""

    pick: LeastLoad | RoundRobin | Random = LeastLoad()
    retry: Retry | None = Retry()
    """None: one attempt. An instance that is draining is passed over all the same."""
    breaker: Breaker | None = Breaker()
    """None: an instance that fails is only passed over for a moment."""

    def __post_init__(self) -> None:
        _check_kind("Policy.pick", (LeastLoad, RoundRobin, Random), self.pick)
        _check_kind("Policy.retry", (Retry, type(None)), self.retry)
        _check_kind("Policy.breaker", (Breaker, type(None)), self.breaker)


def _check_kind(where: str, kinds: tuple[type, ...], found: object) -> None:
    if not isinstance(found, kinds):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"{where} must be {names}, found {found!r}")
