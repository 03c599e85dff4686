"""The command line's end, over real sockets on loopback, against a served node."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
import trio

from microos import limits, wire
from microos.codec import encode
from microos.control import client as client_module
from microos.control.client import Client
from microos.control.messages import Answer
from microos.errors import (
    ConflictError,
    LeaseLostError,
    LimitError,
    MicroosError,
    RejectedError,
    RemoteProtocolError,
    UnavailableError,
    UncertainError,
)
from microos.net.system import SystemNetwork
from microos.wire import Channel
from tests.control.nodes import FakeNode, serving

T = TypeVar("T")


async def against(
    node: FakeNode, user: Callable[[Client], T], *, cluster: str = "local", timeout: float = 20.0
) -> T:
    """Run a blocking user of one client in a thread, against a node that is served meanwhile."""

    def use() -> T | Exception:
        try:
            with Client(str(address), cluster=cluster, timeout=timeout) as client:
                return user(client)
        except MicroosError as error:
            return error

    async with serving(node, SystemNetwork()) as address:
        result = await trio.to_thread.run_sync(use)
    if isinstance(result, Exception):
        raise result
    return result


class Stranger:
    """A listener that answers every connection with the same bytes, and reads one chunk first."""

    def __init__(self, answer: bytes) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(self._answer)
            while connection.recv(1000):
                pass

    def close(self) -> None:
        self._thread.join()
        self._socket.close()


async def test_values_come_back_as_they_were_sent() -> None:
    value = {"a": [1, 2.5, None, True, "é"], "b": b"\x00"}

    def user(client: Client) -> object:
        client.call("config.set", path="x", value=value)
        return client.call("config.get", path="x", latest=True)["value"]

    assert await against(FakeNode(), user) == value


async def test_a_refusal_is_the_error_the_node_raised() -> None:
    def user(client: Client) -> None:
        client.call("config.set", path="x", value=1, if_version=3)

    with pytest.raises(ConflictError, match="expected version 3, found 0") as caught:
        await against(FakeNode(), user)
    assert caught.value.reason == "version"


async def test_a_watch_ends_and_the_connection_goes_on() -> None:
    def user(client: Client) -> list[int]:
        with client.stream("config.watch", path="x") as states:
            versions = [next(states)["version"]]
        client.call("config.set", path="x", value=1)
        with client.stream("config.watch", path="x") as states:
            versions.append(next(states)["version"])
        return versions

    assert await against(FakeNode(), user) == [0, 1]


async def test_leaving_the_block_of_a_lock_gives_it_back() -> None:
    node = FakeNode()

    def user(client: Client) -> tuple[int, bool, bool]:
        with client.stream("lock", name="x") as grants:
            token = next(grants)["token"]
            held = "x" in node.sync.owned
        return token, held, "x" in node.sync.owned

    assert await against(node, user) == (1, True, False)


async def test_a_lost_lease_leaves_the_block() -> None:
    node = FakeNode()

    def user(client: Client) -> None:
        with client.stream("lock", name="x") as grants:
            next(grants)
            trio.from_thread.run_sync(node.sync.lose, "x")
            next(grants)

    with pytest.raises(LeaseLostError):
        await against(node, user)


async def test_a_node_of_another_cluster_says_so() -> None:
    with pytest.raises(RejectedError, match="cluster of another label; say --cluster"):
        await against(FakeNode(), lambda client: client.call("members"), cluster="other")


async def test_what_is_too_large_is_not_sent() -> None:
    def user(client: Client) -> None:
        client.call("config.set", path="x", value="x" * limits.CONTROL_FRAME_MAX)

    with pytest.raises(LimitError, match="expected a request of at most"):
        await against(FakeNode(), user)


def test_nobody_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

    with pytest.raises(UnavailableError, match=f"no node answers at {address}: Connection refu"):
        Client(address, cluster="local", timeout=5.0)


def test_an_address_that_is_none_is_rejected() -> None:
    with pytest.raises(RejectedError, match="--node: expected HOST:PORT, found 'here'"):
        Client("here", cluster="local", timeout=5.0)


@pytest.mark.parametrize(
    ("verb", "error"), [("members", UnavailableError), ("config.set", UncertainError)]
)
def test_silence_is_uncertain_only_for_changes(
    monkeypatch: pytest.MonkeyPatch, verb: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(client_module, "GRACE", 0.01)
    stranger = Stranger(b"")

    with (
        Client(stranger.address, cluster="local", timeout=0.02) as client,
        pytest.raises(error, match=r"did not answer within 0\.02 s"),
    ):
        client.call(verb)
    stranger.close()


@pytest.mark.parametrize(
    "answer",
    [
        wire.HTTP_ANSWER,
        b"\x00" * 100,
        wire.pack_frame(Channel.CONTROL, b"\xc1"),
        wire.pack_frame(Channel.CONTROL, encode(Answer(1, 2)))[:-1] + b"\xff",
    ],
)
def test_foreign_bytes_are_an_error_of_ours(answer: bytes) -> None:
    stranger = Stranger(answer)

    with (
        Client(stranger.address, cluster="local", timeout=5.0) as client,
        pytest.raises(RemoteProtocolError),
    ):
        client.call("members")
    stranger.close()


@pytest.mark.parametrize("module", ["microos.control.client", "microos.cli.commands"])
def test_the_client_needs_no_loop_and_no_cryptography(module: str) -> None:
    dear = "{'trio', 'asyncio', 'ssl', 'cryptography', 'rich'}"
    code = f"import sys, {module}; print(sorted({dear} & set(sys.modules)))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert found.stdout.strip() == "[]", found.stderr
