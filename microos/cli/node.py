"""`microos-node`: one member of the cluster as a process of its own.

Settings come from a file, the environment and the options here; all faults are listed
at once. SIGTERM and SIGINT leave the cluster in order, then it exits with 0.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from microos.cli.exits import failed
from microos.cli.printer import Printer
from microos.cli.secrets import read_secret
from microos.errors import MicroosError
from microos.settings import PRESETS, Settings

BIND = "127.0.0.1:7946"
"""Where `microos` looks for a node, unless told otherwise."""

EXAMPLES = """\
examples:
  microos-node                                           a cluster of one
  microos-node --bind 127.0.0.1:0 --join 127.0.0.1:7946  one more
  microos-node --service orders=1.2 --data-dir /var/lib/microos
  microos-node --print-settings > microos.toml           every setting, explained

exit codes: 0 left in order, 2 wrong usage or settings, 3 the port is taken, 1 anything else
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `microos-node`; exits with one of the codes of `cli/exits.py`."""
    options = parser().parse_args(arguments)
    try:
        told = _told_by(options)
        settings = Settings.load(options.settings, defaults={"bind": BIND}, **told)
    except MicroosError as error:
        sys.exit(failed("microos-node", error))
    if options.print_settings:
        sys.stdout.write(settings.explain())
        return
    sys.exit(_run(settings, options.service, Printer(as_json=options.json_log)))


def parser() -> argparse.ArgumentParser:
    """Return what reads the options."""
    made = argparse.ArgumentParser(
        prog="microos-node",
        description="Run one node of a microos cluster until it is told to leave.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--name", help="for people; unique in the cluster")
    add("--bind", metavar="HOST:PORT", help=f"default {BIND}; port 0 takes a free one")
    add(
        "--join",
        metavar="HOST:PORT[,...]",
        action="append",
        default=[],
        help="nodes to begin with, the same on all; may be repeated",
    )
    add("--cluster", metavar="LABEL", help="nodes of other labels never meet")
    add("--secret-file", metavar="FILE", help="the cluster's secret; also MICROOS_SECRET")
    add("--data-dir", metavar="DIRECTORY", help="keep identity and log; default: in memory")
    add("--bootstrap", choices=("seeds", "solo", "join"), help="who founds the cluster")
    add("--preset", choices=tuple(PRESETS), help="default: local while bound to loopback")
    add("--settings", metavar="FILE", help="TOML; default: microos.toml if it is there")
    add(
        "--service",
        metavar="NAME[=VERSION]",
        action="append",
        default=[],
        help="announce a service; may be repeated",
    )
    add("--print-settings", action="store_true", help="print all settings, explained, and exit")
    add("--json-log", action="store_true", help="one JSON per line instead of text")
    add("--version", action="version", version=f"microos {version('microos')}")
    return made


def _told_by(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as options.

    Raises:
        SettingsError: The file of the secret cannot be used.
    """
    fields = ("name", "bind", "cluster", "data_dir", "bootstrap", "preset")
    told = {field: value for field in fields if (value := getattr(options, field)) is not None}
    seeds = [seed for given in options.join for part in given.split(",") if (seed := part.strip())]
    if options.join:
        told["seeds"] = tuple(seeds)
    if options.secret_file is not None:
        told["secret"] = read_secret(options.secret_file)
    return told


def _run(settings: Settings, services: Sequence[str], printer: Printer) -> int:
    # Here, because trio and the node cost more than all the rest, and help, version,
    # settings and their faults do without.
    import trio

    from microos._open import open

    async def live() -> str:
        """Be a node until a signal comes; return why it failed, if it did."""
        failures: list[str] = []
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with open(settings=settings, observe=printer.note) as node:
                for service in services:
                    name, _, release = service.partition("=")
                    node.discovery.announce(name, version=release)
                printer.line("info", "node.open", {"name": node.name, "address": node.address})
                async with trio.open_nursery() as nursery:

                    async def fail() -> None:
                        failures.append(await node.wait_failed())
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(fail)
                    async for number in signals:
                        printer.line(
                            "info", "node.leaving", {"signal": signal.Signals(number).name}
                        )
                        nursery.cancel_scope.cancel()
                        break
        return "".join(failures)

    try:
        failure = trio.run(live)
    except MicroosError as error:
        return failed("microos-node", error)
    if failure:
        printer.line("error", "node.failed", {"why": failure})
        return 1
    printer.line("info", "node.left", {})
    return 0


if __name__ == "__main__":
    main()
