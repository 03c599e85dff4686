"""An echo of 100 bytes over loopback: microos beside gRPC's aio, in the same run.

    python benchmarks/rpc_vs_peers.py [--quick] [--json] [--save]

    ours    two nodes in two processes; `node.call` through the router, typed arguments, deadline,
            a handler of the user in its own task
    grpc    grpcio's aio server and client, one channel, bytes as they are
    floor   bare trio: frames, a table of pending calls, one write per turn on both ends; no
            routing, no deadlines, no types, no task per request

| claim | what |
|---|---|
| `rpc.echo.sequential` | one call after the other, against gRPC |
| `rpc.echo.64` | 64 at any time, against gRPC |
| `rpc.echo.64.floor` | 64 at any time, against the floor |

Needs grpcio (`pip install --group bench`).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from _sides import (
    SEED,
    Claim,
    Figures,
    Side,
    free_ports,
    machine,
    measure,
    run,
    server,
    take_orders_under_asyncio,
    take_orders_under_trio,
    worker,
)

SIZE = 100
BODY = random.Random(SEED).randbytes(SIZE)
METHOD = "/bench.Echo/Say"

CLAIMS = (
    Claim("rpc.echo.sequential", "ours", "grpc", 1),
    Claim("rpc.echo.64", "ours", "grpc", 64),
    Claim("rpc.echo.64.floor", "ours", "floor", 64),
)


# Ours.


def ours_server(port: str) -> None:
    import trio

    import microos

    echo = microos.Service("echo")

    @echo.rpc
    async def say(body: bytes) -> bytes:
        return body

    async def main() -> None:
        settings = microos.Settings.load(name="server", bind=f"127.0.0.1:{port}", preset="lan")
        async with microos.open(echo, settings=settings) as node:
            await node.wait_ready(60.0)
            print("ready", flush=True)
            await trio.sleep_forever()

    trio.run(main)


def ours(port: str) -> None:
    import trio

    import microos

    say = microos.remote("echo.say", returns=bytes, idempotent=True)

    async def main() -> None:
        settings = microos.Settings.load(
            name="client", seeds=(f"127.0.0.1:{port}",), bootstrap="join", preset="lan"
        )
        async with microos.open(settings=settings) as node:
            await node.wait_ready(60.0)

            async def work(number: int) -> object:
                return await node.call(say, BODY)

            await take_orders_under_trio(work)

    trio.run(main)


# gRPC.


def grpc_server(port: str) -> None:
    grpc: Any = importlib.import_module("grpc")

    async def say(body: bytes, context: object) -> bytes:
        return body

    async def main() -> None:
        there = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(say)
        name, method = METHOD.strip("/").split("/")
        handlers = grpc.method_handlers_generic_handler(name, {method: handler})
        there.add_generic_rpc_handlers((handlers,))
        there.add_insecure_port(f"127.0.0.1:{port}")
        await there.start()
        print("ready", flush=True)
        await there.wait_for_termination()

    asyncio.run(main())


def grpc_client(port: str) -> None:
    grpc: Any = importlib.import_module("grpc")

    async def main() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(METHOD)

            async def work(number: int) -> object:
                return await call(BODY)

            await take_orders_under_asyncio(work)

    asyncio.run(main())


# The floor: what a careful program under trio costs without anything of ours.

HEAD = 8
"""A frame: length of the body and number of the call, 4 bytes each."""


def frame(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + number.to_bytes(4, "big") + body


def frames(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Cut the whole frames off the buffer."""
    found, at = [], 0
    while len(buffer) - at >= HEAD:
        end = at + HEAD + int.from_bytes(buffer[at : at + 4], "big")
        if len(buffer) < end:
            break
        number = int.from_bytes(buffer[at + 4 : at + HEAD], "big")
        found.append((number, bytes(buffer[at + HEAD : end])))
        at = end
    del buffer[:at]
    return found


def floor_server(port: str) -> None:
    import trio

    async def serve(stream: trio.SocketStream) -> None:
        stream.setsockopt(6, 1, True)  # TCP_NODELAY
        buffer = bytearray()
        while data := await stream.receive_some(1 << 16):
            buffer += data
            await stream.send_all(b"".join(frame(n, body) for n, body in frames(buffer)))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_tcp, serve, int(port), host="127.0.0.1"))
            print("ready", flush=True)

    trio.run(main)


def floor(port: str) -> None:
    import trio

    async def main() -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", int(port))
        stream.setsockopt(6, 1, True)
        pending: dict[int, tuple[trio.lowlevel.Task, list[bytes]]] = {}
        outbox: list[bytes] = []
        awake = trio.Event()
        count = 0

        async def write() -> None:
            nonlocal awake
            while True:
                if not outbox:
                    awake = trio.Event()
                    await awake.wait()
                data = b"".join(outbox)
                outbox.clear()
                await stream.send_all(data)

        async def read() -> None:
            buffer = bytearray()
            while data := await stream.receive_some(1 << 16):
                buffer += data
                for number, body in frames(buffer):
                    task, answer = pending.pop(number)
                    answer.append(body)
                    trio.lowlevel.reschedule(task)

        async def work(number: int) -> object:
            nonlocal count
            count += 1
            answer: list[bytes] = []
            pending[count] = (trio.lowlevel.current_task(), answer)
            outbox.append(frame(count, BODY))
            awake.set()
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
            return answer[0]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(read)
            await take_orders_under_trio(work)
            nursery.cancel_scope.cancel()

    trio.run(main)


# The run.

WORKERS: dict[str, Callable[[str], None]] = {
    "ours-server": ours_server,
    "ours": ours,
    "grpc-server": grpc_server,
    "grpc": grpc_client,
    "floor-server": floor_server,
    "floor": floor,
}


def figures(rounds: int, seconds: float, say: Callable[[str], None]) -> list[Figures]:
    folder = Path(tempfile.mkdtemp(prefix="microos-bench-"))
    try:
        with ExitStack() as stack:
            sides: dict[str, Side] = {}
            for name, port in zip(("ours", "grpc", "floor"), free_ports(3), strict=True):
                server(stack, folder, __file__, f"{name}-server", str(port))
                sides[name] = worker(stack, folder, __file__, name, str(port))
            return measure(CLAIMS, sides, rounds, seconds, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        WORKERS[sys.argv[2]](*sys.argv[3:])
        return 0
    if importlib.util.find_spec("grpc") is None:
        print("needs grpcio: pip install --group bench", file=sys.stderr)
        return 1
    about = machine(f"grpcio {importlib.import_module('grpc').__version__}")
    return run("An echo: microos beside gRPC.", "rpc_vs_peers.txt", about, figures)


if __name__ == "__main__":
    sys.exit(main())
