"""microos: a microservice operating system, embedded and peer to peer.

    import microos

    orders = microos.Service("orders")

    @orders.rpc
    async def place(order: Order) -> Receipt: ...

    async with microos.open(orders, seeds=["127.0.0.1:7946"]) as node:
        receipt = await node.call(charge, "o-1", "4711", 995)

Importing this brings in neither trio nor the node: the names that need them are
loaded on first use (PEP 562), so that a command line or a program that only
declares things starts fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microos.errors import (
    CircuitOpenError,
    ConflictError,
    LeaseLostError,
    LimitError,
    LocalProtocolError,
    MicroosError,
    NoMemberError,
    NoQuorumError,
    OverloadedError,
    ProtocolError,
    RejectedError,
    RemoteError,
    RemoteProtocolError,
    SettingsError,
    StorageError,
    UnauthorizedError,
    UnavailableError,
    UncertainError,
)
from microos.settings import Settings

# The façade is imported by nobody inside, so these closings of circles close none.
if TYPE_CHECKING:
    from microos._open import Node, current_node, open
    from microos.router.middleware import middleware
    from microos.service.current import Call, current_call
    from microos.service.remote import remote
    from microos.service.service import Service
else:
    _LATE = {
        "Call": "microos.service.current",
        "Node": "microos._open",
        "Service": "microos.service.service",
        "current_call": "microos.service.current",
        "current_node": "microos._open",
        "middleware": "microos.router.middleware",
        "open": "microos._open",
        "remote": "microos.service.remote",
    }

    def __getattr__(name: str) -> object:
        """Load a late name on first use and keep it."""
        import importlib  # only here: nothing else in this module is deferred

        if name not in _LATE:
            raise AttributeError(f"module 'microos' has no attribute {name!r}")
        value = getattr(importlib.import_module(_LATE[name]), name)
        globals()[name] = value
        return value


__version__ = "0.1.0"

__all__ = [
    "Call",
    "CircuitOpenError",
    "ConflictError",
    "LeaseLostError",
    "LimitError",
    "LocalProtocolError",
    "MicroosError",
    "NoMemberError",
    "NoQuorumError",
    "Node",
    "OverloadedError",
    "ProtocolError",
    "RejectedError",
    "RemoteError",
    "RemoteProtocolError",
    "Service",
    "Settings",
    "SettingsError",
    "StorageError",
    "UnauthorizedError",
    "UnavailableError",
    "UncertainError",
    "current_call",
    "current_node",
    "middleware",
    "open",
    "remote",
]
