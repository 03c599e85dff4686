"""How discovery joins a node."""

from __future__ import annotations

from microos.discovery.discovery import Discovery
from microos.node.kernel import Kernel


def attach(kernel: Kernel) -> Discovery:
    """Return `node.discovery`."""
    return Discovery(kernel)
