"""Gets and puts of 100 bytes, 64 in flight: microos beside Redis, in the same run.

    python benchmarks/kv_vs_peers.py [--quick] [--json] [--save]

    ours    three nodes in three processes, N = 3; the caller is one of them, as microos is used
    client  a fourth process that owns nothing: every operation goes over loopback
    redis   one redis-server and redis.asyncio with hiredis, one connection per task

| claim | ours | Redis |
|---|---|---|
| `kv.get.64` | a get answered by a quorum, two of three | GET |
| `kv.put.64` | a put acknowledged by a quorum, sent to all three | SET, on one server |
| `kv.get.one.64` | a get of level `one` at a remote owner, by the client | GET |

Redis keeps one copy and answers from it; ours keeps three and asks two. Needs redis-server
(Debian: redis-server) and redis (`pip install --group bench`).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from _sides import (
    SEED,
    Claim,
    Figures,
    Side,
    free_ports,
    machine,
    measure,
    run,
    running,
    server,
    take_orders_under_asyncio,
    take_orders_under_trio,
    worker,
)

SIZE = 100
VALUE = random.Random(SEED).randbytes(SIZE)
KEYS = 1000
CLIENTS = 64

CLAIMS = (
    Claim("kv.get.64", "ours-get", "redis-get", CLIENTS),
    Claim("kv.put.64", "ours-put", "redis-put", CLIENTS),
    Claim("kv.get.one.64", "client-get", "redis-get", CLIENTS),
)


def key(number: int) -> str:
    return f"key:{number % KEYS:04}"


# Ours.


def ours(kind: Literal["server", "get", "put", "one"], name: str, port: str, seeds: str) -> None:
    import trio

    import microos

    async def main() -> None:
        settings = microos.Settings.load(
            name=name,
            bind=f"127.0.0.1:{port}",
            seeds=tuple(seeds.split(",")),
            preset="lan",
            ring={"participate": kind != "one"},
        )
        async with microos.open(settings=settings) as node:
            await node.wait_ready(60.0)
            if kind == "server":
                print("ready", flush=True)
                await trio.sleep_forever()
            bucket = node.kv.bucket(
                "bench", bytes, consistency="one" if kind == "one" else "quorum"
            )
            for number in range(KEYS):
                await bucket.put(key(number), VALUE)

            async def get(number: int) -> object:
                return await bucket.get(key(number))

            async def put(number: int) -> object:
                return await bucket.put(key(number), VALUE)

            await take_orders_under_trio(put if kind == "put" else get)

    trio.run(main)


# Redis.


def redis(kind: Literal["get", "put"], port: str) -> None:
    asyncio_redis: Any = importlib.import_module("redis.asyncio")

    async def main() -> None:
        pool = asyncio_redis.ConnectionPool(
            host="127.0.0.1", port=int(port), max_connections=CLIENTS
        )
        async with asyncio_redis.Redis(connection_pool=pool) as client:
            for number in range(KEYS):
                await client.set(key(number), VALUE)

            async def get(number: int) -> object:
                return await client.get(key(number))

            async def put(number: int) -> object:
                return await client.set(key(number), VALUE)

            await take_orders_under_asyncio(put if kind == "put" else get)

    asyncio.run(main())


# The run.

WORKERS: dict[str, Callable[..., None]] = {
    "ours-server": lambda *rest: ours("server", *rest),
    "ours-get": lambda *rest: ours("get", *rest),
    "ours-put": lambda *rest: ours("put", *rest),
    "client-get": lambda *rest: ours("one", *rest),
    "redis-get": lambda port: redis("get", port),
    "redis-put": lambda port: redis("put", port),
}


def figures(rounds: int, seconds: float, say: Callable[[str], None]) -> list[Figures]:
    folder = Path(tempfile.mkdtemp(prefix="microos-bench-"))
    try:
        with ExitStack() as stack:
            *ports, redis_port = free_ports(5)
            seeds = f"127.0.0.1:{ports[0]}"
            sides: dict[str, Side] = {}
            # The first founds; who gets and who puts are owners too.
            server(stack, folder, __file__, "ours-server", "server", str(ports[0]), seeds)
            names = ("ours-get", "ours-put", "client-get")
            for name, port in zip(names, ports[1:], strict=True):
                sides[name] = worker(stack, folder, __file__, name, name, str(port), seeds)
            command = [
                "redis-server",
                "--port",
                str(redis_port),
                "--save",
                "",
                "--appendonly",
                "no",
            ]
            stack.enter_context(running(command, folder / "redis"))
            _wait_for_redis(redis_port)
            for name in ("redis-get", "redis-put"):
                sides[name] = worker(stack, folder, __file__, name, str(redis_port))
            return measure(CLAIMS, sides, rounds, seconds, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_redis(port: int) -> None:
    until = time.monotonic() + 30.0
    command = ["redis-cli", "-p", str(port), "ping"]
    while subprocess.run(command, capture_output=True, check=False).stdout.strip() != b"PONG":
        if time.monotonic() > until:
            raise TimeoutError("expected redis-server to answer within 30 s")
        time.sleep(0.05)


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        WORKERS[sys.argv[2]](*sys.argv[3:])
        return 0
    if shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None:
        print(
            "needs redis-server (Debian: redis-server) and pip install --group bench",
            file=sys.stderr,
        )
        return 1
    version = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    )
    client = importlib.import_module("redis").__version__
    about = machine(" ".join(version.stdout.split()[:3]), f"redis-py {client}")
    return run("Gets and puts: microos beside Redis.", "kv_vs_peers.txt", about, figures)


if __name__ == "__main__":
    sys.exit(main())
