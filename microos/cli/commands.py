"""`microos`: every verb works against any node. The only importer of click.

Speaks over a blocking socket (`control/client.py`) and never imports trio, so a verb
costs a process start and one round trip.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

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
RING = ("epoch", "revision", "joint", "paused")

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


class At(NamedTuple):
    """Where a verb speaks to, and how."""

    node: str
    cluster: str
    timeout: float
    as_json: bool

    def client(self) -> Client:
        secret = click.get_current_context().meta[SECRET]
        return Client(self.node, cluster=self.cluster, timeout=self.timeout, secret=secret)

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Return the node's answer."""
        with self.client() as client:
            return client.call(verb, **arguments)


def _speaking(verb: Verb) -> Verb:
    """Add the options of every verb that speaks to a node; it gets them as its first argument."""
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

    @wraps(verb)
    def speak(node: str, cluster: str, timeout: float, as_json: bool, **arguments: Any) -> Any:
        return verb(At(node, cluster, timeout, as_json), **arguments)

    speaking: Verb = speak
    for option in reversed(options):
        speaking = option(speaking)
    return speaking


def _keep_secret(context: click.Context, _: click.Parameter, path: str | None) -> None:
    """Keep the secret where `At.client` finds it: no verb has to carry it."""
    secret = os.environ.get("MICROOS_SECRET") if path is None else read_secret(path)
    context.meta[SECRET] = secret or None


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


@cli.command()
@_speaking
def members(at: At) -> None:
    """List the nodes this one knows, and how it thinks they are.

    \b
    Example:
      microos members --json
    """
    found = at.ask("members")
    if at.as_json:
        _data(found)
    else:
        _table(("name", "address", "state", "seconds", "node", "labels"), found)


@cli.command()
@_speaking
def status(at: At) -> None:
    """Show what the node says of itself: readiness, leader, log, calls, store, queues.

    `calls` and the endpoints are those that this node has made.

    \b
    Example:
      microos status --node 127.0.0.1:7947
    """
    found = at.ask("status")
    if at.as_json:
        _data(found)
        return
    plain = [(key, value) for key, value in found.items() if key not in ("queues", "endpoints")]
    _table(("what", "is"), [{"what": key, "is": value} for key, value in plain])
    if found["endpoints"]:
        click.echo()
        _table(("endpoint", "calls", "success", "error", "retries"), found["endpoints"])
    click.echo()
    _table(("name", "size", "bound", "policy", "drops"), found["queues"])


@cli.command()
@click.argument("service", required=False)
@_speaking
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
        _data(found)
    else:
        _table(columns, found)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print data, one JSON per line.")
def keygen(as_json: bool) -> None:
    """Print a new secret for a cluster: 32 random bytes as base64. Asks no node.

    \b
    Examples:
      (umask 077; microos keygen > secret)
      MICROOS_SECRET="$(cat secret)" microos-node --cluster shop --bind 10.0.0.5:7946
    """
    key = os.urandom(KEY_SIZE)
    if as_json:
        _data({"secret": key_text(key), "id": key_id(key)})
    else:
        click.echo(key_text(key))


@cli.command()
@click.argument("endpoint", metavar="SERVICE.FUNCTION")
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1)
@click.option(
    "--idempotent",
    is_flag=True,
    help="Twice does no more than once: try again also where it may have happened.",
)
@_speaking
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
        arguments=[_parsed(argument) for argument in arguments],
        idempotent=idempotent,
    )
    _data(found)


@cli.group()
def config() -> None:
    """Read, change and follow what the cluster agrees on."""


@config.command("list")
@_speaking
def config_list(at: At) -> None:
    """List the names of all documents."""
    found = at.ask("config.list")
    if at.as_json:
        _data(found)
    else:
        click.echo("".join(f"{name}\n" for name in found), nl=False)


@config.command("get")
@click.argument("path")
@click.option("--latest", is_flag=True, help="Ask a majority first, not this node alone.")
@_speaking
def config_get(at: At, path: str, latest: bool) -> None:
    """Print the value at PATH as JSON; null if there is none.

    With --json also its version and revision.

    \b
    Example:
      microos config get orders.limits --latest
    """
    found = at.ask("config.get", path=path, latest=latest)
    _data(found if at.as_json else found["value"])


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
        value=value if text else _parsed(value),
        if_version=if_version,
    )
    _changed(found, at.as_json)


@config.command("delete")
@click.argument("path")
@_if_version
@_speaking
def config_delete(at: At, path: str, if_version: int | None) -> None:
    """Delete what is at PATH, a document or a place in it."""
    found = at.ask("config.delete", path=path, if_version=if_version)
    _changed(found, at.as_json)


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
            _data(state if at.as_json else state["value"])
            if number == count:
                break


