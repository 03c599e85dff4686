"""The ring in the log, and its care on the leader."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from microos.clock import SystemClock
from microos.codec import encode
from microos.errors import MicroosError, NoQuorumError, RemoteProtocolError, UncertainError
from microos.node.ownership import (
    LOOK_GAP,
    OwnershipMachine,
    Proposer,
    Result,
    decode_answer,
)
from microos.raft.entry import Stamp
from microos.raft.machine import Refused
from microos.ring.epochs import Command, Done, Pause, Resume, RingState, Settle
from microos.ring.notes import EpochProposed, PlannerNote, RemovalsHeld
from microos.ring.planner import Report, Seen, View
from microos.ring.ring import SLOTS, Ring, slot_set
from microos.settings import RingSettings
from microos.types import BootId, Incarnation, Index, NodeId, SessionId, Term, packed
from tests.ring.log import owner, proposal

SESSION = SessionId(7)


class Log:
    """Applies to some machines alike."""

    def __init__(self, *machines: OwnershipMachine, epoch: int = 1) -> None:
        self.machines = machines
        self.epoch = epoch
        self.index = 0
        self.events: list[object] = []

    def apply(self, command: bytes) -> bytes:
        self.index += 1
        stamp = Stamp(self.epoch, Index(self.index), Term(1), 10 * self.index)
        outcomes = [machine.apply(SESSION, command, stamp) for machine in self.machines]
        for machine in self.machines:
            machine.check()
        assert all(outcome == outcomes[0] for outcome in outcomes)
        self.events += outcomes[0].events
        return outcomes[0].result

    def do(self, command: Command) -> Result:
        return decode_answer(self.apply(encode(command)))


# The machine.


def test_revisions_are_packed_with_the_clusters_epoch() -> None:
    machine = OwnershipMachine()

    done = Log(machine, epoch=3).do(proposal(1, "abc"))

    revision = packed(3, 1)
    assert done == Done(machine.state.revision, 1, SLOTS)
    assert machine.ring().revision == machine.ring().position(5) == revision
    assert machine.number == 5


def test_each_change_publishes_one_new_snapshot() -> None:
    told: list[Ring] = []
    log = Log(OwnershipMachine(told.append))

    log.do(proposal(1, "abc"))
    log.do(proposal(1, "abc"))
    log.do(Resume())
    log.do(Pause("operator"))

    assert [ring.paused for ring in told] == ["", "operator"]
    assert told[-1] is log.machines[0].ring()
    assert isinstance(log.events[0], EpochProposed)


@pytest.mark.parametrize("command", [b"", b"\xc1", b"\x93\x01\x01\x01", encode([9, 1])])
def test_a_malformed_command_is_refused_on_all_alike(command: bytes) -> None:
    log = Log(OwnershipMachine(), OwnershipMachine())

    refused = decode_answer(log.apply(command))

    assert isinstance(refused, Refused) and refused.reason == "bad_request"
    assert log.machines[0].digest() == 0


def test_a_refusal_is_an_answer() -> None:
    refused = Log(OwnershipMachine()).do(proposal(9, "abc"))

    assert isinstance(refused, Refused)
    assert (refused.error, refused.reason) == ("ConflictError", "version")


def test_a_frozen_state_comes_back_and_goes_on_alike() -> None:
    machine, restored = OwnershipMachine(), OwnershipMachine()
    log = Log(machine)
    for names in ("abcd", "abc2d", "abd"):
        log.do(proposal(machine.state.number + 1, names))
    log.do(Settle(slot_set(range(0, SLOTS, 2)), machine.state.revision))

    restored.restore(list(machine.freeze()), version=1)

    restored.check()
    assert (restored.state, restored.digest()) == (machine.state, machine.digest())
    both = Log(machine, restored)
    both.index = log.index
    both.do(proposal(4, "abde"))
    assert restored.digest() == machine.digest()


def test_the_empty_state_is_no_bytes_and_no_bytes_the_empty_state() -> None:
    told: list[Ring] = []
    machine = OwnershipMachine(told.append)
    assert list(machine.freeze()) == []
    Log(machine).do(proposal(1, "abc"))

    machine.restore([], version=1)

    assert (machine.state, machine.digest()) == (RingState(), 0)
    assert told[-1] == Ring()


@pytest.mark.parametrize(("chunks", "version"), [([], 2), ([b"\x90"], 1), ([b"x", b"y"], 1)])
def test_what_is_no_frozen_ring_is_refused_and_changes_nothing(
    chunks: list[bytes], version: int
) -> None:
    machine = OwnershipMachine()
    Log(machine).do(proposal(1, "abc"))
    before = machine.state

    with pytest.raises(RemoteProtocolError):
        machine.restore(chunks, version)

    assert machine.state is before


def test_digests_differ_where_states_do() -> None:
    machine = OwnershipMachine()
    log = Log(machine)
    digests = [machine.digest()]
    for command in (proposal(1, "abc"), Pause("x"), Resume(), proposal(2, "abd")):
        log.do(command)
        digests.append(machine.digest())

    assert len({*digests}) == len(digests)


def test_nothing_here_belongs_to_sessions_or_falls_due() -> None:
    machine = OwnershipMachine()
    Log(machine).do(proposal(1, "abc"))
    stamp = Stamp(1, Index(2), Term(1), 10**12)

    assert machine.ended((SESSION,), stamp) == machine.wake(stamp) == ()
    assert machine.deadline() is None


# The proposer.


class Group:
    """A raft group of one log, with what its leader sees."""

    def __init__(self) -> None:
        self.machine = OwnershipMachine()
        self.log = Log(self.machine)
        self.stuck: RingState | None = None
        """What is applied here, if less than is agreed on."""
        self.leading = True
        self.views: dict[str, View] = {}
        self.failures: list[MicroosError] = []
        self.submitted: list[bytes] = []
        self.looks = 0
        self.notes: list[PlannerNote] = []
        self.proposer = Proposer(
            clock=SystemClock(),
            settings=RingSettings(),
            state=lambda: self.stuck or self.machine.state,
            seen=self.seen,
            leads=lambda: self.leading,
            submit=self.submit,
            observe=self.notes.append,
        )

    def see(self, names: str, state: str = "alive") -> None:
        for name in names:
            self.views[name] = View(
                NodeId(name),
                BootId(1),
                Incarnation(1),
                state,  # type: ignore[arg-type]
                trio.current_time(),
            )
        self.proposer.hurry()

    def seen(self) -> Seen:
        self.looks += 1
        return Seen(tuple(self.views.values()), 0)

    async def submit(self, command: bytes) -> bytes:
        self.submitted.append(command)
        await trio.sleep(0.05)
        if self.failures:
            raise self.failures.pop(0)
        return self.log.apply(command)

    def members(self) -> str:
        return "".join(member.node for member in self.machine.state.members)

    def report_all(self) -> None:
        for name in self.views:
            everything = slot_set(range(SLOTS))
            self.proposer.report(Report(owner(name), self.machine.state.revision, everything))


@asynccontextmanager
async def at_work() -> AsyncIterator[Group]:
    group = Group()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(group.proposer.run)
        await trio.testing.wait_all_tasks_blocked()
        yield group
        nursery.cancel_scope.cancel()


async def test_a_leader_makes_the_ring_of_its_members_and_settles_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with at_work() as group:
        group.see("abc")
        await trio.sleep(3.0)
        assert group.members() == "abc"
        group.see("d")
        await trio.sleep(3.0)
        assert group.members() == "abcd" and group.machine.state.joint()

        group.report_all()
        await trio.sleep(1.0)

        assert group.machine.state.joint() == ()


async def test_who_does_not_lead_sleeps_and_forgets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with at_work() as group:
        group.see("abcd")
        await trio.sleep(3.0)
        group.see("e")
        await trio.sleep(3.0)
        group.leading = False
        group.proposer.hurry()
        await trio.sleep(1.0)
        group.looks = 0
        group.report_all()
        await trio.sleep(600.0)
        assert group.looks == 0

        group.leading = True
        group.proposer.hurry()
        await trio.sleep(5.0)
        assert group.machine.state.joint()
        group.report_all()
        await trio.sleep(1.0)

        assert group.machine.state.joint() == ()


@pytest.mark.parametrize("error", [NoQuorumError("none"), UncertainError("lost")])
async def test_a_command_that_failed_is_thought_over_and_not_lost(
    autojump_clock: trio.testing.MockClock, error: MicroosError
) -> None:
    async with at_work() as group:
        group.failures.append(error)
        group.see("abc")

        await trio.sleep(5.0)

        assert len(group.submitted) == 2
        assert group.members() == "abc"


async def test_a_refused_command_is_not_repeated_without_a_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with at_work() as group:
        group.see("abc")
        await trio.sleep(3.0)
        group.submitted.clear()
        group.stuck = group.machine.state
        group.log.do(proposal(2, "abcd"))
        group.see("e")

        await trio.sleep(4.0)

        assert 3 <= len(group.submitted) <= 4.0 / 0.25


async def test_what_is_held_back_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with at_work() as group:
        group.see("abcde")
        await trio.sleep(5.0)
        group.see("cde", "dead")

        await trio.sleep(60.0)

        assert group.notes == [RemovalsHeld((NodeId("c"), NodeId("d"), NodeId("e")), 2)]
        assert group.machine.ring().paused == "removals"


async def test_a_leader_looks_twice_a_second(autojump_clock: trio.testing.MockClock) -> None:
    async with at_work() as group:
        group.see("abc")
        await trio.sleep(5.0)
        group.looks = 0

        await trio.sleep(10.0)

        assert group.looks == pytest.approx(10.0 / LOOK_GAP, abs=1)
