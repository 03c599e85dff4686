"""`microos`: every verb works against any node.

Speaks over a blocking socket (`control/client.py`) and never imports trio, so a verb
costs a process start and one round trip. The verbs of one word are here, those of two in a
module for each group; what they are made of is `verb.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from microos.cli.config import config
from microos.cli.kv import kv
from microos.cli.lock import hold
from microos.cli.ring import ring
from microos.cli.verb import (
    UNPROCESSED,
    At,
    argument,
    echo,
    ended,
    group,
    option,
    parsed,
    print_data,
    print_table,
    speaking,
    version_option,
)
from microos.keyring import key_id, key_text
from microos.limits import KEY_SIZE


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code (`cli/exits.py`)."""
    return ended(cli, arguments)


@group(context_settings={"help_option_names": ["-h", "--help"]})
@version_option(package_name="microos", prog_name="microos")
def cli() -> None:
    """Ask a running node, or change what its cluster agrees on.

    \b
    Examples:
      microos members
      microos status --node 127.0.0.1:7947 --json
      microos config set orders.limits.per_minute 100
      microos call stock.left book
      microos kv put carts ann '["book"]'
      microos lock nightly -- ./report.sh

    \b
    Exit codes:
      0  done
      2  wrong usage
      3  unavailable: nothing happened, try again
      4  uncertain: it may have happened
      5  rejected: the answer is no
      1  anything else
    """


cli.add_command(config)
cli.add_command(kv)
cli.add_command(ring)


@cli.command()
@speaking
def members(at: At) -> None:
    """List the nodes this one knows, and how it thinks they are.

    \b
    Example:
      microos members --json
    """
    found = at.ask("members")
    if at.as_json:
        print_data(found)
    else:
        print_table(("name", "address", "state", "seconds", "node", "labels"), found)


@cli.command()
@speaking
def status(at: At) -> None:
    """Show what the node says of itself: readiness, leader, log, calls, store, queues.

    `calls` and the endpoints are those that this node has made.

    \b
    Example:
      microos status --node 127.0.0.1:7947
    """
    found = at.ask("status")
    if at.as_json:
        print_data(found)
        return
    plain = [(key, value) for key, value in found.items() if key not in ("queues", "endpoints")]
    print_table(("what", "is"), [{"what": key, "is": value} for key, value in plain])
    if found["endpoints"]:
        echo()
        print_table(("endpoint", "calls", "success", "error", "retries"), found["endpoints"])
    echo()
    print_table(("name", "size", "bound", "policy", "drops"), found["queues"])


@cli.command()
@argument("service", required=False)
@speaking
def services(at: At, service: str | None) -> None:
    """List the services known with their endpoints, or the instances of SERVICE.

    \b
    Examples:
      microos services
      microos services orders --json
    """
    if service is None:
        found = at.ask("services")
        columns: tuple[str, ...] = ("service", "instances", "endpoints")
    else:
        found = at.ask("instances", service=service)
        columns = ("service", "version", "address", "state", "name", "endpoints", "labels")
    if at.as_json:
        print_data(found)
    else:
        print_table(columns, found)


@cli.command()
@option("--json", "as_json", is_flag=True, help="Print data, one JSON per line.")
def keygen(as_json: bool) -> None:
    """Print a new secret for a cluster: 32 random bytes as base64. Asks no node.

    \b
    Examples:
      (umask 077; microos keygen > secret)
      MICROOS_SECRET="$(cat secret)" microos-node --cluster shop --bind 10.0.0.5:7946
    """
    key = os.urandom(KEY_SIZE)
    if as_json:
        print_data({"secret": key_text(key), "id": key_id(key)})
    else:
        echo(key_text(key))


@cli.command()
@argument("endpoint", metavar="SERVICE.FUNCTION")
@argument("arguments", metavar="[ARGUMENT]...", nargs=-1)
@option(
    "--idempotent",
    is_flag=True,
    help="Twice does no more than once: try again also where it may have happened.",
)
@speaking
def call(at: At, endpoint: str, arguments: tuple[str, ...], idempotent: bool) -> None:
    """Call an endpoint of whichever instance suits best; print its result as JSON.

    Each ARGUMENT is JSON; what is not JSON is a text. Arguments that begin with a minus come
    after --. The node that is asked routes the call. With or without --json the result is one
    line of JSON: keys of maps are text there, bytes are base64.

    \b
    Examples:
      microos call stock.left book
      microos call payments.charge o-1 '"4711"' 995 --idempotent --timeout 2
      microos call orders.place '{"id": "o-1", "item": "book", "count": 1}'
    """
    found = at.ask(
        "call",
        endpoint=endpoint,
        arguments=[parsed(each) for each in arguments],
        idempotent=idempotent,
    )
    print_data(found)


@cli.command()
@argument("name")
@argument("command", nargs=-1, required=True, type=UNPROCESSED)
@option(
    "--ttl",
    metavar="SECONDS",
    type=float,
    help="How long the lock outlives its owner's last sign; by default as the node is set.",
)
@option(
    "--wait",
    metavar="SECONDS",
    type=float,
    help="How long to wait for it: 0 tries, inf waits; by default as the node is set.",
)
@speaking
def lock(at: At, name: str, command: tuple[str, ...], ttl: float | None, wait: float | None) -> int:
    """Run COMMAND while holding the lock NAME; exits as COMMAND does.

    COMMAND finds the fencing token in MICROOS_FENCING_TOKEN. If the lock is lost,
    COMMAND is ended. With --json the grant is printed to standard error.

    \b
    Example:
      microos lock nightly --wait 0 -- ./report.sh --all
    """

    def granted(grant: Any) -> None:
        if at.as_json:
            echo(msgspec.json.encode(grant), err=True)

    with at.client() as client:
        return hold(client, name, command, ttl=ttl, wait=wait, granted=granted)
