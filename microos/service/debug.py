"""What every node answers of itself: `Debug.Health` and `Debug.Stats`.

They go by the names of the original, are called at a node rather than at a
service, and are therefore not listed. The node hands in where the facts come from.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from microos.service.service import Service


class NodeHealth(msgspec.Struct, frozen=True):
    """Whether a node wants to be called."""

    ready: bool
    reason: str = ""
    """Why it is not ready."""

    status: Literal["passing", "warning", "critical"] = "passing"


class NodeStats(msgspec.Struct, frozen=True):
    """What a node's process spends."""

    started: float
    """Since 1970, on its wall clock [s]."""

    uptime: float
    """[s]."""

    memory_bytes: int = 0
    """Resident; 0 where the system does not say."""

    threads: int = 0
    tasks: int = 0
    calls_in: int = 0
    """Being answered now."""

    calls_out: int = 0
    """Waiting for an answer now."""


def debug(health: Callable[[], NodeHealth], stats: Callable[[], NodeStats]) -> Service:
    """Return the service that answers for one node.

    Args:
        health: Looks at the node; must not block.
        stats: The same.
    """
    service = Service("Debug")

    @service.rpc(idempotent=True, internal=True)
    async def Health() -> NodeHealth:
        return health()

    @service.rpc(idempotent=True, internal=True)
    async def Stats() -> NodeStats:
        return stats()

    return service
