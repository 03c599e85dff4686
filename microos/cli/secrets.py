"""Where a program finds the cluster's secret: a file that nobody else may read.

A secret on a command line would be in everybody's list of processes, so there is no
option for it: a file, or MICROOS_SECRET.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from microos.errors import SettingsError

SIZE_MAX = 4096
"""No secret is as long [bytes]."""


def read_secret(path: str) -> str:
    """Return the secret in a file.

    Raises:
        SettingsError: It cannot be read, or others can read it.
    """
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(SIZE_MAX)
    except OSError as error:
        raise SettingsError(
            [f"--secret-file {path}: expected a readable file, found: {error.strerror or error}"]
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(
            [
                f"--secret-file {path}: expected a file that only its owner can read, found mode "
                f"{stat.S_IMODE(mode):04o}; say chmod 600"
            ]
        )
    return data.decode("ascii", "replace").strip()
