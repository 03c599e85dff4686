"""`microos config`: read, change and follow what the cluster agrees on."""

from __future__ import annotations

from typing import Any

from microos.cli.verb import (
    At,
    IntRange,
    argument,
    as_text,
    echo,
    group,
    option,
    parsed,
    print_data,
    speaking,
    versioned,
)


@group()
def config() -> None:
    """Read, change and follow what the cluster agrees on."""


@config.command("list")
@speaking
def config_list(at: At) -> None:
    """List the names of all documents."""
    found = at.ask("config.list")
    if at.as_json:
        print_data(found)
    else:
        echo("".join(f"{name}\n" for name in found), nl=False)


@config.command("get")
@argument("path")
@option("--latest", is_flag=True, help="Ask a majority first, not this node alone.")
@speaking
def config_get(at: At, path: str, latest: bool) -> None:
    """Print the value at PATH as JSON; null if there is none.

    With --json also its version and revision.

    \b
    Example:
      microos config get orders.limits --latest
    """
    found = at.ask("config.get", path=path, latest=latest)
    print_data(found if at.as_json else found["value"])


@config.command("set")
@argument("path")
@argument("value")
@as_text
@versioned("document", bits=63)
@speaking
def config_set(at: At, path: str, value: str, text: bool, if_version: int | None) -> None:
    """Set the value at PATH. VALUE is JSON; what is not JSON is a text.

    \b
    Examples:
      microos config set orders '{"limits": {"per_minute": 100}}'
      microos config set orders.limits.per_minute 200 --if-version 1
    """
    found = at.ask(
        "config.set",
        path=path,
        value=value if text else parsed(value),
        if_version=if_version,
    )
    _changed(found, at.as_json)


@config.command("delete")
@argument("path")
@versioned("document", bits=63)
@speaking
def config_delete(at: At, path: str, if_version: int | None) -> None:
    """Delete what is at PATH, a document or a place in it."""
    found = at.ask("config.delete", path=path, if_version=if_version)
    _changed(found, at.as_json)


@config.command("watch")
@argument("path")
@option("--count", metavar="NUMBER", type=IntRange(min=1), help="End after so many states.")
@speaking
def config_watch(at: At, path: str, count: int | None) -> None:
    """Print the state at PATH now and at each change, until interrupted.

    A slow reader may miss states in between, never the newest.

    \b
    Example:
      microos config watch orders.limits --json
    """
    with (
        at.client() as client,
        client.stream("config.watch", path=path) as states,
    ):
        for number, state in enumerate(states, 1):
            print_data(state if at.as_json else state["value"])
            if number == count:
                break


def _changed(found: Any, as_json: bool) -> None:
    if as_json:
        print_data(found)
    else:
        echo(f"{found['path']} is at version {found['version']}")
