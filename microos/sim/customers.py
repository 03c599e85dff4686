"""What users do with store and calls of one boot in layer `cores`, and what came of it.

| keys | what is done with them | judged by |
|---|---|---|
| `p…` | plain writes, deletes, reads at `quorum`, some with a time to live | order of versions |
| `a…` | writes and deletes under a condition, reads at `quorum` | written over once |
| `o…` | everything at `one`, reads at `quorum` too | equal copies at the end |

Each value written is unique and says by whom, so a read tells which write it has seen.
Unknown outcomes stay open to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from microos.codec import Decoder, encode
from microos.errors import ConflictError, MicroosError, UnavailableError
from microos.ring.entry import is_tombstone, number_of, shown_version_of, value_of, version_of
from microos.ring.keeper import Keeper
from microos.ring.ring import seed_of, slot_of
from microos.ring.store import name_of
from microos.sim.calls import Answer, Calls, Outcome
from microos.sim.host import Host, node_name
from microos.sim.keeping import Keeping
from microos.sim.swarm import Store
from microos.sim.world import SECOND, exponential
from microos.types import NodeId, Version

BUCKET = "sim"
ECHO = "sim.echo"
LONG = 100_000
"""Size of a body that travels in pieces [bytes]."""

PATIENT = 0.5
"""Operations and calls with this much time have to succeed in a quiet world [s]."""


class KvOperation(msgspec.Struct):
    """One line of the store's history."""

    number: int
    kind: str
    """`get`, `put`, `delete`."""
    key: bytes
    client: str
    begun_ns: int
    timeout: float
    one: bool = False
    condition: int | None = None
    """The version it was to take place over; 0: over no value; None: over anything."""
    left_ms: int = 0
    """Its time to live; 0: for ever."""
    ended_ns: int | None = None
    """None: unknown to the end."""
    outcome: str = ""
    """`ok`, `conflict`, `unavailable` (nothing happened), `uncertain`; empty: unknown."""
    error: str = ""
    version: int = 0
    """Of what was written or found, as copies go by it; 0: there was nothing."""
    shown: int = 0
    """The version users know it by."""
    found: int | None = None
    """Of a read: the number of the operation whose value it found."""
    is_gone: bool = False
    """Of a read: there was no value, or the trace of one."""

    @property
    def slot(self) -> int:
        return place_of(self.key)[0]


class CallOperation(msgspec.Struct):
    """One line of the history of calls."""

    number: int
    caller: str
    """Node and boot."""
    callee: str
    """Empty: whoever the router picks."""
    begun_ns: int
    timeout: float
    cancelled: bool = False
    error: str = ""
    ended_ns: int | None = None
    outcome: str = ""
    """`ok`, `unavailable`, `uncertain`, `refused`; empty: unknown."""
    begun: int = 0
    """How often a handler has begun it."""


class _Asked(msgspec.Struct, array_like=True, frozen=True):
    number: int
    wait_ns: int
    padding: bytes


_decode_asked: Decoder[_Asked] = Decoder(_Asked)


def place_of(key: bytes) -> tuple[int, bytes]:
    """Return the slot and the name of a key."""
    return slot_of(seed_of(BUCKET), key), name_of(BUCKET, key)


def keys_of(store: Store) -> list[bytes]:
    """Return all keys of a world."""
    return [b"%c%d" % (kind, n) for kind in b"pao" for n in range(store.keys)]


class KvJudge(Protocol):
    history: list[KvOperation]

    def began(self, operation: KvOperation) -> None: ...
    def ended(self, operation: KvOperation) -> None: ...


class CallJudge(Protocol):
    history: list[CallOperation]

    def handled(self, number: int, callee: str) -> None: ...
    def ended(self, operation: CallOperation, answer: bytes | None) -> None: ...


