"""Calling out: to seeds where nobody answers, to where others were, and to the dead.

When to call is decided in `reconnect.py`; here it is done.
"""

from __future__ import annotations

from collections.abc import Sequence

from microos.gossip.desk import Desk, keep
from microos.gossip.members import State
from microos.gossip.prober import Prober
from microos.gossip.reconnect import (
    EAGER_DELAY_MAX,
    LONG_DEAD,
    LONG_DEAD_INTERVAL,
    SEED_SPACING,
    SEEDS_MAX,
    Seed,
    call_share,
    jittered,
)
from microos.types import Address


class Caller:
    """Every call that nobody asked for."""

    def __init__(self, desk: Desk, prober: Prober) -> None:
        self._desk = desk
        self._prober = prober

    def join(self, addresses: Sequence[Address], now: float) -> None:
        """Add seeds; each is tried for ever."""
        seeds, timers = self._desk.seeds, self._desk.timers
        for place, address in enumerate(addresses[:SEEDS_MAX]):
            if address == self._desk.me.address:
                continue
            if len(seeds) >= SEEDS_MAX and address not in seeds:
                oldest = next(iter(seeds))
                del seeds[oldest]
                timers.cancel(("seed", oldest))
            seeds[address] = Seed(now)
            timers.set(("seed", address), now + place * SEED_SPACING)

    def begin(self, now: float) -> None:
        """Set all timers."""
        interval = self._desk.settings.reconnect_interval
        self._desk.timers.set(("call", ""), now + interval * self._desk.random.random())
        for address in self._desk.seeds:
            self._desk.timers.set(("seed", address), now)
        if self._desk.former:
            self._desk.timers.set(("recall", ""), now + EAGER_DELAY_MAX)

    def end(self) -> None:
        """Call nobody any more."""
        for kind in ("call", "recall"):
            self._desk.timers.cancel((kind, ""))
        for address in self._desk.seeds:
            self._desk.timers.cancel(("seed", address))

    def on_seed(self, key: object, now: float) -> None:
        assert isinstance(key, Address)
        seed = self._desk.seeds[key]
        interval = self._desk.settings.reconnect_interval
        if self._desk.others_at(key):
            self._desk.timers.set(("seed", key), now + jittered(interval, self._desk.random))
            return
        delay = seed.next_delay(now, interval, self._desk.random)
        self._desk.timers.set(("seed", key), now + delay)
        self._desk.greet(key, now)

    def on_recall(self, _: object, now: float) -> None:
        """No seed answers: try where others were in our former life."""
        former = self._desk.former
        if self._desk.table.size > 1 or not former:
            return
        for known in self._desk.random.sample(former, min(3, len(former))):
            self._desk.greet(known.address, now)
        interval = jittered(self._desk.settings.reconnect_interval, self._desk.random)
        self._desk.timers.set(("recall", ""), now + interval)

    def on_call(self, _: object, now: float) -> None:
        """Speak to one of the dead: it may only have been cut off."""
        interval = self._desk.settings.reconnect_interval
        self._desk.timers.set(("call", ""), now + jittered(interval, self._desk.random))
        share = call_share(self._desk.table.dead, self._desk.table.size - 1)
        if not self._desk.table.dead or self._desk.random.random() >= share:
            return
        dead = [e for e in self._desk.table.entries.values() if e.state is State.DEAD]
        entry = self._desk.random.choice(dead)
        if now - entry.since > LONG_DEAD:
            rarely = interval / LONG_DEAD_INTERVAL
            if self._desk.random.random() >= rarely:
                return
        if entry.address == self._desk.me.address:
            return
        seq = self._desk.next_seq()
        keep(self._prober.calls, seq, entry.address)
        self._prober.ping(seq, entry.address, entry.boot, now)
