"""The simulated world: one heap of events, chance by name, a running hash, and failures.

Time is an integer count of nanoseconds and moves only from event to event.

    heap: (t [ns], class, sequence) ──▶ fn()          class 0: faults, first in their instant
                                                      class 1: everything else

Two kinds of chance. Named streams (`random("plan")`) serve everything rare; strings
are hashed by SHA-512, so `PYTHONHASHSEED` has no say. What happens to the n-th packet
of a link is stateless, a function of (seed, link, n), so deleting one fault from a plan
does not shift another link's luck. No transcendental function stands in the world's
arithmetic: exponential and log-uniform draws read a table of integers.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import count
from math import gcd

import msgspec
import xxhash

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
MICROSECOND = 1_000

TIME_MAX = (1 << 23) * SECOND
"""Below it neighbouring nanoseconds are different floats of seconds."""

FAULT, ORDINARY = 0, 1

U64 = 1 << 64
TABLE_BITS = 12
TABLE_ONE = 1 << 24


class Failure(msgspec.Struct, frozen=True):
    """Why a world failed. The first one counts."""

    kind: str
    """One of `KINDS`."""
    invariant: str
    detail: str
    at_ns: int


KINDS = {
    "safety": 10,
    "linearizability": 11,
    "liveness": 12,
    "exception": 13,
    "storm": 14,
    "determinism": 15,
    "simulator": 16,
}
"""Kind of failure and the exit code it gives."""


class Timer:
    """One event on the heap. `cancel` is harmless at any time."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[], object]) -> None:
        self.fn: Callable[[], object] | None = fn

    def cancel(self) -> None:
        self.fn = None


class World:
    """The clock, the heap, the chance and the verdict of one simulated run.

    Args:
        seed: Everything follows from it.
        events_per_second: Most events within one virtual second; more is a storm.
    """

    def __init__(self, seed: int, *, events_per_second: int = 1_000_000) -> None:
        self.seed = seed
        self.now = 0
        """[ns]."""
        self.failure: Failure | None = None
        self.on_failure: Callable[[Failure], None] | None = None
        self.counts: dict[str, int] = {}
        """How often what happened: every note kind and every `sometimes`."""
        self.executed = 0
        self._heap: list[tuple[int, int, int, Timer]] = []
        self._sequence = count()
        self._hash = xxhash.xxh3_128()
        self._events_per_second = events_per_second
        self._storm = (0, 0)

    # Time.

    def at(self, time: int, fn: Callable[[], object], rank: int = ORDINARY) -> Timer:
        """Call `fn` at `time` [ns], not before now, in order among equals."""
        timer = Timer(fn)
        heapq.heappush(self._heap, (max(time, self.now), rank, next(self._sequence), timer))
        return timer

    def after(self, delay: int, fn: Callable[[], object]) -> None:
        """Call `fn` in `delay` [ns]."""
        timer = Timer(fn)
        heapq.heappush(self._heap, (self.now + delay, ORDINARY, next(self._sequence), timer))

    def next(self) -> int | None:
        """Return the time of the earliest event [ns], None if there is none."""
        heap = self._heap
        while heap and heap[0][3].fn is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def advance(self, to: int) -> None:
        """Let time pass to `to` [ns]; nothing may be due before."""
        assert self.now <= to < TIME_MAX
        self.now = to

    def run_instant(self) -> None:
        """Run all events of the earliest instant, those they add to it included."""
        at = self.next()
        if at is None:
            return
        self.advance(at)
        while self.next() == at:
            timer = heapq.heappop(self._heap)[3]
            fn, timer.fn = timer.fn, None
            self._count_event()
            assert fn is not None
            fn()

    def run(self, until: int) -> None:
        """Run everything up to `until` [ns] on the plain heap, or to the first failure."""
        heap = self._heap
        while heap and self.failure is None and heap[0][0] <= until:
            at, _, _, timer = heapq.heappop(heap)
            fn = timer.fn
            if fn is not None:
                timer.fn = None
                self.now = at
                self._count_event()
                fn()
        if self.failure is None:
            self.now = until

    def _count_event(self) -> None:
        self.executed += 1
        second, begun = self._storm
        now = self.now // SECOND
        if now != second:
            self._storm = (now, self.executed)
        elif self.executed - begun > self._events_per_second:
            self.fail("storm", "events", f"more than {self._events_per_second} events in a second")

    # Chance.

    def random(self, name: str) -> random.Random:
        """Return the stream of chance called `name`, from its beginning."""
        return random.Random(f"{self.seed}/{name}")

    def chance(self, link: int, number: int, salt: int = 0) -> int:
        """Return 64 random bits, a function of (seed, link, number, salt) alone."""
        data = link.to_bytes(8, "little") + number.to_bytes(8, "little") + bytes((salt,))
        return xxhash.xxh3_64_intdigest(data, self.seed & (U64 - 1))

    # The trace.

    def trace(self, kind: str, a: str = "", b: str = "", data: bytes = b"") -> None:
        """Add one thing that happened to the running hash."""
        self._hash.update(f"{self.now}|{kind}|{a}|{b}|{len(data)}|".encode())
        self._hash.update(data)

    def trace_hash(self) -> str:
        """Return the hash of all that happened so far, 32 hex digits."""
        return self._hash.hexdigest()

    def sometimes(self, what: str) -> None:
        """Count something that ought to happen in some world."""
        self.counts[what] = self.counts.get(what, 0) + 1

    # The verdict.

    def fail(self, kind: str, invariant: str, detail: str) -> None:
        """Record the first failure; the world stops after this event."""
        assert kind in KINDS
        if self.failure is None:
            self.failure = Failure(kind, invariant, detail, self.now)
            self.trace("failure", kind, invariant)
            if self.on_failure is not None:
                self.on_failure(self.failure)


