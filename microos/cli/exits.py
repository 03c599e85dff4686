"""How a command ends: a code by what the caller can do next, and one line that says why.

| code | |
|---|---|
| 0 | done |
| 1 | anything else |
| 2 | wrong usage or settings |
| 3 | `UnavailableError`: nothing happened, try again |
| 4 | `UncertainError`: it may have happened |
| 5 | `RejectedError`: the answer is no |
"""

from __future__ import annotations

import sys

from microos.errors import (
    MicroosError,
    RejectedError,
    SettingsError,
    UnavailableError,
    UncertainError,
)

USAGE = 2
INTERRUPTED = 130
"""Ended by the user, as a shell counts it."""

CODES: tuple[tuple[type[MicroosError], int], ...] = (
    (SettingsError, USAGE),
    (UnavailableError, 3),
    (UncertainError, 4),
    (RejectedError, 5),
)


def failed(program: str, error: MicroosError) -> int:
    """Say what went wrong, on one line (settings: one each); return the exit code."""
    lines = error.faults if isinstance(error, SettingsError) else [" ".join(str(error).split())]
    for line in lines:
        sys.stderr.write(f"{program}: {line}\n")
    return next((code for kind, code in CODES if isinstance(error, kind)), 1)
