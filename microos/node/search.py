"""Finds the cluster of the others, or founds one with them.

    bootstrap=solo, no seeds, the only seed ─▶ a cluster of one
    all seeds resolved ─▶ found with the seats (founding.py)
    until then, or no seat decides ─▶ listen: a member says which cluster it belongs to

Every member says of its cluster by a user state of gossip; a founding that hears it is over.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec
import trio

from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.gossip.core import Gossip
from microos.gossip.members import Member, State
from microos.hashing import u64
from microos.node.founding import Founder, read_state
from microos.node.runtime import Runtime
from microos.node.seeds import Seeds
from microos.raft.bootstrap import Cluster, Founding, FoundingState, solo
from microos.settings import Settings
from microos.types import Address, NodeId
from microos.wire import Channel

STATE_CLUSTER = 1
"""User state of this kind says which cluster a node belongs to."""


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What a node's gossip says of its cluster."""

    id: bytes
    epoch: int


_decode_told: Decoder[Told] = Decoder(Told)


def tell(id: bytes, epoch: int) -> Callable[[Gossip, float], None]:
    """Return the request that makes gossip say which cluster this node belongs to."""
    told = encode(Told(id, epoch))
    tag = u64(id) & 0xFFFF_FFFF or 1

    def request(gossip: Gossip, now: float) -> None:
        gossip.set_cluster(tag, now)
        gossip.set_state(STATE_CLUSTER, told, now)

    return request


class Search:
    """One node's search for its cluster.

    Args:
        address: Where this node listens.
        members: The member table.
        send: Sends a frame to a node.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        settings: Settings,
        seeds: Seeds,
        node: NodeId,
        address: Address,
        members: Callable[[], tuple[Member, ...]],
        send: Callable[[NodeId, Channel, bytes], bool],
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._seeds = seeds
        self._node = node
        self._address = address
        self._members = members
        self._send = send
        self.founder: Founder | None = None
        """This node's part in the founding, from its beginning on."""
        self.counters: Counter[str] = Counter()

    async def run(self) -> Cluster:
        """Return the cluster of the others, or found one with them."""
        if self._settings.bootstrap == "solo" or not self._settings.seeds:
            return solo(self._node, self._runtime.entropy(16))
        found: list[Cluster] = []
        if not self._seeds.resolved.is_set():
            # Who decides must be the same everywhere: with a part of the seeds nobody founds.
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    found.append(await self._found((), None))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                await self._seeds.resolved.wait()
                nursery.cancel_scope.cancel()
        if found:
            return found[0]
        seats = self._seeds.seats()
        if seats == (self._address,):
            return solo(self._node, self._runtime.entropy(16))
        return await self._found(seats, await read_state(self._runtime.disk))

    async def _found(self, seats: tuple[Address, ...], state: FoundingState | None) -> Cluster:
        self.founder = Founder(
            runtime=self._runtime,
            founding=Founding(
                self._node,
                self._address if self._address in seats else None,
                seats,
                state,
                settings=self._settings.raft,
                random=self._runtime.random("founding"),
                cluster_id=self._runtime.entropy(16),
                now=self._runtime.clock.now(),
            ),
            seen=lambda: self._seen(seats),
            send=self._send,
            on_note=lambda note: self._runtime.observe("founding", note),
        )
        self.hear()
        return await self.founder.run()

    def _seen(self, seats: Sequence[Address]) -> tuple[Mapping[Address, NodeId], Sequence[NodeId]]:
        """Return who answers for which seat, and who could vote."""
        live = [m for m in self._members() if m.state == State.ALIVE]
        wanted = dict.fromkeys(seats)
        return {m.address: m.node for m in live if m.address in wanted}, [m.node for m in live]

    def hear(self) -> None:
        """Tell the founding of a cluster that others belong to; members have changed."""
        if self.founder is None:
            return
        for member in self._members():
            told = self._told_by(member)
            if told is not None and member.state == State.ALIVE:
                self.founder.heard(Cluster(told.id, told.epoch))
        self.founder.moved()

    def _told_by(self, member: Member) -> Told | None:
        for kind, body in member.states:
            if kind == STATE_CLUSTER:
                try:
                    return _decode_told(body)
                except RemoteProtocolError:
                    self.counters["gossip.malformed_state"] += 1
        return None
