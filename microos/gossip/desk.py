"""What all parts of the gossip core share: the table, time, chance, and what is to be done.

The core is made of parts that each decide one thing. They meet here, at one table:

    core ──▶ Prober     who answers (probe, relay, hard evidence)
         ──▶ News       what is believed of whom
         ──▶ Exchange   tables compared and merged over links
         ──▶ Pulls      records too large for a packet
         ──▶ Reconnect  seeds and the dead
         ──▶ Leaving    our own farewell
                └────────▶ Desk: table, timers, queue of news, outbox, own incarnation
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from microos import limits
from microos.codec import encode
from microos.gossip import notes
from microos.gossip.awareness import Awareness
from microos.gossip.broadcast import MESSAGES_MAX, Queue, Subject, pack, retransmit_limit
from microos.gossip.digest import Repairs
from microos.gossip.members import MEMBERS_MAX, Entry, Known, Me, Remembered, State, Table
from microos.gossip.messages import (
    Alive,
    Buckets,
    DatagramMessage,
    Digest,
    Evidence,
    Left,
    Suspect,
)
from microos.gossip.outbox import Dial, Outbox
from microos.gossip.reconnect import Seed
from microos.gossip.suspicion import Suspicion
from microos.gossip.timers import Timers
from microos.settings import GossipSettings
from microos.types import Address, BootId, Incarnation, NodeId, Random

RESERVE = 1024
"""Incarnations reserved ahead in the member file, so that a refutation never waits for it."""

PERSIST_INTERVAL = 10.0
"""The member file is written at most so often for the sake of members [s]."""

DIGEST_TIME = 2.0
"""After a change the digest rides in every tick for so long [s]."""

PACKETS_MAX = 8
"""Packets per target in one flush or tick; what is left waits for the next."""

KEPT_MAX = 1024
"""Small memories about strangers: the oldest goes."""


class Desk:
    """The shared state of one core, and the few things every part does with it."""

    def __init__(
        self,
        me: Me,
        *,
        settings: GossipSettings,
        random: Random,
        now: float,
        wall_ms: int,
        remembered: Remembered | None,
    ) -> None:
        reserved = remembered.reserved if remembered is not None else 0
        self.settings = settings
        self.random = random
        self.now = now
        """The time of the verb under way [s]."""
        incarnation = Incarnation(max(reserved + 1, wall_ms))
        self.me = Entry(
            node=me.node,
            boot=me.boot,
            name=me.name,
            address=me.address,
            labels=dict(me.labels),
            incarnation=incarnation,
            state=State.ALIVE,
            since=now,
            content=incarnation,
        )
        self.table = Table()
        self.table.add(self.me)
        self.cluster = 0
        self.timers = Timers()
        self.queue = Queue()
        self.out = Outbox(settings.datagram_size)
        self.awareness = Awareness(
            score_count=settings.awareness_max, interval=settings.probe_interval
        )
        self.repairs = Repairs(
            interval=settings.probe_interval, tick=min(settings.gossip_interval, 1.0)
        )
        self.suspicions: dict[NodeId, Suspicion] = {}
        self.linked: dict[NodeId, BootId] = {}
        self.foreign: dict[BootId, int] = {}
        """Processes of other clusters, with the hash of theirs."""
        self.seeds: dict[Address, Seed] = {}
        self.joining: dict[Address, None] = {}
        """Where a dial is under way to exchange tables."""
        self.former = tuple(
            known
            for known in (remembered.members if remembered is not None else ())
            if known.node != me.node and known.address != me.address
        )
        """The others of our former life, the dead included."""
        self.changes = 0
        """News taken in so far."""
        self.settle_until = -inf
        self.settle_seq = 0
        self.reserved = reserved
        self.seq = random.randrange(1 << 62)
        self.dialling: dict[tuple[Address, str], float] = {}
        self._changed_at = -inf
        self.reserve()

    @property
    def has_left(self) -> bool:
        """Whether we have left, and not joined again."""
        return self.me.state is State.LEFT

    def may_judge(self, now: float) -> bool:
        """Return whether we are in a position to accuse others."""
        return now >= self.settle_until and not self.has_left

    def same_cluster(self, boot: BootId, hash: int) -> bool:
        """Return whether `boot` belongs to our cluster, as far as both know theirs."""
        if not hash or not self.cluster or hash == self.cluster:
            self.foreign.pop(boot, None)
            return True
        if boot not in self.foreign:
            self.out.note(notes.ClusterMismatch(boot, hash))
        keep(self.foreign, boot, hash)
        return False

    def own_news(self) -> Alive | Left:
        """Return what we say about ourselves."""
        if self.has_left:
            return Left(self.me.node, self.me.incarnation, 0.0)
        return self.alive_of(self.me)

    def alive_of(self, entry: Entry) -> Alive:
        """Return what a member last said about itself, as far as it is known."""
        here = entry.body_hash == entry.announced_hash
        return Alive(
            node=entry.node,
            boot=entry.boot,
            incarnation=Incarnation(entry.content),
            name=entry.name,
            host=entry.address.host,
            port=entry.address.port,
            labels=entry.labels,
            record_hash=entry.announced_hash,
            record_size=entry.announced_size,
            brief=entry.body if here and len(entry.body) <= limits.BRIEF_MAX else b"",
        )

    def accusation(self, entry: Entry) -> Suspect:
        """Return the accusation of a suspect, by the smallest id of those that count most."""
        suspicion = self.suspicions[entry.node]
        kind = Evidence.REFUSED if suspicion.refused else Evidence.SILENCE
        accusers = suspicion.refused or suspicion.accusers
        return Suspect(entry.node, entry.incarnation, min(accusers), kind)

    def renew(self, incarnation: int, now: float) -> None:
        """Say who we are in a higher incarnation."""
        self.me.content = incarnation
        self.table.move(self.me, incarnation, State.ALIVE, now)
        self.reserve()
        self.spread(("member", self.me.node), self.own_news(), now)

    def spread(self, subject: Subject, message: DatagramMessage, now: float) -> None:
        """Queue news that changed our table, and let it leave in a moment."""
        self.changes += 1
        self._changed_at = now
        self.queue.put(subject, encode(message))
        if self.timers.at(("eager", "")) is None:
            self.timers.set(("eager", ""), now + self.settings.eager_delay)

    def on_eager(self, _: object, now: float) -> None:
        self._tell(now, tick=False)

    def on_tick(self, _: object, now: float) -> None:
        self._tell(now, tick=True)

    def _tell(self, now: float, *, tick: bool) -> None:
        targets = self.pick(self.settings.gossip_fanout, lambda entry: True)
        if not targets:
            # Nobody to tell; a joiner hears it all in its first exchange.
            self.queue.clear()
            return
        # A tick sends everything once if it can; what is eager sends what was never sent.
        for number in range(min(PACKETS_MAX, 1 + self.queue.size // self.out.room)):
            if not tick and not self.queue.has_fresh:
                break
            head: list[bytes] = []
            if tick and number == 0 and now - self._changed_at < DIGEST_TIME:
                digest = self.table.digest
                head.append(encode(Digest(digest.total, digest.count)))
            parts = head + self.queue.fill(
                self.out.room - sum(map(len, head)),
                count=MESSAGES_MAX - len(head),
                limit=self.limit,
                copies=len(targets),
            )
            if not parts:
                break
            for target in targets:
                self.out.packet(target.address, pack(parts))
        if self.queue:
            if tick or self.timers.at(("tick", "")) is None:
                self.timers.set(("tick", ""), now + self.settings.gossip_interval)
        else:
            self.timers.cancel(("tick", ""))

    @property
    def limit(self) -> int:
        return retransmit_limit(self.table.size, self.settings.retransmit_factor)

    def pick(self, count: int, usable: Callable[[Entry], bool]) -> list[Entry]:
        """Return up to `count` random other members that take part and are usable."""
        ring = self.table.ring
        if len(ring) <= 4 * count + 4:
            # Exhaustive where draws would miss some (memberlist#350).
            found = [e for e in self.table.present() if e is not self.me and usable(e)]
            return self.random.sample(found, min(count, len(found)))
        picked: dict[NodeId, Entry] = {}
        for _ in range(4 * count + 4):
            entry = self.table.entries[ring[self.random.randrange(len(ring))][1]]
            if entry is not self.me and entry.node not in picked and usable(entry):
                picked[entry.node] = entry
                if len(picked) == count:
                    break
        return list(picked.values())

    def others_at(self, address: Address) -> list[Entry]:
        """Return the other members said to listen at `address`."""
        return [entry for entry in self.table.at(address) if entry is not self.me]

    def next_seq(self) -> int:
        """Return a number for a Ping, never used before in this start."""
        self.seq += 1
        return self.seq

    def dial(
        self, address: Address, node: NodeId | None, timeout: float, purpose: str, now: float
    ) -> None:
        """Ask for a dial, one per address and purpose at a time; all who wait for it hear of it."""
        if now < self.dialling.get((address, purpose), -inf):
            return
        keep(self.dialling, (address, purpose), now + timeout + 1.0)
        self.out.dial(Dial(address, node, timeout, purpose))

    def greet(self, address: Address, now: float) -> None:
        """Dial whoever is at `address`, to exchange tables."""
        if address != self.me.address:
            keep(self.joining, address, None)
            self.dial(address, None, self.settings.exchange_timeout, "join", now)

    def scored(self, entry: Entry, score: int) -> None:
        """Take in what a member says of its own health."""
        if entry.score != score:
            entry.score = score
            self.table.seen(entry)

    def send_buckets(self, node: NodeId) -> None:
        """Begin a repair with `node`."""
        self.out.stream(node, Buckets(self.cluster, tuple(self.table.digest.buckets)))

    def reserve(self) -> None:
        """Reserve incarnations ahead, long before the last reserved one is used."""
        if self.me.incarnation > self.reserved - RESERVE // 2:
            self.reserved = self.me.incarnation + RESERVE
            self.out.persist = self._remembered()

    def save_soon(self, now: float) -> None:
        """Write the member file before long."""
        if self.timers.at(("persist", "")) is None:
            self.timers.set(("persist", ""), now + PERSIST_INTERVAL)

    def on_persist(self, _: object, now: float) -> None:
        if not self.has_left:
            self.out.persist = self._remembered()

    def _remembered(self) -> Remembered:
        known = tuple(
            Known(e.node, e.name, e.address, e.state)
            for e in self.table.entries.values()
            if e is not self.me and e.state is not State.LEFT and e.address.host
        )
        # Until somebody was met again, those met in the former life are all there is to try.
        return Remembered(Incarnation(self.reserved), known[:MEMBERS_MAX] or self.former)


def keep(memory: dict[Any, Any], key: object, value: object) -> None:
    """Put into a bounded memory; the oldest goes."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > KEPT_MAX:
        del memory[next(iter(memory))]
