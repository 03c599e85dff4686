"""A small world for keepers: messages that are late or lost, boots that end, splits, ring changes.

The ring's log is one list; each node applies it in order, later than it was written, and not
at all while it is cut off from the majority. The planner is the real one. What users do is
recorded in `history` and judged by `judge`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from math import inf

import msgspec

from microos.codec import encode
from microos.errors import MicroosError
from microos.ring.entry import is_tombstone, number_of, shown_version_of, value_of, version_of
from microos.ring.epochs import Done, RingState, apply, frozen
from microos.ring.keeper import Ask, Keeper, KeeperSettings, Moved, Silent, Told, Up
from microos.ring.messages import decode_answer, decode_request
from microos.ring.placement import Scores
from microos.ring.planner import Answered, Planner, Report, Seen, View
from microos.ring.quorum import wanted
from microos.ring.ring import Owner, seed_of, slot_of, slot_set
from microos.ring.store import name_of
from microos.settings import RingSettings
from microos.types import BootId, Incarnation, NodeId, Revision, Version

BUCKET = "b"
LATE_MAX = 0.06
"""A tick, and the ways of a few messages: a value lives longer by the time it travels [s]."""

EARLY_MAX = 0.05

SETTINGS = KeeperSettings(
    size_max=1 << 24,
    compare_interval=3.0,
    drop_grace=1.0,
    tombstone_window=3600.0,
    transfer_rate=1 << 25,
)


class Operation(msgspec.Struct):
    """What a user asked for, and what came of it."""

    kind: str
    key: bytes
    value: int
    condition: int | None
    begun: float
    left: int = 0
    """Time to live [ms]; 0: for ever."""
    deadline: float = inf
    one: bool = False
    ended: float = inf
    result: object = None
    """A version, an entry or None; an error; `inf` as `ended`: unknown."""
    cancel: Callable[[], None] = lambda: None
    """Forgets it, as a task that is cancelled does; there is no result then."""


class Node:
    """One machine; its keeper goes with each boot."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.id = NodeId(f"{number + 1:032x}")
        self.boots = 0
        self.keeper: Keeper | None = None
        self.applied = 0
        self.since = 0.0
        self.offset = 100.0 * number
        self.participates = True

    @property
    def owner(self) -> Owner:
        return Owner(self.id, BootId(self.boots))

    def now(self) -> float:
        return self.world.now + self.offset


