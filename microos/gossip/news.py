"""What is believed of whom: every piece of news is taken in here, and judged.

`members.py` says which news beats which; here is what follows from it: suspicions begin
and end, records are pulled, tombstones set, notes made, news passed on, and accusations of
ourselves refuted.

Source: SWIM (DSN 2002), §4.2; gossip.md 4, 7, 14.
"""

from __future__ import annotations

from typing import Any

from microos.codec import encode
from microos.gossip import notes, reconnect
from microos.gossip.desk import Desk, keep
from microos.gossip.members import MEMBERS_MAX, Entry, State
from microos.gossip.messages import (
    Alive,
    DatagramMessage,
    Dead,
    DeadNotice,
    Evidence,
    Left,
    Sender,
    Suspect,
    UserState,
)
from microos.gossip.prober import Prober
from microos.gossip.records import Pulls, record_hash
from microos.gossip.suspicion import Suspicion, base_wait, wanted_confirmations
from microos.types import Address, BootId, Incarnation, NodeId

TOMBSTONES_MIN = 256


class News:
    """The judge of one core."""

    def __init__(self, desk: Desk, prober: Prober, pulls: Pulls) -> None:
        self._desk = desk
        self._prober = prober
        self._pulls = pulls
        self._twins: dict[BootId, float] = {}
        """Other processes that claimed our node id, with when we answered them."""
        prober.judge = self

    def believes(self, message: DatagramMessage, sender: Sender) -> bool:
        if sender.boot in self._desk.foreign:
            return False
        entry = self._desk.table.boots.get(sender.boot)
        if entry is None or entry.present:
            return True
        # Of the dead and the left only what they say about themselves.
        return isinstance(message, Alive) and message.node == entry.node

    def on_news(self, message: Any, sender: Sender | None, now: float) -> None:
        match message:
            case Alive():
                self.on_alive(message, sender, now)
            case Suspect():
                self.on_suspect(message, sender, now)
            case Dead():
                self.on_dead(message, sender, now)
            case Left():
                self.on_left(message, sender, now)
            case UserState():
                self.on_user_state(message, now)

    def on_alive(self, news: Alive, sender: Sender | None, now: float) -> None:
        if news.node == self._desk.me.node:
            self.on_alive_self(news, sender, now)
            return
        owner = self._desk.table.boots.get(news.boot)
        entry = self._desk.table.entries.get(news.node)
        if (owner is not None and owner is not entry) or news.boot == self._desk.me.boot:
            self._desk.out.note(notes.Dropped("boot"))
            return
        if entry is not None and news.incarnation <= entry.content:
            return
        if len(encode(news)) > self._desk.out.room:
            self._desk.out.note(notes.Dropped("size"))
            return
        if entry is None:
            entry = self._stranger(news.node, now)
            if entry is None:
                return
        if not entry.beaten_by(news.incarnation, State.ALIVE):
            # An accusation has overtaken it; the content is news all the same.
            self._adopt(entry, news, sender, now)
            self._desk.table.changed(entry)
            if not entry.present:
                self._pulls.end(entry.node)
            return
        joined = entry.incarnation < 0
        was, old_boot, old_address = entry.state, entry.boot, entry.address
        changed = self._adopt(entry, news, sender, now)
        self._end_suspicion(entry)
        self._desk.table.move(entry, news.incarnation, State.ALIVE, now)
        if was > State.SUSPECT:
            self._unbury(entry)
        self._desk.spread(("member", entry.node), news, now)
        self._desk.save_soon(now)
        if joined or was is State.LEFT:
            self._desk.out.note(notes.Joined(entry.node, entry.name, entry.address))
            other = self._desk.table.named(entry.name, entry.node)
            if other is not None:
                pair = (min(entry.node, other.node), max(entry.node, other.node))
                self._desk.out.note(notes.NameConflict(entry.name, pair))
        elif old_boot != entry.boot:
            self._desk.out.note(notes.Restarted(entry.node, old_boot, entry.boot))
        elif was is not State.ALIVE:
            self._desk.out.note(notes.Refuted(entry.node, was))
        if not joined and old_address != entry.address:
            self._desk.out.note(notes.Moved(entry.node, old_address, entry.address))
        if changed and not joined:
            self._desk.out.note(notes.Updated(entry.node))
        if (
            not joined
            and (was is State.DEAD or old_boot != entry.boot)
            and self._desk.repairs.start(now)
        ):
            # It may know nobody any more, or we may have missed much of each other.
            self._desk.send_buckets(entry.node)
        if sender is not None and sender.boot == news.boot and sender.address == news.address:
            # Heard from itself, at that address: whoever was there is there no more.
            for former in self._desk.others_at(entry.address):
                if former is not entry:
                    self._prober.refusal(former, now)

    def _stranger(self, node: NodeId, now: float) -> Entry | None:
        """Return an entry that any news beats, in the table; None if the table is full."""
        if len(self._desk.table.entries) >= MEMBERS_MAX:
            self._desk.out.note(notes.Dropped("members"))
            return None
        entry = Entry(
            node=node,
            boot=BootId(0),
            name="",
            address=Address("", 0),
            labels={},
            incarnation=Incarnation(-1),
            state=State.LEFT,
            since=now,
            content=-1,
            faded=True,
        )
        self._desk.table.add(entry)
        return entry

    def _adopt(self, entry: Entry, news: Alive, sender: Sender | None, now: float) -> bool:
        """Take over what a member says about itself; return whether that was seen to change."""
        if news.boot != entry.boot:
            # A probe of the predecessor proves nothing about the new process.
            if (seq := self._prober.probing.get(entry.node)) is not None:
                self._prober.end_probe(seq)
            self._prober.drop_case(entry.node)
            self._prober.trips.pop(entry.boot, None)
            self._desk.table.rename(entry, news.boot)
        changed = entry.labels != news.labels or entry.name != news.name
        entry.name, entry.address, entry.labels = news.name, news.address, news.labels
        entry.announced_hash, entry.announced_size = news.record_hash, news.record_size
        entry.content = news.incarnation
        if news.record_hash == entry.body_hash:
            self._pulls.end(entry.node)
        elif news.record_hash == record_hash(news.brief):
            self._pulls.end(entry.node)
            entry.body, entry.body_hash = news.brief, news.record_hash
            changed = True
        else:
            self._pulls.start(entry, sender, now)
        return changed

    def on_alive_self(self, news: Alive, sender: Sender | None, now: float) -> None:
        if news.incarnation < self._desk.me.incarnation or self._desk.has_left:
            return
        if news.boot == self._desk.me.boot:
            if news.incarnation > self._desk.me.incarnation:
                self._desk.renew(news.incarnation + 1, now)
            return
        # Our former life, or a copy of our identity. A copy goes on claiming it.
        if news.boot in self._twins:
            self._desk.out.note(notes.IdentityConflict(news.boot))
            if now - self._twins[news.boot] < self._desk.settings.probe_interval:
                return
        keep(self._twins, news.boot, now)
        self._desk.renew(news.incarnation + 1, now)
        if sender is not None:
            self._desk.out.say(sender.address, self._desk.own_news())

    def on_suspect(self, news: Suspect, sender: Sender | None, now: float) -> None:
        if news.node == self._desk.me.node:
            self._refute(news.incarnation, news.accuser, sender, now)
            return
        entry = self._desk.table.entries.get(news.node)
        accuser = self._desk.table.entries.get(news.accuser)
        if entry is None or entry.content < 0 or news.accuser == news.node:
            return
        if accuser is not None and accuser.state is State.LEFT:
            return
        self.accuse(entry, news.incarnation, news.accuser, news.evidence, now)

    def accuse(
        self, entry: Entry, incarnation: int, by: NodeId, kind: Evidence, now: float
    ) -> None:
        refused = kind is Evidence.REFUSED
        fresh = entry.beaten_by(incarnation, State.SUSPECT)
        if fresh:
            suspicion = self._begin_suspicion(entry, incarnation, by, now)
            if refused:
                suspicion.refuse(by, now)
            self._desk.out.note(notes.Suspected(entry.node, entry.incarnation, by, refused))
        elif entry.state is State.SUSPECT and entry.incarnation == incarnation:
            suspicion = self._desk.suspicions[entry.node]
            told = suspicion.confirm(by)
            if refused:
                told = suspicion.refuse(by, now) or told
            if not told:
                return
        else:
            return
        news = Suspect(entry.node, Incarnation(incarnation), by, kind)
        self._desk.spread(("member", entry.node), news, now)
        self._desk.timers.set(("suspect", entry.node), max(now, suspicion.deadline))
        if by != self._desk.me.node:
            self._prober.verify(entry, kind, now)
            return
        # Our own accusation: the subject hears it first, then whoever is to verify it.
        self._desk.out.say(entry.address, news)
        if refused:
            for node in self._desk.table.predecessors(entry.node, self._desk.settings.verifiers):
                if node != self._desk.me.node:
                    self._desk.out.say(self._desk.table.entries[node].address, news)

    def _begin_suspicion(self, entry: Entry, incarnation: int, by: NodeId, now: float) -> Suspicion:
        if not entry.present:
            # It has lived in a higher incarnation than the one we buried.
            self._unbury(entry)
        count = self._desk.table.size + (not entry.present)
        base = base_wait(count, self._desk.settings)
        suspicion = Suspicion(
            Incarnation(incarnation),
            since=now,
            wanted=wanted_confirmations(count, self._desk.settings),
            base=base,
            ceiling=base * self._desk.settings.suspicion_ceiling_factor,
            accusers={by},
            refusals_wanted=1 if count == 2 else 2,
            refused_wait=self._desk.settings.refused_wait,
        )
        self._desk.table.move(entry, incarnation, State.SUSPECT, now)
        self._desk.suspicions[entry.node] = suspicion
        return suspicion

    def on_suspicion(self, node: object, now: float) -> None:
        entry = self._desk.table.entries[NodeId(str(node))]
        suspicion = self._desk.suspicions[entry.node]
        if not self._desk.may_judge(now):
            later = max(self._desk.settle_until, now + self._desk.settings.probe_interval)
            self._desk.timers.set(("suspect", entry.node), later)
        elif suspicion.deadline > now:
            # An Ack took refusals back.
            self._desk.timers.set(("suspect", entry.node), suspicion.deadline)
        else:
            kind = Evidence.REFUSED if suspicion.proven else Evidence.SILENCE
            self.declare_dead(entry, kind, now)

    def declare_dead(self, entry: Entry, kind: Evidence, now: float) -> None:
        suspicion = self._desk.suspicions[entry.node]
        accusers = tuple(sorted(suspicion.accusers | suspicion.refused))[:16]
        news = Dead(entry.node, entry.incarnation, accusers, kind, 0.0)
        # If we are wrong it should be the first to know.
        self._desk.out.say(entry.address, news)
        self.on_dead(news, None, now)

    def _end_suspicion(self, entry: Entry) -> None:
        if self._desk.suspicions.pop(entry.node, None) is not None:
            self._desk.timers.cancel(("suspect", entry.node))

    def on_dead(self, news: Dead, sender: Sender | None, now: float) -> None:
        if news.node == self._desk.me.node:
            by = news.accusers[0] if news.accusers else None
            self._refute(news.incarnation, by, sender, now)
        elif self._bury(news, State.DEAD, now):
            self._desk.spread(("member", news.node), news, now)

    def on_left(self, news: Left, sender: Sender | None, now: float) -> None:
        if news.node == self._desk.me.node:
            self._refute(news.incarnation, news.by, sender, now)
        elif self._bury(news, State.LEFT, now):
            self._desk.spread(("member", news.node), news, now)

    def _bury(self, news: Dead | Left, state: State, now: float) -> bool:
        """Hold a member to be dead or to have left; return whether that was news."""
        lifetime = self._desk.settings.reconnect_timeout
        if news.age >= lifetime:
            return False
        entry = self._desk.table.entries.get(news.node)
        if entry is None:
            entry = self._stranger(news.node, now)
            if entry is None:
                return False
        unknown = entry.incarnation < 0
        if not entry.beaten_by(news.incarnation, state):
            return False
        was = entry.state
        self._end_suspicion(entry)
        self._prober.drop_case(entry.node)
        self._pulls.end(entry.node)
        if (seq := self._prober.probing.get(entry.node)) is not None:
            self._prober.end_probe(seq)
        if not entry.address.host:
            entry.name, entry.address = news.name, Address(news.host, news.port)
        self._desk.table.move(entry, news.incarnation, state, now)
        entry.since = now - news.age
        entry.faded = news.age >= lifetime / 2.0
        self._desk.table.changed(entry)
        if not entry.faded:
            self._desk.timers.set(("fade", entry.node), entry.since + lifetime / 2.0)
        self._desk.timers.set(("forget", entry.node), entry.since + lifetime)
        self._desk.save_soon(now)
        if (seed := self._desk.seeds.get(entry.address)) is not None and was <= State.SUSPECT:
            seed.missed(now)
            self._desk.timers.set(("seed", entry.address), now + reconnect.FIRST_DELAY)
        if state is State.DEAD and was <= State.SUSPECT:
            refused = isinstance(news, Dead) and news.evidence is Evidence.REFUSED
            self._desk.out.note(notes.Died(entry.node, entry.boot, refused))
        elif state is State.LEFT and was is not State.LEFT and not unknown:
            self._desk.out.note(notes.Left(entry.node))
        self._bound_tombstones()
        return True

    def _unbury(self, entry: Entry) -> None:
        self._prober.schedule.added(entry.node)
        self._desk.timers.cancel(("fade", entry.node))
        self._desk.timers.cancel(("forget", entry.node))

    def _bound_tombstones(self) -> None:
        gone = len(self._desk.table.entries) - self._desk.table.size
        if gone <= max(TOMBSTONES_MIN, 4 * self._desk.table.size):
            return
        desk = self._desk
        absent = (e for e in desk.table.entries.values() if not e.present and e is not desk.me)
        oldest = min(absent, key=lambda entry: (entry.since, entry.node))
        self._desk.timers.cancel(("fade", oldest.node))
        self._desk.timers.cancel(("forget", oldest.node))
        self.on_forget(oldest.node, 0.0)

    def on_fade(self, node: object, now: float) -> None:
        # It leaves the digest long before the table, so that small differences of clocks
        # never look like differences of tables.
        entry = self._desk.table.entries[NodeId(str(node))]
        entry.faded = True
        self._desk.table.changed(entry)

    def on_forget(self, node: object, now: float) -> None:
        entry = self._desk.table.entries[NodeId(str(node))]
        self._desk.table.remove(entry)
        self._desk.queue.discard(("member", entry.node))
        self._desk.out.note(notes.Forgotten(entry.node))

    def on_user_state(self, news: UserState, now: float) -> None:
        entry = self._desk.table.boots.get(news.boot)
        if entry is None or entry is self._desk.me:
            return
        version, _ = entry.states.get(news.kind, (0, b""))
        if news.version <= version:
            return
        entry.states[news.kind] = (news.version, news.body)
        self._desk.table.changed(entry)
        self._desk.spread(("state", entry.node, str(news.kind)), news, now)

    def on_dead_notice(self, notice: DeadNotice, sender: Sender, now: float) -> None:
        if sender.boot not in self._desk.foreign:
            self._refute(notice.incarnation, None, sender, now)

    def _refute(
        self, incarnation: int, by: NodeId | None, sender: Sender | None, now: float
    ) -> None:
        """We live: say so above what was said, to whoever said it first."""
        if self._desk.has_left:
            return
        if incarnation >= self._desk.me.incarnation:
            self._desk.renew(incarnation + 1, now)
            self._desk.awareness.change(1)
            self._desk.out.note(notes.Accused(by, self._desk.me.incarnation))
        if sender is not None:
            self._desk.out.say(sender.address, self._desk.own_news())
