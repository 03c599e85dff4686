"""A lock as a block: held while the block runs, cancelled before anyone else can have it.

    async with node.sync.lock("ledger", ttl=10.0, wait=30.0) as lease:
        await ledger.write(total, fence=lease.token)

Entering waits its turn in a queue that is part of the replicated state; the grant
is learnt from this node's own copy of the log. The block runs in a cancel scope
that ends with the session that carries the lease, and the session ends on the
owner's clock before the cluster may give the lock away. A process that was
suspended beyond its lease finds that out at its next checkpoint, or by
`lease.check()`; whatever it still sends then is refused by a store that compares
fencing tokens. Not reentrant: every block is an owner of its own.

Source: Burrows, "The Chubby lock service" (OSDI 2006), §2.4 (sequencers);
Kleppmann, "How to do distributed locking" (2016), fencing tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType

import trio

from microos import limits
from microos.codec import encode
from microos.errors import (
    LeaseLostError,
    LimitError,
    MicroosError,
    NoQuorumError,
    UnavailableError,
    UncertainError,
    by_name,
)
from microos.node.kernel import Kernel
from microos.node.sessions import Session
from microos.node.statistics import QueueStatistics
from microos.raft.composite import Restored
from microos.raft.machine import Refused
from microos.settings import SyncSettings
from microos.sync.machine import LockMachine
from microos.sync.messages import (
    Acquire,
    Cancel,
    Cancelled,
    Grant,
    Granted,
    Lost,
    Queued,
    Release,
    Released,
    Taken,
    decode_answer,
)
from microos.types import FencingToken, SessionId

RELEASE_TIMEOUT = 5.0
"""Longest wait for a release to be committed when a block ends [s]; the ttl does the rest."""

GIVE_BACK_PAUSE = 0.1
"""Pause before a release is tried again [s]."""


class Lease:
    """What a lock gives its taker."""

    def __init__(self, name: str, token: FencingToken, session: Session) -> None:
        self.name = name
        self.token = token
        """Strictly greater than that of every earlier grant in the cluster."""
        self._session = session
        self._revoked = False
        self._on_revoked: Callable[[], None] = _nothing

    @property
    def lost(self) -> str:
        """Why it is no longer held (`expired`, `revoked`), or nothing while it is."""
        return "revoked" if self._revoked else self._session.lost

    def check(self) -> None:
        """Raise if the lock is no longer certainly held; for steps that must not run late.

        Raises:
            LeaseLostError: It ended.
        """
        if self.lost:
            raise LeaseLostError(
                f"the lease on {self.name!r} ended ({self.lost}) before its block did; "
                "what was written under its token is still protected by it",
                reason=self.lost,
            )

    def revoke(self) -> None:
        """Take note that the log has ended it. For the library."""
        self._revoked = True
        self._on_revoked()

    def on_lost(self, told: Callable[[], None]) -> Callable[[], None]:
        """Call `told` when the lease is lost; return what undoes it. For the library."""
        self._on_revoked = told
        return self._session.on_lost(told)

    def __repr__(self) -> str:
        return f"<Lease {self.name!r} token={self.token} {self.lost or 'held'}>"


class Sync:
    """`node.sync`."""

    def __init__(self, kernel: Kernel, machine: LockMachine, settings: SyncSettings) -> None:
        self._kernel = kernel
        self._machine = machine
        self._settings = settings
        self._owners = 0
        self._locks: dict[tuple[SessionId, int], Lock] = {}
        kernel.register(machine, self._told)
        kernel.add_queues(self._queues)

    def lock(
        self,
        name: str,
        *,
        ttl: float | None = None,
        wait: float | None = None,
        namespace: str = "default",
    ) -> Lock:
        """Return a block that holds the lock `name` while it runs.

        Args:
            name: 1..256 characters; locks of other names and namespaces are independent.
            ttl: How long the lock outlives its owner's last sign [s]. Positive, raised to two
                election timeouts; default 15.
            wait: How long entering waits its turn [s]; 0 tries, inf waits. Default 15.

        Raises (on entering):
            UnavailableError: `taken` with wait=0, `deadline` after `wait`.
            NoQuorumError: The group does not answer.
            LimitError: Too many locks or waiters.

        Raises (on leaving):
            LeaseLostError: The lease ended before the block did; the block was cancelled.
        """
        ttl = self._settings.ttl if ttl is None else ttl
        wait = self._settings.wait if wait is None else wait
        if not 0 < len(name) <= limits.LOCK_NAME_TEXT:
            raise LimitError(
                f"expected a lock name of 1..{limits.LOCK_NAME_TEXT} characters, found {len(name)}"
            )
        if not (ttl > 0 and math.isfinite(ttl)):
            raise ValueError(f"ttl must be positive and finite, found {ttl}")
        if not wait >= 0:
            raise ValueError(f"wait must be 0 or more, found {wait}")
        return Lock(self, name, namespace, ttl, wait)

    def owner(self, name: str, *, namespace: str = "default") -> FencingToken | None:
        """Return the token of the present owner as this node knows it; None if free. No I/O."""
        return self._machine.token(namespace, name)

    # For Lock.

    def _new_owner(self) -> int:
        self._owners += 1
        return self._owners

    def _told(self, event: object) -> None:
        match event:
            case Grant():
                lock = self._locks.get((event.session, event.owner))
                if lock is not None:
                    lock.granted(event.token)
            case Lost():
                lock = self._locks.get((event.session, event.owner))
                if lock is not None:
                    lock.revoked()
            case Restored():
                for lock in list(self._locks.values()):
                    lock.look_again(self._machine)

    def _queues(self) -> tuple[QueueStatistics, ...]:
        bound = limits.LOCK_WAITERS_MAX
        return (QueueStatistics("sync.locks", len(self._locks), bound, "refuse", 0),)


class Lock:
    """One owner of one lock: a block. Made by `node.sync.lock`."""

    def __init__(self, sync: Sync, name: str, namespace: str, ttl: float, wait: float) -> None:
        self._sync = sync
        self._kernel = sync._kernel
        self._clock = sync._kernel.runtime.clock
        self._name = name
        self._namespace = namespace
        self._ttl = ttl
        self._wait = wait
        self._owner = sync._new_owner()
        self._scope = trio.CancelScope()
        self._undo: Callable[[], None] = _nothing
        self._session: Session | None = None
        self._token: FencingToken | None = None
        self._moved = trio.Event()
        self._lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        if self._session is not None:
            raise RuntimeError("a lock block can be entered once; call node.sync.lock() again")
        lease = self._lease = await self._acquire()
        self._scope.__enter__()
        self._undo = lease.on_lost(self._scope.cancel)
        return lease

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._lease is not None
        lost = self._lease.lost
        self._undo()
        swallowed = bool(self._scope.__exit__(kind, error, traceback))
        if lost:
            self._forget()
            if error is None or swallowed:
                self._lease.check()
            return False
        await self._release(self._lease.token)
        return swallowed

    # What the log says of this owner.

    def granted(self, token: FencingToken) -> None:
        self._token = token
        self._moved.set()

    def revoked(self) -> None:
        if self._lease is not None:
            self._lease.revoke()
        self._moved.set()

    def look_again(self, machine: LockMachine) -> None:
        """Learn from the machine's state how this owner stands: a snapshot overtook the log."""
        assert self._session is not None
        standing = machine.standing(self._namespace, self._name, self._session.id, self._owner)
        if isinstance(standing, Granted):
            self.granted(standing.token)
        elif self._lease is not None:
            self.revoked()

    # Taking it.

    async def _acquire(self) -> Lease:
        started = self._clock.now()
        # Even a try must reach the group and come back.
        patience = self._wait if self._wait > 0 else self._sync._settings.wait
        session = self._session = await self._kernel.session(self._ttl, timeout=patience)
        self._sync._locks[session.id, self._owner] = self
        undo = session.on_lost(lambda: self._moved.set())
        try:
            await self._ask(session, started + patience)
            while self._token is None and not session.lost:
                self._moved = trio.Event()
                with self._clock.timeout_at(started + self._wait) as scope:
                    await self._moved.wait()
                if scope.cancelled_caught:
                    break
            if self._token is None or session.lost:
                raise self._not_granted(session)
        except BaseException:
            # Not taken after all: leave the queue, or give back a grant that won the race.
            self._kernel.spawn(self._cancel)
            raise
        finally:
            undo()
        return Lease(self._name, self._token, session)

    async def _ask(self, session: Session, until: float) -> None:
        body = encode(Acquire(self._namespace, self._name, self._owner, self._wait > 0))
        try:
            data = await self._kernel.submit_in(
                session, self._sync._machine.number, body, timeout=until - self._clock.now()
            )
        except UncertainError as error:
            # Whatever became of it is taken back, so nothing has happened.
            raise NoQuorumError(f"asking for lock {self._name!r}: {error}") from error
        match decode_answer(data):
            case Granted(token):
                self._token = token
            case Queued():
                pass
            case Taken():
                raise UnavailableError(
                    f"lock {self._name!r} is taken; wait for it with wait=SECONDS", reason="taken"
                )
            case Refused(kind, reason, message):
                raise by_name(kind, message, reason)
            case other:
                raise AssertionError(f"expected an answer to acquire, found {other!r}")

    def _not_granted(self, session: Session) -> MicroosError:
        if session.lost:
            return UnavailableError(
                f"the session that waited for lock {self._name!r} ended; try again",
                reason="deadline",
            )
        return UnavailableError(
            f"lock {self._name!r} was not free within {self._wait:g} s; "
            "its owner is alive and still holds it",
            reason="deadline",
        )

    def _forget(self) -> None:
        assert self._session is not None
        self._sync._locks.pop((self._session.id, self._owner), None)

    # Giving it back.

    async def _cancel(self) -> None:
        await self._give_back(encode(Cancel(self._namespace, self._name, self._owner)))

    async def _release(self, token: FencingToken) -> None:
        """Release, waiting for it a little; if cancelled meanwhile, it goes on by itself."""
        body = encode(Release(self._namespace, self._name, self._owner, token))
        done = trio.Event()

        async def release() -> None:
            await self._give_back(body)
            done.set()

        self._kernel.spawn(release)
        with self._clock.timeout_at(self._clock.now() + RELEASE_TIMEOUT):
            await done.wait()

    async def _give_back(self, body: bytes) -> None:
        """Submit until it is answered, or until the session's end has freed all it held."""
        assert self._session is not None
        self._forget()
        while not self._session.lost:
            try:
                answer = await self._kernel.submit_in(
                    self._session, self._sync._machine.number, body, timeout=RELEASE_TIMEOUT
                )
            except MicroosError:
                # Refused at once, as by a full disk, it must not spin.
                await self._clock.sleep_until(self._clock.now() + GIVE_BACK_PAUSE)
                continue
            assert isinstance(decode_answer(answer), Released | Cancelled | Refused)
            return


def _nothing() -> None:
    """Undo nothing."""
