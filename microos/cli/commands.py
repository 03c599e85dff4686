"""`microos`: every verb works against any node. The only importer of click.

Speaks over a blocking socket (`control/client.py`) and never imports trio, so a verb
costs a process start and one round trip.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from microos.cli.exits import INTERRUPTED, USAGE, failed
from microos.cli.lock import hold
from microos.cli.secrets import read_secret
from microos.control.client import Client
from microos.errors import MicroosError
from microos.keyring import key_id, key_text
from microos.limits import KEY_SIZE

NODE = "127.0.0.1:7946"
TIMEOUT = 5.0
SECRET = "microos.secret"

Verb = Callable[..., Any]


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code (`cli/exits.py`)."""
    try:
        code = cli.main(list(arguments), prog_name="microos", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except MicroosError as error:
        return failed("microos", error)
    except BrokenPipeError:
        # Whoever read us has seen enough; the interpreter must not flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def _speaking(verb: Verb) -> Verb:
    """Add the options of every verb that speaks to a node."""
    options = (
        click.option(
            "--node",
            metavar="HOST:PORT",
            envvar="MICROOS_NODE",
            default=NODE,
            show_default=True,
            help="Any node of the cluster; also MICROOS_NODE.",
        ),
        click.option(
            "--cluster",
            metavar="LABEL",
            envvar="MICROOS_CLUSTER",
            default="local",
            show_default=True,
            help="The cluster's label; also MICROOS_CLUSTER.",
        ),
        click.option(
            "--timeout",
            metavar="SECONDS",
            type=click.FloatRange(min=0.0, max=86_400.0, min_open=True),
            envvar="MICROOS_TIMEOUT",
            default=TIMEOUT,
            show_default=True,
            help="Longest wait for an answer; also MICROOS_TIMEOUT.",
        ),
        click.option(
            "--secret-file",
            metavar="FILE",
            callback=_keep_secret,
            expose_value=False,
            is_eager=True,
            help="Holds the cluster's secret, for nodes that have one; also MICROOS_SECRET.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print data, one JSON per line."),
    )
    for option in reversed(options):
        verb = option(verb)
    return verb


def _keep_secret(context: click.Context, _: click.Parameter, path: str | None) -> None:
    """Keep the secret where `_client` finds it: no verb has to carry it."""
    secret = os.environ.get("MICROOS_SECRET") if path is None else read_secret(path)
    context.meta[SECRET] = secret or None


def _client(node: str, cluster: str, timeout: float) -> Client:
    secret = click.get_current_context().meta[SECRET]
    return Client(node, cluster=cluster, timeout=timeout, secret=secret)


def _asked(node: str, cluster: str, timeout: float, verb: str, **arguments: Any) -> Any:
    with _client(node, cluster, timeout) as client:
        return client.call(verb, **arguments)


def _data(value: Any) -> None:
    """Print one line of JSON, at once."""
    click.echo(msgspec.json.encode(value))


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    # Here, because rich costs more than all the rest and data does not need it.
    from microos.cli.tables import show

    show([column.upper() for column in columns], [[row[c] for c in columns] for row in rows])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="microos", prog_name="microos")
