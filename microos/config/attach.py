"""How config joins a node."""

from __future__ import annotations

from microos.config.config import Config
from microos.config.machine import ConfigMachine
from microos.node.kernel import Kernel


def attach(kernel: Kernel) -> Config:
    """Return `node.config`."""
    return Config(kernel, ConfigMachine())
