"""microos: a microservice operating system, embedded and peer to peer.

    import microos

    async with microos.open(seeds=["127.0.0.1:7946"]) as node:
        async with node.sync.lock("ledger") as lease:
            await node.config.set("ledger.closed", True)

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
    from microos._open import Node, open
else:
    _LATE = {"Node": "microos._open", "open": "microos._open"}

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
    "Settings",
    "SettingsError",
    "StorageError",
    "UnauthorizedError",
    "UnavailableError",
    "UncertainError",
    "open",
]
