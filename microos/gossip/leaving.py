"""Our own farewell: told to a few, until they have taken note or time is up.

A Ping rides with it, so an Ack says that it was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from microos.gossip import notes
from microos.gossip.desk import Desk
from microos.gossip.members import Entry, State
from microos.gossip.prober import Prober
from microos.types import BootId

LEFT_TOLD = 8
"""So many that have left may still be there to hear of it; nobody waits for their answer."""


class Leaving:
    """A leave being told."""

    def __init__(self, desk: Desk, prober: Prober) -> None:
        self._desk = desk
        self._prober = prober
        self._pings: dict[int, BootId] | None = None
        """While it is being told: the Pings that carried it."""
        self._acks: dict[BootId, None] = {}
        self._wanted = 0
        self._until = inf

    def begin(self, now: float) -> None:
        """Tell up to three others that we have left, and in passing some that leave as well.

        If all leave at once those who are still there wait for the last to say so.
        """
        peers = self._desk.pick(3, lambda entry: entry.state is State.ALIVE)
        self._pings = {}
        self._acks = {}
        self._wanted = len(peers)
        self._until = now + self._desk.settings.leave_timeout
        desk = self._desk
        left = [
            e for e in desk.table.entries.values() if e.state is State.LEFT and e is not desk.me
        ]
        for entry in desk.random.sample(left, min(LEFT_TOLD, len(left))):
            desk.out.say(entry.address, desk.own_news())
        self._tell(peers, now)

    def cancel(self) -> None:
        """We stay after all."""
        self._pings = None
        self._desk.timers.cancel(("leave", ""))

    def _tell(self, peers: Sequence[Entry], now: float) -> None:
        assert self._pings is not None
        for peer in peers:
            seq = self._desk.next_seq()
            self._pings[seq] = peer.boot
            self._prober.ping(seq, peer.address, peer.boot, now)
            self._desk.out.say(peer.address, self._desk.own_news())
        if not peers:
            self._done()
            return
        again = now + self._desk.settings.leave_timeout / 4.0
        self._desk.timers.set(("leave", ""), min(again, self._until))

    def on_leave(self, _: object, now: float) -> None:
        if self._pings is None:
            return
        if now >= self._until:
            self._done()
            return
        asked = {boot: None for boot in self._pings.values() if boot not in self._acks}
        peers = [self._desk.table.boots[boot] for boot in asked if boot in self._desk.table.boots]
        self._tell(peers, now)

    def on_ack(self, seq: int, boot: BootId) -> None:
        """Count whoever has taken note."""
        if self._pings is None or self._pings.get(seq) != boot:
            return
        self._acks[boot] = None
        if len(self._acks) >= self._wanted:
            self._done()

    def _done(self) -> None:
        self._pings = None
        self._desk.timers.cancel(("leave", ""))
        self._desk.out.note(notes.LeaveDone(len(self._acks)))
