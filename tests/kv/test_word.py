"""The operator's word that a node is dead: whom it names, and whom it never does."""

from __future__ import annotations

from typing import Any, cast

import pytest

from microos.codec import encode
from microos.errors import ConflictError, RejectedError
from microos.gossip.members import Member as GossipMember
from microos.gossip.members import State
from microos.kv.kv import Kv
from microos.node.ownership import NUMBER
from microos.raft.machine import Refused
from microos.ring.epochs import Done, Gone, Propose, RingState, apply, decode_command
from microos.ring.placement import digest
from microos.ring.ring import Member, Owner, Ring
from microos.types import Address, BootId, Incarnation, NodeId, Revision

A, B, C = (NodeId(letter * 32) for letter in "abc")


class FakeKernel:
    """A ring of three, of which `c` is dead and was started twice; what is submitted is kept."""

    def __init__(self) -> None:
        self.state = RingState()
        for number, boot in enumerate((1, 2), 1):
            members = (member(A, 1), member(B, 1), member(C, boot))
            command = Propose(number, members, digest=digest(members, 3))
            self.state = apply(self.state, command, Revision(number)).state
        self.states = {A: State.ALIVE, B: State.SUSPECT, C: State.DEAD}
        self.submitted: list[tuple[int, object, float]] = []
        self.answer: object = Done(Revision(3), 2, 1)

    def members(self) -> tuple[GossipMember, ...]:
        return tuple(
            GossipMember(
                node=node,
                boot=BootId(1),
                name=node[0],
                address=Address("127.0.0.1", 1),
                state=state,
                incarnation=Incarnation(1),
                labels={},
                record=b"",
                record_hash=0,
                states=(),
                since=0.0,
                score=0,
            )
            for node, state in self.states.items()
        )

    def ring(self) -> tuple[Ring, RingState]:
        return self.state.ring(), self.state

    async def submit(self, machine: int, command: bytes, *, timeout: float) -> bytes:
        self.submitted.append((machine, decode_command(command), timeout))
        return encode(self.answer)


def member(node: NodeId, boot: int) -> Member:
    return Member(node, BootId(boot), incarnation=Incarnation(boot))


def kv_on(kernel: FakeKernel) -> Kv:
    return Kv(cast(Any, kernel), cast(Any, None), 5.0)


@pytest.mark.parametrize("name", ["c", C])
async def test_a_dead_node_is_named_with_all_its_boots(name: str) -> None:
    kernel = FakeKernel()

    count = await kv_on(kernel).declare_gone(name, timeout=2.0)

    [(machine, command, timeout)] = kernel.submitted
    assert (machine, count, timeout) == (NUMBER, 1, 2.0)
    assert isinstance(command, Gone)
    assert sorted(command.owners) == [Owner(C, BootId(1)), Owner(C, BootId(2))]


@pytest.mark.parametrize("name", ["a", A, "b", B])
async def test_who_lives_or_may_live_is_not_declared_gone(name: str) -> None:
    kernel = FakeKernel()

    with pytest.raises(RejectedError, match="alive"):
        await kv_on(kernel).declare_gone(name)

    assert kernel.submitted == []


async def test_a_node_that_owns_nothing_cannot_be_gone() -> None:
    kernel = FakeKernel()

    with pytest.raises(RejectedError, match="owns slots"):
        await kv_on(kernel).declare_gone("x")

    assert kernel.submitted == []


async def test_the_ring_may_refuse() -> None:
    kernel = FakeKernel()
    kernel.answer = Refused("ConflictError", "version", "look again")

    with pytest.raises(ConflictError, match="look again"):
        await kv_on(kernel).declare_gone("c")


def test_the_ring_is_the_one_the_node_has_applied() -> None:
    kernel = FakeKernel()

    assert kv_on(kernel).ring() == kernel.state.ring()
