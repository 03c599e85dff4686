from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from microos.raft.progress import Progress, State, Window
from microos.types import Index


def progress(next: int = 5, *, window: int = 4) -> Progress:
    return Progress(Index(next), window=Window(window, 1000))


def replicating(match: int = 4, *, window: int = 4) -> Progress:
    found = progress(match + 1, window=window)
    found.acknowledge(Index(match))
    found.become_replicate()
    return found


class AnyOrder(RuleBasedStateMachine):
    """Answers, late and repeated ones too, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = progress(1)
        self.match = 0
        self.last = 0

    @rule(count=st.integers(1, 3))
    def grow(self, count: int) -> None:
        self.last += count

    @precondition(lambda self: not self.progress.is_paused)
    @rule()
    def send(self) -> None:
        found = self.progress
        count = 0 if found.window.full else min(1, max(0, self.last + 1 - found.next))
        found.sent(Index(found.next - 1 + count), count, 10 * count, Index(0))

    @rule(index=st.integers(0, 12))
    def acknowledge(self, index: int) -> None:
        index = min(index, self.last)
        if self.progress.acknowledge(Index(index)):
            assert not self.progress.paused
        if self.progress.state is State.PROBE:
            self.progress.become_replicate()
        elif self.progress.state is State.REPLICATE:
            self.progress.window.free(Index(index))

    @rule(rejected=st.integers(0, 12), hint=st.integers(0, 12))
    def reject(self, rejected: int, hint: int) -> None:
        before = self.progress.next
        self.progress.reject(Index(rejected), Index(hint))
        assert self.progress.next <= before

    @rule()
    def unreachable(self) -> None:
        if self.progress.state is State.REPLICATE:
            self.progress.become_probe()

    @rule(index=st.integers(1, 12))
    def snapshot(self, index: int) -> None:
        if self.progress.state is State.PROBE and index <= self.last:
            self.progress.become_snapshot(Index(index))

    @rule()
    def snapshot_over(self) -> None:
        if self.progress.state is State.SNAPSHOT:
            self.progress.become_probe()

    @invariant()
    def holds(self) -> None:
        self.progress.check()
        assert self.progress.match >= self.match
        assert self.progress.window.bytes == 10 * len(self.progress.window)
        self.match = self.progress.match


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_probe_waits_for_its_answer() -> None:
    found = progress()

    found.sent(Index(5), 1, 10, Index(0))

    assert found.is_paused
    assert found.next == 5


def test_replication_runs_ahead_up_to_the_window() -> None:
    found = replicating(window=2)

    found.sent(Index(5), 1, 10, Index(0))
    assert not found.is_paused
    found.sent(Index(6), 1, 10, Index(0))

    assert found.is_paused
    assert found.next == 7


def test_a_refusal_overtaken_by_its_acknowledgement_is_ignored() -> None:
    found = replicating(match=4)

    assert not found.reject(Index(4), Index(0))
    assert found.state is State.REPLICATE


def test_a_refusal_of_another_probe_is_ignored() -> None:
    found = progress(5)

    assert not found.reject(Index(2), Index(0))
    assert found.reject(Index(4), Index(1))
    assert found.next == 2


def test_a_transfer_is_probed_behind_its_snapshot() -> None:
    found = progress(2)
    found.become_snapshot(Index(9))

    assert found.is_paused
    found.become_probe()

    assert found.next == 10
