"""What the demo shows: a line when something is done, or a picture that changes, and the table."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from demo.processes import Cluster, Node
from microos.errors import MicroosError


@dataclass
class Row:
    """One thing that was done, and how long it took."""

    what: str
    seconds: float = 0.0
    detail: str = ""
    done: bool = False


@dataclass
class Screen:
    """Plain lines, one when something is done. `say` is what prints them."""

    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def step(self, what: str) -> Iterator[Row]:
        """Time the block as one row; `row.detail` may be set in it."""
        row = Row(what)
        self.rows.append(row)
        self.changed()
        began = time.monotonic()
        yield row
        self.finish(row, time.monotonic() - began)

    def add(self, what: str, seconds: float, detail: str) -> None:
        """Show something that was timed elsewhere."""
        row = Row(what, detail=detail)
        self.rows.append(row)
        self.finish(row, seconds)

    def finish(self, row: Row, seconds: float) -> None:
        row.seconds, row.done = seconds, True
        self.say(f"{row.seconds:7.2f} s  {row.what}: {row.detail}")
        self.changed()

    def changed(self) -> None:
        """Show what is new; a line is enough here."""

    def table(self) -> str:
        """Return all that was done, as text."""
        width = max((len(row.what) for row in self.rows), default=0)
        lines = [f"{row.what:<{width}}  {row.seconds:6.2f} s  {row.detail}" for row in self.rows]
        return "\n".join(["", f"{'what':<{width}}    took   found", *lines])


def live_view(cluster: Cluster, screen: Screen) -> AbstractContextManager[object]:
    """Return a block that shows cluster and steps on the terminal while they change."""
    from rich.console import Group  # only here: plain lines need no rich
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def one(node: Node) -> list[str]:
        try:
            status = node.ask("status", timeout=0.3)
        except MicroosError as error:
            is_killed = node.status_of_end() == -signal.SIGKILL
            return [node.name, "killed" if is_killed else str(error)[:40], "", "", "", ""]
        alive = f"{status['members_alive']} alive, {status['members_dead']} dead"
        applied = str(status["raft_applied_index"])
        entries = f"{status['store'].get('entries', 0)} entries"
        return [node.name, status["role"], alive, f"{status['raft_term']}", applied, entries]

    def picture() -> Group:
        nodes = Table("node", "role", "sees", "term", "applied", "store", box=None, padding=(0, 2))
        for node in cluster.all:
            if node.starts:
                nodes.add_row(*one(node))
        steps = Text("\n").join(
            Text(f"{row.seconds:7.2f} s  {row.what}: {row.detail}", style="green")
            if row.done
            else Text(f"     …     {row.what}", style="bold")
            for row in screen.rows
        )
        return Group(Text("microos: a cluster on one machine\n", style="bold"), nodes, "", steps)

    return Live(get_renderable=picture, refresh_per_second=2, transient=True)
