"""Who answers: probes, probes for others, and what a refused connection proves.

One probe per interval, more where somebody is accused or a connection broke. What a failed
probe means is not decided here: the judge hears of it (`news.py`).

Source: SWIM (DSN 2002), §3.1; Lifeguard (arXiv:1707.00788); gossip.md 5 and 6.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from microos.gossip import evidence, notes
from microos.gossip.desk import Desk, keep
from microos.gossip.evidence import Case
from microos.gossip.members import Entry, State
from microos.gossip.messages import (
    Ack,
    DeadNotice,
    Evidence,
    Nack,
    NackReason,
    Ping,
    PingReq,
    Sender,
    StreamAck,
    StreamPing,
)
from microos.gossip.probe import Aim, Probe, Relay, RoundTrips, Schedule, ack_timeout, verdict_after
from microos.types import Address, BootId, NodeId

WELL = 4
"""Members with this score or more are not asked to relay, and do not judge."""

RELAYS_MAX = 256


class Judge(Protocol):
    """Who decides what the failure of a probe means."""

    def accuse(
        self, entry: Entry, incarnation: int, by: NodeId, kind: Evidence, now: float
    ) -> None: ...

    def declare_dead(self, entry: Entry, kind: Evidence, now: float) -> None: ...


class Prober:
    """All probes, relays and cases under way."""

    judge: Judge

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.schedule = Schedule(desk.random)
        self.probes: dict[int, Probe] = {}
        self.probing: dict[NodeId, int] = {}
        self.pinged: dict[int, tuple[BootId, float]] = {}
        """Every Ping of a probe, for round trips that outlast it: (target, sent at)."""
        self.trips: dict[BootId, RoundTrips] = {}
        self.relays: dict[int, Relay] = {}
        self.cases: dict[NodeId, Case] = {}
        self.blocked: dict[NodeId, None] = {}
        """Members whose last sign of life came by stream alone."""
        self.sentinels: list[NodeId] = []
        """Monitor targets that a link was opened to."""
        self.calls: dict[int, Address] = {}
        """Pings to the dead."""

    def on_slot(self, _: object, now: float) -> None:
        factor = self._desk.awareness.used(now) + 1
        self._desk.timers.set(("slot", ""), now + self._desk.settings.probe_interval * factor)
        if self._desk.table.size < 2:
            return
        monitored = self._desk.table.successors(self._desk.me.node, 2)
        self._watch(monitored)
        target = self._next_target(monitored)
        if target is None and self.schedule.is_over:
            me = self._desk.me
            self.schedule.refill([e.node for e in self._desk.table.present() if e is not me])
            target = self._next_target(monitored)
        if target is not None:
            self.probe(self._desk.table.entries[target], Aim.SLOT, now)

    def _next_target(self, monitored: list[NodeId]) -> NodeId | None:
        def usable(node: NodeId) -> bool:
            entry = self._desk.table.entries.get(node)
            return entry is not None and entry.present and node not in self.probing

        return self.schedule.next(monitored, self._desk.table.size, usable)

    def _watch(self, monitored: list[NodeId]) -> None:
        # A link to each monitor target, so that the kernel tells us when its process dies.
        for node in monitored:
            if node not in self.sentinels:
                self._desk.out.stream(node, StreamPing(0))
        self.sentinels = monitored

    def probe(self, entry: Entry, aim: Aim, now: float) -> None:
        """Probe a member; a probe of it that is under way serves the greater aim."""
        assert entry is not self._desk.me
        if (under_way := self.probing.get(entry.node)) is not None:
            probe = self.probes[under_way]
            probe.aim = max(probe.aim, aim)
            return
        factor = self._desk.awareness.used(now) + 1
        trips = self.trips.get(entry.boot)
        high = trips.high if trips is not None else None
        wait = ack_timeout(high, self._desk.awareness.lag(now), self._desk.settings)
        verdict_at = now + verdict_after(wait, self._desk.settings) * factor
        seq = self._desk.next_seq()
        self.probes[seq] = Probe(
            seq, entry.node, entry.boot, entry.address, aim, now, verdict_at=verdict_at
        )
        self.probing[entry.node] = seq
        keep(self.pinged, seq, (entry.boot, now))
        self.ping(seq, entry.address, entry.boot, now)
        self._desk.timers.set(("ask", seq), now + wait * factor)
        self._desk.timers.set(("verdict", seq), verdict_at)

    def ping(self, seq: int, address: Address, target: BootId, now: float) -> None:
        """Send one Ping."""
        digest = self._desk.table.digest
        self._desk.out.say(
            address,
            Ping(
                seq,
                target,
                self._desk.me.incarnation,
                self._desk.awareness.used(now),
                self._desk.cluster,
                digest.total,
                digest.count,
            ),
        )
        # The buddy rule: a suspect hears it with the very probe, and refutes in one round trip.
        entry = self._desk.table.boots.get(target)
        if entry is not None and entry.state is State.SUSPECT:
            self._desk.out.say(address, self._desk.accusation(entry))

    def on_ask(self, seq: object, now: float) -> None:
        """No Ack in time: let others try, and try the stream."""
        probe = self.probes.get(as_int(seq))
        if probe is None:
            return
        left = max(0.001, probe.verdict_at - now)

        def fit(entry: Entry) -> bool:
            return entry.state is State.ALIVE and entry.score < WELL and entry.node != probe.node

        for relay in self._desk.pick(self._desk.settings.indirect_probes, fit):
            probe.asked[relay.boot] = None
            self._desk.out.say(
                relay.address,
                PingReq(
                    probe.seq,
                    probe.boot,
                    probe.address.host,
                    probe.address.port,
                    int(left * 1000.0),
                ),
            )
        if self._desk.linked.get(probe.node) == probe.boot:
            self._desk.out.stream(probe.node, StreamPing(probe.seq))
        else:
            self._desk.dial(probe.address, probe.node, left, "probe", now)

    def on_verdict(self, seq: object, now: float) -> None:
        probe = self.end_probe(as_int(seq))
        entry = self._desk.table.entries.get(probe.node)
        if probe.streamed:
            if entry is not None and probe.node not in self.blocked:
                keep(self.blocked, probe.node, None)
                self._desk.out.note(notes.UdpBlocked(probe.node))
            return
        if not self._desk.may_judge(now):
            return
        missing = len(probe.asked) - len(probe.nacks)
        self._desk.awareness.change(missing if probe.asked else 1)
        if entry is None or not entry.present or entry.boot != probe.boot:
            return
        if probe.aim is Aim.JUDGE and entry.state is State.SUSPECT:
            self.judge.declare_dead(entry, Evidence.SILENCE, now)
        else:
            self.judge.accuse(entry, entry.incarnation, self._desk.me.node, Evidence.SILENCE, now)

    def on_ping(self, ping: Ping, sender: Sender, now: float) -> None:
        if ping.target != self._desk.me.boot:
            self._desk.out.say(sender.address, Nack(ping.seq, NackReason.NOT_ME))
            self._desk.out.say(sender.address, self._desk.own_news())
            return
        self._desk.same_cluster(sender.boot, ping.cluster)
        digest = self._desk.table.digest
        self._desk.out.say(
            sender.address,
            Ack(
                ping.seq,
                self._desk.me.incarnation,
                self._desk.awareness.used(now),
                self._desk.cluster,
                digest.total,
                digest.count,
            ),
        )
        entry = self._desk.table.boots.get(sender.boot)
        if entry is not None:
            self._desk.scored(entry, ping.score)
            if entry.state is State.SUSPECT:
                self._desk.out.say(sender.address, self._desk.accusation(entry))

    def on_ack(self, ack: Ack, sender: Sender, now: float) -> None:
        self._desk.same_cluster(sender.boot, ack.cluster)
        entry = self._desk.table.boots.get(sender.boot)
        if entry is not None:
            self._desk.scored(entry, ack.score)
        pinged = self.pinged.get(ack.seq)
        if pinged is not None and pinged[0] == sender.boot:
            # Late Acks count as well, so the timeout rises by itself.
            del self.pinged[ack.seq]
            if sender.boot not in self.trips:
                keep(self.trips, sender.boot, RoundTrips())
            self.trips[sender.boot].add(now - pinged[1])
        if (relay := self.relays.get(ack.seq)) is not None and relay.target == sender.boot:
            self._end_relay(ack.seq)
            self._relay_ack(relay, now)
        # Only the process that was probed can vouch for itself, or a relay that was asked.
        probe = self.probes.get(ack.seq)
        if probe is None or (sender.boot != probe.boot and sender.boot not in probe.asked):
            return
        if sender.boot == probe.boot:
            self._desk.awareness.change(-1)
            self.blocked.pop(probe.node, None)
            if ack.seq > self._desk.settle_seq and ack.digest == self._desk.table.digest.total:
                self._desk.settle_until = -inf
        subject = self._desk.table.entries.get(probe.node)
        if subject is not None and subject.boot == probe.boot:
            if probe.aim is Aim.JUDGE and subject.state is State.SUSPECT:
                notice = DeadNotice(subject.incarnation, int(State.DEAD))
                self._desk.out.say(subject.address, notice)
            self.vouched(subject, streamed=False)
        if ack.seq in self.probes:
            self.end_probe(ack.seq)

    def vouched(self, entry: Entry, *, streamed: bool) -> None:
        """That very process has answered: what rests on its silence or refusal is void."""
        self.drop_case(entry.node)
        if (suspicion := self._desk.suspicions.get(entry.node)) is not None:
            suspicion.vouched = True
        if streamed and (seq := self.probing.get(entry.node)) is not None:
            self.probes[seq].streamed = True

    def on_nack(self, nack: Nack, sender: Sender, now: float) -> None:
        probe = self.probes.get(nack.seq)
        if nack.reason is NackReason.SILENCE:
            if probe is not None and sender.boot in probe.asked:
                probe.nacks[sender.boot] = None
            return
        called = self.calls.pop(nack.seq, None)
        if called is not None and called == sender.address:
            # Somebody lives where a dead one did: greeted like a seed.
            self._desk.greet(called, now)
        other = self._desk.table.boots.get(sender.boot)
        if probe is not None and sender.address == probe.address and other is not None:
            subject = self._desk.table.entries.get(probe.node)
            if subject is not None and other is not subject and subject.boot == probe.boot:
                self.refusal(subject, now)

    def on_ping_req(self, request: PingReq, sender: Sender, now: float) -> None:
        if len(self.relays) >= RELAYS_MAX:
            return
        seq = self._desk.next_seq()
        self.relays[seq] = Relay(request.seq, sender.address, request.target)
        self.ping(seq, Address(request.host, request.port), request.target, now)
        allowed = min(request.allowed / 1000.0, 60.0)
        # Early enough that the Nack still arrives in time.
        self._desk.timers.set(("relay", seq), now + 0.8 * allowed)

    def on_relay(self, seq: object, now: float) -> None:
        relay = self.relays.pop(as_int(seq))
        self._desk.out.say(relay.asker, Nack(relay.seq, NackReason.SILENCE))

    def _end_relay(self, seq: int) -> None:
        del self.relays[seq]
        self._desk.timers.cancel(("relay", seq))

    def _relay_ack(self, relay: Relay, now: float) -> None:
        digest = self._desk.table.digest
        self._desk.out.say(
            relay.asker,
            Ack(
                relay.seq,
                self._desk.me.incarnation,
                self._desk.awareness.used(now),
                self._desk.cluster,
                digest.total,
                digest.count,
            ),
        )

    def on_stream_ping(self, ping: StreamPing, _: Sender, node: NodeId, now: float) -> None:
        if ping.seq:
            self._desk.out.stream(node, StreamAck(ping.seq))

    def on_stream_ack(self, ack: StreamAck, sender: Sender, node: NodeId, now: float) -> None:
        probe = self.probes.get(ack.seq)
        entry = self._desk.table.entries.get(node)
        if probe is not None and entry is not None and probe.boot == sender.boot == entry.boot:
            self.vouched(entry, streamed=True)

    def end_probe(self, seq: int) -> Probe:
        """Take a probe off the list."""
        probe = self.probes.pop(seq)
        del self.probing[probe.node]
        self._desk.timers.cancel(("ask", seq))
        self._desk.timers.cancel(("verdict", seq))
        return probe

    def begin(self, now: float, *, at_once: bool = False) -> None:
        """Set the timer of the first slot, at a random time so that nodes are not in step."""
        wait = 0.0 if at_once else self._desk.settings.probe_interval * self._desk.random.random()
        self._desk.timers.set(("slot", ""), now + wait)

    def end(self) -> None:
        """Probe nobody any more; relays go on."""
        self._desk.timers.cancel(("slot", ""))
        self._void_probes()

    def void(self) -> None:
        """Forget whatever is under way: we were away, and it proves nothing."""
        self._void_probes()
        for seq in list(self.relays):
            self._end_relay(seq)

    def _void_probes(self) -> None:
        for seq in list(self.probes):
            self.end_probe(seq)
        for node in list(self.cases):
            self.drop_case(node)

    def check(self) -> None:
        """Assert every invariant."""
        table, timers = self._desk.table, self._desk.timers
        assert self.probing == {probe.node: seq for seq, probe in self.probes.items()}
        for seq, probe in self.probes.items():
            entry = table.entries[probe.node]
            assert entry.present
            assert entry.boot == probe.boot
            assert timers.at(("verdict", seq)) is not None
        for seq in self.relays:
            assert timers.at(("relay", seq)) is not None
        for node in self.cases:
            assert table.entries[node].present

    def look_into(self, entry: Entry, needed: int, now: float, *, dial: bool = True) -> None:
        """Open a case: probe at once, with a fresh dial."""
        if not entry.present or entry is self._desk.me or self._desk.has_left:
            return
        case = self.cases.get(entry.node)
        if case is not None and now - case.opened < self._desk.settings.probe_interval:
            return
        self.drop_case(entry.node)
        self.cases[entry.node] = Case(entry.boot, needed, opened=now)
        self.probe(entry, Aim.URGENT, now)
        if dial:
            self.on_case(entry.node, now)

    def on_case(self, node: object, now: float) -> None:
        entry = self._desk.table.entries[NodeId(str(node))]
        trips = self.trips.get(entry.boot)
        high = trips.high if trips is not None else None
        wait = max(self._desk.settings.dial_timeout_min, 3.0 * (high or 0.0))
        self._desk.dial(entry.address, entry.node, wait, "evidence", now)

    def refusal(self, entry: Entry, now: float) -> None:
        """A dial of its address was refused, or somebody else lives there."""
        self.look_into(entry, 2, now, dial=False)
        case = self.cases.get(entry.node)
        if case is None:
            return
        if not case.refused(now):
            self._desk.timers.set(("case", entry.node), now + evidence.SPACING)
            return
        self.drop_case(entry.node)
        if self._desk.may_judge(now):
            self.judge.accuse(entry, entry.incarnation, self._desk.me.node, Evidence.REFUSED, now)

    def dial_timed_out(self, entry: Entry, now: float) -> None:
        case = self.cases.get(entry.node)
        if case is None or self._desk.timers.at(("case", entry.node)) is not None:
            return
        wait = case.timed_out()
        if wait is None:
            self.drop_case(entry.node)
        else:
            self._desk.timers.set(("case", entry.node), now + wait)

    def drop_case(self, node: NodeId) -> None:
        if self.cases.pop(node, None) is not None:
            self._desk.timers.cancel(("case", node))

    def verify(self, entry: Entry, kind: Evidence, now: float) -> None:
        """Somebody accuses it: look ourselves if we are among its nearest predecessors."""
        if self._desk.has_left:
            return
        near = self._desk.table.predecessors(entry.node, self._desk.settings.verifiers)
        if self._desk.me.node not in near:
            return
        if kind is Evidence.REFUSED:
            if self._desk.me.node not in self._desk.suspicions[entry.node].refused:
                self.look_into(entry, 1, now)
        elif entry.node not in self.probing:
            self.probe(entry, Aim.VERIFY, now)


def as_int(value: object) -> int:
    """Return the number a timer was set for."""
    assert isinstance(value, int)
    return value
