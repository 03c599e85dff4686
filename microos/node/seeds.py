"""The configured seeds: where they are, and which of them decide on a founding.

A seed is HOST:PORT, and a host may be a name that does not resolve yet or stands for
several addresses. Gossip joins at whatever is found; a founding waits for all names,
because who decides must be the same everywhere.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence

import trio

from microos.node.runtime import Runtime
from microos.settings import Settings, is_loopback
from microos.types import Address, parse_address


class Seeds:
    """The seeds of one node.

    Args:
        join: Told the addresses of a seed once they are known.
        leaving: Whether this node is on its way out and joins no more.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        settings: Settings,
        join: Callable[[Sequence[Address]], None],
        leaving: Callable[[], bool],
    ) -> None:
        self._clock = runtime.clock
        self._network = runtime.network
        self._settings = settings
        self._join = join
        self._leaving = leaving
        self._found: dict[str, tuple[Address, ...]] = {}
        """Where the seeds are, as far as their names have been resolved."""
        self.resolved = trio.Event()
        """Set once all are found."""
        self.counters: Counter[str] = Counter()

    async def resolve(self) -> None:
        """Look for the seeds not found so far, and join at those that are."""
        for seed in self._settings.seeds:
            if seed in self._found:
                continue
            address = parse_address(seed)
            try:
                found = tuple(await self._network.resolve(address.host, address.port))
            except OSError:
                self.counters["seeds.unresolved"] += 1
                continue
            if self._leaving():
                return  # To join now would be to come back.
            self._found[seed] = found
            self._join(found)
        if len(self._found) == len(self._settings.seeds):
            self.resolved.set()

    async def keep_resolving(self) -> None:
        """Look again once in a while until all are found."""
        while not (self.resolved.is_set() or self._leaving()):
            pause = self._settings.gossip.reconnect_interval
            await self._clock.sleep_until(self._clock.now() + pause)
            await self.resolve()

    def seats(self) -> tuple[Address, ...]:
        """Return who decides on a founding, sorted; nobody: this node only joins."""
        if self._settings.bootstrap != "seeds" or self._is_only_a_name():
            return ()
        return tuple(sorted({each for found in self._found.values() for each in found}))

    def missing(self) -> str:
        """Say what keeps this node from finding or founding a cluster."""
        seeds = ", ".join(self._settings.seeds)
        if not self.resolved.is_set():
            unknown = ", ".join(seed for seed in self._settings.seeds if seed not in self._found)
            return f"waiting for the names of seeds to resolve: {unknown}"
        if self._settings.bootstrap == "seeds" and self._is_only_a_name():
            return (
                f"waiting for a cluster at {seeds}; one name founds none, set bootstrap=solo once"
            )
        if self._settings.bootstrap == "join":
            return f"waiting for a cluster at one of the seeds {seeds}"
        return f"waiting for a majority of the seeds {seeds}"

    def _is_only_a_name(self) -> bool:
        """Whether all that is known is one name, whose answer may differ by time and place."""
        if len(self._settings.seeds) != 1:
            return False
        return not is_literal(self._settings.seeds[0])


def is_literal(seed: str) -> bool:
    """Return whether HOST:PORT is an address as it stands, or this machine."""
    try:
        ipaddress.ip_address(parse_address(seed).host)
    except ValueError:
        return is_loopback(seed)
    return True
