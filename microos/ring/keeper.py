"""The data plane of one node as a pure core: operations, copies and their upkeep in one.

    put get atomic ─▶ operations ─┐                   ┌─▶ asks     requests to other owners
    Told, Silent ────▶ of both    ├─ keeper ─ take ──▶├─▶ done     results of operations
    Moved, Up ───────▶ upkeep    ─┘                   └─▶ answers  to atomic writes decided here
    serve(request) ──▶ replica ──▶ answer, at once

Own copies are asked without a message. Atomic writes of one key are decided by the first
of its owners that is up, one after the other; if two nodes differ about who that is, their
ballots see to it that it is still right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import inf

import msgspec

from microos import limits
from microos.deadlines import Deadlines
from microos.errors import (
    MicroosError,
    OverloadedError,
)
from microos.ring.atomic import Atomic, Relay
from microos.ring.entry import (
    ATOMIC,
    NOTHING,
    TOMBSTONE,
    ended,
    number_of,
    outgoing,
    pack,
    version_bytes,
    writer_of,
)
from microos.ring.get import UNDECIDED, Get
from microos.ring.messages import (
    AnyAnswer,
    Code,
    Compared,
    Did,
    Do,
    GetRing,
    Request,
    RingState,
)
from microos.ring.operation import Operation
from microos.ring.passes import Handing, Job
from microos.ring.put import Put
from microos.ring.replica import Replica
from microos.ring.ring import Owner, Ring
from microos.ring.short import Reads, Ways, Writes
from microos.ring.stamps import Stamps
from microos.ring.store import Store
from microos.ring.upkeep import Upkeep
from microos.types import BootId, NodeId, Random, Revision, Version

INTERNAL_TIMEOUT = 5.0
"""For what the keeper asks on its own account [s]."""

RING_PAUSE = 0.2
"""Before another owner is asked for its newer ring [s]."""


class KeeperSettings(msgspec.Struct, frozen=True):
    """How one node keeps its copies."""

    size_max: int
    """Bytes charged to all entries."""
    compare_interval: float
    drop_grace: float
    tombstone_window: float
    transfer_rate: int


# What the shell tells.


class Told(msgspec.Struct, frozen=True, gc=False):
    """The answer to an ask."""

    token: int
    answer: AnyAnswer


class Silent(msgspec.Struct, frozen=True, gc=False):
    """There will be no answer to an ask."""

    token: int
    sent: bool
    """Whether it may have been done."""


class Moved(msgspec.Struct, frozen=True):
    """The ring, as this node's part of the group has it now."""

    ring: Ring
    state: bytes
    """The same, as it travels."""


class Up(msgspec.Struct, frozen=True):
    """Who may answer: alive or suspect members, with their boots."""

    boots: Mapping[NodeId, BootId]


