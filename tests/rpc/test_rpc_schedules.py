"""Two connections, any schedule: every call ends once, in its own answer or a true error."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from math import inf

import pytest

from microos import limits
from microos.errors import OverloadedError, RemoteError, UnavailableError, UncertainError
from microos.rpc.effects import Answered, Cancelled, Event, Failed, Incoming, Loaded
from microos.rpc.messages import Load
from tests.rpc.pair import Side

pytestmark = pytest.mark.prop

SIZES = [0] * 6 + [100, limits.RPC_CHUNK + 1, 3 * limits.RPC_CHUNK, limits.RPC_BODY_MAX - 99]
TIMEOUTS = [0.0004, 0.02, 0.05, 0.3, 5.0, inf]


def padded(tag: bytes, size: int) -> bytes:
    return tag + b"/" + b"x" * size


class End:
    """One side, and what the test knows of it."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        # The same ids on both sides: nothing may depend on their being distinct.
        self.side = Side(1)
        self.open: dict[int, bytes] = {}
        """Calls of ours not resolved: their tags."""
        self.endless: set[int] = set()
        """Those that have no deadline."""
        self.untouched: list[bytes] = []
        """Tags of calls that came back as never begun."""
        self.handlers: dict[int, bytes] = {}
        """Calls of theirs being handled."""
        self.started: set[bytes] = set()
        """Tags of all calls ever handled here."""


