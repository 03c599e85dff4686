"""`microos kv`: read and change what the store keeps."""

from __future__ import annotations

from typing import Any

from microos.cli.verb import (
    At,
    FloatRange,
    UsageError,
    Verb,
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
def kv() -> None:
    """Read and change what the store keeps."""


def _one(verb: Verb) -> Verb:
    return option(
        "--one", is_flag=True, help="One owner of the key is enough: faster, and less is promised."
    )(verb)


@kv.command("get")
@argument("bucket")
@argument("key")
@_one
@speaking
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
        print_data(found)
    elif found["version"] != "0":
        print_data(found["value"])


@kv.command("put")
@argument("bucket")
@argument("key")
@argument("value")
@as_text
@option(
    "--ttl",
    metavar="SECONDS",
    type=FloatRange(min=0.0, max=1e9, min_open=True),
    help="How long it lives; by default until it is deleted.",
)
@option("--if-absent", is_flag=True, help="Only if there is no value.")
@versioned("key", bits=128)
@_one
@speaking
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
        raise UsageError("--if-absent contradicts --if-version: give one of them")
    condition = 0 if if_absent else if_version
    found = at.ask(
        "kv.put",
        bucket=bucket,
        key=key,
        value=value if text else parsed(value),
        ttl=ttl,
        if_version=_kv_version(condition, one),
        one=one,
    )
    _written(found, at.as_json)


@kv.command("del")
@argument("bucket")
@argument("key")
@versioned("key", bits=128)
@_one
@speaking
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
        raise UsageError("--one contradicts a condition: most owners decide on it")
    return str(condition)


def _written(found: Any, as_json: bool) -> None:
    if as_json:
        print_data(found)
    else:
        echo(f"{found['bucket']} {found['key']} is at version {found['version']}")
