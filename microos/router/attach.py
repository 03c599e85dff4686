"""How the router joins a node."""

from __future__ import annotations

from collections.abc import Sequence

from microos.discovery.discovery import Discovery
from microos.node.kernel import Kernel
from microos.router.middleware import CallMiddleware
from microos.router.router import Router

TIMEOUT = 5.0
"""For calls whose endpoint and caller say nothing [s]. Never infinite by default."""


def attach(
    kernel: Kernel,
    discovery: Discovery,
    middleware: Sequence[CallMiddleware] = (),
    *,
    timeout: float = TIMEOUT,
) -> Router:
    """Return `node.router`.

    Args:
        middleware: Of all kinds, first listed outermost; those of `call` and `attempt` run here.
        timeout: Of calls whose endpoint and caller say nothing [s].
    """
    return Router(kernel, discovery, send=kernel.attempt, middleware=middleware, timeout=timeout)
