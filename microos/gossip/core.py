"""Membership: who is there, found by probing, told by gossip, kept equal by digest.

SWIM with Lifeguard, as a pure core: it is told messages, results and the time, and says
what to persist, send, dial and note.

    datagrams ─┐                            ┌─▶ persist    the member file, first
    links     ─┼▶ receive ┐        ┌ take ──┼─▶ datagrams  Ping, Ack, news
    dials     ─┘          ├ table ─┤        ├─▶ streams    exchanges, records
    clock ──────▶ wake ───┘        └        ├─▶ dials      join, probe, evidence
                                            └─▶ notes

Life of one accusation:

    probe fails ─▶ Suspect ─▶ six verifiers probe at once ─▶ confirmations ─▶ Dead
                      └─▶ the subject hears it first and refutes: Alive(i + 1)

Who was away judges nobody: when this node wakes much later than it asked to, its probes
are void and its verdicts wait until what lay in the socket has been read (gossip.md 8.3).

Sources: Das, Gupta, Motivala, "SWIM" (DSN 2002); Dadgar, Phillips, Currey, "Lifeguard"
(arXiv:1707.00788); hashicorp/memberlist and serf; ringpop's heal by reincarnation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from microos import limits
from microos.codec import encode
from microos.errors import LimitError, RejectedError
from microos.gossip import notes
from microos.gossip.calling import Caller
from microos.gossip.desk import Desk, keep
from microos.gossip.exchange import Exchange
from microos.gossip.leaving import Leaving
from microos.gossip.members import Me, Member, Remembered, State
from microos.gossip.messages import (
    STATE_KINDS,
    Ack,
    Alive,
    BucketRecords,
    Buckets,
    DatagramMessage,
    Dead,
    DeadNotice,
    Dialled,
    Digest,
    Left,
    LinkLost,
    Message,
    Nack,
    Ping,
    PingReq,
    PushPull,
    RecordPart,
    RecordPull,
    Refuse,
    Sender,
    StreamAck,
    StreamPing,
    Suspect,
    UserState,
)
from microos.gossip.news import News
from microos.gossip.outbox import Effects
from microos.gossip.prober import Prober
from microos.gossip.records import Pulls, record_hash
from microos.settings import GossipSettings
from microos.types import Address, Incarnation, NodeId, Random

NOTICE_INTERVAL = 1.0
"""A dead member that speaks is told so at most so often [s]."""


class Gossip:
    """One node's part in the membership of its cluster."""

    def __init__(
        self,
        me: Me,
        *,
        settings: GossipSettings,
        random: Random,
        now: float,
        wall_ms: int,
        remembered: Remembered | None = None,
    ) -> None:
        """
        Args:
            me: This node; its record is empty until `announce`.
            settings: Timing and sizes.
            random: The only source of chance.
            now: The time [s].
            wall_ms: Milliseconds since 1970: a floor for the incarnation.
            remembered: What the member file holds.

        Raises:
            LimitError: Name or labels are too long.
        """
        _check_me(me)
        desk = Desk(
            me,
            settings=settings,
            random=random,
            now=now,
            wall_ms=wall_ms,
            remembered=remembered,
        )
        self._desk = desk
        self._prober = Prober(desk)
        self._pulls = Pulls(desk)
        self._news = News(desk, self._prober, self._pulls)
        self._exchange = Exchange(desk, self._prober, self._news)
        self._calling = Caller(desk, self._prober)
        self._leaving = Leaving(desk, self._prober)
        self._on_timer: dict[str, Callable[[Any, float], None]] = {
            "slot": self._prober.on_slot,
            "ask": self._prober.on_ask,
            "verdict": self._prober.on_verdict,
            "relay": self._prober.on_relay,
            "case": self._prober.on_case,
            "suspect": self._news.on_suspicion,
            "fade": self._news.on_fade,
            "forget": self._news.on_forget,
            "eager": desk.on_eager,
            "tick": desk.on_tick,
            "persist": desk.on_persist,
            "merge": self._exchange.on_merge,
            "full": self._exchange.on_full,
            "pull": self._pulls.on_pull,
            "seed": self._calling.on_seed,
            "recall": self._calling.on_recall,
            "call": self._calling.on_call,
            "leave": self._leaving.on_leave,
        }
        self._on_link: dict[type, Callable[[Any, Sender, NodeId, float], None]] = {
            PushPull: self._exchange.on_push_pull,
            Buckets: self._exchange.on_buckets,
            BucketRecords: self._exchange.on_bucket_records,
            RecordPull: self._pulls.on_record_pull,
            RecordPart: self._pulls.on_record_part,
            StreamPing: self._prober.on_stream_ping,
            StreamAck: self._prober.on_stream_ack,
            Refuse: self._exchange.on_refuse,
        }
        self._begin(now)

    # The four verbs.

    def receive(self, message: Message, sender: Sender | None, now: float) -> None:
        """Take in one message, or a result of the shell (whose sender is not looked at)."""
        if isinstance(message, Dialled):
            self._return(now)
            self._on_dialled(message, now)
        elif isinstance(message, LinkLost):
            self._return(now)
            self._on_link_lost(message, now)
        elif sender is None or sender.boot == self._desk.me.boot:
            self._desk.out.note(notes.Dropped("sender"))
        elif isinstance(message, DatagramMessage):
            self.receive_batch((message,), sender, now)
        elif sender.node is None or sender.node == self._desk.me.node:
            self._desk.out.note(notes.Dropped("sender"))
        else:
            self._return(now)
            keep(self._desk.linked, sender.node, sender.boot)
            self._on_link[type(message)](message, sender, sender.node, now)

    def receive_batch(
        self, messages: Iterable[DatagramMessage], sender: Sender, now: float
    ) -> None:
        """Take in the messages of one datagram; Ping and Ack first, whatever their place."""
        if sender.boot == self._desk.me.boot:
            return
        self._return(now)
        digest: int | None = None
        for message in sorted(messages, key=_place):
            match message:
                case Ping():
                    self._prober.on_ping(message, sender, now)
                    digest = message.digest
                case Ack():
                    self._prober.on_ack(message, sender, now)
                    self._leaving.on_ack(message.seq, sender.boot)
                    digest = message.digest
                case Nack():
                    self._prober.on_nack(message, sender, now)
                case PingReq():
                    self._prober.on_ping_req(message, sender, now)
                case Digest():
                    digest = message.digest
                case DeadNotice():
                    self._news.on_dead_notice(message, sender, now)
                case _ if self._news.believes(message, sender):
                    self._news.on_news(message, sender, now)
                case _:
                    pass
        self._heard(sender, digest, now)

    def wake(self, now: float) -> None:
        """Do what is due at or before `now`."""
        self._desk.awareness.late(now - self._desk.timers.deadline, now)
        self._return(now)
        while (key := self._desk.timers.pop(now)) is not None:
            self._on_timer[key[0]](key[1], now)

    @property
    def deadline(self) -> float:
        """When `wake` is next due [s]."""
        return self._desk.timers.deadline

    def take(self) -> Effects:
        """Hand over, and forget, everything that is to be done, in order."""
        return self._desk.out.take(self._desk.queue, self._desk.limit)

    @property
    def score(self) -> int:
        """Awareness: 0 is well; more means that our own timing is not to be trusted."""
        return self._desk.awareness.used(self._desk.now)

    @property
    def queued(self) -> int:
        """News waiting to be repeated; bounded by what is known, since newer replaces older."""
        return len(self._desk.queue)

    # What the node asks for. Outcomes are notes.

    def join(self, addresses: Sequence[Address], now: float) -> None:
        """Find the others at `addresses`, again and again, for ever; after a leave, rejoin."""
        if self._desk.has_left:
            self._leaving.cancel()
            self._desk.renew(self._desk.me.incarnation + 1, now)
            self._begin(now)
        self._calling.join(addresses, now)

    def leave(self, now: float) -> None:
        """Tell the others that we go; `LeaveDone` says when enough of them know, or time is up."""
        desk = self._desk
        if desk.has_left:
            return
        self._prober.end()
        self._calling.end()
        desk.timers.cancel(("full", ""))
        desk.table.move(desk.me, desk.me.incarnation + 1, State.LEFT, now)
        desk.reserve()
        desk.spread(("member", desk.me.node), desk.own_news(), now)
        # After a leave the members are forgotten on disk and the identity stays.
        desk.out.persist = Remembered(Incarnation(desk.reserved))
        self._leaving.begin(now)

    def announce(self, record: bytes, now: float) -> None:
        """Replace this node's record everywhere.

        Raises:
            LimitError: Longer than `limits.RECORD_MAX`.
        """
        if len(record) > limits.RECORD_MAX:
            raise LimitError(
                f"a record may have {limits.RECORD_MAX} bytes, this one has {len(record)}: "
                "announce fewer or smaller services",
                reason="size",
            )
        if record == self._desk.me.body:
            return
        self._desk.me.body = bytes(record)
        self._desk.me.body_hash = self._desk.me.announced_hash = record_hash(record)
        self._desk.me.announced_size = len(record)
        if self._desk.has_left:
            self._desk.table.changed(self._desk.me)
        else:
            self._desk.renew(self._desk.me.incarnation + 1, now)

    def set_state(self, kind: int, body: bytes, now: float) -> None:
        """Replace this node's user state of `kind` everywhere; the latest wins.

        Raises:
            LimitError: `kind` is not within 0..63 or `body` is longer than
                `limits.USER_STATE_MAX`.
        """
        if not 0 <= kind < STATE_KINDS:
            raise LimitError(
                f"a kind of user state is within 0..{STATE_KINDS - 1}, found {kind}",
                reason="count",
            )
        if len(body) > limits.USER_STATE_MAX:
            raise LimitError(
                f"a user state may have {limits.USER_STATE_MAX} bytes, this one has {len(body)}",
                reason="size",
            )
        version, old = self._desk.me.states.get(kind, (0, None))
        if body == old:
            return
        self._desk.me.states[kind] = (version + 1, bytes(body))
        self._desk.table.changed(self._desk.me)
        news = UserState(self._desk.me.boot, kind, version + 1, bytes(body))
        self._desk.spread(("state", self._desk.me.node, str(kind)), news, now)

    def set_cluster(self, hash: int, now: float) -> None:
        """Set the hash of the founded cluster's id: 32 bits, 0 while none is known."""
        assert 0 <= hash < 1 << 32
        self._desk.cluster = hash
        self._desk.foreign.clear()

    def forget(self, node: NodeId, now: float) -> None:
        """Spread that `node` has left, so that a dead one is kept no longer; a live one refutes.

        Raises:
            RejectedError: It is this node, or nobody known.
        """
        entry = self._desk.table.entries.get(node)
        if entry is None or entry is self._desk.me:
            raise RejectedError(
                f"expected another known member to forget, found {node}: see `members`",
                reason="bad_request",
            )
        self._news.on_news(Left(node, entry.incarnation, 0.0, self._desk.me.node), None, now)

    def members(self) -> tuple[Member, ...]:
        """Return every known member by node id, this node included; the same object until
        something changes."""
        return self._desk.table.members()

    def _on_dialled(self, result: Dialled, now: float) -> None:
        address = result.address
        for purpose in ("join", "probe", "evidence"):
            self._desk.dialling.pop((address, purpose), None)
        joining = address in self._desk.joining
        self._desk.joining.pop(address, None)
        match result.outcome:
            case "ok":
                self._on_answer(result, joining, now)
            case "refused" | "reset":
                for entry in self._desk.others_at(address):
                    self._prober.refusal(entry, now)
            case "timeout":
                for entry in self._desk.others_at(address):
                    self._prober.dial_timed_out(entry, now)
            case outcome if joining and outcome.startswith("rejected:"):
                reason = outcome.removeprefix("rejected:")
                self._desk.out.note(notes.Refused(reason, result.node, address))
            case _:
                pass

    def _on_answer(self, result: Dialled, joining: bool, now: float) -> None:
        node, boot = result.node, result.boot
        if node is None or boot is None:
            return
        if node == self._desk.me.node:
            if boot == self._desk.me.boot:
                self._desk.seeds.pop(result.address, None)
                self._desk.timers.cancel(("seed", result.address))
            else:
                self._desk.out.note(notes.IdentityConflict(boot))
            return
        keep(self._desk.linked, node, boot)
        for entry in self._desk.others_at(result.address):
            if entry.boot == boot:
                self._prober.vouched(entry, streamed=True)
            elif entry.node == node:
                # A newer process: its own news ends whatever its predecessor is accused of.
                self._prober.drop_case(entry.node)
                joining = True
            else:
                self._prober.refusal(entry, now)
        entry_there = self._desk.table.entries.get(node)
        if joining or entry_there is None or not entry_there.present:
            self._exchange.push_pull(node, wants=True)

    def _on_link_lost(self, lost: LinkLost, now: float) -> None:
        if self._desk.linked.get(lost.node) == lost.boot:
            del self._desk.linked[lost.node]
        if lost.node in self._prober.sentinels:
            self._prober.sentinels.remove(lost.node)
        entry = self._desk.table.entries.get(lost.node)
        if entry is not None and entry.boot == lost.boot and not lost.clean:
            self._prober.look_into(entry, 2, now)

    def _heard(self, sender: Sender, digest: int | None, now: float) -> None:
        entry = self._desk.table.boots.get(sender.boot)
        if entry is None or sender.boot in self._desk.foreign:
            return
        if not entry.present:
            if now - entry.noticed_at >= NOTICE_INTERVAL:
                entry.noticed_at = now
                notice = DeadNotice(entry.incarnation, int(entry.state))
                self._desk.out.say(sender.address, notice)
        elif digest is not None and not self._desk.has_left:
            # Compared last, when what came along with the digest has been taken in.
            desk = self._desk
            quiet = len(desk.queue) == 0 and now >= desk.settle_until
            if desk.repairs.compare(desk.table.digest.total, digest, now, quiet=quiet):
                desk.send_buckets(entry.node)

    def _return(self, now: float) -> None:
        """Notice that we were away; then nothing that fell due meanwhile counts."""
        self._desk.now = now
        gap = now - self._desk.timers.deadline
        interval = self._desk.settings.probe_interval
        if gap <= self._desk.settings.stall_ratio * interval:
            return
        self._desk.awareness.late(gap, now)
        self._prober.void()
        for node, suspicion in self._desk.suspicions.items():
            suspicion.shift(gap)
            self._desk.timers.set(("suspect", node), max(now, suspicion.deadline))
        self._desk.timers.raise_to(now)
        if not self._desk.has_left:
            self._prober.begin(now, at_once=True)
        self._desk.settle_until = now + interval
        # The Ack that ends the settling answers a Ping not yet sent, so it lies in the
        # socket behind everything that came while we were away.
        self._desk.settle_seq = self._desk.seq
        self._desk.out.note(notes.Stalled(gap))

    def _begin(self, now: float) -> None:
        self._prober.begin(now)
        self._calling.begin(now)
        self._exchange.set_full(now)

    def check(self) -> None:
        """Assert every invariant. Cost: O(n log n)."""
        self._desk.table.check()
        self._desk.timers.check()
        self._desk.queue.check()
        self._desk.awareness.check()
        assert self._desk.me.state in (State.ALIVE, State.LEFT)
        assert self._desk.me.incarnation <= self._desk.reserved
        assert self._desk.table.entries[self._desk.me.node] is self._desk.me
        suspects = [e.node for e in self._desk.table.present() if e.state is State.SUSPECT]
        assert sorted(suspects) == sorted(self._desk.suspicions)
        for node, suspicion in self._desk.suspicions.items():
            assert suspicion.incarnation == self._desk.table.entries[node].incarnation
            assert self._desk.timers.at(("suspect", node)) is not None
        self._prober.check()
        self._pulls.check()
        for entry in self._desk.table.entries.values():
            assert entry.incarnation >= 0
            gone = not entry.present and entry is not self._desk.me
            assert gone == (self._desk.timers.at(("forget", entry.node)) is not None)


def _check_me(me: Me) -> None:
    name_size, labels_size = len(me.name.encode()), len(encode(me.labels))
    if not 0 < name_size <= limits.NAME_TEXT:
        raise LimitError(
            f"a node's name has 1..{limits.NAME_TEXT} bytes, this one has {name_size}",
            reason="size",
        )
    if labels_size > limits.LABEL_TEXT or len(me.labels) > 64:
        raise LimitError(
            f"a node's labels have up to {limits.LABEL_TEXT} bytes encoded, these have "
            f"{labels_size}: announce what is longer in a record",
            reason="size",
        )


def _place(message: DatagramMessage) -> int:
    match message:
        case Ping() | Ack() | Nack() | PingReq():
            return 0
        case Alive():
            return 1
        case Suspect() | Dead() | Left():
            return 2
        case _:
            return 3
