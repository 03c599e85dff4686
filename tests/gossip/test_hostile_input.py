"""Well-formed nonsense from anybody: no exception, every invariant holds."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.gossip.core import Gossip
from microos.gossip.members import Me
from microos.gossip.messages import (
    Ack,
    Alive,
    BucketRecords,
    Buckets,
    DatagramMessage,
    Dead,
    DeadNotice,
    Dialled,
    Digest,
    Evidence,
    Left,
    LinkLost,
    LinkMessage,
    Message,
    Nack,
    NackReason,
    Ping,
    PingReq,
    PushPull,
    Record,
    RecordPart,
    RecordPull,
    Refuse,
    Sender,
    StreamAck,
    StreamPing,
    Suspect,
    UserState,
    decode_datagram,
)
from microos.settings import GossipSettings
from microos.types import Address, BootId, Incarnation, NodeId

ME = Me(NodeId("me"), BootId(1), "me", Address("h", 1), {})


class Nonsense:
    """Messages about few nodes, so that they meet."""

    def __init__(self, chance: random.Random, core: Gossip) -> None:
        self._chance = chance
        self._core = core
        self._seqs = [0]

    def heard(self, seqs: list[int]) -> None:
        """Learn the numbers of real Pings, to answer some of them wrongly."""
        self._seqs = (self._seqs + seqs)[-20:]

    def node(self) -> NodeId:
        return NodeId(self._chance.choice(["me", "a", "b", "c", "d"]))

    def boot(self) -> BootId:
        return BootId(self._chance.randrange(1, 8))

    def incarnation(self) -> Incarnation:
        return Incarnation(self._chance.choice([0, 1, 2, 3, 1000, 1001, 1005, 2**62]))

    def address(self) -> Address:
        return Address("h", self._chance.randrange(1, 6))

    def number(self) -> int:
        return self._chance.choice([0, 1, 2, 2**32 - 1])

    def seq(self) -> int:
        return self._chance.choice(self._seqs)

    def record(self) -> Record:
        chance, at = self._chance, self.address()
        size = chance.choice([0, 0, 5])
        match chance.randrange(5):
            case 0:
                brief = chance.choice([b"", b"brief"])
                hash = chance.choice([0, 7, 8])
                return Alive(
                    self.node(),
                    self.boot(),
                    self.incarnation(),
                    chance.choice(["me", "a", "b"]),
                    at.host,
                    at.port,
                    {},
                    hash,
                    size,
                    brief,
                )
            case 1:
                kind = Evidence(chance.randrange(2))
                return Suspect(self.node(), self.incarnation(), self.node(), kind)
            case 2:
                age = chance.choice([0.0, 5.0, 50_000.0, 1e9])
                return Dead(self.node(), self.incarnation(), (), Evidence.SILENCE, age)
            case 3:
                age = chance.choice([0.0, 50_000.0])
                return Left(self.node(), self.incarnation(), age, None, "x", at.host, at.port)
            case _:
                return UserState(self.boot(), chance.randrange(64), self.number(), b"")

    def datagram(self) -> DatagramMessage:
        chance, n = self._chance, self.number
        match chance.randrange(8):
            case 0:
                return Ping(n(), self.boot(), self.incarnation(), n() & 255, n(), n(), n())
            case 1:
                return Ack(self.seq(), self.incarnation(), n() & 255, n(), n(), n())
            case 2:
                return Nack(self.seq(), NackReason(chance.randrange(1, 3)))
            case 3:
                at = self.address()
                return PingReq(n(), self.boot(), at.host, at.port, chance.choice([0, 500, n()]))
            case 4:
                return DeadNotice(self.incarnation(), chance.choice([2, 3]))
            case 5:
                return Digest(n(), n())
            case _:
                return self.record()

    def link(self) -> LinkMessage:
        chance, n = self._chance, self.number
        records = [self.record() for _ in range(chance.randrange(5))]
        match chance.randrange(8):
            case 0:
                return PushPull(n(), chance.random() < 0.5, chance.random() < 0.5, records)
            case 1:
                return Buckets(n(), tuple(n() for _ in range(16)))
            case 2:
                return BucketRecords(n(), n() & 0xFFFF, chance.random() < 0.5, records)
            case 3:
                return RecordPull(self.node(), chance.choice([0, 7]), chance.choice([0, 3, 9]))
            case 4:
                body = chance.choice([b"", b"abc", b"abcde"])
                return RecordPart(self.node(), 7, chance.choice([0, 3]), n() & 7, body)
            case 5:
                return StreamPing(n())
            case 6:
                return StreamAck(self.seq())
            case _:
                return Refuse("name")

    def result(self) -> Message:
        chance = self._chance
        if chance.random() < 0.3:
            return LinkLost(self.node(), self.boot(), chance.random() < 0.5)
        outcome = chance.choice(["ok", "refused", "reset", "timeout", "failed", "rejected:label"])
        known = outcome == "ok"
        node, boot = (self.node(), self.boot()) if known else (None, None)
        return Dialled(self.address(), node, boot, outcome)

    def tell(self, now: float) -> None:
        """Do one random thing to the core."""
        chance, core = self._chance, self._core
        sender = Sender(self.boot(), self.address())
        match chance.randrange(12):
            case 0 | 1 | 2:
                messages = [self.datagram() for _ in range(chance.randrange(1, 5))]
                core.receive_batch(messages, sender, now)
            case 3 | 4 | 5:
                linked = Sender(sender.boot, sender.address, self.node())
                core.receive(self.link(), linked, now)
            case 6 | 7:
                core.receive(self.result(), None, now)
            case 8:
                core.join([self.address()], now)
            case 9 if chance.random() < 0.2:
                core.leave(now)
            case 10:
                core.set_cluster(self.number(), now)
            case _:
                core.wake(now)


@pytest.mark.prop
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_no_message_breaks_an_invariant(seed: int) -> None:
    chance = random.Random(seed)
    core = Gossip(ME, settings=GossipSettings(), random=chance, now=0.0, wall_ms=1000)
    nonsense, now = Nonsense(chance, core), 0.0

    for _ in range(60):
        now += chance.choice([0.0, 0.001, 0.05, 0.4, 3.0])
        while core.deadline < now:
            core.wake(core.deadline)
        nonsense.tell(now)
        core.check()
        payloads = [payload for _, payload in core.take().datagrams]
        assert all(len(payload) <= 1200 - 29 for payload in payloads)
        sent = [message for payload in payloads for message in decode_datagram(payload)[0]]
        nonsense.heard([message.seq for message in sent if isinstance(message, Ping)])
