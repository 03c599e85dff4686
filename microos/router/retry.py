"""Whether a call that failed is tried again, when, and which error it ends with.

| what happened | class | tried again |
|---|---|---|
| nothing | `UnavailableError` | yes |
| perhaps | `UncertainError` | only if the endpoint is idempotent |
| an answer | all others | never |

An instance that says `draining` has done nothing and is leaving in good order: its calls
go elsewhere at once, at no cost to the budget, once per instance. Everything else is
bounded by the attempts, by the budget of the service, by the deadline, and by "tried
again already" of a layer below (one layer retries, not five). The first retry leaves at
once if there is another instance, then the pauses are U(0, min(1 s, 25 ms·2ⁿ)), and
`retry_after` of the callee is the least.

An attempt that may have been done makes the whole call uncertain, however the later ones
ended: "nothing happened" must be true of all of them.

Source: house rule on errors; Brooker, "Exponential Backoff And Jitter" (AWS, 2015), full
jitter; Beyer et al., "Site Reliability Engineering" (2016), ch. 22, retries.
"""

from __future__ import annotations

from microos.errors import MicroosError, UnavailableError, UncertainError
from microos.router.budget import Budget
from microos.router.policy import Retry
from microos.types import Random

PAUSE_MIN = 0.025
PAUSE_MAX = 1.0
"""[s]"""

ONCE = Retry(attempts=1)


class Tries:
    """The attempts of one logical call so far."""

    def __init__(self, retry: Retry | None, *, idempotent: bool, deadline: float) -> None:
        self._retry = retry or ONCE
        self._idempotent = idempotent
        self._deadline = deadline
        self.nodes: dict[str, bool] = {}
        """Where it was tried: to be left out while there is anybody else; and whether it answered
        there, if only with an error: who did is there, and next if nobody else is left."""
        self.drained: dict[str, None] = {}
        """Who said `draining`: not to be tried again."""
        self.last: MicroosError | None = None
        self.retries = 0
        self._uncertain: UncertainError | None = None

    def failed(self, node: str, error: MicroosError) -> None:
        """Take in how an attempt at `node` has ended."""
        self.last = error
        self.nodes[node] = error.load is not None
        if isinstance(error, UncertainError):
            self._uncertain = error
        if _is_draining(error):
            self.drained[node] = None

    def pause(
        self, now: float, budget: Budget, random: Random, *, has_others: bool
    ) -> float | None:
        """Return how long to wait before the next attempt [s]; None: there is none.

        Args:
            budget: Pays for it.
            has_others: Whether an instance is there that was not tried.
        """
        error = self.last
        assert error is not None
        if now >= self._deadline or not self._may_repeat(error):
            return None
        if _is_draining(error):
            return 0.0
        if 1 + self.retries >= self._retry.attempts:
            return None
        least = _retry_after(error)
        if not least >= 0.0:
            return None
        at_once = self.retries == 0 and has_others
        ceiling = 0.0 if at_once else min(PAUSE_MAX, PAUSE_MIN * 2.0 ** min(self.retries, 16))
        wait = max(least, ceiling * random.random())
        if now + wait >= self._deadline or not budget.take(now, self._retry.budget):
            return None
        self.retries += 1
        return wait

    def _may_repeat(self, error: MicroosError) -> bool:
        if error.facts.get("retried"):
            return False
        if isinstance(error, UncertainError):
            return self._idempotent
        return isinstance(error, UnavailableError)

    def ending(self, error: MicroosError) -> MicroosError:
        """Return what the call is to end with, of its last error or of having nobody to try."""
        uncertain = self._uncertain
        if uncertain is not None and isinstance(error, UnavailableError):
            error = UncertainError(
                f"an earlier attempt may have been done ({uncertain}), and then: {error}",
                reason="deadline" if error.reason == "deadline" else uncertain.reason,
            )
        if self.retries:
            error.facts["retried"] = True
        return error

    def check(self) -> None:
        """Assert all invariants."""
        assert self.retries < self._retry.attempts
        assert all(node in self.nodes for node in self.drained)
        assert self._uncertain is None or self.last is not None


def _is_draining(error: MicroosError) -> bool:
    return isinstance(error, UnavailableError) and error.reason == "draining"


def _retry_after(error: MicroosError) -> float:
    """Return what the callee asks to wait [s]; below 0: not again."""
    found = error.facts.get("retry_after", 0.0)
    return float(found) if isinstance(found, int | float) else 0.0
