"""Two tables made one: whole at a join, by buckets where digests differ, over links.

What another table says of the living is news like any other. What it says of the dead is
only a reason to look: the other side may have been cut off, not we. If several of those we
hold to be alive are dead there, two halves are meeting, and the accused hear it first:

    halves meet ──▶ DeadNotice to each accused ──▶ they take their next incarnation
                └── 1 s ──▶ merge again: whoever is silent is probed, and then judged

Source: memberlist's push-pull; ringpop-go, heal_partition.go; gossip.md 4, 10, 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf

from microos.codec import encode
from microos.gossip import notes, reconnect
from microos.gossip.desk import Desk, keep
from microos.gossip.digest import bucket_of
from microos.gossip.members import Entry, State
from microos.gossip.messages import (
    PAGE_BYTES,
    Alive,
    BucketRecords,
    Buckets,
    Dead,
    DeadNotice,
    Evidence,
    Left,
    PushPull,
    Record,
    Refuse,
    Sender,
    UserState,
)
from microos.gossip.news import News
from microos.gossip.probe import Aim
from microos.gossip.prober import WELL, Prober
from microos.gossip.reconnect import jittered
from microos.types import NodeId

MERGE_DELAY = 1.0
"""Between passing accusations on and merging the tables after a partition [s]."""


class Exchange:
    """All exchanges of one core; they keep no state but what was passed on."""

    def __init__(self, desk: Desk, prober: Prober, news: News) -> None:
        self._desk = desk
        self._prober = prober
        self._news = news
        self._noticed: dict[NodeId, tuple[int, float]] = {}
        """Accusations passed straight on to the accused: (incarnation, when)."""

    def push_pull(self, node: NodeId, *, wants: bool) -> None:
        join = self._desk.table.size == 1
        everything = (e for e in self._desk.table.entries.values() if e is not self._desk.me)
        for number, page in enumerate(self._pages(everything, own_first=True)):
            self._desk.out.stream(
                node, PushPull(self._desk.cluster, join, wants and number == 0, records=page)
            )

    def on_push_pull(self, push: PushPull, sender: Sender, node: NodeId, now: float) -> None:
        if self._desk.has_left:
            return
        own = push.records[0] if push.records else None
        if not self._desk.same_cluster(sender.boot, push.cluster):
            self._desk.out.stream(node, Refuse("cluster"))
            return
        if push.join and isinstance(own, Alive) and own.node == node:
            holder = self._desk.table.named(own.name, node)
            if holder is not None:
                self._desk.out.stream(node, Refuse("name"))
                if holder is not self._desk.me:
                    # Often it is the newcomer's own former life: find out soon.
                    self._prober.look_into(holder, 2, now)
                return
        self._merge(push.records, sender, node, now)
        if push.wants:
            self.push_pull(node, wants=False)

    def on_refuse(self, refuse: Refuse, sender: Sender, node: NodeId, now: float) -> None:
        self._desk.out.note(notes.Refused(refuse.reason, node, sender.address))

    def on_buckets(self, theirs: Buckets, sender: Sender, node: NodeId, now: float) -> None:
        if self._desk.has_left or not self._desk.same_cluster(sender.boot, theirs.cluster):
            return
        ours = self._desk.table.digest.buckets
        mask = sum(1 << k for k, hash in enumerate(theirs.hashes) if hash != ours[k])
        if mask and self._desk.repairs.serve(now):
            self._send_records(node, mask, wants=True)

    def _send_records(self, node: NodeId, mask: int, *, wants: bool) -> None:
        entries = (e for e in self._desk.table.entries.values() if mask >> bucket_of(e.node) & 1)
        for number, page in enumerate(self._pages(entries, own_first=False)):
            self._desk.out.stream(
                node, BucketRecords(self._desk.cluster, mask, wants and number == 0, records=page)
            )

    def on_bucket_records(
        self, part: BucketRecords, sender: Sender, node: NodeId, now: float
    ) -> None:
        if self._desk.has_left or not self._desk.same_cluster(sender.boot, part.cluster):
            return
        before = self._desk.changes
        self._merge(part.records, sender, node, now)
        if self._desk.changes > before:
            self._desk.out.note(notes.DigestRepaired(self._desk.changes - before))
        if part.wants:
            self._send_records(node, part.mask, wants=False)

    def _pages(self, entries: Iterable[Entry], *, own_first: bool) -> Iterator[list[Record]]:
        head: list[Record] = list(self._records_of(self._desk.me)) if own_first else []
        page, size = list(head), 0
        for entry in entries:
            for record in self._records_of(entry):
                size += len(encode(record))
                if size > PAGE_BYTES:
                    yield page
                    page, size = list(head), 0
                page.append(record)
        yield page

    def _records_of(self, entry: Entry) -> Iterator[Record]:
        address = entry.address
        # Ages are taken when the exchange is made, by the clock of the last timer or message.
        age = max(0.0, self._desk.now - entry.since)
        if entry.state is State.DEAD:
            yield Dead(
                entry.node,
                entry.incarnation,
                (),
                Evidence.SILENCE,
                age,
                entry.name,
                address.host,
                address.port,
            )
            return
        if entry.state is State.LEFT:
            yield Left(
                entry.node, entry.incarnation, age, None, entry.name, address.host, address.port
            )
            return
        yield self._desk.alive_of(entry)
        if entry.state is State.SUSPECT:
            yield self._desk.accusation(entry)
        for kind in sorted(entry.states):
            version, body = entry.states[kind]
            yield UserState(entry.boot, kind, version, body)

    def _merge(self, records: Sequence[Record], sender: Sender, node: NodeId, now: float) -> None:
        """Take in part of another table: as news, but a death there is only a reason to look."""
        disputed: list[Dead] = []
        for record in records:
            if isinstance(record, Dead) and self._disputes(record):
                disputed.append(record)
            else:
                self._news.on_news(record, sender, now)
        for record in self._pass_on(disputed, node, now):
            self._look_at_dead(record, node, now)

    def _disputes(self, record: Dead) -> bool:
        entry = self._desk.table.entries.get(record.node)
        return (
            entry is not None
            and entry is not self._desk.me
            and entry.present
            and entry.beaten_by(record.incarnation, State.DEAD)
        )

    def _pass_on(self, disputed: list[Dead], node: NodeId, now: float) -> list[Dead]:
        """Two halves meet: let the accused take their next incarnation before we merge.

        Returns those to look at now: a single one, or those that had their chance.
        """
        due: list[Dead] = []
        passed_on = False
        for record in disputed:
            incarnation, at = self._noticed.get(record.node, (-1, -inf))
            if incarnation >= record.incarnation:
                if now - at >= MERGE_DELAY * 0.999:
                    due.append(record)
            elif len(disputed) == 1:
                due.append(record)
            else:
                keep(self._noticed, record.node, (int(record.incarnation), now))
                address = self._desk.table.entries[record.node].address
                self._desk.out.say(address, DeadNotice(record.incarnation, int(State.DEAD)))
                passed_on = True
        if passed_on:
            self._desk.timers.set(("merge", node), now + MERGE_DELAY)
        return due

    def on_merge(self, node: object, now: float) -> None:
        entry = self._desk.table.entries.get(NodeId(str(node)))
        if entry is not None and entry.present and not self._desk.has_left:
            self._desk.send_buckets(entry.node)

    def _look_at_dead(self, record: Dead, node: NodeId, now: float) -> None:
        if not self._disputes(record):
            return
        entry = self._desk.table.entries[record.node]
        for accuser in record.accusers or (node,):
            if accuser != entry.node:
                self._news.accuse(entry, record.incarnation, accuser, Evidence.SILENCE, now)
        well = self._desk.awareness.used(now) < WELL and self._desk.may_judge(now)
        if well and entry.state is State.SUSPECT:
            self._prober.probe(entry, Aim.JUDGE, now)

    def on_full(self, _: object, now: float) -> None:
        for entry in self._desk.pick(1, lambda entry: entry.state is State.ALIVE):
            self.push_pull(entry.node, wants=True)
        self.set_full(now)

    def set_full(self, now: float) -> None:
        stretch = reconnect.full_sync_stretch(self._desk.table.size)
        wait = jittered(self._desk.settings.full_sync_interval * stretch, self._desk.random)
        self._desk.timers.set(("full", ""), now + wait)
