"""Which instance a call goes to: `mo4p`, and the two picks that need no thought.

Every answer says how busy its callee is (`Load`). From that, from its own calls under
way and from how many callers there are, a caller scores each instance, and takes the
smallest score. Nothing is asked for and nothing is sent for a pick.

    score = S · (1 + max(0, Q − cap + 1) / cap)² · penalty · (1 + 0.05·U(0, 1))

    Q   queue:     what it reported, worth exp(−age / 1 s), the mean of all for the rest,
                   plus own calls under way × half the callers, who are sending now as well
    S   slowness:  its service time / the endpoint's mean, ageing towards 1 within seconds

Slowness is a ratio, so that calls of different weight can be compared; and it *ages*,
or an instance that was slow once would never be called again and so never be seen to
have recovered. The square is what keeps callers from herding to the fastest.

An instance that fails is *suspect* for a moment that doubles each time, and so is one
with a call of ours under way for much longer than its queue explains. Suspects are
picked only where nobody else is left, and members that gossip suspects after those.

Up to two instances, or while no service time is known, the fewest own calls decide.
Of more than 32 candidates the 16 heard of last and 2 others are looked at; of more
than 256 instances each caller uses its own 64.

Source: Suresh et al., "C3" (NSDI 2015), the power of the queue; Wydrowski et al.,
"Load is not what you should balance: Introducing Prequal" (NSDI 2024), what a callee
says of itself; Ousterhout et al., "Sparrow" (SOSP 2013) and Mitzenmacher, "The power
of two choices" (2001), why not to rank by old facts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice

from microos.hashing import u64
from microos.rpc.messages import Load
from microos.types import Random

CANDIDATES_MAX = 32
RECENT = 16
STRANGERS = 2
"""Of more candidates, how many are looked at: those heard of last, and others by chance."""

SUBSET_ABOVE = 256
SUBSET = 64

QUEUE_AGE = 1.0
"""In this time a report loses its worth to 1/e [s]."""

SLOWNESS_AGE = 2.0
"""In this time slowness comes 1 - 1/e nearer to 1 [s]."""

LEARN = 0.5
LEARN_MEAN = 0.02
"""How much of a new sample goes into what is known of one instance, and into a mean of all."""

NOISE = 0.05
"""Breaks ties, so that callers who know the same do not all do the same."""

LATE_MIN = 0.1
LATE_FACTOR = 10.0
"""A call under way for 0.1 s + 10 × what its queue explains makes its instance suspect."""

SUSPECT_MIN = 1.0
SUSPECT_MAX = 30.0
"""First and longest time as a suspect, before ± 50 % [s]."""

DRAINING = 1
"""The flag of a Load that says: no new calls."""

DRAIN_WAIT = 10.0
"""How long an instance that drains is passed over, unless it leaves before [s]."""

CAP_MAX = 1 << 16
QUEUE_MAX = 1 << 20
SERVICE_MAX = 3600.0
"""What a report can say at most; it comes from the wire."""


class Pace:
    """How long calls of one endpoint take, over all instances."""

    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean = 0.0
        """[s]; 0 until the first answer."""


class Candidate:
    """One instance as this caller sees it."""

    __slots__ = (
        *("node", "is_last", "queue", "cap", "heard_at", "slowness", "slowness_at"),
        *("calls", "out", "oldest_at", "bad_until", "fails"),
    )

    def __init__(self, node: str) -> None:
        self.node = node
        self.is_last = False
        """Gossip suspects the member: to be used after all others."""
        self.queue = 0.0
        """Calls in progress and queued there, as reported."""
        self.cap = 1
        """Calls it can truly run at once."""
        self.heard_at = -math.inf
        self.slowness = 1.0
        """Its service time / the mean of all, when it was last learnt. Above 0."""
        self.slowness_at = -math.inf
        self.calls: dict[int, tuple[float, Pace]] = {}
        """Own calls under way, oldest first: since when, and of which endpoint."""
        self.out = 0
        """How many those are."""
        self.oldest_at = math.inf
        """Since when the oldest is under way [s]."""
        self.bad_until = -math.inf
        """Suspect until then [s]."""
        self.fails = 0
        """Times it became suspect since its last good answer."""

    def check(self) -> None:
        """Assert all invariants."""
        assert self.out == len(self.calls)
        assert self.oldest_at == next(iter(self.calls.values()), (math.inf, None))[0]
        assert 0.0 <= self.queue <= QUEUE_MAX
        assert 1 <= self.cap <= CAP_MAX
        assert 0.0 < self.slowness < math.inf
        assert self.fails >= 0


class Pool:
    """The instances of one service as this caller sees them, and the pick among them.

    Args:
        caller: This node's id; decides which subset of very many instances it uses.
        random: Chance for ties, jitter and strangers.
    """

    def __init__(self, caller: str, random: Random) -> None:
        self._caller = caller
        self._random = random
        self._by_node: dict[str, Candidate] = {}
        # In order of hearing, the latest last.
        self.everyone: tuple[Candidate, ...] = ()
        """In the order given."""
        self.callers = 1
        """How many nodes may be calling this service. At least 1; need not be exact."""
        self._queue_mean = 0.0
        self._has_learnt = False
        self._number = 0
        self._turn = ""

    # Who is there.

    def sync(self, instances: Sequence[tuple[str, bool]]) -> list[str]:
        """Take over who is there; return the nodes that were forgotten.

        Args:
            instances: (node, whether it is to be used last), shape (n,), no node twice.
        """
        if len(instances) > SUBSET_ABOVE:
            instances = sorted(instances, key=self._distance)[:SUBSET]
        for node, is_last in instances:
            candidate = self._by_node.get(node)
            if candidate is None:
                candidate = self._by_node[node] = Candidate(node)
            candidate.is_last = is_last
        self.everyone = tuple(self._by_node[node] for node, _ in instances)
        here = {node: None for node, _ in instances}
        gone = [node for node in self._by_node if node not in here]
        for node in gone:
            del self._by_node[node]
        return gone

    def _distance(self, instance: tuple[str, bool]) -> int:
        return u64(f"{self._caller}{instance[0]}".encode())

    # What is learnt of them.

    def sent(self, candidate: Candidate, pace: Pace, now: float) -> int:
        """Count a call that is on its way; return its number, for `ended`."""
        self._number += 1
        if not candidate.out:
            candidate.oldest_at = now
        candidate.calls[self._number] = (now, pace)
        candidate.out += 1
        return self._number

    def ended(self, candidate: Candidate, number: int) -> None:
        """Take note that a call is over, whatever came of it."""
        calls = candidate.calls
        del calls[number]
        candidate.out -= 1
        candidate.oldest_at = next(iter(calls.values()))[0] if calls else math.inf

    def answered(self, candidate: Candidate, pace: Pace, load: Load | None, now: float) -> None:
        """Learn from an answer without failure."""
        candidate.fails = 0
        candidate.bad_until = -math.inf
        if load is None:
            return
        self.heard(candidate, load, now)
        service = min(max(load.service_us, 1) / 1e6, SERVICE_MAX)
        pace.mean += LEARN_MEAN * (service - pace.mean) if pace.mean else service
        slowness = _aged(candidate, now)
        candidate.slowness = slowness + LEARN * (service / pace.mean - slowness)
        candidate.slowness_at = now
        self._has_learnt = True

    def heard(self, candidate: Candidate, load: Load, now: float) -> None:
        """Learn from what a callee says of itself with any answer.

        A handler that fails at once must not look fast, so a failure teaches no slowness.
        """
        queue = min(max(load.in_flight, 0), QUEUE_MAX)
        candidate.queue += LEARN * (queue - candidate.queue)
        self._queue_mean += LEARN_MEAN * (queue - self._queue_mean)
        candidate.cap = min(max(load.cap, 1), CAP_MAX)
        candidate.heard_at = now
        if load.flags & DRAINING:
            self.drains(candidate, now)
        if self._by_node.get(candidate.node) is candidate:
            del self._by_node[candidate.node]
            self._by_node[candidate.node] = candidate

    def drains(self, candidate: Candidate, now: float) -> None:
        """Pass over an instance that finishes what it has and takes nothing new."""
        candidate.bad_until = max(candidate.bad_until, now + DRAIN_WAIT)

    def failed(self, candidate: Candidate, now: float, weight: float = 1.0) -> None:
        """Suspect an instance, for longer each time, unless it is suspect already.

        Args:
            weight: How much the failure proves. Above 0, at most 1.
        """
        if now >= candidate.bad_until:
            wait = min(SUSPECT_MAX, SUSPECT_MIN * 2.0 ** min(candidate.fails, 16))
            candidate.bad_until = now + weight * wait * (0.5 + self._random.random())
            candidate.fails += 1

    def suspects(self, candidate: Candidate, now: float) -> bool:
        """Return whether an instance is suspect, having looked at its oldest call."""
        if now - candidate.oldest_at > LATE_MIN:
            self._doubt(candidate, now)
        return now < candidate.bad_until

    def _doubt(self, candidate: Candidate, now: float) -> None:
        """Suspect an instance whose oldest call takes much longer than its queue explains."""
        since, pace = next(iter(candidate.calls.values()))
        usual = _aged(candidate, now) * pace.mean * (1.0 + candidate.queue / candidate.cap)
        if now - since > LATE_MIN + LATE_FACTOR * usual:
            self.failed(candidate, now)

    # The picks. Each takes candidates (at least one, in the order of `everyone`), the time,
    # and the penalties of those whose score is worse by a factor.

    def least_load(
        self, candidates: Sequence[Candidate], now: float, penalties: Mapping[str, float]
    ) -> Candidate:
        """Return the candidate with the smallest score.

        Cost: 0.3 µs per candidate looked at, of which there are at most 32.
        """
        if len(candidates) <= 2 or not self._has_learnt:
            return self._fewest_out(candidates, now, penalties)
        if len(candidates) > CANDIDATES_MAX:
            candidates = self._shortlist(candidates)
        share = max(1.0, self.callers / 2)
        mean = self._queue_mean
        random = self._random.random
        exp = math.exp
        best, least, lowest = candidates[0], math.inf, 4
        for c in candidates:
            worth = exp((c.heard_at - now) / QUEUE_AGE)
            queue = mean + worth * (c.queue - mean) + c.out * share
            score = 1.0 + (c.slowness - 1.0) * exp((c.slowness_at - now) / SLOWNESS_AGE)
            above = queue - c.cap + 1.0
            if above > 0.0:
                score *= (1.0 + above / c.cap) ** 2
            if penalties:
                score *= penalties.get(c.node, 1.0)
            score *= 1.0 + NOISE * random()
            if now - c.oldest_at > LATE_MIN:
                self._doubt(c, now)
            # The model adds 1000 for a suspect; a queue of 31 passes that, so these are ranks.
            rank = (now < c.bad_until) + 2 * c.is_last
            if rank < lowest or (rank == lowest and score < least):
                best, least, lowest = c, score, rank
        return best

    def _fewest_out(
        self, candidates: Sequence[Candidate], now: float, penalties: Mapping[str, float]
    ) -> Candidate:
        """Return who has the fewest own calls under way; suspects last, ties by chance."""
        best, least = candidates[0], (True, True, math.inf, 1.0)
        for c in candidates:
            out = (c.out + 1) * penalties.get(c.node, 1.0)
            score = (c.is_last, self.suspects(c, now), out, self._random.random())
            if score < least:
                best, least = c, score
        return best

    def _shortlist(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return those heard of last, and strangers by chance, which may repeat."""
        recent = reversed(self._by_node.values())
        if candidates is not self.everyone:
            among = {candidate.node: None for candidate in candidates}
            recent = (c for c in recent if c.node in among)
        strangers = (self._random.choice(candidates) for _ in range(STRANGERS))
        return [*islice(recent, RECENT), *strangers]

    def round_robin(
        self, candidates: Sequence[Candidate], now: float, penalties: Mapping[str, float]
    ) -> Candidate:
        """Return who comes after the last one by node id, so filters do not disturb the turn."""
        among = self._preferred(candidates, now)
        after = [c for c in among if c.node > self._turn] or among
        best = min(after, key=_node)
        self._turn = best.node
        return best

    def at_random(
        self, candidates: Sequence[Candidate], now: float, penalties: Mapping[str, float]
    ) -> Candidate:
        """Return anybody."""
        return self._random.choice(self._preferred(candidates, now))

    def by_key(self, candidates: Sequence[Candidate], now: float, key: str) -> Candidate:
        """Return the same candidate for the same key as long as it can be used.

        Rendezvous hashing: the largest xxh64 of key and node wins, so an instance that
        comes or goes moves only its own keys. Cost: 0.4 µs per candidate.
        """
        return max(self._preferred(candidates, now), key=lambda c: u64(f"{key}{c.node}".encode()))

    def _preferred(self, candidates: Sequence[Candidate], now: float) -> Sequence[Candidate]:
        """Return those nobody suspects, else those gossip does not, else all."""
        alive = [c for c in candidates if not c.is_last]
        return [c for c in alive if not self.suspects(c, now)] or alive or candidates

    def check(self) -> None:
        """Assert all invariants."""
        assert {c.node for c in self.everyone} == self._by_node.keys()
        assert self.callers >= 1
        assert 0.0 <= self._queue_mean <= QUEUE_MAX
        for candidate in self.everyone:
            assert self._by_node[candidate.node] is candidate
            candidate.check()


def _aged(candidate: Candidate, now: float) -> float:
    """Return the slowness, nearer to 1 the longer ago it was learnt."""
    ageing = math.exp((candidate.slowness_at - now) / SLOWNESS_AGE)
    return 1.0 + (candidate.slowness - 1.0) * ageing


def _node(candidate: Candidate) -> str:
    return candidate.node
