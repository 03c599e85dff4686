"""A snapshot's way between two nodes: whole and verified, or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing

from microos import limits
from microos.clock import SystemClock
from microos.codec import encode
from microos.errors import RemoteProtocolError
from microos.hashing import xxh3
from microos.node.snapshots import WINDOW, Arrived, Got, Offer, Piece, Snapshots
from microos.raft.entry import Configuration, SnapshotMark
from microos.raft.messages import Snapshot
from microos.storage.memory import MemoryDisk
from microos.storage.snapshot import encode_snapshot, write_snapshot
from microos.types import Index, NodeId, Term
from microos.wire import BODY_MAX, Channel

LEADER, FOLLOWER = NodeId("a" * 32), NodeId("b" * 32)
MARK = SnapshotMark(Index(9), Term(2), Configuration(voters=(LEADER,)), 5)
MESSAGE = Snapshot(Term(3), MARK)
STATE = tuple(bytes([n]) * limits.SNAPSHOT_CHUNK for n in range(30))


class Wire:
    """Two nodes and what travels between them; `lose` says what does not."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.arrived: list[Arrived] = []
        self.bodies: list[bytes] = []
        self.lose: Callable[[int, bytes], bool] = lambda number, body: False
        self.waiting: list[tuple[NodeId, bytes]] = []
        self.awake = trio.Event()
        self.leader = self._end(LEADER, FOLLOWER)
        self.follower = self._end(FOLLOWER, LEADER)

    def _end(self, me: NodeId, other: NodeId) -> Snapshots:
        def send(node: NodeId, channel: Channel, body: bytes) -> bool:
            assert (node, channel) == (other, Channel.SNAPSHOT)
            assert len(body) <= BODY_MAX[Channel.SNAPSHOT]
            self.bodies.append(body)
            if not self.lose(len(self.bodies), body):
                self.waiting.append((other, body))
                self.awake.set()
            return True

        return Snapshots(
            clock=SystemClock(),
            random=random.Random(1),
            disk=self.disk.attach() if me == LEADER else MemoryDisk().attach(),
            send=send,
            on_arrived=self.arrived.append,
        )

    async def run(self) -> None:
        while True:
            while self.waiting:
                to, body = self.waiting.pop(0)
                end, sender = (self.follower, LEADER) if to == FOLLOWER else (self.leader, FOLLOWER)
                end.receive(body, sender)
            self.awake = trio.Event()
            await self.awake.wait()

    async def transfer(self) -> bool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            ok = await self.leader.send(FOLLOWER, MESSAGE)
            nursery.cancel_scope.cancel()
        return ok


async def wire_with_snapshot() -> Wire:
    wire = Wire()
    await write_snapshot(wire.leader._disk, MARK, STATE)
    return wire


async def test_it_arrives_as_it_was_with_a_window_of_pieces_under_way() -> None:
    wire = await wire_with_snapshot()

    assert await wire.transfer()

    assert wire.arrived == [Arrived(MESSAGE, LEADER, STATE)]
    # An offer, then a full window before anything is heard; never more under way.
    kinds = [body[1] for body in wire.bodies]
    assert kinds[: WINDOW + 2] == [1, *[2] * WINDOW, 3]
    under_way = [kinds[:n].count(2) - kinds[:n].count(3) for n in range(len(kinds))]
    assert max(under_way) == WINDOW
    (queue,) = wire.follower.queues()
    assert (queue.size, queue.bound) == (0, limits.SNAPSHOT_MAX)


@pytest.mark.parametrize("lost", range(1, 12))
async def test_a_lost_frame_ends_the_transfer_and_the_next_one_succeeds(
    lost: int, autojump_clock: trio.testing.MockClock
) -> None:
    wire = await wire_with_snapshot()
    wire.lose = lambda number, body: number == lost
    ok = await wire.transfer()
    # What is lost on the way back is made up for by what comes after it.
    assert ok == bool(wire.arrived)
    assert not ok or wire.bodies[lost - 1][1] == 3
    wire.arrived.clear()
    wire.lose = lambda number, body: False

    assert await wire.transfer()
    assert wire.arrived == [Arrived(MESSAGE, LEADER, STATE)]


async def test_what_differs_from_its_digest_or_its_mark_is_not_believed() -> None:
    wire = await wire_with_snapshot()
    data = encode_snapshot(MARK, (b"state",))
    other = Snapshot(Term(3), SnapshotMark(Index(10), Term(2), MARK.configuration, 5))
    for offer in (
        Offer(1, MESSAGE, len(data), xxh3(data) ^ 1),
        Offer(2, other, len(data), xxh3(data)),
        Offer(3, MESSAGE, 4, xxh3(b"junk")),
    ):
        wire.follower.receive(encode(offer), LEADER)
        body = data if offer.size == len(data) else b"junk"
        wire.follower.receive(encode(Piece(offer.transfer, 0, body)), LEADER)
        assert wire.waiting.pop()[1] == encode(Got(offer.transfer, -1))

    assert wire.arrived == []
    # A piece of no transfer, and one out of its place, are nobody's.
    wire.follower.receive(encode(Piece(9, 0, b"x")), LEADER)
    wire.follower.receive(encode(Offer(4, MESSAGE, len(data), xxh3(data))), LEADER)
    wire.follower.receive(encode(Piece(4, 1, b"x")), LEADER)
    assert wire.waiting == []


async def test_more_than_was_offered_breaks_the_protocol() -> None:
    wire = await wire_with_snapshot()
    wire.follower.receive(encode(Offer(1, MESSAGE, 4, 0)), LEADER)

    with pytest.raises(RemoteProtocolError, match="expected a snapshot of 4 bytes"):
        wire.follower.receive(encode(Piece(1, 0, b"12345")), LEADER)
    with pytest.raises(RemoteProtocolError):
        wire.follower.receive(encode(Offer(1, MESSAGE, limits.SNAPSHOT_MAX + 1, 0)), LEADER)
    with pytest.raises(RemoteProtocolError):
        wire.follower.receive(b"\xff", LEADER)


async def test_a_snapshot_that_is_not_there_is_not_sent() -> None:
    wire = Wire()

    assert not await wire.leader.send(FOLLOWER, MESSAGE)

    assert wire.bodies == []
