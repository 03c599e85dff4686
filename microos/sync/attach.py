"""How sync joins a node."""

from __future__ import annotations

from microos.node.kernel import Kernel
from microos.settings import SyncSettings
from microos.sync.lock import Sync
from microos.sync.machine import LockMachine


def attach(kernel: Kernel, settings: SyncSettings) -> Sync:
    """Return `node.sync`."""
    return Sync(kernel, LockMachine(), settings)