# What the shell does.


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Send a request to an owner; then `Told` or `Silent`, once."""

    token: int
    owner: Owner
    request: Request
    deadline: float


class Effects(msgspec.Struct, frozen=True, gc=False):
    """What a turn of the keeper wants done, in this order."""

    asks: tuple[Ask, ...]
    done: tuple[tuple[int, object], ...]
    """(operation, result): a version, an entry or None, or a MicroosError."""
    answers: tuple[tuple[int, Did], ...]
    """(handle given to `decide`, answer)."""
    fetched: tuple[bytes, ...]
    """States of rings newer than ours that others go by."""


class Keeper:
    """All of the ring's data that one node has to do with.

    Args:
        me: This process.
        random: Chance for pauses and for whom to compare with.
        now: On this node's clock [s].
        wall: Seconds since 1970.
    """

    def __init__(
        self, me: Owner, settings: KeeperSettings, *, random: Random, now: float, wall: float
    ) -> None:
        self.me = me
        self.random = random
        self.writer = writer_of(me.node)
        self.stamps = Stamps(wall, now)
        self.replica = Replica(me, Store(settings.size_max), self.stamps)
        self.upkeep = Upkeep(
            self,
            compare_interval=settings.compare_interval,
            drop_grace=settings.drop_grace,
            tombstone_window=settings.tombstone_window,
            transfer_rate=settings.transfer_rate,
            now=now,
        )
        self.now = now
        """Of the turn under way, on this node's clock [s]."""
        self._ways = Ways(self)
        self.reads = Reads(self, self._ways)
        self.writes = Writes(self, self._ways)
        self._up: Mapping[NodeId, BootId] = {}
        self._number = 0
        self._token = 0
        self._operations: dict[int, Operation] = {}
        self._timers: Deadlines[int] = Deadlines()
        self._armed: dict[int, float] = {}
        self._asked: dict[int, tuple[Operation, Owner, int] | tuple[Job, Owner, None]] = {}
        self._waiting: dict[tuple[int, bytes], deque[Operation]] = {}
        """Atomic operations by key: the first is under way."""
        self._settling: dict[int, tuple[int, bytes]] = {}
        """Which key's turn an atomic operation has."""
        self._free: deque[tuple[int, bytes]] = deque()
        """Keys whose next operation is to begin."""
        self._handles: dict[int, int] = {}
        """Operations that are done for somebody else, and the handle to answer by."""
        self._handing: dict[int, Handing] = {}
        self._ring_at = -inf
        """When a newer ring may be asked for again [s]."""
        self._asks: list[Ask] = []
        self._done: list[tuple[int, object]] = []
        self._answers: list[tuple[int, Did]] = []
        self._fetched: list[bytes] = []

    @property
    def ring(self) -> Ring:
        return self.replica.ring

    @property
    def patience(self) -> float:
        return self.reads.patience

    # Requests of users.

    def put(
        self,
        slot: int,
        name: bytes,
        value: bytes | None,
        *,
        left: int,
        one: bool,
        version: Version | None,
        deadline: float,
        now: float,
    ) -> int:
        """Begin a plain write, or a delete; return its number.

        Args:
            value: Encoded; None deletes.
            left: Its time to live [ms]; 0: for ever.
            one: Content with one owner; it still goes to all.
            version: That of an earlier call that ended uncertain; None: a new one.
            deadline: On this node's clock [s].

        Raises:
            OverloadedError: Too many operations are in flight.
        """
        number = self._take_number(now)
        stamped = (
            version_bytes(self.stamps.next(now), self.writer)
            if version is None
            else version.to_bytes(len(NOTHING), "big")
        )
        entry = _entry(stamped, value, left)
        if version is None and self.writes.begin(
            number, slot, name, entry, one=one, deadline=deadline
        ):
            return number
        operation = Put(
            self,
            number,
            slot,
            name,
            entry,
            one=one,
            deadline=deadline,
            is_repeat=version is not None,
        )
        self._start(operation, now)
        return number

    def get(self, slot: int, name: bytes, *, one: bool, deadline: float, now: float) -> int:
        """Begin a read; return its number. Its result is an entry as it travels, or None."""
        number = self._take_number(now)
        if not self.reads.begin(number, slot, name, one=one, deadline=deadline):
            self._start(Get(self, number, slot, name, one=one, deadline=deadline), now)
        return number

    def atomic(
        self,
        slot: int,
        name: bytes,
        value: bytes | None,
        *,
        left: int,
        condition: Version,
        deadline: float,
        now: float,
    ) -> int:
        """Begin a write or delete that takes place only over version `condition` (0: over none)."""
        number = self._take_number(now)
        entry = _entry(NOTHING, value, left, flags=ATOMIC)
        first = next((o for o in self.ring.current(slot) if self.is_up(o)), self.me)
        if first == self.me:
            self._decide(number, slot, name, entry, condition, deadline, now)
        else:
            relay = Relay(self, number, slot, name, entry, condition, deadline=deadline)
            self._start(relay, now)
        return number

    def cancel(self, number: int, now: float) -> None:
        """Forget an operation; what it has sent may still be done."""
        self.now = now
        self.reads.forget(number)
        self.writes.forget(number)
        operation = self._operations.get(number)
        if operation is not None:
            self._forget(operation)
            self._next_in_line(number)

    def decide(self, slot: int, name: bytes) -> None:
        """Let an atomic operation decide what is there (for upkeep)."""
        number = self._next_number()
        self._handles[number] = 0
        self._decide(number, slot, name, None, None, self.now + INTERNAL_TIMEOUT, self.now)

    def _take_number(self, now: float) -> int:
        self.now = now
        if self.in_flight >= limits.KV_OPERATIONS_MAX:
            raise _too_many()
        return self._next_number()

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _start(self, operation: Operation, now: float) -> None:
        self._operations[operation.number] = operation
        operation.begin(now)
        self._arm(operation)

    def _decide(
        self,
        number: int,
        slot: int,
        name: bytes,
        entry: bytes | None,
        condition: Version | None,
        deadline: float,
        now: float,
    ) -> None:
        """Begin an atomic operation, when those on its key that came before are done."""
        operation = Atomic(
            self, number, slot, name, write=entry, condition=condition, deadline=deadline
        )
        key = (slot, name)
        line = self._waiting.setdefault(key, deque())
        if len(line) >= limits.KV_WAITERS_MAX:
            self._result(
                number,
                OverloadedError(
                    f"expected at most {limits.KV_WAITERS_MAX} atomic operations waiting for one "
                    "key, found one more; try again later"
                ),
            )
            return
        self._settling[number] = key
        line.append(operation)
        self._operations[number] = operation
        if len(line) == 1:
            operation.begin(now)
        self._arm(operation)

    def _next_in_line(self, number: int) -> None:
        key = self._settling.pop(number, None)
        if key is None:
            return
        line = self._waiting[key]
        was_first = line[0].number == number
        remaining = deque(operation for operation in line if operation.number != number)
        if not remaining:
            del self._waiting[key]
            return
        self._waiting[key] = remaining
        if not was_first:
            return
        self._free.append(key)
        if len(self._free) > 1:
            return  # The loop below is under way: a long line is no deep stack.
        while self._free:
            first = self._waiting[self._free[0]][0]
            first.begin(self.now)
            self._arm(first)
            self._free.popleft()

    # Requests of other nodes.

    def serve(self, request: Request, sender: NodeId, now: float, handle: int) -> AnyAnswer | None:
        """Answer a request at once; None: the answer comes in `Effects.answers`.

        Args:
            handle: By which a later answer will be known.
        """
        self.now = now
        if request.revision > self.ring.revision:
            self._want_ring(sender, now)
        if not isinstance(request, Do):
            answer = self.replica.serve(request, now)  # type: ignore[arg-type]
            if isinstance(answer, Compared) and answer.different and sender in self._up:
                self.upkeep.differs(Owner(sender, self._up[sender]), answer.different, now)
            return answer
        self.stamps.hear(request.stamp, now)
        if request.boot != self.me.boot:
            return self._did(Code.WRONG_BOOT)
        if self.in_flight >= limits.KV_OPERATIONS_MAX:
            return self._did(Code.OK, error=_too_many())
        number = self._next_number()
        self._handles[number] = handle
        deadline = now + request.budget_ms / 1000.0
        condition = number_of(request.condition)
        self._decide(number, request.slot, request.name, request.entry, condition, deadline, now)
        return None

    def _did(self, code: int, version: bytes = b"", error: MicroosError | None = None) -> Did:
        revision, stamp = self.ring.revision, self.stamps.peek(self.now)
        if error is None:
            return Did(code, revision, stamp, version)
        known = error.facts.get("version", 0)
        assert isinstance(known, int)
        version = known.to_bytes(len(NOTHING), "big")
        name = type(error).__name__
        return Did(code, revision, stamp, version, name, error.reason, str(error))

    # The four verbs.

    def receive(self, message: Told | Silent | Moved | Up, now: float) -> None:
        """Take in what the shell has to tell."""
        self.now = now
        match message:
            case Told():
                self._told(message.token, message.answer, now)
            case Silent():
                self._silent(message.token, message.sent, now)
            case Moved():
                self._turn(message, now)
            case Up():
                self._up = message.boots
                self._ways.moved()

    def wake(self, now: float) -> None:
        """Do what is due: ends of life, deadlines, pauses that are over, upkeep."""
        self.now = now
        if now >= self.replica.store.deadline:
            self.replica.store.expire(now)
        for number in self._timers.due(now):
            self._armed.pop(number, None)
            operation = self._operations.get(number)
            if operation is not None:
                operation.wake(now)
                self._arm(operation)
        self.reads.wake(now)
        self.writes.wake(now)
        if now >= self.upkeep.deadline:
            self.upkeep.wake(now)

    @property
    def deadline(self) -> float:
        """When `wake` is next wanted, on this node's clock [s]."""
        return min(
            self._timers.deadline,
            self.reads.deadline,
            self.writes.deadline,
            self.replica.store.deadline,
            self.upkeep.deadline,
        )

    def take(self) -> Effects:
        """Hand over, and forget, everything that is to be done."""
        self.reads.send()
        self.writes.send()
        effects = Effects(
            tuple(self._asks), tuple(self._done), tuple(self._answers), tuple(self._fetched)
        )
        self._asks.clear()
        self._done.clear()
        self._answers.clear()
        self._fetched.clear()
        return effects

    @property
    def has_effects(self) -> bool:
        return bool(
            self._asks
            or self._done
            or self._answers
            or self._fetched
            or self.reads.has_gathered
            or self.writes.has_gathered
        )

    @property
    def has_results(self) -> bool:
        """Whether an operation is done whose result is not taken yet."""
        return bool(self._done)

    # Answers.

    def _told(self, token: int, answer: AnyAnswer, now: float) -> None:
        asked = self._asked.pop(token, None)
        if asked is None:
            return
        target, owner, generation = asked
        self.stamps.hear(answer.stamp, now)
        if answer.revision > self.ring.revision:
            self._want_ring(owner.node, now)
        if not isinstance(target, Operation):
            target.answered(owner, answer, now)
            return
        if target.number in self._operations and target.generation == generation:
            if isinstance(answer, target.answer_type):
                target.answered(owner, answer, now)
            else:
                target.unanswered(owner, True, now)
            self._arm(target)

    def _silent(self, token: int, sent: bool, now: float) -> None:
        asked = self._asked.pop(token, None)
        if asked is None:
            return
        target, owner, generation = asked
        if not isinstance(target, Operation):
            target.answered(owner, None, now)
            return
        if target.number in self._operations and target.generation == generation:
            target.unanswered(owner, sent, now)
            self._arm(target)

    # The ring.

    def _turn(self, moved: Moved, now: float) -> None:
        changed = self.replica.turn(moved.ring, moved.state)
        if not changed:
            return
        self._ways.moved()
        self.upkeep.moved(changed, now)
        for operation in list(self._operations.values()):
            if operation.wants_ring and self.ring.revision >= operation.wants_ring:
                operation.begin(now)
                self._arm(operation)

    def _want_ring(self, node: NodeId, now: float) -> None:
        """Somebody goes by a newer ring: ask for it, in case ours is long in coming."""
        boot = self._up.get(node)
        if now < self._ring_at or boot is None or node == self.me.node:
            return
        self._ring_at = now + RING_PAUSE
        request = GetRing(boot, self.ring.revision, self.stamp())
        self.ask_for(_Fetching(self), Owner(node, boot), request)

    # What operations and upkeep may use.

    def is_up(self, owner: Owner) -> bool:
        return owner == self.me or self._up.get(owner.node) == owner.boot

    def stamp(self) -> int:
        return self.stamps.peek(self.now)

    def ask(self, operation: Operation, owner: Owner, request: Request) -> None:
        if owner == self.me:
            answer = self.replica.serve(request, self.now)  # type: ignore[arg-type]
            operation.answered(owner, answer, self.now)
            return
        self._token += 1
        self._asked[self._token] = (operation, owner, operation.generation)
        self._asks.append(Ask(self._token, owner, request, operation.deadline))

    def ask_for(self, job: Job, owner: Owner, request: Request) -> None:
        assert owner != self.me
        self._token += 1
        self._asked[self._token] = (job, owner, None)
        self._asks.append(Ask(self._token, owner, request, self.now + INTERNAL_TIMEOUT))

    def hand_over(self, slot: int, name: bytes, entry: bytes, job: Handing) -> None:
        number = self._next_number()
        self._handing[number] = job
        deadline = self.now + INTERNAL_TIMEOUT
        put = Put(self, number, slot, name, entry, one=False, deadline=deadline, is_repeat=True)
        self._start(put, self.now)

    def take_over(self, relay: Operation, entry: bytes, condition: Version) -> None:
        self._forget(relay)
        deadline, number = relay.deadline, relay.number
        self._decide(number, relay.slot, relay.name, entry, condition, deadline, self.now)

    def settle(self, number: int, result: object) -> None:
        operation = self._operations.get(number)
        if operation is not None:
            self.finish(operation, result)
        else:
            self._done.append((number, self._given(result)))

    def read_in_full(
        self, number: int, slot: int, name: bytes, *, one: bool, deadline: float
    ) -> None:
        if number not in self._operations:
            self._start(Get(self, number, slot, name, one=one, deadline=deadline), self.now)

    def write_in_full(
        self, number: int, slot: int, name: bytes, entry: bytes, *, one: bool, deadline: float
    ) -> None:
        put = Put(self, number, slot, name, entry, one=one, deadline=deadline, was_sent=True)
        self._start(put, self.now)

    def finish(self, operation: Operation, result: object) -> None:
        if operation.number not in self._operations:
            return
        self._forget(operation)
        number = operation.number
        if result is UNDECIDED:
            self._decide(
                number, operation.slot, operation.name, None, None, operation.deadline, self.now
            )
            return
        self._result(number, result)
        self._next_in_line(number)

    def _result(self, number: int, result: object) -> None:
        """Hand an operation's result to whom it is for."""
        if number in self._handing:
            self._handing.pop(number).handed(not isinstance(result, MicroosError), self.now)
        elif number in self._handles:
            handle = self._handles.pop(number)
            if handle:
                self._answers.append((handle, self._answer_of(result)))
        else:
            self._done.append((number, self._given(result)))

    def _given(self, result: object) -> object:
        """Return a result as a user gets it: of an entry, what is left of its time."""
        if isinstance(result, bytes):
            at = int(self.now * 1000.0)
            return outgoing(ended(result, at), at)
        return result

    def _answer_of(self, result: object) -> Did:
        if isinstance(result, MicroosError):
            return self._did(Code.OK, error=result)
        assert isinstance(result, int)
        return self._did(Code.OK, result.to_bytes(len(NOTHING), "big"))

    def _forget(self, operation: Operation) -> None:
        number = operation.number
        operation.generation += 1
        del self._operations[number]
        self.reads.forget(number)
        at = self._armed.pop(number, None)
        if at is not None:
            self._timers.remove(number, at)

    def _arm(self, operation: Operation) -> None:
        """Wake an operation when it wishes."""
        number = operation.number
        if number not in self._operations:
            return
        at = self._armed.get(number)
        if at == operation.at:
            return
        if at is not None:
            self._timers.remove(number, at)
        self._armed[number] = operation.at
        self._timers.add(number, operation.at)

    def leave(self, now: float) -> None:
        """Hand over what is no longer this node's at once, without grace."""
        self.upkeep.hurry(now)

    # What it says of itself.

    @property
    def in_flight(self) -> int:
        """Operations begun and not done; a read that goes both ways is two."""
        return len(self._operations) + len(self.reads) + len(self.writes)

    @property
    def is_settled(self) -> bool:
        """Whether no copy is to be filled and none is kept that is not ours."""
        return not self.upkeep.filling and not self.upkeep.foreign

    def report(self) -> tuple[Revision, dict[int, None]]:
        """Return the ring's revision and the slots whose copies are whole for next."""
        return self.ring.revision, self.replica.ready

    def check(self) -> None:
        """Assert all invariants. Cost: O(entries)."""
        self.replica.check()
        self._ways.check()
        self.reads.check()
        self.writes.check()
        self.upkeep.check()
        assert self._armed.keys() == self._operations.keys()
        assert len(self._timers) == len(self._armed)
        assert not self._free
        lines = {o.number: key for key, line in self._waiting.items() for o in line}
        assert all(self._waiting.values())
        assert lines == self._settling
        assert self._settling.keys() <= self._operations.keys()
        assert self._handles.keys() <= self._operations.keys()
        assert self._handing.keys() <= self._operations.keys()


class _Fetching:
    """Asks for a newer ring."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        if isinstance(answer, RingState) and answer.revision > self._keeper.ring.revision:
            self._keeper._fetched.append(answer.state)


def _too_many() -> OverloadedError:
    return OverloadedError(
        f"expected at most {limits.KV_OPERATIONS_MAX} operations in flight, found one more; wait "
        "for some to end"
    )


def _entry(version: bytes, value: bytes | None, left: int, *, flags: int = 0) -> bytes:
    if value is None:
        return pack(version, end=0, flags=flags | TOMBSTONE, value=b"")
    return pack(version, end=left, flags=flags, value=value)
