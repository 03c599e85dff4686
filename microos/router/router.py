"""`node.router`: who is called, by which policy, and how that goes.

No proxy and no control plane: every caller decides from what it sees itself and from
what the instances tell it with each answer. All of it is kept here, so the end of any
other node changes nothing in a pick.

Patterns of endpoints, the most specific wins:

    payments.charge  >  payments.*  >  *
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microos import limits
from microos.discovery.discovery import Discovery
from microos.errors import LimitError
from microos.gossip.members import State
from microos.node.kernel import Kernel
from microos.router.call import Caller, Send
from microos.router.middleware import CallMiddleware, Contract
from microos.router.policy import Policy
from microos.router.statistics import (
    EndpointStatistics,
    InstanceStatistics,
    RouterStatistics,
)
from microos.router.view import EndpointView, View


class Router:
    """`node.router`."""

    def __init__(
        self,
        kernel: Kernel,
        discovery: Discovery,
        *,
        send: Send,
        middleware: Sequence[CallMiddleware],
        timeout: float,
    ) -> None:
        self._kernel = kernel
        self._discovery = discovery
        self._clock = kernel.runtime.clock
        self._random = kernel.runtime.random("router")
        self._policies: dict[str, Policy] = {"*": Policy()}
        self._services: dict[str, View] = {}
        self._endpoints: dict[str, EndpointView] = {}
        self._known: dict[str, None] = {}
        self._callers = 1
        self._caller = Caller(
            send=send,
            clock=self._clock,
            random=self._random,
            endpoint=self._endpoint,
            middleware=middleware,
            timeout=timeout,
        )
        # After discovery, which is told first and has the new instances by then.
        kernel.on_members(self._look)

    def apply(self, pattern: str, policy: Policy) -> None:
        """Route the calls that match by `policy` from now on; those under way keep their retries.

        Args:
            pattern: `service.function`, `service.*` or `*`. Replaces what was said of it.

        Raises:
            ValueError: Not such a pattern.
            LimitError: Too many patterns.
        """
        head, _, last = pattern.rpartition(".")
        if not (pattern == "*" or (head and last)) or "*" in head:
            raise ValueError(f"expected SERVICE.FUNCTION, SERVICE.* or *, found {pattern!r}")
        if "*" in last and last != "*":
            raise ValueError(f"expected * to stand for a whole function name, found {pattern!r}")
        if not isinstance(policy, Policy):
            raise TypeError(f"expected a Policy, found {policy!r}")
        if pattern not in self._policies and len(self._policies) >= limits.ROUTER_POLICIES:
            raise LimitError(
                f"expected at most {limits.ROUTER_POLICIES} patterns with a policy, found one more",
                reason="count",
            )
        self._policies[pattern] = policy
        for endpoint in self._endpoints.values():
            endpoint.adopt(self._policy(endpoint.name))

    async def call(
        self,
        contract: Contract,
        arguments: tuple[Any, ...],
        *,
        timeout: float | None = None,
        key: str | None = None,
    ) -> Any:
        """Call an endpoint of whichever instance suits best; return its result.

        Args:
            contract: The endpoint: name, how arguments and result become bytes, timeout.
            arguments: As the contract wants them.
            timeout: For all attempts together [s]; inf waits for ever. Default: the
                contract's, else the node's. Within a handler its own deadline shortens it.
            key: Calls of one key go to the same instance while it can be used.

        Raises:
            NoMemberError: `unknown_service`, `none_usable`.
            CircuitOpenError: All instances fail; `retry_after` says when to come back [s].
            UnavailableError: Nothing has happened; `deadline`, `draining`, and others.
            UncertainError: It may have happened; `deadline`, `connection_lost`.
            RejectedError: The arguments or the caller were refused.
            RemoteError: The handler raised.
            ValueError: The name has no service, or the timeout is not positive.
        """
        return await self._caller.call(contract, arguments, timeout, key)

    def statistics(self) -> RouterStatistics:
        """Return the figures of all endpoints called, and of their services' instances."""
        now = self._clock.now()
        return RouterStatistics(
            endpoints=tuple(
                EndpointStatistics(e.name, e.calls, e.successes, e.errors, e.retries)
                for _, e in sorted(self._endpoints.items())
            ),
            instances=tuple(
                statistics
                for _, view in sorted(self._services.items())
                for statistics in _instances(view, now)
            ),
        )

    # What is known.

    def _look(self) -> None:
        """Take over who is there; what is known of those who are gone is forgotten."""
        for name in self._discovery.services():
            self._known[name] = None
        while len(self._known) > limits.ROUTER_SERVICES:
            del self._known[next(iter(self._known))]
        # Every live node may be calling; ten times too many does the pick no harm (simulated).
        self._callers = max(1, sum(m.state is State.ALIVE for m in self._kernel.members()))
        for name, view in self._services.items():
            view.sync(self._discovery.instances(name), self._callers)

    def _endpoint(self, name: str) -> EndpointView:
        """Return what is known of an endpoint, beginning with nothing.

        Raises:
            ValueError: The name does not say its service.
        """
        endpoint = self._endpoints.get(name)
        if endpoint is not None:
            return endpoint
        service, _, function = name.rpartition(".")
        if not service or not function:
            raise ValueError(f"expected SERVICE.FUNCTION, found {name!r}")
        self._forget_one()
        view = self._services.get(service)
        if view is None:
            view = self._services[service] = View(service, self._kernel.node, self._random)
            view.was_known = service in self._known
            view.sync(self._discovery.instances(service), self._callers)
        endpoint = EndpointView(name, view, self._policy(name), self._random, self._observe)
        self._endpoints[name] = view.endpoints[name] = endpoint
        return endpoint

    def _forget_one(self) -> None:
        """Make room for one more endpoint, if those known are too many."""
        if len(self._endpoints) < limits.ROUTER_ENDPOINTS:
            return
        idle = next((e for e in self._endpoints.values() if not e.in_progress), None)
        if idle is None:
            raise LimitError(
                f"expected calls of at most {limits.ROUTER_ENDPOINTS} endpoints at a time, "
                "found one more",
                reason="count",
            )
        del self._endpoints[idle.name], idle.view.endpoints[idle.name]
        if not idle.view.endpoints:
            del self._services[idle.view.service]

    def _policy(self, name: str) -> Policy:
        """Return the policy of the most specific pattern that matches; `*` always does."""
        patterns = (name, name.rpartition(".")[0] + ".*", "*")
        return next(self._policies[p] for p in patterns if p in self._policies)

    def _observe(self, note: object) -> None:
        self._kernel.runtime.observe("router", note)

    def check(self) -> None:
        """Assert all invariants."""
        assert len(self._endpoints) <= limits.ROUTER_ENDPOINTS
        assert len(self._known) <= limits.ROUTER_SERVICES
        assert sum(len(view.endpoints) for view in self._services.values()) == len(self._endpoints)
        for view in self._services.values():
            view.check()


def _instances(view: View, now: float) -> list[InstanceStatistics]:
    return [
        InstanceStatistics(
            service=view.service,
            node=candidate.node,
            in_flight=candidate.out,
            suspect=candidate.is_last or now < candidate.bad_until,
            breakers={
                endpoint.name: endpoint.circuits.states()[candidate.node].value
                for _, endpoint in sorted(view.endpoints.items())
                if endpoint.circuits is not None and candidate.node in endpoint.circuits.states()
            },
        )
        for candidate in sorted(view.pool.everyone, key=lambda candidate: candidate.node)
    ]
