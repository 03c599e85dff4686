"""The command line: `microos` speaks to a running node, `microos-node` is one."""

from __future__ import annotations

import sys

OPTIONAL = ("click", "rich")


def main() -> None:
    """Run `microos`; exits with one of the codes of `cli/exits.py`."""
    try:
        # Here, because `microos-node` comes through this package and needs neither.
        from microos.cli import commands
    except ImportError as error:
        if error.name not in OPTIONAL:
            raise
        sys.stderr.write(f'the command line needs {error.name}: pip install "microos[cli]"\n')
        sys.exit(2)
    sys.exit(commands.run(sys.argv[1:]))
