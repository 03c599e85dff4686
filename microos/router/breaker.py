"""When a failing instance is no longer called, and how it comes back.

One circuit per instance and endpoint. Suspicion (`pick.py`) is the fast half, one
failure and a second; this is the slow half, which wants more evidence and waits longer:

             5 failures in a row, or half of ≥ 20 calls in 10 s
     closed ───────────────────────────────────────────────────▶ open
        ▲                                                        │  ▲
        │ 3 successes, then                 cooldown·2^k ≤ 30 s, │  │ one failure:
        │ 10 s of slow start                ± 50 %, is over      ▼  │ k + 1
        └──────────────────────────────────────────────────── half-open
                                                               `probes` calls at a time

The calls are counted in two halves of the window, the one that fills and the one
before it. Results of calls sent before the last change of state say nothing about
what came after it and are dropped.

Who is out, of n instances whose circuits may be (c)losed, (o)pen and cooling, (h)alf-open:

| circuits | candidates |
|---|---|
| c c c o (o / n ≤ `eject_max`) | c, and h while it has a probe to give |
| c o o o (more than that) | panic: the cooling ones too, so that c is not crushed |
| h o o (nobody is closed) | h, one probe at a time: the service as a whole is being tried |
| o o o | nobody: the call ends at once with `CircuitOpenError` |

Source: Nygard, "Release It!" (2007), circuit breaker; Envoy, outlier detection (growing
ejection, limit on it, panic); Finagle, `FailureAccrualFactory` (probation, jitter).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Protocol, TypeVar

import msgspec

from microos.router.policy import COOLDOWN_MAX, Breaker
from microos.types import Random

SUCCESSES_WANTED = 3
"""Successes in a row that close a half-open circuit."""

SLOW_START = 10.0
"""How long a closed-again instance takes to get its full share [s]."""

SLOW_START_MIN = 0.1
"""Its share at the beginning of that."""

PROBE_WAIT = 0.1
"""What `retry_after` says while a probe is under way [s]: its answer will decide."""

NO_PENALTIES: Mapping[str, float] = MappingProxyType({})


class State(Enum):
    """What a circuit lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerMoved(msgspec.Struct, frozen=True):
    """A circuit has changed its state."""

    endpoint: str
    node: str
    before: str
    after: str
    """`closed`, `open` or `half_open`."""
    wait: float
    """How long it stays open at least [s]; 0 in the other states."""


class Named(Protocol):
    """An instance, by the id of its node."""

    @property
    def node(self) -> str: ...


N = TypeVar("N", bound=Named)


