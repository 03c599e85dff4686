"""Hard evidence: a killed process shows itself within milliseconds.

A link that ends without goodbye, or a refused dial, says that the process may be gone
while its host is up. That is looked into at once, with a Ping and fresh dials:

    0 ms  Ping + dial ── refused ──▶ 50 ms  dial ── refused ──▶ Suspect(refused)
                      └─ timed out ▶ 50, 150 ms dial again (a SYN may have been lost)
                      └─ answered by that process ▶ nothing was wrong

A verifier needs one refusal, since its accusation is the second opinion. A firewall that
rejects looks like a refusal to those behind it, which is why two accusers are needed and
the subject hears first (gossip.md 6).
"""

from __future__ import annotations

import msgspec

from microos.types import BootId

SPACING = 0.05
"""Least time between two refusals that count [s]."""

RETRIES = (0.05, 0.15)
"""When a dial that timed out is made again [s]."""


class Case(msgspec.Struct):
    """One member that is being looked into."""

    boot: BootId
    needed: int
    """Refusals that make an accusation."""
    opened: float
    """[s]; one that got no answers for an interval is opened anew."""
    refusals: int = 0
    last: float = float("-inf")
    """When the last one counted [s]."""
    timeouts: int = 0

    def refused(self, now: float) -> bool:
        """Count a refusal; return whether the evidence is complete."""
        # Late by rounding is not early: the timer of the second dial is exactly SPACING on.
        if now - self.last >= SPACING * 0.999:
            self.refusals += 1
            self.last = now
        return self.refusals >= self.needed

    def timed_out(self) -> float | None:
        """Count a timeout; return how long until the next dial [s], None to give up."""
        if self.timeouts == len(RETRIES):
            return None
        self.timeouts += 1
        return RETRIES[self.timeouts - 1]
