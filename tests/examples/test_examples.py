"""Every example runs as it stands, alone on loopback, and ends with 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from microos.control.client import Client
from tests.proc.processes import PATIENCE, eventually

pytestmark = [pytest.mark.proc, pytest.mark.slow, pytest.mark.xdist_group("proc")]

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def begin(name: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run an example while the block runs; whatever happens, it does not outlive it."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MICROOS_")}
    with subprocess.Popen(
        [sys.executable, EXAMPLES / name, *options],
        env=plain,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rpc_calls.py", ["postponed o-1", "charging o-2", "refused o-3", "o-2: 19.95"]),
        ("kv.py", ["ann has", "too late"]),
    ],
)
def test_an_example_that_ends_by_itself(name: str, words: list[str]) -> None:
    with begin(name) as process:
        said, errors = process.communicate(timeout=PATIENCE)

    assert (process.returncode, errors) == (0, "")
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize("name", ["trio_service.py", "shop.py"])
def test_a_service_leaves_when_it_is_told_to(name: str) -> None:
    with begin(name) as process:
        assert process.stdout is not None
        assert "orders" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)

    assert (process.returncode, errors) == (0, "")


def test_the_shop_sells_from_two_processes_and_no_order_twice() -> None:
    with begin("shop.py", "--service", "stock") as first:
        address = address_of(first)
        with begin(
            "shop.py", "--service", "orders", "--service", "payments", "--join", address
        ) as second:
            address_of(second)
            with Client(address, cluster="local", timeout=PATIENCE) as client:
                eventually(lambda: len(client.call("services")) == 3, "three services are known")

                def call(endpoint: str, *arguments: object) -> object:
                    return client.call(
                        "call", endpoint=endpoint, arguments=arguments, idempotent=True
                    )

                eventually(lambda: call("stock.fill", "book", 5, 1200) == 5, "there is stock")
                order = {"id": "o-1", "item": "book", "count": 2, "card": "4711"}
                # A service is known a moment before its node has a part of the store.
                placed = [
                    eventually(lambda: call("orders.place", order), "an order is placed")
                    for _ in range(2)
                ]
                left, found = call("stock.left", "book"), call("orders.find", "o-1")
            second.send_signal(signal.SIGTERM)
            assert second.wait(PATIENCE) == 0
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE) == 0

    assert placed == [{"order_id": "o-1", "charged_cents": 2400}] * 2
    assert (left, found) == (3, order)


def address_of(process: subprocess.Popen[str]) -> str:
    """Return where a shop says that it listens."""
    assert process.stdout is not None
    return process.stdout.readline().split()[-1]
