"""Machine 1: locks, each with one owner and a queue, decided in the log.

                 Acquire                       Release, Cancel, end of session
    (no record) ─────────▶ owned by X, token ──────────────────────────────▶ the first waiter
                                │ end of session, delay > 0                  owns it, or no record
                                ▼
                           nobody's until `free_at` (log time) ──wake──▶ the same

A fencing token is where in the log the grant was made, so along the grants of a
name tokens rise strictly. For that there is **one hand-over per lock and log
entry**: if an entry wakes a waiter and ends its session as well, the next waiter
is served at the next entry, which has another index. A session's waiters leave
the queues before its locks are handed on, so no lock goes to one that is gone.

Release and the next grant are one step: nobody watches, nobody polls.

Source: Burrows, "The Chubby lock service" (OSDI 2006), §2.4 (sequencers, lock
delay); a queue in the state machine instead of watched keys as in etcd.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import msgspec

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.hashing import xxh3
from microos.raft.entry import Stamp
from microos.raft.machine import Outcome, Refused, pieces
from microos.sync.messages import (
    Acquire,
    Cancel,
    Cancelled,
    Freed,
    Grant,
    Granted,
    LockInfo,
    Lost,
    Queued,
    Release,
    Released,
    Result,
    Taken,
    decode_command,
)
from microos.types import FencingToken, Index, SessionId, packed

NUMBER = 1

_Key = tuple[str, str]
"""(namespace, name)."""

_Owner = tuple[SessionId, int]
"""(session, owner number)."""

_NOBODY: _Owner = (SessionId(0), 0)
_MASK = 0xFFFF_FFFF_FFFF_FFFF


class _Lock(msgspec.Struct):
    owner: _Owner = _NOBODY
    token: FencingToken = FencingToken(0)
    handed: Index = Index(0)
    """Entry of the last hand-over."""
    last: _Owner = _NOBODY
    """The owner, or while it is nobody's the one before."""
    free_at: int = -1
    """Log time of the next hand-over [µs] while it is nobody's; -1: owned."""
    waiters: OrderedDict[_Owner, Index] = msgspec.field(default_factory=OrderedDict)
    """In order of arrival, with the entry that queued them."""


class _FrozenLock(msgspec.Struct, frozen=True, array_like=True):
    namespace: str
    name: str
    owner: _Owner
    token: FencingToken
    handed: Index
    last: _Owner
    free_at: int
    waiters: tuple[tuple[SessionId, int, Index], ...]


_decode_state: Decoder[tuple[_FrozenLock, ...]] = Decoder(tuple[_FrozenLock, ...])


