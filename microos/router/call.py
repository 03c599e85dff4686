"""What a running call hands to the calls made inside it."""

from __future__ import annotations

from contextvars import ContextVar

current_deadline: ContextVar[float | None] = ContextVar("current_deadline", default=None)
"""When the handler that runs here must be done, on its node's clock [s]; None outside of one."""