class Walk:
    """One random schedule: a seed, and a lottery of steps drawn for it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ends = (End(b"a"), End(b"b"))
        self.now = self.random.choice([0.0, 100.0, 1e6 / 3])
        self.calls = 0
        self.refused = 0
        """Frames that the link had no room for."""
        self.seen: Counter[str] = Counter()
        """How often calls ended in which way."""
        steps: dict[Callable[[End, End], None], float] = {
            self.call: 10,
            self.take: self.random.choice([3, 10]),
            self.deliver: self.random.choice([5, 20]),
            self.answer: self.random.choice([3, 10]),
            self.fail: 1,
            self.cancel: self.random.choice([0, 1, 3]),
            self.time_passes: self.random.choice([1, 3, 9]),
            self.no_room: self.random.choice([0, 0.5]),
            self.leave: self.random.choice([0, 0, 0.05]),
            self.lose_the_link: self.random.choice([0, 0.1]),
        }
        self.steps = list(steps)
        self.weights = list(steps.values())

    def step(self) -> None:
        [act] = self.random.choices(self.steps, self.weights)
        act(*self.random.sample(self.ends, 2))
        self.check()

    # What may happen, at one end.

    def call(self, end: End, other: End) -> None:
        self.calls += 1
        tag = b"%b%d" % (end.name, self.calls)
        body = padded(tag, self.random.choice(SIZES))
        timeout = self.random.choice(TIMEOUTS)
        try:
            id = end.side.core.call("s.f", body, deadline=self.now + timeout, now=self.now)
        except UnavailableError:
            end.untouched.append(tag)
            refusable = timeout < 0.001 or end.side.core.peer_draining
            assert refusable
        else:
            assert id not in end.open
            end.open[id] = tag
            if timeout == inf:
                end.endless.add(id)

    def take(self, end: End, other: End) -> None:
        for event in end.side.take():
            self.judge(end, other, event)

    def deliver(self, end: End, other: End) -> None:
        """Some of what this end has sent arrives."""
        for _ in range(self.random.choice([1, 3, 30])):
            frame = end.side.next(bulk=self.random.random() < 0.5)
            if frame is not None:
                other.side.core.receive(frame, self.now)

    def answer(self, end: End, other: End) -> None:
        self.take(end, other)
        if end.handlers:
            id = self.random.choice(list(end.handlers))
            body = padded(b"re:" + end.handlers.pop(id), self.random.choice(SIZES))
            end.side.core.answer(id, body, Load(len(end.handlers), 1))

    def fail(self, end: End, other: End) -> None:
        self.take(end, other)
        if end.handlers:
            id = self.random.choice(list(end.handlers))
            end.side.core.fail(id, RemoteError(end.handlers.pop(id).decode()), None)

    def cancel(self, end: End, other: End) -> None:
        self.take(end, other)
        if end.open:
            id = self.random.choice(list(end.open))
            del end.open[id]
            end.side.core.cancel(id)

    def time_passes(self, end: End, other: End) -> None:
        """Only this end's alarm is on time."""
        self.now += self.random.choice([0.0, 0.001, 0.011, 0.06])
        end.side.core.wake(self.now)

    def no_room(self, end: End, other: End) -> None:
        """The link refuses the last frame, or some chunk."""
        self.take(end, other)
        self.refused += 1
        error = OverloadedError("no room")
        if end.side.chunks and self.random.random() < 0.5:
            place = self.random.randrange(len(end.side.chunks))
            lost = end.side.chunks[place][1]
            del end.side.chunks[place]
            end.side.core.unsent(lost, error)
        elif end.side.frames:
            end.side.core.unsent(end.side.pop(), error)

    def leave(self, end: End, other: End) -> None:
        end.side.core.goaway(1.0)

    def lose_the_link(self, end: End, other: End) -> None:
        for one, another in ((end, other), (other, end)):
            one.side.lose()
            self.take(one, another)
            assert one.open == one.handlers == {}

    # What must hold.

    def judge(self, end: End, other: End, event: Event) -> None:
        kind = type(event).__name__
        match event:
            case Answered(id=id, body=body):
                assert body.partition(b"/")[0] == b"re:" + end.open.pop(id)
                kind += " long" * (len(body) > limits.RPC_CHUNK)
            case Failed(id=id, error=error):
                tag = end.open.pop(id)
                kind = f"{type(error).__name__} {error.reason}"
                if isinstance(error, UnavailableError):
                    end.untouched.append(tag)
                elif isinstance(error, RemoteError):
                    assert str(error) == tag.decode()
                else:
                    assert isinstance(error, UncertainError)
            case Incoming(id=id, body=body):
                tag = body.partition(b"/")[0]
                assert tag not in end.started
                end.started.add(tag)
                end.handlers[id] = tag
            case Cancelled(id=id, reason=reason):
                del end.handlers[id]
                kind += f" {reason.name}"
            case Loaded():
                pass
        self.seen[kind] += 1

    def check(self) -> None:
        for end, other in (self.ends, self.ends[::-1]):
            end.side.core.check()
            assert not other.started & set(end.untouched)
            statistics = end.side.core.statistics()
            assert statistics.pending <= len(end.open)

    def finish(self) -> None:
        """Let everything arrive, answer what runs, and wait for the rest."""
        a, b = self.ends
        for _ in range(4):
            for end, other in ((a, b), (b, a)):
                self.take(end, other)
                while (frame := end.side.next(bulk=False)) is not None:
                    other.side.core.receive(frame, self.now)
                self.take(other, end)
                while other.handlers:
                    self.answer(other, end)
        self.now += 10.0
        for end, other in ((a, b), (b, a)):
            end.side.core.wake(self.now)
            self.take(end, other)
        self.check()


ENDS = """
Answered
Answered long
Cancelled CALLER
Cancelled CONNECTION_LOST
Cancelled DEADLINE
Incoming
Loaded
OverloadedError queue_full
RemoteError handler
UnavailableError connection_lost
UnavailableError deadline
UnavailableError draining
UncertainError connection_lost
UncertainError deadline
"""


@pytest.mark.slow
def test_every_call_ends_once_in_its_own_answer_or_a_true_error() -> None:
    seen: Counter[str] = Counter()

    for seed in range(60):
        walk = Walk(seed)
        for _ in range(400):
            walk.step()
        walk.finish()
        # Of what was refused by the link nobody may hear, who has no deadline.
        for end in walk.ends:
            assert end.open.keys() <= (end.endless if walk.refused else set())
        walk.lose_the_link(*walk.ends)
        for end in walk.ends:
            statistics = end.side.core.statistics()
            assert statistics.pending == statistics.running == statistics.arriving_bytes == 0
            assert end.side.core.deadline == inf
        seen += walk.seen

    assert sorted(seen) == ENDS.split("\n")[1:-1]
