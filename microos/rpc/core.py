"""All calls between this process and one boot of another node, both ways, on one link.

    caller                                callee
    call ──▶ pending ── Call ──────────▶ running ──▶ Incoming ──▶ (handler)
                │  ▲                        │  ▲                      │
       Answered,│  └── Answer, Failure ─────┘  └──── answer, fail ────┘
       Failed ◀─┘
    cancel, deadline ── Cancel ────────▶ Cancelled

A call is *pending* at its caller and *running* at its callee, each with the deadline it has
there. Whoever's deadline comes first acts for itself: the caller fails the call and says
Cancel, the callee stops the handler and says nothing. So nothing that is lost, late or
crossing on the wire needs an answer: news of a call that is not there is dropped.

What a failed call means depends on whether its frame had been handed out by `take`: before
that nothing can have happened (`UnavailableError`), afterwards it may have (`UncertainError`).

This is a hot path (house.md 1.9). It takes these liberties: one table of deadlines per
direction instead of a scope per call; one dictionary entry and no object per call; an
event per call, and nothing noted. Bounded by `limits`: calls of each direction in flight,
the size of each body, the bytes of incomplete ones. What waits between two `take`s is
bounded by these, so the shell takes after every turn.

Source: rpc-router.md 6 and 7; HTTP/2 (RFC 9113) 6.8 for Goaway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

import msgspec

from microos import limits
from microos.codec import encode
from microos.deadlines import Deadlines
from microos.errors import (
    LimitError,
    MicroosError,
    OverloadedError,
    RemoteProtocolError,
    UnavailableError,
    UncertainError,
)
from microos.rpc.arrivals import Arrivals, Progress
from microos.rpc.effects import (
    NOTHING,
    Answered,
    Cancelled,
    Effects,
    Event,
    Failed,
    Incoming,
    Loaded,
)
from microos.rpc.failure import error_of, failure_of
from microos.rpc.messages import (
    FOREVER_MS,
    METADATA_KEY_TEXT,
    Answer,
    Call,
    Cancel,
    CancelReason,
    Chunk,
    Failure,
    Goaway,
    Load,
    decode_frame,
)

FOREVER = FOREVER_MS / 1000.0
"""A deadline this far away is none [s]."""

CHUNK = limits.RPC_CHUNK
"""What a frame holds of a body [bytes]."""


class ConnectionStatistics(msgspec.Struct, frozen=True):
    """Figures of one connection."""

    pending: int
    """Calls of ours."""
    running: int
    """Calls of theirs, incomplete ones included."""
    arriving_bytes: int
    late: int
    """Answers that nobody waited for any more."""
    refused: int
    """Calls of theirs that were refused here, before any handler."""


class Connection:
    """The state of all calls between two processes.

    Args:
        ids: Strictly increasing, from 1; shared by all connections of this process, so that
            an id never means two calls, whatever links come and go.
    """

    def __init__(self, ids: Iterator[int]) -> None:
        self._ids = ids
        self.peer_draining = False
        """Whether the other side takes no new calls."""
        self._draining = False

        # Calls of ours.
        self._pending: dict[int, float] = {}
        """Deadlines by id [s]."""
        self._waits: Deadlines[int] = Deadlines()
        self._answers: Arrivals[Answer] = Arrivals()
        """Invariant: each is pending."""
        self._made = 0
        """The id of the newest call."""
        self._taken = 0
        """The newest id handed out by `take`; later calls are still here."""

        # Calls of theirs.
        self._running: dict[int, float] = {}
        """Deadlines by id [s]."""
        self._expiries: Deadlines[int] = Deadlines()
        self._calls: Arrivals[Call] = Arrivals()
        """Invariant: each is running, and no handler has it yet."""

        self._frames: list[bytes] = []
        self._chunks: list[bytes] = []
        self._events: list[Event] = []
        self._late = 0
        self._refused = 0

    # Calls of ours.

    def call(
        self,
        endpoint: str,
        body: bytes,
        *,
        deadline: float,
        now: float,
        attempt: int = 1,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Call the other side; return the id that the end of the call will name.

        Args:
            endpoint: Up to `limits.ENDPOINT_TEXT` characters.
            body: Up to `limits.RPC_BODY_MAX` bytes.
            deadline: When to wait no longer [s]; `inf` is never.
            attempt: Which try of the logical call, from 1.
            metadata: Up to `limits.RPC_METADATA_PAIRS`, `limits.RPC_METADATA_MAX` bytes.

        Raises:
            UnavailableError: Less than a millisecond is left, or the other side is draining.
            OverloadedError: Too many calls are pending.
            LimitError: The body, the name or the metadata is too long.

        Effects:
            None if it raises; else one frame, and a chunk per 64 KiB more.
        """
        pending = self._pending
        if self.peer_draining:
            raise UnavailableError(
                f"cannot call {endpoint}: the node is leaving and takes no new calls; "
                "call another instance",
                reason="draining",
            )
        if len(pending) >= limits.RPC_CALLS_MAX:
            raise OverloadedError(
                f"cannot call {endpoint}: {len(pending)} calls to the node are pending, the most "
                "there may be; call fewer at once",
                reason="queue_full",
            )
        left = deadline - now
        budget_ms = int(left * 1000.0) if left < FOREVER else FOREVER_MS
        if budget_ms <= 0:
            raise UnavailableError(
                f"cannot call {endpoint}: {left:.4f} s are left, wanted at least 0.001; "
                "nothing was sent",
                reason="deadline",
            )
        if len(endpoint) > limits.ENDPOINT_TEXT:
            raise LimitError(
                f"expected an endpoint of at most {limits.ENDPOINT_TEXT} characters, found "
                f"{len(endpoint)}"
            )
        if len(body) > limits.RPC_BODY_MAX:
            raise _too_large("arguments", len(body))
        told = _bounded(metadata) if metadata else None
        id = next(self._ids)
        if len(body) <= CHUNK:
            self._frames.append(encode(Call(id, endpoint, budget_ms, attempt, told, 0, body)))
        else:
            first = Call(id, endpoint, budget_ms, attempt, told, len(body), body[:CHUNK])
            self._frames.append(encode(first))
            self._cut(id, True, body)
        self._made = id
        pending[id] = deadline
        self._waits.add(id, deadline)
        return id

    def cancel(self, id: int, reason: CancelReason = CancelReason.CALLER) -> None:
        """Wait no longer for a call, and tell the other side.

        Harmless if it is over; its end may then still be among the events to be taken.
        """
        if self._forget(id):
            self._frames.append(encode(Cancel(id, reason)))

    def unsent(self, frame: bytes, error: MicroosError) -> None:
        """Take back one frame or chunk handed out that could not be sent; its call fails.

        For a link that has no room, or none at all. A call without all its frames cannot
        have begun, so `error` may say that nothing happened. The caller of an answer that
        could not be sent waits until its deadline.
        """
        lost = decode_frame(frame)
        if isinstance(lost, Call):
            if self._forget(lost.id):
                self._events.append(Failed(lost.id, error))
        elif isinstance(lost, Chunk) and lost.of_call and self._forget(lost.id):
            self._events.append(Failed(lost.id, error))
            self._frames.append(encode(Cancel(lost.id, CancelReason.CALLER)))

    # Calls of theirs.

    def answer(self, id: int, body: bytes, load: Load | None) -> None:
        """Answer an incoming call. Harmless if it was cancelled, has expired or is unknown.

        A result longer than `limits.RPC_BODY_MAX` is a `LimitError` at the caller.
        """
        if len(body) > CHUNK:
            self._answer_long(id, body, load)
            return
        deadline = self._running.pop(id, None)
        if deadline is not None:
            self._expiries.remove(id, deadline)
            self._frames.append(encode(Answer(id, load, 0, body)))

    def _answer_long(self, id: int, body: bytes, load: Load | None) -> None:
        if len(body) > limits.RPC_BODY_MAX:
            self.fail(id, _too_large("result", len(body)), load)
        elif self._drop(id):
            self._frames.append(encode(Answer(id, load, len(body), body[:CHUNK])))
            self._cut(id, False, body)

    def fail(self, id: int, error: MicroosError, load: Load | None) -> None:
        """Fail an incoming call. Harmless if it was cancelled, has expired or is unknown."""
        if self._drop(id):
            self._frames.append(encode(failure_of(id, error, load)))

    # The life of the connection.

    def goaway(self, grace: float) -> None:
        """Take no new calls from now on; those running go on.

        Args:
            grace: How long they are given, told to the other side [s].
        """
        self._draining = True
        self._frames.append(encode(Goaway(min(FOREVER_MS, max(0, int(grace * 1000.0))))))

    def end(self) -> None:
        """Take note that the link is lost, and with it every call of both sides.

        What either side has said about leaving stays: a new link to the same boot may go on.
        """
        self._frames.clear()
        self._chunks.clear()
        for id in self._pending:
            if id > self._taken:
                error: MicroosError = UnavailableError(
                    "the connection was lost before the call was sent; call again",
                    reason="connection_lost",
                )
            else:
                error = UncertainError(
                    "the connection was lost before an answer came; the call may have been "
                    "done, so repeat only what is idempotent",
                    reason="connection_lost",
                )
            self._events.append(Failed(id, error))
        for id in self._running:
            if id not in self._calls.bodies:
                self._events.append(Cancelled(id, CancelReason.CONNECTION_LOST))
        self._pending = {}
        self._waits = Deadlines()
        self._answers.clear()
        self._running = {}
        self._expiries = Deadlines()
        self._calls.clear()

    # The four verbs.

    def receive(self, body: bytes, now: float) -> None:
        """Take in one frame.

        Raises:
            RemoteProtocolError: It breaks the protocol, and has changed nothing. The link is
                to be ended.

        Cost:
            1–2 µs for a whole body.
        """
        frame = decode_frame(body)
        if isinstance(frame, Answer):
            self._on_answer(frame)
        elif isinstance(frame, Call):
            self._on_call(frame, now)
        elif isinstance(frame, Failure):
            self._on_failure(frame)
        elif isinstance(frame, Cancel):
            self._on_cancel(frame)
        elif isinstance(frame, Goaway):
            self.peer_draining = True
        elif frame.of_call:
            self._on_piece_of_call(frame, now)
        else:
            self._on_piece_of_answer(frame)

    def wake(self, now: float) -> None:
        """End what is due: calls of ours fail, handlers of theirs are told to stop."""
        overdue = self._waits.due(now)
        here = {id for id in overdue if id > self._taken}
        if here:
            self._withdraw(here)
        for id in overdue:
            self._forget(id)
            if id in here:
                error: MicroosError = UnavailableError(
                    "the deadline passed before the call was sent", reason="deadline"
                )
            else:
                self._frames.append(encode(Cancel(id, CancelReason.DEADLINE)))
                error = UncertainError(
                    "no answer came by the deadline; the call may have been done, so repeat "
                    "only what is idempotent",
                    reason="deadline",
                )
            self._events.append(Failed(id, error))
        for id in self._expiries.due(now):
            self._stop(id, CancelReason.DEADLINE)

    @property
    def deadline(self) -> float:
        """When `wake` is next due [s]; `inf` if nothing waits."""
        return min(self._waits.deadline, self._expiries.deadline)

    def take(self) -> Effects:
        """Hand over, and forget, everything that is to be done."""
        frames, events = self._frames, self._events
        if not frames and not events:
            return NOTHING
        chunks = self._chunks
        self._frames, self._chunks, self._events = [], [], []
        self._taken = self._made
        return Effects(frames, chunks, events)

    # What comes, for calls of ours.

    def _on_answer(self, frame: Answer) -> None:
        id = frame.id
        deadline = self._pending.get(id)
        if deadline is None:
            self._on_late(frame.load)
            return
        if id in self._answers.bodies:
            raise RemoteProtocolError(f"expected one answer to call {id}, found a second")
        if frame.size:
            self._on_long_answer(frame)
            return
        del self._pending[id]
        self._waits.remove(id, deadline)
        self._events.append(Answered(id, frame.body, frame.load))

    def _on_long_answer(self, frame: Answer) -> None:
        if frame.size <= limits.RPC_BODY_MAX:
            self._answers.begin(frame)
        else:
            self._forget(frame.id)
            self._events.append(Failed(frame.id, _too_large("result", frame.size), frame.load))

    def _on_piece_of_answer(self, chunk: Chunk) -> None:
        if chunk.id not in self._answers.bodies:
            return
        progress = self._answers.add(chunk)
        if progress is Progress.MORE:
            return
        found = self._answers.pop(chunk.id)
        assert found is not None
        first, body = found
        self._forget(first.id)
        if progress is Progress.WHOLE:
            self._events.append(Answered(first.id, body, first.load))
        else:
            error = UncertainError(
                f"the call was done, but its answer of {first.size} bytes was not received: "
                f"{_why(progress)}; repeat only what is idempotent",
                reason="connection_lost",
            )
            self._events.append(Failed(first.id, error, first.load))

    def _on_failure(self, frame: Failure) -> None:
        if frame.id in self._answers.bodies:
            raise RemoteProtocolError(f"expected one answer to call {frame.id}, found a second")
        if self._forget(frame.id):
            self._events.append(Failed(frame.id, error_of(frame), frame.load))
        else:
            self._on_late(frame.load)

    def _on_late(self, load: Load | None) -> None:
        self._late += 1
        if load is not None:
            self._events.append(Loaded(load))

    # What comes, for calls of theirs.

    def _on_call(self, frame: Call, now: float) -> None:
        id = frame.id
        running = self._running
        if id in running:
            raise RemoteProtocolError(f"expected a new call, found call {id}, which is running")
        if self._draining or frame.budget_ms == 0 or len(running) >= limits.RPC_CALLS_MAX:
            self._refuse(id, self._refusal(frame))
            return
        if frame.size:
            if frame.size > limits.RPC_BODY_MAX:
                self._refuse(id, _too_large("arguments", frame.size))
                return
            self._calls.begin(frame)
        # Later than the caller's by the time on the wire, less what rounding took.
        deadline = now + frame.budget_ms / 1000.0 if frame.budget_ms < FOREVER_MS else inf
        running[id] = deadline
        self._expiries.add(id, deadline)
        if not frame.size:
            self._events.append(
                Incoming(id, frame.endpoint, frame.body, deadline, frame.attempt, frame.metadata)
            )

    def _refusal(self, frame: Call) -> MicroosError:
        """Return why a call is not begun."""
        if self._draining:
            return UnavailableError(
                f"cannot begin {frame.endpoint}: the node is leaving and takes no new calls; "
                "call another instance",
                reason="draining",
            )
        if frame.budget_ms == 0:
            return UnavailableError(
                f"cannot begin {frame.endpoint}: its deadline has passed", reason="deadline"
            )
        return OverloadedError(
            f"cannot begin {frame.endpoint}: {len(self._running)} calls of the caller are "
            "running, the most there may be; call fewer at once",
            reason="queue_full",
        )

    def _on_piece_of_call(self, chunk: Chunk, now: float) -> None:
        if chunk.id not in self._calls.bodies:
            return
        progress = self._calls.add(chunk)
        if progress is Progress.MORE:
            return
        found = self._calls.pop(chunk.id)
        assert found is not None
        first, body = found
        deadline = self._running[first.id]
        if progress is Progress.WHOLE and now < deadline:
            self._events.append(
                Incoming(first.id, first.endpoint, body, deadline, first.attempt, first.metadata)
            )
            return
        self._drop(first.id)
        if progress is Progress.WHOLE:
            error = UnavailableError(
                f"cannot begin {first.endpoint}: its deadline passed before the last of its "
                f"{first.size} bytes came",
                reason="deadline",
            )
        else:
            kind = OverloadedError if progress is Progress.FULL else UnavailableError
            error = kind(
                f"cannot begin {first.endpoint}: its {first.size} bytes were not received: "
                f"{_why(progress)}; call again",
                reason="queue_full" if progress is Progress.FULL else "connection_lost",
            )
        self._refuse(first.id, error)

    def _on_cancel(self, frame: Cancel) -> None:
        deadline = self._running.get(frame.id)
        if deadline is not None:
            self._expiries.remove(frame.id, deadline)
            self._stop(frame.id, frame.reason)

    def _refuse(self, id: int, error: MicroosError) -> None:
        """Fail a call that no handler has."""
        self._refused += 1
        self._frames.append(encode(failure_of(id, error, None)))

    def _stop(self, id: int, reason: CancelReason) -> None:
        """End a running call that has no deadline any more, without an answer."""
        del self._running[id]
        if self._calls.pop(id) is None:
            self._events.append(Cancelled(id, reason))

    # Book-keeping.

    def _forget(self, id: int) -> bool:
        """Forget a call of ours; return whether it was pending."""
        deadline = self._pending.pop(id, None)
        if deadline is None:
            return False
        self._waits.remove(id, deadline)
        self._answers.pop(id)
        return True

    def _drop(self, id: int) -> bool:
        """Forget a call of theirs that has been begun; return whether it was running."""
        deadline = self._running.pop(id, None)
        if deadline is None:
            return False
        self._expiries.remove(id, deadline)
        return True

    def _cut(self, id: int, of_call: bool, body: bytes) -> None:
        """Queue all of a body but the piece that goes with its first frame."""
        for at in range(CHUNK, len(body), CHUNK):
            self._chunks.append(encode(Chunk(id, of_call, at, body[at : at + CHUNK])))

    def _withdraw(self, ids: set[int]) -> None:
        """Take back what was not handed out of these calls of ours. Rare, and so may decode."""

        def stays(packed: bytes) -> bool:
            frame = decode_frame(packed)
            if isinstance(frame, Call) or (isinstance(frame, Chunk) and frame.of_call):
                return frame.id not in ids
            return True

        self._frames = list(filter(stays, self._frames))
        self._chunks = list(filter(stays, self._chunks))

    def statistics(self) -> ConnectionStatistics:
        return ConnectionStatistics(
            pending=len(self._pending),
            running=len(self._running),
            arriving_bytes=self._answers.size_bytes + self._calls.size_bytes,
            late=self._late,
            refused=self._refused,
        )

    def check(self) -> None:
        """Assert all invariants."""
        for calls, deadlines, arrivals in (
            (self._pending, self._waits, self._answers),
            (self._running, self._expiries, self._calls),
        ):
            assert len(calls) <= limits.RPC_CALLS_MAX
            assert len(deadlines) == sum(deadline < inf for deadline in calls.values())
            assert deadlines.deadline >= min(calls.values(), default=inf)
            deadlines.check()
            arrivals.check()
        assert self._answers.bodies.keys() <= self._pending.keys()
        assert self._calls.bodies.keys() <= self._running.keys()
        assert self._taken <= self._made
        assert not self._chunks or self._frames


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata as it travels.

    Raises:
        LimitError: Too many pairs, or too long.
    """
    size = sum(len(text.encode()) for pair in metadata.items() for text in pair)
    if len(metadata) > limits.RPC_METADATA_PAIRS or size > limits.RPC_METADATA_MAX:
        raise LimitError(
            f"expected metadata of at most {limits.RPC_METADATA_PAIRS} pairs and "
            f"{limits.RPC_METADATA_MAX} bytes, found {len(metadata)} and {size}"
        )
    if any(len(key) > METADATA_KEY_TEXT for key in metadata):
        raise LimitError(f"expected metadata keys of at most {METADATA_KEY_TEXT} characters")
    return dict(metadata)


def _too_large(what: str, size: int) -> LimitError:
    return LimitError(
        f"expected {what} of at most {limits.RPC_BODY_MAX} bytes, found {size}; send less at once"
    )


def _why(progress: Progress) -> str:
    if progress is Progress.FULL:
        return f"more than {limits.RPC_ARRIVING_MAX} bytes of incomplete bodies"
    return "a piece never came"
