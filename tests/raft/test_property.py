"""Random worlds: whatever happens, in whatever order, the group stays one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from microos.raft.configuration import is_joint
from microos.raft.election import Role
from microos.settings import RaftSettings
from microos.types import NodeId
from tests.raft.network import E, Member, Network


class Walk:
    """One random world: a group, a seed, and a lottery of steps drawn for it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        names = "abcde"[: self.random.choice([1, 2, 3, 3, 3, 5])]
        spare = "xy"[: self.random.randrange(3)]
        settings = RaftSettings(
            pre_vote=self.random.random() < 0.7,
            check_quorum=self.random.random() < 0.7,
            # Small ones show what large ones hide (figure 8 needs an append of one entry).
            append_entries_max=self.random.choice([1, 2, 64]),
            inflight_max=self.random.choice([1, 2, 256]),
            apply_bytes_max=self.random.choice([1, 100, 1 << 20]),
            uncommitted_bytes_max=self.random.choice([20, 1 << 20]),
        )
        self.network = Network(names, others=spare, settings=settings, seed=seed)
        self.count = 0
        steps: dict[Callable[[], None], int] = {
            self.deliver: self.random.choice([60, 150]),
            self.persist: self.random.choice([10, 60]),
            self.apply: self.random.choice([10, 50]),
            self.wake: self.random.choice([3, 8]),
            self.propose: self.random.choice([4, 12]),
            self.drop: self.random.choice([0, 1, 6]),
            self.repeat: self.random.choice([0, 1, 6]),
            self.read: self.random.choice([0, 4]),
            self.change: self.random.choice([0, 1, 3]),
            self.transfer: self.random.choice([0, 1]),
            self.forget: self.random.choice([0, 1]),
            self.campaign: self.random.choice([0, 1, 3]),
            self.compact: self.random.choice([0, 2]),
            self.crash: self.random.choice([0, 1, 3]),
            self.restart: 3,
            self.calm: self.random.choice([0, 2]),
            self.part: self.random.choice([0, 1]),
            self.heal: 1,
        }
        self.steps = list(steps)
        self.weights = list(steps.values())

    def step(self) -> None:
        self.network.now += self.random.choice([0.0, 0.0, 0.001, 0.004])
        self.random.choices(self.steps, self.weights)[0]()

    def one(self) -> Member | None:
        running = self.network.running()
        return self.random.choice(running) if running else None

    def deliver(self) -> None:
        wire = self.network.wire
        if wire:
            # Mostly in order, sometimes not.
            at = 0 if self.random.random() < 0.7 else self.random.randrange(len(wire))
            packet = wire[at]
            del wire[at]
            self.network.deliver(packet)

    def drop(self) -> None:
        wire = self.network.wire
        if wire:
            at = self.random.randrange(len(wire))
            packet = wire[at]
            del wire[at]
            blocked = (packet.sender, packet.to)
            was = blocked in self.network.blocked
            self.network.blocked.add(blocked)
            self.network.deliver(packet)
            if not was:
                self.network.blocked.discard(blocked)

    def repeat(self) -> None:
        wire = self.network.wire
        if wire and len(wire) < 200:
            wire.append(wire[self.random.randrange(len(wire))])

    def persist(self) -> None:
        if member := self.one():
            self.network.persist(member)

    def apply(self) -> None:
        if member := self.one():
            self.network.apply(member)

    def wake(self) -> None:
        if member := self.one():
            late = self.random.choice([0.0] * 12 + [0.05, 0.5])
            if member.core.deadline < math.inf:
                self.network.now = max(self.network.now, member.core.deadline + late)
            self.network.wake(member)

    def propose(self) -> None:
        if member := self.one():
            self.count += 1
            self.network.propose(member.id, b"%d" % self.count)

    def read(self) -> None:
        if member := self.one():
            self.network.read(member.id)

    def change(self) -> None:
        leader = self.network.leader
        if leader is not None:
            names = list(self.network.members)
            chosen = self.random.sample(names, self.random.choice([1, 1, min(2, len(names))]))
            wishes: dict[str, str] = {"add_voters": "", "add_learners": "", "remove": ""}
            for name in chosen:
                wishes[self.random.choice(list(wishes))] += name
            self.network.change(leader.id, **wishes)

    def transfer(self) -> None:
        if member := self.one():
            to = self.random.choice(list(self.network.members))
            member.core.transfer(to, self.network.now)
            self.network.turn(member)

    def forget(self) -> None:
        if member := self.one():
            member.core.forget_leader(self.network.now)
            self.network.turn(member)

    def campaign(self) -> None:
        if member := self.one():
            member.core.campaign(self.network.now)
            self.network.turn(member)

    def compact(self) -> None:
        if member := self.one():
            self.network.compact(member.id, trailing=self.random.choice([0, 2]))

    def crash(self) -> None:
        if member := self.one():
            written = self.random.randrange(len(member.writing) + 1)
            forget = self.random.random() < 0.3
            for key in [key for key in self.network.asked if key[0] == member.id]:
                del self.network.asked[key]
            self.network.crash(member.id, written=written, forget_commit=forget)

    def restart(self) -> None:
        down = [m.id for m in self.network.members.values() if m.raft is None]
        if down:
            self.network.restart(self.random.choice(down))

    def calm(self) -> None:
        self.network.settle()

    def part(self) -> None:
        names = list(self.network.members)
        self.network.isolate(*self.random.sample(names, self.random.randrange(len(names))))

    def heal(self) -> None:
        self.network.heal()

    def recover(self) -> None:
        """Heal everything and let time pass."""
        self.network.heal()
        for member in list(self.network.members.values()):
            if member.raft is None:
                self.network.restart(member.id)
        self.network.advance(20 * E)


@pytest.mark.parametrize("seed", range(25))
def test_a_random_world_keeps_every_invariant_and_recovers(seed: int) -> None:
    walk = Walk(seed)

    for _ in range(600):
        walk.step()
        walk.network.check()
    walk.recover()

    leader = walk.network.leader
    assert leader is not None
    walk.network.propose(leader.id, b"at last")
    walk.network.advance(2 * E)
    walk.network.check()
    configuration = leader.status.configuration
    assert not is_joint(configuration)
    assert b"at last" in leader.machine
    assert all(walk.network[m].machine == leader.machine for m in configuration.members())
    leading = [m for m in configuration.voters if walk.network[m].status.role is Role.LEADER]
    assert leading == [NodeId(leader.id)]