class Circuit:
    """The state of one instance and endpoint."""

    def __init__(self, settings: Breaker) -> None:
        self._settings = settings
        self.state = State.CLOSED
        self.generation = 0
        """Counts the changes of state."""
        self.probes = 0
        """Calls under way that decide about a half-open circuit."""
        self.until = 0.0
        """When the cooling ends [s]; means something only while open."""
        self.closed_at = -math.inf
        """When it last closed again [s]."""
        self._openings = 0
        self._in_row = 0.0
        self._successes = 0
        self._half = 0
        self._calls = [0.0, 0.0]
        self._failures = [0.0, 0.0]

    def lets_through(self, now: float) -> bool:
        """Return whether a call may be sent now."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN:
            return now >= self.until
        return self.probes < self._settings.probes

    def is_cooling(self, now: float) -> bool:
        return self.state is State.OPEN and now < self.until

    def weight(self, now: float) -> float:
        """Return the share of an instance's usual calls it should get. Range 0.1..1."""
        return min(1.0, SLOW_START_MIN + (1 - SLOW_START_MIN) * (now - self.closed_at) / SLOW_START)

    # What happens to it. Each returns whether the state has changed.

    def begin(self, now: float) -> bool:
        """Count a call that is sent now."""
        moved = self.state is State.OPEN and now >= self.until
        if moved:
            self._become(State.HALF_OPEN)
        if self.state is State.HALF_OPEN:
            self.probes += 1
        return moved

    def drop(self) -> None:
        """Forget a call of this generation that has shown nothing."""
        if self.state is State.HALF_OPEN:
            self.probes -= 1

    def succeed(self, now: float) -> bool:
        """Count an answer to a call of this generation."""
        if self.state is State.CLOSED:
            self._in_row = 0.0
            self._count(now, 0.0)
        elif self.state is State.HALF_OPEN:
            self.probes -= 1
            self._successes += 1
            if self._successes >= SUCCESSES_WANTED:
                self._become(State.CLOSED)
                self.closed_at = now
                self._openings = 0
                return True
        return False

    def fail(self, now: float, weight: float, random: Random) -> bool:
        """Count a failure of a call of this generation.

        Args:
            weight: How much it proves. Above 0, at most 1.
        """
        if self.state is State.CLOSED:
            self._in_row += weight
            self._count(now, weight)
            if self._in_row >= self._settings.consecutive or self._ratio_is_reached():
                self._open(now, random)
                return True
        elif self.state is State.HALF_OPEN:
            self._open(now, random)
            return True
        return False

    def _open(self, now: float, random: Random) -> None:
        wait = self._settings.cooldown * 2.0 ** min(self._openings, 32)
        self.until = now + min(COOLDOWN_MAX, wait) * (0.5 + random.random())
        self._openings += 1
        self._become(State.OPEN)

    def _become(self, state: State) -> None:
        self.state = state
        self.generation += 1
        self.probes = self._successes = 0
        self._in_row = 0.0
        self._calls = [0.0, 0.0]
        self._failures = [0.0, 0.0]

    # The window, in two halves: [the one that fills, the one before].

    def _count(self, now: float, weight: float) -> None:
        half = int(now / (self._settings.window / 2))
        if half != self._half:
            follows = half == self._half + 1
            self._calls = [0.0, self._calls[0] if follows else 0.0]
            self._failures = [0.0, self._failures[0] if follows else 0.0]
            self._half = half
        self._calls[0] += 1
        self._failures[0] += weight

    def _ratio_is_reached(self) -> bool:
        calls = sum(self._calls)
        wanted = self._settings.failure_ratio * calls
        return calls >= self._settings.minimum and sum(self._failures) >= wanted

    def check(self) -> None:
        """Assert all invariants."""
        assert 0 <= self.probes <= self._settings.probes
        assert self.probes == 0 or self.state is State.HALF_OPEN
        assert 0 <= self._successes < SUCCESSES_WANTED
        assert 0.0 <= self._in_row < self._settings.consecutive
        assert all(f <= c for f, c in zip(self._failures, self._calls, strict=True))
        assert (self._openings == 0) == (self.state is State.CLOSED)


class Pass:
    """One call on its way through a circuit; its first outcome counts, later ones do not."""

    __slots__ = ("_circuit", "_circuits", "_generation", "_node")

    def __init__(self, circuits: "Circuits", node: str, circuit: Circuit) -> None:
        self._circuits = circuits
        self._node = node
        self._circuit: Circuit | None = circuit
        self._generation = circuit.generation

    def succeeded(self, now: float) -> None:
        """The instance has answered."""
        circuit = self._settle()
        if circuit is not None and circuit.succeed(now):
            self._circuits.moved(self._node, circuit, State.HALF_OPEN, now)

    def failed(self, now: float, weight: float = 1.0) -> None:
        """It has not, or it has refused the work."""
        circuit = self._settle()
        if circuit is not None:
            before = circuit.state
            if circuit.fail(now, weight, self._circuits.random):
                self._circuits.moved(self._node, circuit, before, now)

    def dropped(self) -> None:
        """Nothing was learnt; harmless after an outcome."""
        circuit = self._settle()
        if circuit is not None:
            circuit.drop()

    def _settle(self) -> Circuit | None:
        circuit, self._circuit = self._circuit, None
        current = circuit is not None and circuit.generation == self._generation
        return circuit if current else None


