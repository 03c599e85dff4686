"""Whom to probe next, how long to wait for it, and what is under way.

One direct probe per interval. Slots alternate: first monitor target, second monitor
target, round robin, so each member is watched by two fixed others besides the shuffle,
and the tail of an unlucky shuffle is cut off (gossip.md 5.1: 2.5 T instead of 4.2 T, p99).

    Ping ──── t·(score+1) ────▶ PingReq to 3, and the stream ────▶ verdict
      └──────────────── clamp(2t, T/2, T)·(score+1) ─────────────────┘

Source: SWIM (DSN 2002), §3.1 and §4.3; Lifeguard (arXiv:1707.00788), LHA-Probe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

import msgspec

from microos.settings import GossipSettings
from microos.types import Address, BootId, NodeId, Random

SAMPLES_MAX = 32
SAMPLES_WANTED = 3
"""Before that many round trips to a member the longest timeout is used."""


class RoundTrips:
    """The last round trips to one process."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)

    def add(self, rtt: float) -> None:
        """Take in one round trip [s]."""
        self._samples.append(max(0.0, rtt))

    @property
    def high(self) -> float | None:
        """The largest of the last 32 [s]; None before there are three."""
        return max(self._samples) if len(self._samples) >= SAMPLES_WANTED else None


def ack_timeout(high: float | None, lag: float, settings: GossipSettings) -> float:
    """Return how long an Ack is waited for at score 0 [s].

    Args:
        high: The largest recent round trip to the target [s]; None: too few are known.
        lag: How late our own loop was lately [s]; a late loop reads Acks late.
        settings: Least and longest wait.
    """
    longest = settings.probe_timeout_max
    if high is None or lag > settings.probe_timeout_min:
        return longest
    return min(max(3.0 * high, settings.probe_timeout_min), longest)


def verdict_after(wait: float, settings: GossipSettings) -> float:
    """Return when a probe with that Ack timeout is decided, at score 0, after its Ping [s]."""
    interval = settings.probe_interval
    return min(max(2.0 * wait, interval / 2.0), interval)


class Aim(IntEnum):
    """What a probe is for; a greater one takes over a smaller one under way."""

    SLOT = 0
    VERIFY = 1
    """Somebody accuses it; we are among its nearest predecessors."""
    URGENT = 2
    """There is hard evidence."""
    JUDGE = 3
    """An exchange says that it is dead: silence is death, not suspicion."""


class Probe(msgspec.Struct):
    """One probe under way."""

    seq: int
    node: NodeId
    boot: BootId
    address: Address
    aim: Aim
    sent_at: float
    verdict_at: float
    asked: dict[BootId, None] = msgspec.field(default_factory=dict)
    """Relays."""
    nacks: dict[BootId, None] = msgspec.field(default_factory=dict)
    """Relays that heard nothing and said so."""
    streamed: bool = False
    """A stream answered."""


class Relay(msgspec.Struct):
    """One probe made for somebody else."""

    seq: int
    """The asker's."""
    asker: Address
    target: BootId


class Schedule:
    """Whose turn it is."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._rotation: list[NodeId] = []
        self._at = 0
        self._slot = 0

    def added(self, node: NodeId) -> None:
        """Put a new member at a random place of the rotation."""
        place = self._random.randrange(len(self._rotation) + 1)
        self._rotation.insert(place, node)
        if place < self._at:
            self._at += 1

    def next(
        self, monitored: list[NodeId], size: int, usable: Callable[[NodeId], bool]
    ) -> NodeId | None:
        """Return whom to probe in this slot.

        Args:
            monitored: Our two successors in the ring.
            size: How many take part, this node included.
            usable: Whether a member may be probed now.
        """
        slot, self._slot = self._slot, (self._slot + 1) % 3
        # With three members both others are monitor targets, and the rotation does as well.
        if size > 3 and slot < len(monitored) and usable(monitored[slot]):
            return monitored[slot]
        return self._round_robin(usable)

    def refill(self, nodes: list[NodeId]) -> None:
        """Begin a new round over `nodes`, shuffled."""
        self._rotation = nodes
        self._random.shuffle(self._rotation)
        self._at = 0

    @property
    def is_over(self) -> bool:
        """Whether the round is through and wants `refill`."""
        return self._at >= len(self._rotation)

    def _round_robin(self, usable: Callable[[NodeId], bool]) -> NodeId | None:
        while self._at < len(self._rotation):
            node = self._rotation[self._at]
            self._at += 1
            if usable(node):
                return node
        return None
