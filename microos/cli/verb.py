"""What the verbs of `microos` are made of. The only importer of click.

A verb is a function whose first argument is where it speaks to (`At`); its options are
declared in click's words, and those that several verbs share are declared here. It asks
one question, prints the answer as data or as a table, and ends with a code of `cli/exits.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import click
import msgspec
from click import (
    UNPROCESSED,
    FloatRange,
    IntRange,
    UsageError,
    argument,
    echo,
    group,
    option,
    version_option,
)

from microos.cli.exits import INTERRUPTED, USAGE, failed
from microos.cli.secrets import read_secret
from microos.control.client import Client
from microos.errors import MicroosError

__all__ = [
    "UNPROCESSED",
    "At",
    "FloatRange",
    "IntRange",
    "UsageError",
    "argument",
    "as_text",
    "echo",
    "ended",
    "group",
    "option",
    "parsed",
    "print_data",
    "print_table",
    "speaking",
    "version_option",
    "versioned",
]

NODE = "127.0.0.1:7946"
TIMEOUT = 5.0
SECRET = "microos.secret"

Verb = Callable[..., Any]


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


def speaking(verb: Verb) -> Verb:
    """Add the options of every verb that speaks to a node; it gets them as its first argument."""
    options = (
        option(
            "--node",
            metavar="HOST:PORT",
            envvar="MICROOS_NODE",
            default=NODE,
            show_default=True,
            help="Any node of the cluster; also MICROOS_NODE.",
        ),
        option(
            "--cluster",
            metavar="LABEL",
            envvar="MICROOS_CLUSTER",
            default="local",
            show_default=True,
            help="The cluster's label; also MICROOS_CLUSTER.",
        ),
        option(
            "--timeout",
            metavar="SECONDS",
            type=FloatRange(min=0.0, max=86_400.0, min_open=True),
            envvar="MICROOS_TIMEOUT",
            default=TIMEOUT,
            show_default=True,
            help="Longest wait for an answer; also MICROOS_TIMEOUT.",
        ),
        option(
            "--secret-file",
            metavar="FILE",
            callback=_keep_secret,
            expose_value=False,
            is_eager=True,
            help="Holds the cluster's secret, for nodes that have one; also MICROOS_SECRET.",
        ),
        option("--json", "as_json", is_flag=True, help="Print data, one JSON per line."),
    )

    @wraps(verb)
    def speak(node: str, cluster: str, timeout: float, as_json: bool, **arguments: Any) -> Any:
        return verb(At(node, cluster, timeout, as_json), **arguments)

    declared: Verb = speak
    for each in reversed(options):
        declared = each(declared)
    return declared


def _keep_secret(context: click.Context, _: click.Parameter, path: str | None) -> None:
    """Keep the secret where `At.client` finds it: no verb has to carry it."""
    secret = os.environ.get("MICROOS_SECRET") if path is None else read_secret(path)
    context.meta[SECRET] = secret or None


def as_text(verb: Verb) -> Verb:
    """Add the option that VALUE is not JSON."""
    return option("--text", is_flag=True, help="VALUE is a text, whatever it looks like.")(verb)


def versioned(what: str, *, bits: int) -> Callable[[Verb], Verb]:
    """Return what adds the condition on a version of `what`, which has so many bits."""
    return option(
        "--if-version",
        metavar="VERSION",
        type=IntRange(min=0, max=2**bits - 1),
        help=f"Only if the {what} still has this version; 0: only if it is not there.",
    )


def parsed(value: str) -> Any:
    """Return JSON as the value it says; what is not JSON is a text."""
    try:
        return msgspec.json.decode(value.encode("utf-8", "surrogateescape"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return value


def print_data(value: Any) -> None:
    """Print one line of JSON, at once."""
    echo(msgspec.json.encode(value))


def print_table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Print the wanted columns of rows for people."""
    # Here, because rich costs more than all the rest and data does not need it.
    from microos.cli.tables import show

    show([column.upper() for column in columns], [[row[c] for c in columns] for row in rows])


def ended(cli: click.Group, arguments: Sequence[str]) -> int:
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
