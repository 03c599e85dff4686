"""Drives the founding: a majority of the seeds agree on one cluster, once.

What an acceptor has promised is on disk before its answer leaves; that, and the
fixed list of seats, is the whole of the safety (`raft/bootstrap.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import trio

from microos.codec import Decoder, encode
from microos.node.patience import once_there_is_room
from microos.node.runtime import Runtime
from microos.node.statistics import QueueStatistics
from microos.raft.bootstrap import (
    Cluster,
    Founding,
    FoundingMessage,
    FoundingState,
    decode_founding_message,
)
from microos.storage.disk import Disk
from microos.storage.files import read_small, write_small
from microos.types import Address, NodeId
from microos.wire import Channel

FILE = "founding"

INBOX = 256
"""Messages waiting for the next turn; the oldest give way, and are asked for again."""

_decode_state: Decoder[FoundingState] = Decoder(FoundingState)


async def read_state(disk: Disk) -> FoundingState | None:
    """Return what this node has promised as a seat; None if it never has."""
    data = await read_small(disk, FILE)
    return None if data is None else _decode_state(data)


class Founder:
    """One node's part in the founding."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        founding: Founding,
        seen: Callable[[], tuple[Mapping[Address, NodeId], Sequence[NodeId]]],
        send: Callable[[NodeId, Channel, bytes], bool],
        on_note: Callable[[object], None],
    ) -> None:
        self._runtime = runtime
        self._clock = runtime.clock
        self._founding = founding
        self._seen = seen
        self._send = send
        self._on_note = on_note
        self._inbox: deque[tuple[FoundingMessage, Address]] = deque(maxlen=INBOX)
        self._drops = 0
        self._awake = trio.Event()
        self._heard: Cluster | None = None

    def receive(self, body: bytes, sender: Address) -> None:
        """Take in one frame of the founding channel.

        Raises:
            RemoteProtocolError: The frame breaks the protocol.
        """
        message = decode_founding_message(body)
        self._drops += len(self._inbox) == INBOX
        self._inbox.append((message, sender))
        self._awake.set()

    def queues(self) -> tuple[QueueStatistics, ...]:
        size = len(self._inbox)
        return (QueueStatistics("founding.inbox", size, INBOX, "drop_oldest", self._drops),)

    def heard(self, cluster: Cluster) -> None:
        """Take note of a cluster that exists already."""
        self._heard = cluster
        self._awake.set()

    def moved(self) -> None:
        """Say that the seats seen may have changed."""
        self._awake.set()

    async def run(self) -> Cluster:
        """Take part until a cluster is founded, here or elsewhere; return it."""
        while True:
            now = self._clock.now()
            seats, eligible = self._seen()
            self._founding.seen(seats, eligible, now)
            if self._heard is not None:
                self._founding.heard(self._heard, now)
            while self._inbox:
                message, sender = self._inbox.popleft()
                self._founding.receive(message, sender, now)
            self._founding.wake(now)
            effects = self._founding.take()
            if effects.persist is not None:
                await self._keep(encode(effects.persist))
            for address, said in effects.messages:
                self._say(seats, address, encode(said))
            for note in effects.notes:
                self._on_note(note)
            if effects.founded is not None:
                return effects.founded
            if self._inbox:
                continue
            self._awake = trio.Event()
            with self._clock.timeout_at(self._founding.deadline):
                await self._awake.wait()

    async def _keep(self, state: bytes) -> None:
        """Write what was promised; until it is durable nothing is answered."""
        await once_there_is_room(self._clock, lambda: write_small(self._runtime.disk, FILE, state))

    def _say(self, seats: Mapping[Address, NodeId], address: Address, body: bytes) -> None:
        node = seats.get(address)
        if node is not None:
            self._send(node, Channel.FOUNDING, body)