class World:
    """The nodes, the log and the time."""

    def __init__(
        self,
        seed: int,
        nodes: int = 5,
        *,
        calm: bool = False,
        settings: KeeperSettings = SETTINGS,
    ) -> None:
        """Make the world; `calm`: no message is lost or late, and no link breaks."""
        self.calm = calm
        self._keeper_settings = settings
        self.random = random.Random(seed)
        self.now = 0.0
        self.loss = 0.0 if calm else 0.02
        self.late = True
        """Whether some messages come very late."""
        self.history: list[Operation] = []
        self.nodes = [Node(self, n) for n in range(nodes)]
        self.states: list[RingState] = []
        """The log: the state after each command that changed it."""
        self._moved: list[Moved] = []
        self._log(RingState())
        self.losses: dict[int, list[tuple[float, float]]] = {}
        """By slot: when so many of its owners had ended that what only they had was lost."""
        self._losing: dict[int, float] = {}
        self.side = dict.fromkeys(range(nodes), 0)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._scores = Scores()
        self._settings = RingSettings(batch_window=0.2, batch_window_max=0.5, replace_after=3.0)
        self._planner = Planner(self._settings)
        self._index = 0
        self._armed = dict.fromkeys(range(nodes), inf)
        self._pending: dict[tuple[int, int, int], Callable[[object], None]] = {}
        self._backs: dict[int, Callable[[bytes], None]] = {}
        for number in range(nodes):
            self.start(number)
        self.at(0.05, self._lead)

    def _log(self, state: RingState) -> None:
        before = self._moved[-1].ring if self._moved else None
        self.states.append(state)
        self._moved.append(Moved(state.ring(before), frozen(state)))
        self._note_losses()

    def _note_losses(self) -> None:
        """Look which slots of keys in use have lost as many owners as acknowledge a write."""
        for slot in {slot_of(seed_of(BUCKET), o.key): None for o in self.history}:
            row = self.states[-1].current[slot]
            living = [o for o in row if self._lives(int(o.node, 16) - 1, o.boot)]
            if len(row) - len(living) >= wanted(len(row)):
                self._losing.setdefault(slot, self.now)
            elif slot in self._losing:
                self.losses.setdefault(slot, []).append((self._losing.pop(slot), self.now))

    # Time.

    def at(self, time: float, do: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, do))

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, do = heapq.heappop(self._heap)
            do()
        self.now = until

    # Nodes.

    def start(self, number: int) -> None:
        node = self.nodes[number]
        assert node.keeper is None
        node.boots += 1
        node.applied = 0
        node.since = self.now
        keeper = Keeper(
            node.owner,
            self._keeper_settings,
            random=random.Random(self.random.random()),
            now=node.now(),
            wall=1e9 + self.now,
        )
        node.keeper = keeper
        self._told_of_members()
        self._armed[number] = inf
        boot = node.boots
        self.at(self.now, lambda: self._apply(number, boot))
        self._with(number, lambda keeper, now: None)

    def crash(self, number: int) -> None:
        node = self.nodes[number]
        node.keeper = None
        node.since = self.now
        self._note_losses()
        for key in [k for k in self._pending if k[0] == number]:
            del self._pending[key]
        self.at(self.now + self.random.random(), self._told_of_members)

    def split(self, minority: list[int]) -> None:
        self.side = {n: int(n in minority) for n in range(len(self.nodes))}
        self.at(self.now + 2.0 * self.random.random(), self._told_of_members)

    def heal(self) -> None:
        self.side = dict.fromkeys(self.side, 0)
        self.at(self.now + self.random.random(), self._told_of_members)

    def _told_of_members(self) -> None:
        """Gossip: everybody sees the boots that live, on the own side alone after a while."""
        for number, node in enumerate(self.nodes):
            if node.keeper is not None:
                boots = {
                    other.id: BootId(other.boots)
                    for n, other in enumerate(self.nodes)
                    if other.keeper is not None and self.side[n] == self.side[number]
                }
                self._with(number, lambda keeper, now, boots=boots: keeper.receive(Up(boots), now))  # type: ignore[misc]

    def _with(self, number: int, do: Callable[[Keeper, float], object]) -> object:
        """Let a keeper do something, and do what it wants done."""
        node = self.nodes[number]
        keeper = node.keeper
        if keeper is None:
            return None
        result = do(keeper, node.now())
        self._perform(number, node.boots, keeper)
        self._arm(number, node.boots, keeper)
        return result

    def _perform(self, number: int, boot: int, keeper: Keeper) -> None:
        effects = keeper.take()
        for ask in effects.asks:
            self._send(number, boot, ask)
        for operation, outcome in effects.done:
            told = self._pending.pop((number, boot, operation), None)
            if told is not None:
                told(outcome)
        for handle, answer in effects.answers:
            self._late(handle, encode(answer))
        for state in effects.fetched:
            moved = next(m for m in self._moved if m.state == state)
            keeper.receive(moved, self.nodes[number].now())
            self._perform(number, boot, keeper)

    def _arm(self, number: int, boot: int, keeper: Keeper) -> None:
        """Wake a keeper at its deadline."""
        at = max(keeper.deadline - self.nodes[number].offset, self.now + 0.001)
        if at < self._armed[number]:
            self._armed[number] = at
            self.at(at, lambda: self._wake(number, boot, at))

    def _wake(self, number: int, boot: int, at: float) -> None:
        if self._armed[number] == at:
            self._armed[number] = inf
        if self._lives(number, boot):
            self._with(number, lambda keeper, now: keeper.wake(now))

    # Messages.

    def _send(self, number: int, boot: int, ask: Ask) -> None:
        to = int(ask.owner.node, 16) - 1
        body = encode(ask.request)
        node = self.nodes[to]
        answered = [False]

        def silent(sent: bool) -> None:
            if not answered[0] and self._lives(number, boot):
                answered[0] = True
                self._with(number, lambda k, now: k.receive(Silent(ask.token, sent), now))

        def told(data: bytes) -> None:
            if not answered[0] and self._lives(number, boot):
                answered[0] = True
                answer = decode_answer(data)
                self._with(number, lambda k, now: k.receive(Told(ask.token, answer), now))

        def back(data: bytes) -> None:
            if self._arrives(to, number):
                self.at(self.now + self._delay(), lambda: told(data))

        def arrive() -> None:
            if node.keeper is None or not self._arrives(number, to):
                return
            handle = self._handle(back)
            answer = self._with(
                to,
                lambda k, now: k.serve(decode_request(body), self.nodes[number].id, now, handle),
            )
            if answer is not None:
                back(encode(answer))

        if node.keeper is None and self.random.random() < 0.5:
            self.at(self.now + 0.001, lambda: silent(False))
            return
        self.at(self.now + self._delay(), arrive)
        left = ask.deadline - self.nodes[number].now()
        self.at(self.now + max(0.0, left), lambda: silent(True))
        if not self.calm and self.random.random() < 0.3:
            self.at(self.now + min(left, 0.5), lambda: silent(True))

    def _handle(self, back: Callable[[bytes], None]) -> int:
        self._sequence += 1
        self._backs[self._sequence] = back
        return self._sequence

    def _late(self, handle: int, data: bytes) -> None:
        self._backs.pop(handle)(data)

    def _lives(self, number: int, boot: int) -> bool:
        return self.nodes[number].keeper is not None and self.nodes[number].boots == boot

    def _arrives(self, a: int, b: int) -> bool:
        return self.side[a] == self.side[b] and self.random.random() >= self.loss

    def _delay(self) -> float:
        if not self.calm and self.late and self.random.random() < 0.02:
            return self.random.random() * 2.0
        return 0.0005 + self.random.random() * 0.01

    # The ring's log, and who writes it.

    def _apply(self, number: int, boot: int) -> None:
        """Let a node go on in the log: one step at a time, or all at once as by a snapshot."""
        node = self.nodes[number]
        if not self._lives(number, boot):
            return
        if self.side[number] == 0 and node.applied < len(self.states) - 1:
            whole = self.random.random() < 0.05
            node.applied = len(self.states) - 1 if whole else node.applied + 1
            moved = self._moved[node.applied]
            self._with(number, lambda keeper, now: keeper.receive(moved, now))
        pause = 0.01 if self.random.random() < 0.9 else 0.5
        self.at(self.now + pause, lambda: self._apply(number, boot))

    def _lead(self) -> None:
        """The leader looks at the members and proposes."""
        self.at(self.now + 0.1, self._lead)
        planner = self._planner
        planner.receive(self.states[-1], self.now)
        planner.receive(Seen(tuple(self._view(n) for n in range(len(self.nodes))), 0), self.now)
        for number, node in enumerate(self.nodes):
            if node.keeper is not None and self.side[number] == 0 and self.random.random() < 0.7:
                revision, ready = node.keeper.report()
                planner.receive(Report(node.owner, revision, slot_set(ready)), self.now)
        planner.wake(self.now)
        command = planner.take().command
        if command is None:
            return
        self._index += 1
        applied = apply(self.states[-1], command, Revision(1 << 38 | self._index), self._scores)
        if applied.state is not self.states[-1]:
            self._log(applied.state)
        planner.receive(self.states[-1], self.now)
        planner.receive(Answered(isinstance(applied.result, Done)), self.now)

    def _view(self, number: int) -> View:
        node = self.nodes[number]
        alive = node.keeper is not None and self.side[number] == 0
        return View(
            node.id,
            BootId(node.boots),
            Incarnation(node.boots),
            "alive" if alive else "dead",
            node.since,
            node.participates,
        )

    # Users.

    def do(
        self,
        number: int,
        kind: str,
        key: bytes,
        value: int = 0,
        *,
        condition: Version | None = None,
        one: bool = False,
        left: int = 0,
        timeout: float = 2.0,
    ) -> Operation | None:
        """Begin an operation at a node; None if it does not run."""
        node = self.nodes[number]
        keeper = node.keeper
        if keeper is None:
            return None
        operation = Operation(kind, key, value, condition, self.now, left, self.now + timeout, one)
        self.history.append(operation)
        slot, name = slot_of(seed_of(BUCKET), key), name_of(BUCKET, key)
        now = node.now()
        deadline = now + timeout
        data = None if kind == "delete" else encode(value)
        if kind == "get":
            token = keeper.get(slot, name, one=one, deadline=deadline, now=now)
        elif condition is None:
            token = keeper.put(
                slot, name, data, left=left, one=one, version=None, deadline=deadline, now=now
            )
        else:
            token = keeper.atomic(
                slot,
                name,
                data,
                left=left,
                condition=condition,
                deadline=deadline,
                now=now,
            )

        def told(result: object) -> None:
            operation.ended = self.now
            operation.result = result

        boot = node.boots

        def cancel() -> None:
            if self._pending.pop((number, boot, token), None) and self._lives(number, boot):
                self._with(number, lambda keeper, now: keeper.cancel(token, now))

        operation.cancel = cancel
        self._pending[number, boot, token] = told
        self._perform(number, node.boots, keeper)
        self._arm(number, node.boots, keeper)
        return operation

    def leftovers(self) -> list[str]:
        """Return what keepers still have to do; nothing is, after a while without users."""
        of_keeper = ("_operations", "_asked", "_waiting", "_handles", "_handing")
        of_upkeep = ("_comparing", "_busy", "_under_way", "_purging", "_held", "_fills")
        return [
            f"{node.id[-1]} {name}"
            for node in self.nodes
            if node.keeper is not None
            for part, names in (
                (node.keeper, of_keeper),
                (node.keeper.reads, ("_waiting", "_gathered")),
                (node.keeper.writes, ("_waiting", "_gathered")),
                (node.keeper.upkeep, of_upkeep),
            )
            for name in names
            if getattr(part, name)
        ]

    def check(self) -> None:
        for node in self.nodes:
            if node.keeper is not None:
                node.keeper.check()

    def entries(self, key: bytes) -> list[bytes | None]:
        """Return what each present owner of a key keeps."""
        slot, name = slot_of(seed_of(BUCKET), key), name_of(BUCKET, key)
        found = []
        for owner in self.states[-1].current[slot]:
            node = self.nodes[int(owner.node, 16) - 1]
            if node.keeper is not None and node.boots == owner.boot:
                found.append(node.keeper.replica.store.get(slot, name, int(node.now() * 1000)))
        return found


