"""The command line's end within TLS, over real sockets on loopback."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
import trio

from microos import limits
from microos.control.client import Client
from microos.errors import MicroosError, SettingsError, UnauthorizedError, UnavailableError
from microos.keyring import key_text
from microos.net.system import SystemNetwork
from tests.control.nodes import FakeNode, serving

A, B = b"a" * 32, b"b" * 32

T = TypeVar("T")


async def against(
    user: Callable[[Client], T],
    *,
    key: bytes | None = A,
    secret: str | None = key_text(A),
    cluster: str = "local",
    bound: str = "10.0.0.1",
) -> T:
    """Run a blocking user of one client in a thread, against a node that is served meanwhile."""

    def use() -> T | Exception:
        try:
            with Client(str(address), cluster=cluster, timeout=20.0, secret=secret) as client:
                return user(client)
        except MicroosError as error:
            return error

    async with serving(FakeNode(), SystemNetwork(), key=key, bound=bound) as address:
        result = await trio.to_thread.run_sync(use)
    if isinstance(result, Exception):
        raise result
    return result


async def test_who_knows_the_secret_is_served() -> None:
    document = "x" * (limits.MIB - 100)

    def user(client: Client) -> object:
        client.call("config.set", path="limits", value=document)
        return client.call("config.get", path="limits")["value"]

    assert await against(user) == document
    assert await against(user, secret=f"{key_text(A)},{key_text(B)}") == document


async def test_a_stream_is_cancelled_by_another_thread() -> None:
    def user(client: Client) -> list[object]:
        with client.stream("lock", name="x", ttl=None, wait=None) as stream:
            grants = [next(stream)]
            timer = threading.Timer(0.0, stream.cancel)
            timer.start()
            grants += list(stream)
            timer.join()
        return grants

    assert await against(user) == [{"name": "x", "token": 1}]


@pytest.mark.criterion("GEN-8")
@pytest.mark.parametrize(
    ("secret", "cluster"), [(key_text(B), "local"), (key_text(A), "other")], ids=["key", "label"]
)
async def test_another_secret_is_refused(secret: str, cluster: str) -> None:
    with pytest.raises(UnauthorizedError, match=r"is not of cluster .* or has another secret"):
        await against(lambda client: client.call("members"), secret=secret, cluster=cluster)


async def test_without_the_secret_only_this_machine_is_served() -> None:
    def user(client: Client) -> int:
        return len(client.call("members"))

    assert await against(user, secret=None, bound="127.0.0.1") == 2
    with pytest.raises(UnauthorizedError, match="only to who has the cluster's secret; set MICROO"):
        await against(user, secret=None)


async def test_a_node_without_a_secret_hangs_up() -> None:
    with pytest.raises(UnavailableError, match=r"hung up within the TLS handshake: .*secret"):
        await against(lambda client: client.call("members"), key=None)


async def test_a_secret_that_is_none_is_wrong_usage() -> None:
    with pytest.raises(SettingsError, match="secret: expected 32 bytes as base64 or hex"):
        await against(lambda client: client.call("members"), secret="hunter2")


def test_a_secret_needs_no_loop() -> None:
    code = "import microos.control.sealed, sys; print({'trio', 'asyncio'} & set(sys.modules))"

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert ended.stdout == "set()\n", ended.stderr