@cli.group()
def kv() -> None:
    """Read and change what the store keeps."""


def _one(verb: Verb) -> Verb:
    return click.option(
        "--one", is_flag=True, help="One owner of the key is enough: faster, and less is promised."
    )(verb)


def _if_kv_version(verb: Verb) -> Verb:
    return click.option(
        "--if-version",
        metavar="VERSION",
        type=click.IntRange(min=0, max=2**128 - 1),
        help="Only if the key still has this version; 0: only if it is not there.",
    )(verb)


@kv.command("get")
@click.argument("bucket")
@click.argument("key")
@_one
@_speaking
def kv_get(at: At, bucket: str, key: str, one: bool) -> None:
    """Print the value of KEY as JSON; nothing if there is none. Both exit with 0.

    With --json also its version and what is left of its time [s]; version "0" is that of no
    value. A version is a text, because it has 128 bits.

    \b
    Example:
      microos kv get carts ann
    """
    found = at.ask("kv.get", bucket=bucket, key=key, one=one)
    if at.as_json:
        _data(found)
    elif found["version"] != "0":
        _data(found["value"])


@kv.command("put")
@click.argument("bucket")
@click.argument("key")
@click.argument("value")
@click.option("--text", is_flag=True, help="VALUE is a text, whatever it looks like.")
@click.option(
    "--ttl",
    metavar="SECONDS",
    type=click.FloatRange(min=0.0, max=1e9, min_open=True),
    help="How long it lives; by default until it is deleted.",
)
@click.option("--if-absent", is_flag=True, help="Only if there is no value.")
@_if_kv_version
@_one
@_speaking
def kv_put(
    at: At,
    bucket: str,
    key: str,
    value: str,
    text: bool,
    ttl: float | None,
    if_absent: bool,
    if_version: int | None,
    one: bool,
) -> None:
    """Write VALUE under KEY. VALUE is JSON; what is not JSON is a text.

    \b
    Examples:
      microos kv put carts ann '["book"]' --ttl 3600
      microos kv put carts ann '["pen"]' --if-absent
    """
    if if_absent and if_version:
        raise click.UsageError("--if-absent contradicts --if-version: give one of them")
    condition = 0 if if_absent else if_version
    found = at.ask(
        "kv.put",
        bucket=bucket,
        key=key,
        value=value if text else _parsed(value),
        ttl=ttl,
        if_version=_kv_version(condition, one),
        one=one,
    )
    _written(found, at.as_json)


@kv.command("del")
@click.argument("bucket")
@click.argument("key")
@_if_kv_version
@_one
@_speaking
def kv_del(at: At, bucket: str, key: str, if_version: int | None, one: bool) -> None:
    """Delete KEY, also where it is not there."""
    condition = _kv_version(if_version, one)
    found = at.ask("kv.delete", bucket=bucket, key=key, if_version=condition, one=one)
    _written(found, at.as_json)


def _kv_version(condition: int | None, one: bool) -> str | None:
    """Return a condition as it travels."""
    if condition is None:
        return None
    if one:
        raise click.UsageError("--one contradicts a condition: most owners decide on it")
    return str(condition)


def _written(found: Any, as_json: bool) -> None:
    if as_json:
        _data(found)
    else:
        click.echo(f"{found['bucket']} {found['key']} is at version {found['version']}")


@cli.group()
def ring() -> None:
    """Show who owns the store's keys, and give the operator's word on it."""


@ring.command("show")
@click.option("--slots", is_flag=True, help="Also the owners of each of the 1024 slots.")
@_speaking
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
        _data(found)
        return
    _table(("what", "is"), [{"what": key, "is": found[key]} for key in RING])
    click.echo()
    _table(("name", "weight", "zone", "first", "copies", "node"), found["members"])
    if found["former"]:
        click.echo()
        _table(("name", "copies", "gone", "node"), found["former"])
    if slots:
        click.echo()
        _table(("slot", "owners", "next"), [_slot(*each) for each in enumerate(found["slots"])])


def _slot(number: int, chain: Sequence[Sequence[str]]) -> dict[str, Any]:
    owners, following, *_ = (*chain, (), ())
    return {"slot": number, "owners": owners, "next": following}


@ring.command("gone")
@click.argument("dead")
@click.option("--yes", is_flag=True, help="What only this node had may be lost.")
@_speaking
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
        raise click.UsageError(f"what only {dead} had may be lost for good; if so be it, say --yes")
    found = at.ask("ring.gone", node=dead)
    if at.as_json:
        _data(found)
    else:
        click.echo(f"{found['node']} is gone: {found['owners']} owners")


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
            click.echo(msgspec.json.encode(grant), err=True)

    with at.client() as client:
        return hold(client, name, command, ttl=ttl, wait=wait, granted=granted)