def instant(time: float) -> int:
    """Return the first nanosecond t with t / 1e9 >= time: nobody is woken early."""
    t = -int(-time * 1e9 // 1)
    while t / 1e9 < time:
        t += 1
    while t > 0 and (t - 1) / 1e9 >= time:
        t -= 1
    return t


def uniform(bits: int, low: int, high: int) -> int:
    """Return a number from low..high - 1 out of 64 random bits."""
    return low + bits * (high - low) // U64


def exponential(bits: int, mean: int) -> int:
    """Return a draw of the exponential distribution out of 64 random bits, at most 9 x mean."""
    return EXPONENTIAL[bits >> 64 - TABLE_BITS] * mean // TABLE_ONE


def log_uniform(bits: int, low: int, high: int) -> int:
    """Return a draw from low..high, each factor of two as likely as any other."""
    assert 0 < low <= high
    # Octaves are drawn evenly, then a place within: integers only, and near enough.
    octaves = (high // low).bit_length()
    octave = (bits >> 32) * octaves >> 32
    base = low << octave
    return min(high, base + base * (bits & 0xFFFF_FFFF) // (1 << 32))


def _exponential_table() -> tuple[int, ...]:
    """Return -ln((i + ½) / 4096) in units of 2**-24, by exact integer arithmetic.

    ln x = 2 artanh((x - 1) / (x + 1)); the octave is taken off first, so the series
    converges by a factor of nine a step.
    """
    size = 1 << TABLE_BITS
    ln2 = _artanh2(Fraction(1, 3))
    table = []
    for i in range(size):
        numerator, denominator = 2 * i + 1, 2 * size
        octaves = 0
        while numerator * 2 <= denominator:
            numerator *= 2
            octaves += 1
        divisor = gcd(numerator, denominator)
        x = Fraction(denominator // divisor, numerator // divisor)
        table.append(octaves * ln2 + _artanh2((x - 1) / (x + 1)))
    return tuple(value >> 16 for value in table)


def _artanh2(z: Fraction) -> int:
    """Return 2 artanh(z) in units of 2**-40, for 0 <= z <= 1/3."""
    one = 1 << 40
    power = z.numerator * one // z.denominator
    square = (z.numerator**2 * one // z.denominator**2) if z else 0
    total, n = 0, 1
    while power:
        total += power // n
        power = power * square >> 40
        n += 2
    return 2 * total


EXPONENTIAL = _exponential_table()
"""Quantiles of the exponential distribution with mean 1, descending, in units of 2**-24."""
