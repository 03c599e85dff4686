"""What this node knows of the services it calls: whom, how they do, what it may spend on them.

    View                 one service: instances, the pick's knowledge of them, the budget
     └─ EndpointView     one endpoint: its policy, its circuits, its pace, its figures
         └─ Attempt      one call on its way to one instance

An attempt tells both the pick and the circuit how it went, whoever stands around it: a
breaker that is one middleware among others never sees the timeouts of those outside it
(moleculer#1202).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from microos.discovery.discovery import Instance
from microos.errors import (
    CircuitOpenError,
    MicroosError,
    NoMemberError,
    OverloadedError,
    UnavailableError,
    UncertainError,
)
from microos.router.breaker import NO_PENALTIES, Circuits, Pass
from microos.router.budget import Budget
from microos.router.pick import Candidate, Pace, Pool
from microos.router.policy import LeastLoad, Policy, RoundRobin
from microos.rpc.messages import Load
from microos.types import Random

OVERLOAD_WEIGHT = 0.5
"""How much of a failure a refusal of a busy instance is."""

Pick = Callable[[Sequence[Candidate], float, Mapping[str, float]], Candidate]


class View:
    """One service."""

    def __init__(self, service: str, caller: str, random: Random) -> None:
        self.service = service
        self.pool = Pool(caller, random)
        self.budget = Budget()
        self.instances: dict[str, Instance] = {}
        """By node."""
        self.endpoints: dict[str, EndpointView] = {}
        """By name."""
        self.was_known = False
        """Whether there ever was an instance."""

    def sync(self, instances: Sequence[Instance], callers: int) -> None:
        """Take over who is there and how many may call them; forget who is gone."""
        self.pool.callers = callers
        self.instances = {instance.node: instance for instance in instances}
        self.was_known = self.was_known or bool(instances)
        for node in self.pool.sync([(i.node, i.state != "alive") for i in instances]):
            for endpoint in self.endpoints.values():
                if endpoint.circuits is not None:
                    endpoint.circuits.forget(node)

    def check(self) -> None:
        """Assert all invariants."""
        self.pool.check()
        self.budget.check()
        assert all(candidate.node in self.instances for candidate in self.pool.everyone)
        for endpoint in self.endpoints.values():
            if endpoint.circuits is not None:
                endpoint.circuits.check()
                assert all(node in self.instances for node in endpoint.circuits.states())


class EndpointView:
    """One endpoint."""

    def __init__(
        self,
        name: str,
        view: View,
        policy: Policy,
        random: Random,
        observe: Callable[[object], None],
    ) -> None:
        self.name = name
        self.view = view
        self.pace = Pace()
        self.calls = self.successes = self.errors = self.retries = 0
        self.in_progress = 0
        """Logical calls begun and not ended."""
        self._random = random
        self._observe = observe
        self.policy = policy
        self.circuits = self._new_circuits()
        self._pick = self._new_pick()

    def adopt(self, policy: Policy) -> None:
        """Route by `policy` from now on; another breaker begins with every circuit closed."""
        before, self.policy = self.policy, policy
        if policy.breaker != before.breaker:
            self.circuits = self._new_circuits()
        self._pick = self._new_pick()

    def _new_circuits(self) -> Circuits | None:
        breaker = self.policy.breaker
        if breaker is None:
            return None
        return Circuits(self.name, breaker, self._random, self._observe)

    def _new_pick(self) -> Pick:
        pool = self.view.pool
        match self.policy.pick:
            case LeastLoad():
                return pool.least_load
            case RoundRobin():
                return pool.round_robin
            case _:
                return pool.at_random

    def choose(
        self,
        now: float,
        *,
        key: str | None = None,
        tried: Mapping[str, bool],
        drained: Mapping[str, None],
    ) -> Candidate | None:
        """Return where the next attempt goes; None if all who could take it are draining.

        Args:
            key: The same key goes to the same instance while it can be used.
            tried: Nodes that are left out while there is another; of these alone, those that have
                answered (True) are chosen from, if there are any.
            drained: Nodes that are left out in any case.

        Raises:
            NoMemberError: No instance is known.
            CircuitOpenError: All breakers are open.
        """
        everyone = self.view.pool.everyone
        if not everyone:
            raise self._nobody()
        circuits = self.circuits
        usable: Sequence[Candidate] = everyone
        penalties = NO_PENALTIES
        if circuits is not None and not circuits.are_quiet:
            usable = circuits.usable(everyone, now)
            if not usable:
                raise self._open(circuits.retry_after(everyone, now))
            penalties = circuits.penalties(now)
        if tried:
            usable = [c for c in usable if c.node not in drained]
            fresh = [c for c in usable if c.node not in tried]
            usable = fresh or [c for c in usable if tried[c.node]] or usable
            if not usable:
                return None
        if key is not None:
            return self.view.pool.by_key(usable, now, key)
        return self._pick(usable, now, penalties)

    def _nobody(self) -> NoMemberError:
        if self.view.was_known:
            return NoMemberError(
                f"no instance of {self.view.service!r} is left; its nodes have left or died",
                reason="none_usable",
            )
        return NoMemberError(
            f"no instance of {self.view.service!r} was ever known here; "
            "is it announced, and is this node in the same cluster?",
            reason="unknown_service",
        )

    def _open(self, wait: float) -> CircuitOpenError:
        count = len(self.view.pool.everyone)
        return CircuitOpenError(
            f"all {count} instances of {self.view.service!r} fail {self.name!r}: "
            f"their breakers are open; try again in {wait:.3f} s",
            reason="open",
            retry_after=wait,
        )

    def begin(self, candidate: Candidate, now: float) -> Attempt:
        """Send an attempt on its way."""
        return Attempt(self, candidate, now)


class Attempt:
    """One attempt: ends exactly once, and its first outcome counts."""

    __slots__ = ("_candidate", "_is_settled", "_number", "_pace", "_pass", "_pool", "node")

    def __init__(self, endpoint: EndpointView, candidate: Candidate, now: float) -> None:
        self._pool = endpoint.view.pool
        self._pace = endpoint.pace
        self._candidate = candidate
        self.node = candidate.node
        self._number = self._pool.sent(candidate, self._pace, now)
        circuits = endpoint.circuits
        self._pass: Pass | None = None if circuits is None else circuits.begin(candidate.node, now)
        self._is_settled = False

    def answered(self, load: Load | None, now: float) -> None:
        """Its result has come."""
        if self._settle():
            self._pool.answered(self._candidate, self._pace, load, now)
            if self._pass is not None:
                self._pass.succeeded(now)

    def failed(self, error: MicroosError, now: float) -> None:
        """It has ended with an error, which came from there if it carries a load."""
        if not self._settle():
            return
        load: Load | None = getattr(error, "load", None)
        if load is not None:
            self._pool.heard(self._candidate, load, now)
        if isinstance(error, UnavailableError) and error.reason == "draining":
            self._pool.drains(self._candidate, now)
        elif isinstance(error, OverloadedError):
            self._charge(OVERLOAD_WEIGHT, now)
        elif isinstance(error, UnavailableError | UncertainError):
            self._charge(1.0, now)
        elif load is not None and self._pass is not None:
            # The caller's or the handler's fault: the instance itself is well.
            self._pass.succeeded(now)

    def timed_out(self, now: float) -> None:
        """It was given up at its deadline."""
        if self._settle():
            self._charge(1.0, now)

    def close(self) -> None:
        """It is over; without an outcome nothing was learnt."""
        self._pool.ended(self._candidate, self._number)
        if self._pass is not None:
            self._pass.dropped()

    def _charge(self, weight: float, now: float) -> None:
        self._pool.failed(self._candidate, now, weight)
        if self._pass is not None:
            self._pass.failed(now, weight)

    def _settle(self) -> bool:
        is_first = not self._is_settled
        self._is_settled = True
        return is_first
