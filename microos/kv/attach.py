"""How the store joins a node."""

from __future__ import annotations

from microos.kv.keeping import Keeping
from microos.kv.kv import Kv
from microos.node.kernel import Kernel
from microos.settings import KvSettings


def attach(kernel: Kernel, settings: KvSettings, *, participates: bool) -> Kv:
    """Return `node.kv`.

    Args:
        participates: Whether this node is to own keys.
    """
    keeping = Keeping(kernel, settings, participates=participates)
    return Kv(kernel, keeping, settings.timeout)
