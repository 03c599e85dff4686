"""How the store joins a node."""

from __future__ import annotations

from microos.kv.keeping import Keeping
from microos.kv.kv import Kv
from microos.node.kernel import Kernel
from microos.settings import KvSettings


def attach(kernel: Kernel, settings: KvSettings) -> Kv:
    """Return `node.kv`."""
    return Kv(kernel, Keeping(kernel, settings), settings.timeout)