class Customers:
    """The users of one boot.

    Args:
        kv_judge: Told of each operation of the store when it begins and ends; has the history
            of the whole world, which is added to.
        call_judge: The same for calls.
        nodes: Whom calls may go to.
    """

    def __init__(
        self,
        host: Host,
        keeping: Keeping,
        calls: Calls,
        store: Store,
        *,
        kv_judge: KvJudge,
        call_judge: CallJudge,
        nodes: list[NodeId],
        stop_ns: int,
    ) -> None:
        self._host = host
        self._gate = host.gate
        self._process = f"{host.name}.{host.boot}"
        self._keeping = keeping
        self._calls = calls
        self._store = store
        self._kv = kv_judge
        self._call_judge = call_judge
        self._history = kv_judge.history
        self._called = call_judge.history
        self._others = [node for node in nodes if node != host.id]
        self._stop = stop_ns
        self._world = host.world
        self._chance = host.random("customers")
        self._known: dict[bytes, int] = {}
        """The version last met of each key; 0: no value."""
        calls.serve(ECHO, self._echo)
        for number in range(store.clients):
            self._later(self._think(), lambda n=number: self._next(n))  # type: ignore[misc]
        if store.call_ns:
            self._later(self._pause(), self._call)

    # The store.

    def _next(self, number: int) -> None:
        if self._world.now >= self._stop:
            return
        client = f"{self._process}.{number}"
        kind = self._chance.choice(b"ppppaaaao")
        key = b"%c%d" % (kind, self._chance.randrange(self._store.keys))
        timeout = self._chance.choice((PATIENT, 2.0))
        operation = KvOperation(0, "get", key, client, self._world.now, timeout)
        dice = self._chance.randrange(10)
        if kind == ord("a"):
            self._conditional(operation, dice)
        else:
            operation.one = kind == ord("o") and self._chance.random() < 0.9
            operation.kind = "get" if dice < 4 else "put" if dice < 9 else "delete"
            if dice == 8:
                operation.left_ms = self._chance.randrange(100, 3000)

        def again() -> None:
            # Who is told at once that there is no quorum would fill the history with that.
            pause = self._think() * (4 if operation.outcome == "unavailable" else 1)
            self._later(pause, lambda: self._next(number))

        self.do(operation, again)

    def _conditional(self, operation: KvOperation, dice: int) -> None:
        known = self._known.get(operation.key, 0)
        if dice >= 4:
            operation.kind = "delete" if dice == 9 and known else "put"
            operation.condition = 0 if dice == 8 else known

    def do(self, operation: KvOperation, then: Callable[[], None]) -> None:
        """Begin an operation; `then` is called when it has ended."""
        operation.number = len(self._history)
        self._history.append(operation)
        self._kv.began(operation)
        slot, name = place_of(operation.key)
        value = None if operation.kind == "delete" else encode(operation.number)

        def begin(keeper: Keeper, now: float) -> int:
            deadline = now + operation.timeout
            if operation.kind == "get":
                return keeper.get(slot, name, one=operation.one, deadline=deadline, now=now)
            if operation.condition is None:
                return keeper.put(
                    slot,
                    name,
                    value,
                    left=operation.left_ms,
                    one=operation.one,
                    version=None,
                    deadline=deadline,
                    now=now,
                )
            condition = Version(operation.condition)
            return keeper.atomic(
                slot, name, value, left=0, condition=condition, deadline=deadline, now=now
            )

        def done(result: object) -> None:
            self._ended(operation, result)
            then()

        self._keeping.run(begin, done)

    def _ended(self, operation: KvOperation, result: object) -> None:
        operation.ended_ns = self._world.now
        if isinstance(result, MicroosError):
            operation.error = f"{type(result).__name__}: {result}"
            operation.outcome = "uncertain"
            if isinstance(result, ConflictError):
                operation.outcome = "conflict"
                found = getattr(result, "version", None)
                if found is not None or result.reason == "absent":
                    self._known[operation.key] = found or 0
            elif isinstance(result, UnavailableError):
                operation.outcome = "unavailable"
        else:
            operation.outcome = "ok"
            self._note(operation, result)
            gone = operation.is_gone or operation.kind == "delete"
            self._known[operation.key] = 0 if gone else operation.shown
        what = f"{operation.kind} {operation.outcome}"
        self._world.sometimes(f"kv.{what}")
        self._world.trace("kv", operation.client, what, operation.version.to_bytes(16, "big"))
        self._kv.ended(operation)

    def _note(self, operation: KvOperation, result: object) -> None:
        if isinstance(result, int):
            operation.version = operation.shown = result
            return
        assert result is None or isinstance(result, bytes)
        operation.version = number_of(version_of(result))
        operation.shown = number_of(shown_version_of(result))
        operation.is_gone = result is None or is_tombstone(result)
        if result is not None and not operation.is_gone:
            operation.found = int(msgspec.msgpack.decode(value_of(result)))

    # Calls.

    def _call(self) -> None:
        """Call somebody with a body that names the call."""
        if self._world.now >= self._stop:
            return
        callee = self._chance.choice(self._others)
        timeout = self._chance.choice((0.02, 0.1, PATIENT, 2.0))
        wait = (
            0
            if self._chance.random() < 0.5
            else int(timeout * 1.5 * SECOND * self._chance.random())
        )
        number = len(self._called)
        operation = CallOperation(
            number,
            self._process,
            node_name(callee),
            self._world.now,
            timeout,
        )
        self._called.append(operation)
        padding = bytes(LONG if self._chance.randrange(50) == 0 else 0)
        body = encode(_Asked(number, wait, padding))
        deadline = self._host.line.now() + timeout
        cancel = self._calls.post(callee, ECHO, body, deadline, lambda o: self._told(operation, o))
        if self._chance.random() < 0.1:
            operation.cancelled = True
            self._later(int(timeout * SECOND * self._chance.random()), cancel)
        self._later(self._pause(), self._call)

    def _told(self, operation: CallOperation, outcome: Outcome) -> None:
        assert operation.ended_ns is None
        operation.ended_ns = self._world.now
        answer: bytes | None = None
        if isinstance(outcome, UnavailableError):
            operation.outcome = "unavailable"
        elif isinstance(outcome, MicroosError):
            operation.outcome = "uncertain"
        else:
            operation.outcome, answer = "ok", outcome
        self._world.sometimes(f"call.{operation.outcome}")
        self._call_judge.ended(operation, answer)

    def _echo(self, body: bytes, sender: NodeId, answer: Answer) -> bytes | None:
        """Answer a call by what it says, at once or after the time it says."""
        asked = _decode_asked(body)
        self._call_judge.handled(asked.number, self._host.name)
        told = encode((asked.number, self._host.name, asked.padding))
        if not asked.wait_ns:
            return told
        self._later(asked.wait_ns, lambda: answer(told))
        return None

    # Time.

    def _think(self) -> int:
        return 1 + exponential(self._chance.getrandbits(64), self._store.think_ns)

    def _pause(self) -> int:
        return 1 + exponential(self._chance.getrandbits(64), self._store.call_ns)

    def _later(self, delay: int, fn: Callable[[], None]) -> None:
        self._world.after(delay, lambda: self._gate(fn))


def answer_of(data: bytes) -> tuple[int, str, int]:
    """Return the number of the call, who answered, and the size of what came with it."""
    number, name, padding = msgspec.msgpack.decode(data)
    return int(number), str(name), len(padding)