class LockMachine:
    """All locks of the cluster."""

    number = NUMBER
    version = 1

    def __init__(self, delay: int = 0) -> None:
        """Make it empty.

        Args:
            delay: How long a lock stays nobody's after its owner's session ended with it
                [µs of log time]. 0 is right where owners stop by their own clock before the
                lease can be given away, as ours do; the same on all members.
        """
        assert delay >= 0
        self._delay = delay
        self._locks: dict[_Key, _Lock] = {}
        self._of_session: dict[SessionId, dict[tuple[_Key, int], None]] = {}
        self._due: list[tuple[int, _Key]] = []
        """Heap of the locks that are nobody's, by `free_at`."""
        self._digest = 0

    # The machine.

    def apply(self, session: SessionId, command: bytes, stamp: Stamp) -> Outcome:
        """Do one command of a living session. Cost: O(1), a repeated `Acquire` O(waiters)."""
        events: list[object] = []
        result = self._apply(session, command, stamp, events)
        return Outcome(encode(result), tuple(events))

    def _apply(
        self, session: SessionId, command: bytes, stamp: Stamp, events: list[object]
    ) -> Result:
        try:
            body = decode_command(command)
        except RemoteProtocolError:
            return Refused("RejectedError", "bad_request", "expected a command of the lock machine")
        for text in (body.namespace, body.name):
            if len(text) > limits.LOCK_NAME_TEXT:
                return Refused(
                    "LimitError",
                    "size",
                    f"expected a name of at most {limits.LOCK_NAME_TEXT} characters, "
                    f"found {len(text)}",
                )
        if not body.name:
            return Refused("RejectedError", "bad_request", "expected the name of a lock, found ''")
        match body:
            case Acquire():
                return self._acquire(session, body, stamp, events)
            case Release():
                return self._release(session, body, stamp, events)
            case Cancel():
                return self._cancel(session, body, stamp, events)

    def _acquire(
        self, session: SessionId, body: Acquire, stamp: Stamp, events: list[object]
    ) -> Result:
        key, me = (body.namespace, body.name), (session, body.owner)
        lock = self._locks.get(key)
        if lock is None:
            if len(self._locks) >= limits.LOCKS_MAX:
                return Refused(
                    "LimitError", "count", f"expected at most {limits.LOCKS_MAX} locks in use"
                )
            lock = self._locks[key] = _Lock()
            self._remember(key, me)
            self._digest += _lock_digest(key, lock)
            events.append(self._grant(key, lock, me, stamp))
            return Granted(lock.token)
        if lock.owner == me:
            return Granted(lock.token)
        if me in lock.waiters:
            return Queued(_position(lock, me))
        if not body.wait:
            return Taken(*lock.last)
        if len(lock.waiters) >= limits.LOCK_WAITERS_MAX:
            return Refused(
                "OverloadedError",
                "queue_full",
                f"expected at most {limits.LOCK_WAITERS_MAX} waiters for {body.name!r}; "
                "try again later",
            )
        lock.waiters[me] = stamp.index
        self._remember(key, me)
        self._digest += _waiter_digest(key, me, stamp.index)
        return Queued(len(lock.waiters))

    def _release(
        self, session: SessionId, body: Release, stamp: Stamp, events: list[object]
    ) -> Result:
        key, me = (body.namespace, body.name), (session, body.owner)
        lock = self._locks.get(key)
        if lock is None or lock.owner != me or lock.token != body.token:
            return Released(False)
        self._free(key, lock, stamp, events)
        return Released(True)

    def _cancel(
        self, session: SessionId, body: Cancel, stamp: Stamp, events: list[object]
    ) -> Result:
        key, me = (body.namespace, body.name), (session, body.owner)
        lock = self._locks.get(key)
        if lock is None:
            return Cancelled(False)
        if lock.owner == me:
            self._free(key, lock, stamp, events)
            return Cancelled(True)
        if me in lock.waiters:
            self._leave_queue(key, lock, me)
            self._forget(key, me)
        return Cancelled(False)

    def ended(self, sessions: tuple[SessionId, ...], stamp: Stamp) -> tuple[object, ...]:
        """Take everything from these sessions, then hand their locks on.

        Cost: O(what they owned and waited for).
        """
        events: list[object] = []
        owned: list[_Key] = []
        for session in sessions:
            for key, number in sorted(self._of_session.pop(session, {})):
                lock, me = self._locks[key], (session, number)
                if lock.owner == me:
                    owned.append(key)
                    events.append(Lost(*key, session, number, lock.token))
                else:
                    self._leave_queue(key, lock, me)
                    events.append(Lost(*key, session, number, FencingToken(0)))
        for key in owned:
            lock = self._locks[key]
            self._disown(key, lock)
            if self._delay:
                self._wait_until(key, lock, stamp.time + self._delay)
            else:
                self._hand_over(key, lock, stamp, events)
        return tuple(events)

    def wake(self, stamp: Stamp) -> tuple[object, ...]:
        """Hand on the locks whose delay is over. Cost: O(log locks) each."""
        events: list[object] = []
        while self._due and self._due[0][0] <= stamp.time:
            _, key = heapq.heappop(self._due)
            lock = self._locks[key]
            self._digest -= _lock_digest(key, lock)
            lock.free_at = -1
            self._digest += _lock_digest(key, lock)
            assert lock.handed < stamp.index
            self._hand_over(key, lock, stamp, events)
        return tuple(events)

    def deadline(self) -> int | None:
        """Return the log time at which the next lock is handed on [µs]."""
        return self._due[0][0] if self._due else None

    # From owner to owner.

    def _free(self, key: _Key, lock: _Lock, stamp: Stamp, events: list[object]) -> None:
        session, number = lock.owner
        events.append(Freed(*key, session, number, lock.token))
        self._forget(key, lock.owner)
        self._disown(key, lock)
        self._hand_over(key, lock, stamp, events)

    def _disown(self, key: _Key, lock: _Lock) -> None:
        self._digest -= _lock_digest(key, lock)
        lock.owner, lock.token = _NOBODY, FencingToken(0)
        self._digest += _lock_digest(key, lock)

    def _hand_over(self, key: _Key, lock: _Lock, stamp: Stamp, events: list[object]) -> None:
        """Give nobody's lock to the first waiter; forget the lock if there is none."""
        assert lock.owner == _NOBODY
        if not lock.waiters:
            self._digest -= _lock_digest(key, lock)
            del self._locks[key]
        elif lock.handed == stamp.index:
            # A second grant here would have the token of the first.
            self._wait_until(key, lock, stamp.time)
        else:
            me = next(iter(lock.waiters))
            self._leave_queue(key, lock, me)
            events.append(self._grant(key, lock, me, stamp))

    def _grant(self, key: _Key, lock: _Lock, me: _Owner, stamp: Stamp) -> Grant:
        assert lock.owner == _NOBODY and lock.handed < stamp.index
        self._digest -= _lock_digest(key, lock)
        lock.owner = lock.last = me
        lock.token = FencingToken(packed(stamp.epoch, stamp.index))
        lock.handed = stamp.index
        self._digest += _lock_digest(key, lock)
        return Grant(*key, *me, lock.token)

    def _wait_until(self, key: _Key, lock: _Lock, at: int) -> None:
        assert lock.owner == _NOBODY and lock.free_at < 0
        self._digest -= _lock_digest(key, lock)
        lock.free_at = at
        self._digest += _lock_digest(key, lock)
        heapq.heappush(self._due, (at, key))

    def _leave_queue(self, key: _Key, lock: _Lock, me: _Owner) -> None:
        self._digest -= _waiter_digest(key, me, lock.waiters.pop(me))

    def _remember(self, key: _Key, me: _Owner) -> None:
        self._of_session.setdefault(me[0], {})[key, me[1]] = None

    def _forget(self, key: _Key, me: _Owner) -> None:
        mine = self._of_session[me[0]]
        del mine[key, me[1]]
        if not mine:
            del self._of_session[me[0]]

    # Reads: local, as of what this member has applied.

    def owner(self, namespace: str, name: str) -> Grant | None:
        """Return the present grant of a lock, None if it is nobody's."""
        lock = self._locks.get((namespace, name))
        if lock is None or lock.owner == _NOBODY:
            return None
        return Grant(namespace, name, *lock.owner, lock.token)

    def token(self, namespace: str, name: str) -> FencingToken | None:
        """Return the token of the present grant of a lock, None if it is nobody's."""
        grant = self.owner(namespace, name)
        return None if grant is None else grant.token

    def waiters(self, namespace: str, name: str) -> tuple[tuple[SessionId, int], ...]:
        """Return (session, owner number) of all who wait, the next one first."""
        lock = self._locks.get((namespace, name))
        return () if lock is None else tuple(lock.waiters)

    def standing(
        self, namespace: str, name: str, session: SessionId, owner: int
    ) -> Granted | Queued | None:
        """Return how one owner stands: has it, waits for it, or neither.

        Cost: O(waiters).
        """
        lock, me = self._locks.get((namespace, name)), (session, owner)
        if lock is None:
            return None
        if lock.owner == me:
            return Granted(lock.token)
        return Queued(_position(lock, me)) if me in lock.waiters else None

    def locks(self) -> tuple[LockInfo, ...]:
        """Return all locks in use, by namespace and name. Cost: O(n log n)."""
        return tuple(
            LockInfo(*key, *lock.owner, lock.token, len(lock.waiters))
            for key, lock in sorted(self._locks.items(), key=lambda item: item[0])
        )

    @property
    def count(self) -> int:
        """How many locks are in use."""
        return len(self._locks)

    # Snapshots, digest, invariants.

    def freeze(self) -> Iterator[bytes]:
        """Return the state in chunks, copied at the call."""
        state = tuple(
            _FrozenLock(
                *key,
                lock.owner,
                lock.token,
                lock.handed,
                lock.last,
                lock.free_at,
                tuple((*me, index) for me, index in lock.waiters.items()),
            )
            for key, lock in self._locks.items()
        )
        return pieces(encode(state))

    def restore(self, chunks: Iterable[bytes], version: int) -> None:
        """Replace the state.

        Raises:
            RemoteProtocolError: Not a frozen state of this machine, or of a newer version.
        """
        if version != self.version:
            raise RemoteProtocolError(f"expected locks of version {self.version}, found {version}")
        data = b"".join(chunks)
        self._locks, self._of_session, self._due, self._digest = {}, {}, [], 0
        for one in _decode_state(data) if data else ():
            key = (one.namespace, one.name)
            lock = _Lock(one.owner, one.token, one.handed, one.last, one.free_at)
            lock.waiters.update((((s, n), index) for s, n, index in one.waiters))
            self._locks[key] = lock
            self._digest += _lock_digest(key, lock)
            self._digest += sum(_waiter_digest(key, *waiter) for waiter in lock.waiters.items())
            for me in (lock.owner, *lock.waiters):
                if me != _NOBODY:
                    self._remember(key, me)
            if lock.free_at >= 0:
                heapq.heappush(self._due, (lock.free_at, key))

    def digest(self) -> int:
        """Return a number equal exactly where the locks are. Cost: O(1)."""
        return self._digest & _MASK

    def check(self) -> None:
        """Assert all invariants. Cost: O(owners and waiters)."""
        total = places = 0
        assert len(self._locks) <= limits.LOCKS_MAX
        for key, lock in self._locks.items():
            owned = lock.owner != _NOBODY
            assert owned == (lock.token != 0) == (lock.free_at < 0)
            assert lock.owner not in lock.waiters
            assert len(lock.waiters) <= limits.LOCK_WAITERS_MAX
            assert list(lock.waiters.values()) == sorted(set(lock.waiters.values()))
            for me in ((lock.owner,) if owned else ()) + tuple(lock.waiters):
                assert (key, me[1]) in self._of_session[me[0]]
                places += 1
            total += _lock_digest(key, lock)
            total += sum(_waiter_digest(key, *waiter) for waiter in lock.waiters.items())
        nobodys = [(lock.free_at, key) for key, lock in self._locks.items() if lock.free_at >= 0]
        assert sorted(self._due) == sorted(nobodys)
        assert places == sum(len(mine) for mine in self._of_session.values())
        assert all(self._of_session.values())
        assert (total - self._digest) & _MASK == 0


def _position(lock: _Lock, me: _Owner) -> int:
    return 1 + list(lock.waiters).index(me)


def _lock_digest(key: _Key, lock: _Lock) -> int:
    return xxh3(encode((key, lock.owner, lock.token, lock.handed, lock.last, lock.free_at)))


def _waiter_digest(key: _Key, me: _Owner, index: Index) -> int:
    return xxh3(encode((key, me, index)))
