"""Everything one node may use of the outside, as one frozen value.

`system()` builds the real one; the simulator builds its own. Below the node
floor each part is handed in by itself (a core gets `now` and a `Random`, the
write-ahead log gets a `Disk`), so nothing imports upward.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass

from microos.clock import Clock, SystemClock
from microos.net.network import Network
from microos.net.system import SystemNetwork
from microos.storage.disk import Disk
from microos.types import Random


@dataclass(frozen=True, slots=True)
class Runtime:
    """Clock, chance, network and disk of one node."""

    name: str
    """For notes and hashes, never for decisions."""

    clock: Clock

    random: Callable[[str], Random]
    """One stream of chance per consumer: `random("gossip")`."""

    entropy: Callable[[int], bytes]
    """n bytes for ids that must never repeat."""

    network: Network
    disk: Disk

    observe: Callable[[str, object], None]
    """Every note, once, after its effects were done: (source, note)."""


def system(name: str, disk: Disk, observe: Callable[[str, object], None]) -> Runtime:
    """Return the real world for one node."""

    def stream(consumer: str) -> Random:
        return random.Random(f"{consumer}/{os.urandom(16).hex()}")

    return Runtime(
        name=name,
        clock=SystemClock(),
        random=stream,
        entropy=os.urandom,
        network=SystemNetwork(),
        disk=disk,
        observe=observe,
    )
