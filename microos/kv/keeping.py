"""Where the store's core meets the node: requests over calls, time, members, the ring.

    bucket ─▶ run ─▶ Keeper ─▶ asks ─▶ kernel.post ─▶ ... ─▶ kernel.serve_inline ─▶ Keeper.serve
      ▲                 │ done
      └── rescheduled ──┘

What several operations ask of one node in one turn of the loop travels as one call, `Many`:
under load a call's own cost is shared by tens of requests; a lone one leaves at once.

Requests of other nodes are answered in the reader that brought them (`house.md` 1.9):
they are bounded and never wait, but for atomic writes, which are answered later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import trio

from microos import limits
from microos.codec import encode
from microos.errors import MicroosError, NoQuorumError, RemoteProtocolError, UnavailableError
from microos.gossip.members import State
from microos.node.alarm import Alarm
from microos.node.calls import TOGETHER_FROM, Later, Outcome
from microos.node.kernel import Kernel
from microos.node.statistics import QueueStatistics
from microos.ring.epochs import frozen, thawed
from microos.ring.keeper import Ask, Keeper, KeeperSettings, Moved, Silent, Told, Up
from microos.ring.messages import (
    Accept,
    Answer,
    Answers,
    Many,
    Single,
    Write,
    decode_answer,
    decode_answers,
    decode_requests,
)
from microos.ring.planner import Report
from microos.ring.ring import Ring, slot_set
from microos.rpc.messages import Reply
from microos.settings import KvSettings
from microos.types import NodeId

ENDPOINT = "microos.kv"

REPORT_GAP = 0.25
"""Least time between two reports to the leader [s]."""

REPORT_AGAIN = 1.0
"""While slots are joint a report is repeated: the leader may be a new one [s]."""

LOOK = 0.05
"""How often a leaving node looks whether everything is handed over [s]."""


class Keeping:
    """The store of one node.

    Args:
        participates: Whether this node is to own keys.
    """

    def __init__(self, kernel: Kernel, settings: KvSettings, *, participates: bool) -> None:
        self._kernel = kernel
        self._settings = settings
        self._participates = participates
        self._clock = kernel.runtime.clock
        self._keeper: Keeper | None = None
        self._waiting: dict[int, trio.lowlevel.Task | None] = {}
        """Who waits for an operation; None while its task is not parked yet."""
        self._results: dict[int, object] = {}
        """Of operations that are done, until their task goes on."""
        self._later: dict[int, Later] = {}
        self._handle = 0
        self._pumping = False
        self._reported: tuple[int, int] = (0, 0)
        self._news = trio.Event()
        self._moved = trio.Event()
        self._begun = trio.Event()
        """Operations have begun whose requests are still to be sent."""
        self._alarm = Alarm(self._clock, self._deadline, self._wake)
        kernel.serve_inline(ENDPOINT, self._request)
        kernel.on_members(self._members_changed)
        kernel.on_ring(self._ring_changed)
        kernel.on_start(self._run)
        kernel.on_leave(self._leave)
        kernel.add_queues(self._queues)

    # Life.

    async def _run(self) -> None:
        settings, now = self._settings, self._clock.now()
        self._keeper = Keeper(
            self._kernel.owner,
            KeeperSettings(
                size_max=settings.memory,
                compare_interval=settings.compare_interval,
                drop_grace=settings.drop_grace,
                tombstone_window=settings.tombstone_window,
                transfer_rate=settings.transfer_rate,
            ),
            random=self._kernel.runtime.random("kv"),
            now=now,
            wall=self._clock.wall(),
        )
        self._members_changed()
        self._ring_changed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._alarm.run)
            nursery.start_soon(self._report)
            nursery.start_soon(self._send_begun)

    async def wait_ready(self) -> None:
        """Wait until `is_ready`; without a bound."""
        while not self.is_ready:
            if self._moved.is_set():
                self._moved = trio.Event()  # One for all who wait.
            await self._moved.wait()

    @property
    def is_ready(self) -> bool:
        """Whether there is a ring, and this process is in it with copies that are whole.

        A process that has come back is in it only with the next ring epoch: until then the
        slots of the one before it have a copy less, and another crash may be one too many.
        """
        keeper = self._keeper
        if keeper is None or not keeper.ring.number or keeper.upkeep.filling:
            return False
        ring, me = keeper.ring, keeper.me
        return not self._participates or (
            any(member.owner == me for member in ring.members)
            and all(len(ring.chains[slot]) == 1 for slot in ring.slots_of(me))
        )

    async def _leave(self) -> None:
        """Wait until no slot is this node's and nothing is kept that others lack."""
        keeper = self._keeper
        while keeper is not None:
            keeper.leave(self._clock.now())
            self._alarm.moved()
            others = [member for member in keeper.ring.members if member.node != keeper.me.node]
            if not any(
                keeper.is_up(member.owner) and self._kernel.takes_part(member.node)
                for member in others
            ):
                return  # Nobody stays to take it over.
            if not keeper.ring.slots_of(keeper.me) and not keeper.upkeep.foreign:
                return
            await self._clock.sleep_until(self._clock.now() + LOOK)

    # What the node tells.

    def _members_changed(self) -> None:
        keeper = self._keeper
        if keeper is not None:
            boots = {
                member.node: member.boot
                for member in self._kernel.members()
                if member.state in (State.ALIVE, State.SUSPECT)
            }
            keeper.receive(Up(boots), self._clock.now())
            self._pump(keeper)

    def _ring_changed(self) -> None:
        keeper = self._keeper
        if keeper is not None:
            ring, state = self._kernel.ring()
            self._turn(keeper, ring, frozen(state))

    def _turn(self, keeper: Keeper, ring: Ring, state: bytes) -> None:
        keeper.receive(Moved(ring, state), self._clock.now())
        self._pump(keeper)

    # Operations.

    async def run(self, begin: Callable[[Keeper, float], int]) -> object:
        """Run one operation of the keeper; return its result.

        Args:
            begin: Begins it, given the keeper and the time; returns its number.

        Raises:
            MicroosError: What the operation came to.
        """
        keeper = self._keeper
        if keeper is None:
            raise NoQuorumError("the node has not started yet", reason="replicas")
        # Hot path: the task is parked and rescheduled, without an event or a channel.
        waiting = self._waiting
        number = begin(keeper, self._clock.now())
        waiting[number] = None
        if keeper.in_flight < TOGETHER_FROM or keeper.has_results:
            self._pump(keeper)
        else:
            self._begun.set()
        if number in waiting:

            def abort(_: object) -> trio.lowlevel.Abort:
                del waiting[number]
                keeper.cancel(number, self._clock.now())
                self._pump(keeper)
                return trio.lowlevel.Abort.SUCCEEDED

            waiting[number] = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
            result = self._results.pop(number)
        else:
            result = self._results.pop(number)
            await trio.lowlevel.checkpoint()
        if isinstance(result, MicroosError):
            raise result
        return result

    def _request(self, body: bytes, sender: NodeId, later: Later) -> bytes | None:
        """Answer a request of another node.

        Raises:
            RemoteProtocolError: It is none.
        """
        keeper = self._keeper
        request = decode_requests(body)
        if keeper is None:
            raise RemoteProtocolError("expected a node that has started, found one that has not")
        if isinstance(request, Many):
            answers = self._answer_many(keeper, request, sender)
            if keeper.has_effects:
                self._pump(keeper)
            return encode(answers)
        self._handle += 1
        answer = keeper.serve(request, sender, self._clock.now(), self._handle)
        if answer is None:
            self._later[self._handle] = later
        if keeper.has_effects:
            self._pump(keeper)
        return None if answer is None else encode(answer)

    def _answer_many(self, keeper: Keeper, many: Many, sender: NodeId) -> Answers:
        """Answer in order, as many as fit a page; the asker asks the rest one by one."""
        now, size = self._clock.now(), 0
        answers: list[Answer] = []
        for request in many.requests:
            answer = keeper.serve(request, sender, now, 0)
            assert isinstance(answer, Answer)
            size += len(answer.entry or b"")
            if answers and size > limits.KV_PAGE_BYTES:
                break
            answers.append(answer)
        return Answers(tuple(answers))

    # Turns of the keeper.

    def _pump(self, keeper: Keeper) -> None:
        """Do what the keeper wants done, until it wants nothing more."""
        if self._pumping:
            return
        self._pumping = True
        while keeper.has_effects:
            effects = keeper.take()
            self._send_all(keeper, effects.asks)
            for number, result in effects.done:
                if number in self._waiting:
                    self._results[number] = result
                    task = self._waiting.pop(number)
                    if task is not None:
                        trio.lowlevel.reschedule(task)
            for handle, answer in effects.answers:
                self._later.pop(handle)(encode(answer))
            for state in effects.fetched:
                self._fetched(keeper, state)
        self._pumping = False
        self._moved.set()
        revision, ready = keeper.report()
        if (revision, len(ready)) != self._reported:
            self._news.set()
        self._alarm.moved()

    async def _send_begun(self) -> None:
        """Send what the operations ask that have begun in this turn of the loop."""
        keeper = self._keeper
        assert keeper is not None
        while True:
            await self._begun.wait()
            self._begun = trio.Event()
            self._pump(keeper)

    def _send_all(self, keeper: Keeper, asks: Sequence[Ask]) -> None:
        together: dict[NodeId, list[Ask]] = {}
        for ask in asks:
            if len(asks) > 1 and isinstance(ask.request, Single):
                together.setdefault(ask.owner.node, []).append(ask)
            else:
                self._send(keeper, ask)
        for node, those in together.items():
            for group in _groups(those):
                if len(group) == 1:
                    self._send(keeper, group[0])
                else:
                    self._send_many(keeper, node, group)

    def _send_many(self, keeper: Keeper, node: NodeId, asks: list[Ask]) -> None:
        def done(outcome: Outcome) -> None:
            now, receive = self._clock.now(), keeper.receive
            answers = _answers_in(outcome, len(asks))
            if answers is None:
                sent = not isinstance(outcome, UnavailableError)
                for ask in asks:
                    receive(Silent(ask.token, sent), now)
            else:
                for ask, answer in zip(asks, answers, strict=False):
                    receive(Told(ask.token, answer), now)
                for ask in asks[len(answers) :]:
                    self._send(keeper, ask)
            self._pump(keeper)

        requests = tuple([ask.request for ask in asks if isinstance(ask.request, Single)])
        assert len(requests) == len(asks)
        body = encode(Many(requests))
        deadline = max([ask.deadline for ask in asks])
        self._kernel.post(node, ENDPOINT, body, deadline, done)

    def _send(self, keeper: Keeper, ask: Ask) -> None:
        token = ask.token

        def done(outcome: Outcome) -> None:
            now = self._clock.now()
            if isinstance(outcome, Reply):
                try:
                    keeper.receive(Told(token, decode_answer(outcome.body)), now)
                except RemoteProtocolError:
                    keeper.receive(Silent(token, True), now)
            else:
                keeper.receive(Silent(token, not isinstance(outcome, UnavailableError)), now)
            self._pump(keeper)

        self._kernel.post(ask.owner.node, ENDPOINT, encode(ask.request), ask.deadline, done)

    def _fetched(self, keeper: Keeper, state: bytes) -> None:
        try:
            ring = thawed(state).ring(keeper.ring)
        except RemoteProtocolError:
            return  # It is asked for again.
        keeper.receive(Moved(ring, state), self._clock.now())

    def _deadline(self) -> float:
        return self._keeper.deadline if self._keeper is not None else float("inf")

    def _wake(self) -> None:
        if self._keeper is not None:
            self._keeper.wake(self._clock.now())
            self._pump(self._keeper)

    async def _report(self) -> None:
        """Tell the leader which copies are whole, when that changes, and again while it matters."""
        keeper = self._keeper
        assert keeper is not None
        while True:
            revision, ready = keeper.report()
            self._reported = (revision, len(ready))
            self._news = trio.Event()
            if ready:
                self._kernel.report(Report(keeper.me, revision, slot_set(ready)))
            await self._clock.sleep_until(self._clock.now() + REPORT_GAP)
            if ready:
                with self._clock.timeout_at(self._clock.now() + REPORT_AGAIN):
                    await self._news.wait()
            else:
                await self._news.wait()

    # What it says of itself.

    @property
    def keeper(self) -> Keeper:
        """The core, for looks at it.

        Raises:
            NoQuorumError: The node has not started yet.
        """
        if self._keeper is None:
            raise NoQuorumError("the node has not started yet", reason="replicas")
        return self._keeper

    def _queues(self) -> tuple[QueueStatistics, ...]:
        size = self._keeper.in_flight if self._keeper is not None else 0
        return (QueueStatistics("kv.operations", size, limits.KV_OPERATIONS_MAX, "refuse", 0),)


def _groups(asks: list[Ask]) -> Iterator[list[Ask]]:
    """Give what may travel together: few enough requests, in few enough bytes."""
    group: list[Ask] = []
    size = 0
    for ask in asks:
        more = len(ask.request.entry) if isinstance(ask.request, Write | Accept) else 0
        if group and (len(group) == limits.KV_TOGETHER or size + more > limits.KV_PAGE_BYTES):
            yield group
            group, size = [], 0
        group.append(ask)
        size += more
    if group:
        yield group


def _answers_in(outcome: Outcome, count: int) -> tuple[Answer, ...] | None:
    """Return the answers to the first of `count` requests; None if they did not come."""
    if not isinstance(outcome, Reply):
        return None
    try:
        answers = decode_answers(outcome.body).answers
    except RemoteProtocolError:
        return None
    return answers if len(answers) <= count else None
