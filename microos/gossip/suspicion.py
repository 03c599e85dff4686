"""How long a suspected member may stay before it is declared dead.

A failed probe proves little: the prober may be the slow one. So a suspect is
given time, and the time shrinks as *other* members report the same suspicion.
A lone accuser waits the ceiling; with `wanted` confirmations the wait is the base.

    timeout
    ceiling ┤●
            │  ●
            │      ●
    base    ┤            ●───────
            └┬──┬───┬────┬──────▶ confirmations
             0  1   2    wanted

A refused connection proves more: the host is up and the process is gone. One such
accusation brings the wait down to the base; enough of them, from distinct accusers
and after `refused_wait` without a refutation, end it (gossip.md 6).

Source: Dadgar, Phillips, Currey, "Lifeguard: Local Health Awareness for More
Accurate Failure Detection" (arXiv:1707.00788), LHA-Suspicion.
"""

from __future__ import annotations

import math

import msgspec

from microos.settings import GossipSettings
from microos.types import Incarnation, NodeId


def base_wait(count: int, settings: GossipSettings) -> float:
    """Return the shortest wait in a cluster of `count` members [s]."""
    spread = max(1.0, math.log10(max(1, count)))
    return settings.suspicion_factor * spread * settings.probe_interval


def wanted_confirmations(count: int, settings: GossipSettings) -> int:
    """Return how many confirmations are waited for; 0 where too few could give them."""
    enough = count - 2 >= settings.confirmations_wanted
    return settings.confirmations_wanted if enough else 0


def timeout(confirmations: int, *, wanted: int, base: float, ceiling: float) -> float:
    """Return the whole wait of a suspect that has `confirmations` [s].

    Args:
        confirmations: Distinct accusers beyond the first. Range 0..wanted.
        wanted: Confirmations at which the wait reaches `base`; 0 in a cluster
            too small to confirm anything, and then the wait is `base` at once.
        base: The shortest wait [s].
        ceiling: The longest wait [s]. At least `base`.
    """
    assert 0 <= confirmations <= wanted
    assert 0.0 < base <= ceiling

    if wanted == 0:
        return base

    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(base, ceiling - share * (ceiling - base))


class Suspicion(msgspec.Struct):
    """One member under suspicion, from the first accusation to its end."""

    incarnation: Incarnation
    """The incarnation accused. A refutation carries a higher one."""

    since: float
    """When the first accusation was taken in, on the caller's clock [s]."""

    wanted: int
    base: float
    ceiling: float

    accusers: set[NodeId] = msgspec.field(default_factory=set)
    """Who reported it, the first accuser included."""

    refused: set[NodeId] = msgspec.field(default_factory=set)
    """Accusers whose connection was refused."""

    refused_since: float = math.inf
    """When the first of them was heard [s]."""

    refusals_wanted: int = 2
    refused_wait: float = 0.2

    vouched: bool = False
    """An Ack of the suspect was seen here: refusals no longer shorten anything."""

    def confirm(self, accuser: NodeId) -> bool:
        """Count one more accuser; return whether that was news worth gossiping."""
        if accuser in self.accusers or self.confirmations == self.wanted:
            return False
        self.accusers.add(accuser)
        return True

    def refuse(self, accuser: NodeId, now: float) -> bool:
        """Count one more refused connection; return whether that was news worth gossiping."""
        if accuser in self.refused or len(self.refused) == self.refusals_wanted:
            return False
        self.refused.add(accuser)
        self.refused_since = min(self.refused_since, now)
        return True

    def shift(self, gap: float) -> None:
        """Move everything by the time this node was away [s]."""
        self.since += gap
        self.refused_since += gap

    @property
    def confirmations(self) -> int:
        return max(0, len(self.accusers) - 1)

    @property
    def proven(self) -> bool:
        """Whether refusals alone suffice once `refused_wait` has passed."""
        return not self.vouched and len(self.refused) >= self.refusals_wanted

    @property
    def deadline(self) -> float:
        """When the member is declared dead unless it refutes [s].

        Confirmations and refusals only shorten the wait, counted from `since`,
        so a burst of them may put it in the past; an Ack takes the refusals back.
        """
        wait = timeout(self.confirmations, wanted=self.wanted, base=self.base, ceiling=self.ceiling)
        if self.refused and not self.vouched:
            wait = self.base
        if self.proven:
            return min(self.since + wait, self.refused_since + self.refused_wait)
        return self.since + wait