def cli() -> None:
    """Ask a running node, or change what its cluster agrees on.

    \b
    Examples:
      microos members
      microos status --node 127.0.0.1:7947 --json
      microos config set orders.limits.per_minute 100
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


@cli.command()
@_speaking
def members(node: str, cluster: str, timeout: float, as_json: bool) -> None:
    """List the nodes this one knows, and how it thinks they are.

    \b
    Example:
      microos members --json
    """
    found = _asked(node, cluster, timeout, "members")
    if as_json:
        _data(found)
    else:
        _table(("name", "address", "state", "seconds", "node", "labels"), found)


@cli.command()
@_speaking
def status(node: str, cluster: str, timeout: float, as_json: bool) -> None:
    """Show what the node says of itself: readiness, leader, log, queues.

    \b
    Example:
      microos status --node 127.0.0.1:7947
    """
    found = _asked(node, cluster, timeout, "status")
    if as_json:
        _data(found)
        return
    plain = [{"what": key, "is": value} for key, value in found.items() if key != "queues"]
    _table(("what", "is"), plain)
    click.echo()
    _table(("name", "size", "bound", "policy", "drops"), found["queues"])


@cli.command()
@click.argument("service", required=False)
@_speaking
def services(node: str, cluster: str, timeout: float, as_json: bool, service: str | None) -> None:
    """List the services known, or the instances of SERVICE.

    \b
    Examples:
      microos services
      microos services orders --json
    """
    if service is None:
        found = _asked(node, cluster, timeout, "services")
        columns: tuple[str, ...] = ("service", "instances")
    else:
        found = _asked(node, cluster, timeout, "instances", service=service)
        columns = ("service", "version", "address", "state", "name", "labels")
    if as_json:
        _data(found)
    else:
        _table(columns, found)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print data, one JSON per line.")
def keygen(as_json: bool) -> None:
    """Print a new secret for a cluster: 32 random bytes as base64. Asks no node.

    
    Examples:
      (umask 077; microos keygen > secret)
      MICROOS_SECRET="$(cat secret)" microos-node --cluster shop --bind 10.0.0.5:7946
    """
    key = os.urandom(KEY_SIZE)
    if as_json:
        _data({"secret": key_text(key), "id": key_id(key)})
    else:
        click.echo(key_text(key))


@cli.group()
def config() -> None:
    """Read, change and follow what the cluster agrees on."""


@config.command("list")
@_speaking
def config_list(node: str, cluster: str, timeout: float, as_json: bool) -> None:
    """List the names of all documents."""
    found = _asked(node, cluster, timeout, "config.list")
    if as_json:
        _data(found)
    else:
        click.echo("".join(f"{name}\n" for name in found), nl=False)


@config.command("get")
@click.argument("path")
@click.option("--latest", is_flag=True, help="Ask a majority first, not this node alone.")
@_speaking
def config_get(
    node: str, cluster: str, timeout: float, as_json: bool, path: str, latest: bool
) -> None:
    """Print the value at PATH as JSON; null if there is none.

    With --json also its version and revision.

    \b
    Example:
      microos config get orders.limits --latest
    """
    found = _asked(node, cluster, timeout, "config.get", path=path, latest=latest)
    _data(found if as_json else found["value"])


def _if_version(verb: Verb) -> Verb:
    return click.option(
        "--if-version",
        metavar="VERSION",
        type=click.IntRange(min=0, max=2**63 - 1),
        help="Only if the document still has this version; 0: only if it is not there.",
    )(verb)


@config.command("set")
@click.argument("path")
@click.argument("value")
@click.option("--text", is_flag=True, help="VALUE is a text, whatever it looks like.")
@_if_version
@_speaking
def config_set(
    node: str,
    cluster: str,
    timeout: float,
    as_json: bool,
    path: str,
    value: str,
    text: bool,
    if_version: int | None,
) -> None:
    """Set the value at PATH. VALUE is JSON; what is not JSON is a text.

    \b
    Examples:
      microos config set orders '{"limits": {"per_minute": 100}}'
      microos config set orders.limits.per_minute 200 --if-version 1
    """
    found = _asked(
        node,
        cluster,
        timeout,
        "config.set",
        path=path,
        value=value if text else _parsed(value),
        if_version=if_version,
    )
    _changed(found, as_json)


@config.command("delete")
@click.argument("path")
@_if_version
@_speaking
def config_delete(
    node: str, cluster: str, timeout: float, as_json: bool, path: str, if_version: int | None
) -> None:
    """Delete what is at PATH, a document or a place in it."""
    found = _asked(node, cluster, timeout, "config.delete", path=path, if_version=if_version)
    _changed(found, as_json)


def _changed(found: Any, as_json: bool) -> None:
    if as_json:
        _data(found)
    else:
        click.echo(f"{found['path']} is at version {found['version']}")


def _parsed(value: str) -> Any:
    try:
        return msgspec.json.decode(value.encode("utf-8", "surrogateescape"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return value


@config.command("watch")
@click.argument("path")
@click.option(
    "--count", metavar="NUMBER", type=click.IntRange(min=1), help="End after so many states."
)
@_speaking
def config_watch(
    node: str, cluster: str, timeout: float, as_json: bool, path: str, count: int | None
) -> None:
    """Print the state at PATH now and at each change, until interrupted.

    A slow reader may miss states in between, never the newest.

    \b
    Example:
      microos config watch orders.limits --json
    """
    with (
        _client(node, cluster, timeout) as client,
        client.stream("config.watch", path=path) as states,
    ):
        for number, state in enumerate(states, 1):
            _data(state if as_json else state["value"])
            if number == count:
                break


@cli.command()
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--ttl",
    metavar="SECONDS",
    type=float,
    help="How long the lock outlives its owner's last sign; by default as the node is set.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=float,
    help="How long to wait for it: 0 tries, inf waits; by default as the node is set.",
)
@_speaking
def lock(
    node: str,
    cluster: str,
    timeout: float,
    as_json: bool,
    name: str,
    command: tuple[str, ...],
    ttl: float | None,
    wait: float | None,
) -> int:
    """Run COMMAND while holding the lock NAME; exits as COMMAND does.

    COMMAND finds the fencing token in MICROOS_FENCING_TOKEN. If the lock is lost,
    COMMAND is ended. With --json the grant is printed to standard error.

    \b
    Example:
      microos lock nightly --wait 0 -- ./report.sh --all
    """

    def granted(grant: Any) -> None:
        if as_json:
            click.echo(msgspec.json.encode(grant), err=True)

    with _client(node, cluster, timeout) as client:
        return hold(client, name, command, ttl=ttl, wait=wait, granted=granted)
