"""Callers, instances and queues on virtual time: the routing world in small, on the real code.

Each caller has its own `View` and `EndpointView`, as a node has; an instance is c workers
with one queue, first in first out. Calls arrive as a Poisson process, spread evenly over
the callers; their demand is N(10 ms, 10 ms), redrawn until positive; service time is the
demand / the instance's speed; each way takes 0.25 ms, a deadline 1 s that travels, and
dead work is not started. Everything follows from the seed.

    arrival ─▶ choose, begin ─ 0.25 ms ─▶ queue ─▶ worker ─ 0.25 ms ─▶ answered or failed

Source: the model of `rpc-router.md` part 17, without retries and hedges.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from itertools import count

from microos.discovery.discovery import Instance
from microos.errors import CircuitOpenError, UnavailableError, UncertainError
from microos.router.policy import Policy
from microos.router.view import Attempt, EndpointView, View
from microos.rpc.messages import Load

DEMAND = 0.010
DEMAND_MEAN = 0.01288
"""Of N(μ, μ) redrawn until positive [s]."""

ONE_WAY = 0.00025
DEADLINE = 1.0


def instance(number: int, *, service: str = "shop", state: str = "alive") -> Instance:
    node = f"{number:032x}"
    return Instance(service, "1", node, f"node-{number}", "127.0.0.1:1", {}, (), state)


class Server:
    """One instance."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.speed = 1.0
        self.fails = False
        self.is_mute = False
        self.busy = 0
        self.queue: deque[Question] = deque()
        self._estimate = 0.0
        self._sampled_at = 0.0

    def load(self) -> Load:
        service_us = int(self._estimate * 1e6)
        return Load(self.busy + len(self.queue), service_us, self.workers)

    def sample(self, service: float, now: float) -> None:
        fresh = max(0.1, 1.0 - math.exp(-(now - self._sampled_at)))
        if not self._estimate:
            fresh = 1.0
        self._estimate += fresh * (service - self._estimate)
        self._sampled_at = now


class Question:
    """One call."""

    def __init__(self, began: float, demand: float, number: int, attempt: Attempt) -> None:
        self.began = began
        self.demand = demand
        self.number = number
        """Of the instance asked."""
        self.attempt = attempt
        self.is_over = False


class Model:
    """The world. `load` is the share of all workers' full speed that the calls ask for."""

    def __init__(
        self,
        seed: int,
        *,
        instances: int,
        callers: int,
        load: float,
        workers: int = 1,
        policy: Policy | None = None,
    ) -> None:
        self.now = 0.0
        self.servers = [Server(workers) for _ in range(instances)]
        self.picked: Counter[int] = Counter()
        self.latencies: dict[int, list[float]] = {n: [] for n in range(instances)}
        self.failures = 0
        self.refused = 0
        self.notes: list[object] = []
        self._chance = random.Random(f"world/{seed}")
        self._rate = load * instances * workers / DEMAND_MEAN
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.callers = [self._caller(f"{seed}/{n}", policy or Policy()) for n in range(callers)]
        for endpoint in self.callers:
            endpoint.view.sync([instance(n) for n in range(instances)], callers)
        self._at(0.0, self._arrive)

    def _caller(self, name: str, policy: Policy) -> EndpointView:
        chance = random.Random(name)
        view = View("shop", name, chance)
        endpoint = EndpointView("shop.buy", view, policy, chance, self.notes.append)
        view.endpoints["shop.buy"] = endpoint
        return endpoint

    def run(self, until: float) -> None:
        """Go on until then; what was counted so far is forgotten first."""
        self.picked.clear()
        self.failures = self.refused = 0
        for latencies in self.latencies.values():
            latencies.clear()
        while self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        for endpoint in self.callers:
            endpoint.view.check()

    def share(self, number: int) -> float:
        """Return the share of the picks that went to an instance."""
        return self.picked[number] / self.picked.total()

    def quantile(self, ratio: float, *, without: int | None = None) -> float:
        """Return a quantile of the latencies [s]; a missed call took the whole deadline."""
        found = sorted(x for n, xs in self.latencies.items() if n != without for x in xs)
        return found[int(ratio * (len(found) - 1))]

    def _at(self, at: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), event))

    def _arrive(self) -> None:
        self._at(self.now + self._chance.expovariate(self._rate), self._arrive)
        demand = 0.0
        while demand <= 0.0:
            demand = self._chance.gauss(DEMAND, DEMAND)
        endpoint = self._chance.choice(self.callers)
        try:
            candidate = endpoint.choose(self.now, tried={}, drained={})
        except CircuitOpenError:
            self.refused += 1
            return
        assert candidate is not None
        number = int(candidate.node, 16)
        self.picked[number] += 1
        question = Question(self.now, demand, number, endpoint.begin(candidate, self.now))
        self._at(self.now + ONE_WAY, lambda: self._receive(question))
        self._at(self.now + DEADLINE, lambda: self._expire(question))

    def _receive(self, question: Question) -> None:
        server = self.servers[question.number]
        if server.is_mute:
            return
        if server.fails:
            self._at(self.now + 0.001 + ONE_WAY, lambda: self._refuse(question))
            return
        server.queue.append(question)
        self._start(server)

    def _start(self, server: Server) -> None:
        while server.queue and server.busy < server.workers:
            question = server.queue.popleft()
            if not question.is_over:
                server.busy += 1
                service = question.demand / server.speed
                self._at(self.now + service, lambda q=question, s=service: self._finish(q, s))  # type: ignore[misc]

    def _finish(self, question: Question, service: float) -> None:
        server = self.servers[question.number]
        server.busy -= 1
        server.sample(service, self.now)
        load = server.load()
        self._at(self.now + ONE_WAY, lambda: self._answer(question, load))
        self._start(server)

    def _answer(self, question: Question, load: Load) -> None:
        if not question.is_over:
            question.attempt.answered(load, self.now)
            self._over(question)

    def _refuse(self, question: Question) -> None:
        if not question.is_over:
            self.failures += 1
            error = UnavailableError("refused", reason="deadline")
            question.attempt.failed(error, self.now)
            self._over(question)

    def _expire(self, question: Question) -> None:
        if not question.is_over:
            self.failures += 1
            question.attempt.failed(UncertainError("late", reason="deadline"), self.now)
            self._over(question)

    def _over(self, question: Question) -> None:
        question.is_over = True
        question.attempt.close()
        self.latencies[question.number].append(self.now - question.began)
