"""Finding back: seeds are tried for ever, the dead are still spoken to.

A seed address at which no living member is known is dialled: at once, again after 0.2 s,
doubling to every second for the first minute, then every `reconnect_interval`. That one
rule covers seeds that start together, seeds that come back on their address, and a whole
cluster that lost all its seeds (gossip.md 11, 12).

The dead are called with probability dead / alive once per interval by each node, so each
of them hears from somebody about once per interval, whatever the size of the cluster.

memberlist forgets the dead after 30 s and so never heals a partition (metallb#589).
"""

from __future__ import annotations

import msgspec

from microos.types import Random

SEEDS_MAX = 256
SEED_SPACING = 0.05
"""Between the first dials to several seeds [s]."""

FIRST_DELAY = 0.2
EAGER_DELAY_MAX = 1.0
EAGER_TIME = 60.0
"""How long an unanswered seed is tried eagerly [s]."""

JITTER = 0.2
LONG_DEAD = 3600.0
LONG_DEAD_INTERVAL = 60.0
"""One dead for more than an hour is called once a minute at most by each node [s]."""


class Seed(msgspec.Struct):
    """One address to join at."""

    wanted_since: float
    """Since when no living member is known there [s]."""
    delay: float = FIRST_DELAY

    def missed(self, now: float) -> None:
        """Begin anew: who lived there is gone."""
        self.wanted_since = now
        self.delay = FIRST_DELAY

    def next_delay(self, now: float, interval: float, random: Random) -> float:
        """Return how long until the next dial [s]; doubles up to its bound, ± 20 %."""
        eager = now - self.wanted_since < EAGER_TIME
        bound = min(EAGER_DELAY_MAX, interval) if eager else interval
        delay = min(self.delay, bound) if eager else bound
        self.delay = min(2.0 * self.delay, interval)
        return jittered(delay, random)


def jittered(delay: float, random: Random) -> float:
    """Return `delay` ± 20 %, so that nodes started together do not stay in step."""
    return delay * (1.0 + JITTER * (2.0 * random.random() - 1.0))


def call_share(dead: int, alive: int) -> float:
    """Return the probability to call one of the dead in this interval."""
    return min(1.0, dead / max(1, alive))


def full_sync_stretch(count: int) -> int:
    """Return how much longer full exchanges wait in a cluster of `count` members.

    ceil(log2 n − 5) + 1 above 32 members (memberlist, util.go), so that the work of
    the whole cluster grows slower than its size.
    """
    if count <= 32:
        return 1
    return (count - 1).bit_length() - 5 + 1
