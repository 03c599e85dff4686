"""A cluster on this machine, and a shop in it: it survives what happens to it.

    python examples/cluster.py [--nodes N] [--json] [--keep]

Five nodes (`microos-node`) and three processes of `examples/shop.py`, which are nodes too,
each with a data directory of its own. This program only starts them, asks them over their
ports, and kills some with SIGKILL while orders are placed and writes go on:

    orders   ──1──2──3──…───▶      each tried until acknowledged,
    store    ──1──2──3──…───▶      through whatever node answers
    config   ──1──2──3──…───▶
                 ✗       +      ↺       ✗      ↺
                 a shop  a node the     the    it comes
                 dies    joins  shop    leader back
                                is back dies

At the end every order is found and nothing is sold twice, every acknowledged write is on
every node, once, and no call has failed at a node that lived. Exit status 0: it all held;
1: something did not, and the last lines say which node's log to read.

The processes are in `demo/processes.py`, what goes on in `demo/traffic.py`, what happens in
`demo/scenes.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from demo.processes import Cluster, FailedError
from demo.scenes import SCENES
from demo.screen import Screen, live_view
from microos.errors import MicroosError


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="microos-demo-"))
    screen = Screen(_nothing if options.json else _print)
    is_live = sys.stdout.isatty() and not options.json and _has_rich()
    try:
        with Cluster(options.nodes, folder) as cluster, contextlib.ExitStack() as stack:
            if is_live:
                screen.say = _nothing
                stack.enter_context(live_view(cluster, screen))
            for scene in SCENES:
                scene(cluster, screen)
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        shutil.rmtree(folder)
        return 130
    except (FailedError, MicroosError) as error:
        return _failed(error, screen, folder)
    if options.json:
        for row in screen.rows:
            record = {"what": row.what.strip(), "seconds": round(row.seconds, 3)}
            print(json.dumps({**record, "found": row.detail}, ensure_ascii=False))
    else:
        print(screen.table())
    if options.keep:
        print(f"data and logs are kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return 0


def _failed(error: Exception, screen: Screen, folder: Path) -> int:
    node = error.node if isinstance(error, FailedError) else None
    step = screen.rows[-1].what.strip() if screen.rows else "start"
    where = f" on {node.name}" if node is not None else ""
    log = node.log if node is not None else folder / "*.log"
    print(f"FAILED at “{step}”{where}: {error}\nread {log} (all in {folder})", file=sys.stderr)
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A cluster on this machine, and a shop.")
    parser.add_argument("--nodes", type=int, default=5, help="how many, 3 to 9 (default 5)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON lines")
    parser.add_argument("--keep", action="store_true", help="keep data directories and logs")
    options = parser.parse_args()
    if not 3 <= options.nodes <= 9:
        parser.error(f"--nodes: expected 3 to 9, found {options.nodes}")
    return options


def _has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


def _print(line: str) -> None:
    print(line, flush=True)


def _nothing(line: str) -> None:
    """Show nothing: something else does."""


if __name__ == "__main__":
    sys.exit(main())