def version(entry: object) -> int:
    """Return the version of what a read gave."""
    assert entry is None or isinstance(entry, bytes)
    return number_of(shown_version_of(entry))


def value(entry: object) -> int | None:
    """Return the value of what a read gave; None if there is none."""
    assert entry is None or isinstance(entry, bytes)
    if entry is None or is_tombstone(entry):
        return None
    return int(msgspec.msgpack.decode(value_of(entry)))


def _order(result: object) -> int:
    """Return by what copies order it."""
    if isinstance(result, int):
        return result
    assert result is None or isinstance(result, bytes)
    return number_of(version_of(result))


Losses = Mapping[int, Sequence[tuple[float, float]]]


def judge(history: list[Operation], losses: Losses | None = None) -> list[str]:
    """Return what is wrong with a history of quorum operations: nothing acknowledged is lost,
    reads never go back, and no version is written over twice by conditional writes.

    Args:
        losses: As the world has them: what was so before a loss need not be so after it.
    """
    wrong: list[str] = []
    for key in sorted({o.key for o in history}):
        mine = [o for o in history if o.key == key and o.ended < inf]
        lost = (losses or {}).get(slot_of(seed_of(BUCKET), key), ())
        seen: list[tuple[Operation, int]] = []
        for o in sorted(mine, key=lambda o: o.ended):
            if isinstance(o.result, MicroosError):
                continue
            found = _order(o.result)
            known = max(
                (
                    v
                    for before, v in seen
                    if before.ended < o.begun
                    and not any(start <= o.ended and before.begun <= end for start, end in lost)
                ),
                default=0,
            )
            if found < known or (found == known and o.kind != "get" and known):
                wrong.append(f"{key!r}: {o.kind} at {o.begun:.3f}..{o.ended:.3f} {found} < {known}")
            seen.append((o, found))
        taken: dict[int, Operation] = {}
        for o in mine:
            if o.condition is not None and isinstance(o.result, int) and o.condition > 0:
                first = taken.get(o.condition)
                if first is not None and not any(
                    start <= max(o.ended, first.ended) and min(o.begun, first.begun) <= end
                    for start, end in lost
                ):
                    wrong.append(f"{key!r}: {o.condition} was written over twice")
                taken[o.condition] = o
    return wrong


def judge_times(history: list[Operation]) -> list[str]:
    """Return which reads gave a value beyond its time, or its end before that."""
    wrong: list[str] = []
    puts = {o.result: o for o in history if o.kind == "put" and isinstance(o.result, int)}
    for o in history:
        if o.kind != "get" or not isinstance(o.result, bytes):
            continue
        put = puts.get(version(o.result))
        if put is None or not put.left:
            continue
        end = put.begun + put.left / 1000.0
        if value(o.result) is not None and o.begun > end + LATE_MAX:
            wrong.append(f"{o.key!r}: a value at {o.begun:.3f}, its time was over at {end:.3f}")
        if value(o.result) is None and o.ended < end - EARLY_MAX:
            wrong.append(f"{o.key!r}: no value at {o.ended:.3f}, its time is over at {end:.3f}")
    return wrong
