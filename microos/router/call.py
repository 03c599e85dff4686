"""The logical call: one question, one answer or error, however many attempts it takes.

    call ─▶ call middleware ─▶ encode ─▶ pick ─▶ attempt middleware ─▶ kernel.attempt
                                          ▲                                 │
                                          └── pause, another instance ◀─────┤ error that may
                                                                            ▼ be repeated
                                                                   decode ─▶ result

The deadline is settled once, before all else: the caller's timeout, else the
endpoint's, else the node's; and within a handler never more than what is left of its
own deadline less max(2 ms, 5 %), so that there is time to say so. Every attempt ends by
itself at the deadline, no pause reaches beyond it, and middleware that still runs
`MIDDLEWARE_GRACE` past it is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from microos.clock import Clock
from microos.errors import MicroosError, UnavailableError, UncertainError
from microos.router.middleware import Call, CallMiddleware, Contract, compose, of_kind
from microos.router.retry import Tries
from microos.router.view import Attempt, EndpointView
from microos.rpc.messages import Reply
from microos.types import NodeId, Random

current_deadline: ContextVar[float | None] = ContextVar("current_deadline", default=None)
"""The deadline of the handler this runs in, on its node's clock [s]; set by who runs it."""

MARGIN_MIN = 0.002
MARGIN_RATIO = 0.05
"""What a call within a handler leaves of its handler's time: max(2 ms, 5 %)."""

MIDDLEWARE_GRACE = 0.02
"""An attempt ends at the deadline, rounded up to 10 ms; middleware may see that [s]."""


class Send(Protocol):
    """One attempt at one node, as the kernel makes it."""

    async def __call__(
        self,
        node: NodeId,
        endpoint: str,
        body: bytes,
        deadline: float,
        *,
        attempt: int,
        metadata: dict[str, str] | None,
    ) -> Reply: ...


class Caller:
    """Makes logical calls.

    Args:
        endpoint: Returns what is known of an endpoint, by name.
        middleware: Of all kinds; those of `call` and `attempt` are used.
        timeout: For endpoints that have none [s].
    """

    def __init__(
        self,
        *,
        send: Send,
        clock: Clock,
        random: Random,
        endpoint: Callable[[str], EndpointView],
        middleware: Sequence[CallMiddleware],
        timeout: float,
    ) -> None:
        self._send = send
        self._clock = clock
        self._random = random
        self._endpoint = endpoint
        self._attempt_middleware = of_kind("attempt", middleware)
        self._chain = compose(of_kind("call", middleware), self._tries)
        self._has_middleware = bool(of_kind("call", middleware) or self._attempt_middleware)
        self._timeout = timeout

    async def call(
        self, contract: Contract, arguments: tuple[Any, ...], timeout: float | None, key: str | None
    ) -> Any:
        """Return the result; arguments and errors as `Router.call`."""
        deadline = self._deadline(contract, timeout)
        endpoint = self._endpoint(contract.name)
        call = Call(contract, endpoint.view.service, contract.name, arguments, deadline, key)
        endpoint.calls += 1
        endpoint.in_progress += 1
        try:
            if self._has_middleware:
                result = await self._bounded(call)
            else:
                result = await self._tries(call)
        except Exception:  # Counted, never swallowed; a cancelled call is neither.
            endpoint.errors += 1
            raise
        finally:
            endpoint.in_progress -= 1
        endpoint.successes += 1
        return result

    def _deadline(self, contract: Contract, timeout: float | None) -> float:
        """Return when the call must be over [s].

        Raises:
            UnavailableError: The handler we are in has no time left.
        """
        if timeout is None:
            timeout = self._timeout if contract.timeout is None else contract.timeout
        if not timeout > 0.0:
            raise ValueError(f"timeout must be positive, found {timeout!r}")
        now = self._clock.now()
        outer = current_deadline.get()
        if outer is not None:
            left = outer - now
            timeout = min(timeout, left - max(MARGIN_MIN, MARGIN_RATIO * left))
            if timeout <= 0.0:
                raise UnavailableError(
                    f"{contract.name!r} was not called: of the time of the handler that calls it "
                    f"{max(0.0, left):.3f} s are left",
                    reason="deadline",
                )
        return now + timeout

    async def _bounded(self, call: Call) -> Any:
        """Run the chain, and cancel it when it outlives the deadline."""
        with self._clock.timeout_at(call.deadline + MIDDLEWARE_GRACE):
            return await self._chain(call)
        message = f"{call.endpoint!r} was not answered in time: its middleware did not end"
        if call.attempt:
            raise UncertainError(message, reason="deadline")
        raise UnavailableError(message, reason="deadline")

    async def _tries(self, call: Call) -> Any:
        """Encode once, then attempt until there is an answer or no further attempt."""
        body = call.contract.encode(call.arguments)
        endpoint = self._endpoint(call.endpoint)
        budget = endpoint.view.budget
        deadline = call.deadline
        tries = Tries(endpoint.policy.retry, idempotent=call.idempotent, deadline=deadline)
        now = self._clock.now()
        if now >= deadline:
            raise UnavailableError(
                f"{call.endpoint!r} was not called: its deadline has passed", reason="deadline"
            )
        budget.called(now)
        while True:
            try:
                candidate = endpoint.choose(
                    now, key=call.key, tried=tries.nodes, drained=tries.drained
                )
            except MicroosError as error:
                raise tries.ending(error) from tries.last
            if candidate is None:
                assert tries.last is not None
                raise tries.ending(tries.last)
            call.attempt += 1
            call.instance = endpoint.view.instances[candidate.node]
            try:
                return await self._attempt(call, body, endpoint.begin(candidate, now))
            except MicroosError as error:
                tries.failed(candidate.node, error)
                now = self._clock.now()
                has_others = any(c.node not in tries.nodes for c in endpoint.view.pool.everyone)
                pause = tries.pause(now, budget, self._random, has_others=has_others)
                if pause is None:
                    ending = tries.ending(error)
                    if ending is error:
                        raise
                    raise ending from error
            endpoint.retries += 1
            if pause > 0.0:
                await self._clock.sleep_until(now + pause)
                now = self._clock.now()

    async def _attempt(self, call: Call, body: bytes, attempt: Attempt) -> Any:
        """Make one attempt through its middleware."""
        try:
            if not self._attempt_middleware:
                return await self._sent(call, body, attempt)

            async def innermost(call: Call) -> Any:
                return await self._sent(call, body, attempt)

            return await compose(self._attempt_middleware, innermost)(call)
        finally:
            attempt.close()

    async def _sent(self, call: Call, body: bytes, attempt: Attempt) -> Any:
        """Send it, and tell pick and breaker what came of it."""
        try:
            reply = await self._send(
                NodeId(attempt.node),
                call.endpoint,
                body,
                call.deadline,
                attempt=call.attempt,
                metadata=call.metadata or None,
            )
        except MicroosError as error:
            attempt.failed(error, self._clock.now())
            raise
        except BaseException:
            now = self._clock.now()
            if now >= call.deadline:
                attempt.timed_out(now)
            raise
        attempt.answered(reply.load, self._clock.now())
        return call.contract.decode(reply.body)
