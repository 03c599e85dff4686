"""The founding driven: three seats over a wire that loses, one cluster, disk before words."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import trio
import trio.testing

from microos.clock import SystemClock
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.net.memory import MemoryNetwork
from microos.node.founding import FILE, INBOX, Founder
from microos.node.runtime import Runtime
from microos.raft.bootstrap import Ballot, Cluster, Founding, FoundingState, Prepare
from microos.settings import Settings
from microos.storage.files import read_small
from microos.storage.memory import MemoryDisk
from microos.types import Address, NodeId
from microos.wire import Channel

SEATS = tuple(Address("10.0.0.1", port) for port in (1, 2, 3))
NODES = tuple(NodeId(letter * 32) for letter in "abc")
decode_state: Decoder[FoundingState] = Decoder(FoundingState)


class Seats:
    """Three founders and what they say to each other."""

    def __init__(self, *, loss: float = 0.0, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        self.loss = loss
        self.disks = [MemoryDisk().attach() for _ in SEATS]
        self.founders = [self._founder(number, seed) for number in range(3)]
        self.said = 0

    def _founder(self, number: int, seed: int) -> Founder:
        clock = SystemClock()
        runtime = Runtime(
            name=str(number),
            clock=clock,
            random=random.Random,
            entropy=lambda size: bytes(size),
            network=MemoryNetwork().host(str(number)),
            disk=self.disks[number],
            observe=lambda source, note: None,
        )

        def seen() -> tuple[Mapping[Address, NodeId], Sequence[NodeId]]:
            return dict(zip(SEATS, NODES, strict=True)), NODES

        def send(node: NodeId, channel: Channel, body: bytes) -> bool:
            assert channel is Channel.FOUNDING
            self.said += 1
            if self.chance.random() >= self.loss:
                self.founders[NODES.index(node)].receive(body, SEATS[number])
            return True

        return Founder(
            runtime=runtime,
            founding=Founding(
                NODES[number],
                SEATS[number],
                SEATS,
                None,
                settings=Settings.local().raft,
                random=random.Random(f"{seed}/{number}"),
                cluster_id=bytes([number + 1]) * 16,
                now=clock.now(),
            ),
            seen=seen,
            send=send,
            on_note=lambda note: None,
        )

    async def run(self) -> list[Cluster]:
        found: list[Cluster] = []

        async def one(founder: Founder) -> None:
            found.append(await founder.run())
            for other in self.founders:  # As gossip would tell.
                other.heard(found[-1])

        with trio.fail_after(120.0):
            async with trio.open_nursery() as nursery:
                for founder in self.founders:
                    nursery.start_soon(one, founder)
        return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("loss", [0.0, 0.3])
async def test_three_seats_found_one_cluster_and_remember_what_they_accepted(
    loss: float, seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    seats = Seats(loss=loss, seed=seed)

    found = await seats.run()

    assert len({cluster.id for cluster in found}) == 1
    kept = [await read_small(disk, FILE) for disk in seats.disks]
    values = [decode_state(data).value for data in kept if data is not None]
    assert sum(value == found[0] for value in values) >= 2
    assert found[0].voters == NODES


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_seat_promises_once_its_disk_has_it_and_not_before(
    hangs: bool, autojump_clock: trio.testing.MockClock
) -> None:
    seats = Seats()
    answers: list[bytes] = []

    async def before(operation: str, name: str) -> None:
        if hangs and operation == "syncdir":
            await trio.sleep_forever()

    def send(node: NodeId, channel: Channel, body: bytes) -> bool:
        answers.append(body)
        return True

    seats.disks[1]._platter.before = before
    founder = seats.founders[1]
    founder._send = send
    founder.receive(encode(Prepare(Ballot(1, 0), SEATS)), SEATS[0])
    with trio.move_on_after(0.5):
        await founder.run()

    assert len(answers) == (0 if hangs else 1)


async def test_the_inbox_is_bounded_and_what_does_not_decode_is_refused() -> None:
    founder = Seats().founders[0]
    with pytest.raises(RemoteProtocolError):
        founder.receive(b"\xff", SEATS[1])
    for number in range(INBOX + 10):
        founder.receive(encode(Prepare(Ballot(number, 1), SEATS)), SEATS[1])

    (queue,) = founder.queues()
    assert (queue.size, queue.bound, queue.drops) == (INBOX, INBOX, 10)