class Circuits:
    """The circuits of one endpoint, by node, and how many may be out."""

    def __init__(
        self, endpoint: str, settings: Breaker, random: Random, observe: Callable[[object], None]
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self.random = random
        self._observe = observe
        self._circuits: dict[str, Circuit] = {}
        self._disturbed: dict[str, Circuit] = {}
        # Not closed, or closed again and in slow start. While there are none, nothing is filtered.

    @property
    def are_quiet(self) -> bool:
        """Whether all are closed with full weight: everybody is usable, without a penalty."""
        return not self._disturbed

    def usable(self, instances: Sequence[N], now: float) -> Sequence[N]:
        """Return who may be called, by the table above; of the instances of the whole service.

        Cost: O(n) while a circuit is not closed, else O(1).
        """
        if not self._disturbed:
            return instances
        well, cooling = 0, 0
        for instance in instances:
            circuit = self._disturbed.get(instance.node)
            if circuit is None or circuit.state is State.CLOSED:
                well += 1
            elif circuit.is_cooling(now):
                cooling += 1
        if well == len(instances):
            return instances
        panic = well > 0 and cooling > self._settings.eject_max * len(instances)
        return [i for i in instances if self._lets_through(i.node, now, panic)]

    def _lets_through(self, node: str, now: float, panic: bool) -> bool:
        circuit = self._disturbed.get(node)
        if circuit is None or circuit.lets_through(now):
            return True
        return panic and circuit.is_cooling(now)

    def penalties(self, now: float) -> Mapping[str, float]:
        """Return by which factor the score of an instance in slow start is worse. Above 1."""
        if not self._disturbed:
            return NO_PENALTIES
        penalties = {}
        for node, circuit in list(self._disturbed.items()):
            if circuit.state is State.CLOSED:
                weight = circuit.weight(now)
                if weight < 1.0:
                    penalties[node] = 1.0 / weight
                else:
                    del self._disturbed[node]
        return penalties

    def retry_after(self, instances: Sequence[N], now: float) -> float:
        """Return when the first of them may be tried again, from now [s]; none is usable."""
        circuits = [self._circuits[instance.node] for instance in instances]
        return min(c.until - now if c.is_cooling(now) else PROBE_WAIT for c in circuits)

    def begin(self, node: str, now: float) -> Pass:
        """Send a call to an instance that `usable` has named."""
        circuit = self._circuits.get(node)
        if circuit is None:
            circuit = self._circuits[node] = Circuit(self._settings)
        if circuit.begin(now):
            self.moved(node, circuit, State.OPEN, now)
        return Pass(self, node, circuit)

    def moved(self, node: str, circuit: Circuit, before: State, now: float) -> None:
        """Note a change of state. For `Pass`."""
        if self._circuits.get(node) is not circuit:
            return  # The instance has left while the call was under way.
        self._disturbed[node] = circuit
        wait = circuit.until - now if circuit.state is State.OPEN else 0.0
        after = circuit.state.value
        self._observe(BreakerMoved(self._endpoint, node, before.value, after, wait))

    def forget(self, node: str) -> None:
        """Drop what is known of an instance that is gone; its calls under way change nothing."""
        self._circuits.pop(node, None)
        self._disturbed.pop(node, None)

    def states(self) -> Mapping[str, State]:
        """Return the state of each circuit by node, of those called at least once."""
        return {node: circuit.state for node, circuit in self._circuits.items()}

    def check(self) -> None:
        """Assert all invariants."""
        for node, circuit in self._circuits.items():
            circuit.check()
            assert circuit.state is State.CLOSED or self._disturbed[node] is circuit
        assert all(self._circuits[node] is it for node, it in self._disturbed.items())
