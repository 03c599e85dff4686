"""`microos ring`: who owns the store's keys, and the operator's word on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microos.cli.verb import (
    At,
    UsageError,
    argument,
    echo,
    group,
    option,
    print_data,
    print_table,
    speaking,
)

SHOWN = ("epoch", "revision", "joint", "paused")


@group()
def ring() -> None:
    """Show who owns the store's keys, and give the operator's word on it."""


@ring.command("show")
@option("--slots", is_flag=True, help="Also the owners of each of the 1024 slots.")
@speaking
def ring_show(at: At, slots: bool) -> None:
    """Show the ring as the node has it: its epoch, its members, what is in change.

    `first` counts the slots in which a member is the first owner, `copies` all in which it has
    one. `former` owners are being replaced; `gone` says by which proof they are dead for good.

    \b
    Example:
      microos ring show --json
    """
    found = at.ask("ring", slots=slots)
    if at.as_json:
        print_data(found)
        return
    print_table(("what", "is"), [{"what": key, "is": found[key]} for key in SHOWN])
    echo()
    print_table(("name", "weight", "zone", "first", "copies", "node"), found["members"])
    if found["former"]:
        echo()
        print_table(("name", "copies", "gone", "node"), found["former"])
    if slots:
        echo()
        print_table(
            ("slot", "owners", "next"), [_slot(*each) for each in enumerate(found["slots"])]
        )


def _slot(number: int, chain: Sequence[Sequence[str]]) -> dict[str, Any]:
    owners, following, *_ = (*chain, (), ())
    return {"slot": number, "owners": owners, "next": following}


@ring.command("gone")
@argument("dead")
@option("--yes", is_flag=True, help="What only this node had may be lost.")
@speaking
def ring_gone(at: At, dead: str, yes: bool) -> None:
    """Say that the node DEAD (its name or id) will never come back with what it had.

    A node that is dead is replaced by itself after `ring.replace_after`. This word is needed
    only where so many died together that no majority of the owners of a key is left: the ring
    waits for them, and now goes on without what only they had. A node that lives is refused.

    \b
    Example:
      microos ring gone n3 --yes
    """
    if not yes:
        raise UsageError(f"what only {dead} had may be lost for good; if so be it, say --yes")
    found = at.ask("ring.gone", node=dead)
    if at.as_json:
        print_data(found)
    else:
        echo(f"{found['node']} is gone: {found['owners']} owners")
