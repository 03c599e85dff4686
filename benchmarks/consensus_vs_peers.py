"""Durable puts of 256 bytes through consensus: microos beside etcd, in the same run.

    python benchmarks/consensus_vs_peers.py [--quick] [--json] [--save]

    ours   3 processes, each a node with a data directory; the caller is the leader's own process
    peer   3 etcd processes, data directories on the same disk; the caller speaks gRPC to the leader

That is how each is used: microos is embedded, etcd is a server. Both are up all the time
and take turns, round by round, so what else the machine does meets both alike. A put is
acknowledged when a majority has it on disk: `node.config.set` of ours, `KV/Put` of etcd's.

| claim | what |
|---|---|
| `raft.put.sequential` | one after the other |
| `raft.put.64` | 64 at any time |

Needs `etcd` (Debian: etcd-server) and grpcio (`pip install --group bench`).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from _sides import (
    SEED,
    Claim,
    Figures,
    Round,
    free_ports,
    keep_doing,
    machine,
    measure,
    run,
    running,
    summed_up,
)

from microos.settings import Settings

VALUE_SIZE = 256
KEYS = 1000
"""Names written in turn; the state stays small, as it is for etcd."""

CLAIMS = (
    Claim("raft.put.sequential", "ours", "etcd", 1),
    Claim("raft.put.64", "ours", "etcd", 64),
)

START = 60.0
"""Longest wait for three processes to have a leader [s]."""


def value() -> str:
    return random.Random(SEED).randbytes(VALUE_SIZE // 2).hex()


# Ours: this file again, as a member that takes orders on its standard input.


async def member(settings: Settings) -> None:
    """Be a node; for each line `IN_FLIGHT SECONDS` put that long, and print the round.

    The line `leader` asks whether this one leads.
    """
    import trio  # only here: the process that measures etcd does without

    import microos

    text = value()
    async with microos.open(settings=settings) as node:
        await node.wait_ready(START)

        async def put(number: int) -> object:
            return await node.config.set(f"k{number % KEYS}", text)

        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            if line.strip() == "leader":
                print(json.dumps(node.statistics().leader == node.name), flush=True)
                continue
            in_flight, seconds = line.split()
            latencies: list[float] = []
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for first in range(int(in_flight)):
                    nursery.start_soon(
                        keep_doing, put, first, int(in_flight), began + float(seconds), latencies
                    )
            done = summed_up(latencies, time.perf_counter() - began)
            print(msgspec.json.encode(done).decode(), flush=True)


class Ours:
    """Three members; whichever leads does the putting."""

    name = "ours"

    def __init__(self, folder: Path, ports: list[int], stack: ExitStack) -> None:
        seeds = ",".join(f"127.0.0.1:{port}" for port in ports)
        self._members = [
            stack.enter_context(
                running(
                    [sys.executable, __file__, "--member", f"m{number}", str(port), seeds],
                    folder / f"m{number}",
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for number, port in enumerate(ports)
        ]

    def wait(self) -> None:
        """Wait until one leads."""
        self._leader()

    def round(self, in_flight: int, seconds: float) -> Round:
        told = self._told(self._leader(), f"{in_flight} {seconds}")
        return msgspec.json.decode(told, type=Round)

    def _leader(self) -> subprocess.Popen[bytes]:
        until = time.monotonic() + START
        while time.monotonic() < until:
            for process in self._members:
                if json.loads(self._told(process, "leader")):
                    return process
        raise TimeoutError(f"expected a leader of ours within {START:g} s, found none")

    @staticmethod
    def _told(process: subprocess.Popen[bytes], order: str) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(order.encode() + b"\n")
        process.stdin.flush()
        return process.stdout.readline() or b"false"


# The peer: etcd, spoken to in its own words.


def field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes; both numbers fit our few short messages."""
    assert len(content) < 1 << 14
    low, high = len(content) & 0x7F, len(content) >> 7
    size = bytes([low | 0x80, high]) if high else bytes([low])
    return bytes([number << 3 | 2]) + size + content


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message: integers, and bytes for what is nested."""
    at = 0

    def varint() -> int:
        nonlocal at
        found = shift = 0
        while True:
            byte = message[at]
            at += 1
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return found

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        else:
            assert tag & 7 == 2, f"expected an integer or bytes, found wire type {tag & 7}"
            size = varint()
            yield tag >> 3, message[at : at + size]
            at += size


class Etcd:
    """Three etcd processes and a client at their leader."""

    name = "etcd"

    def __init__(self, folder: Path, ports: list[int], stack: ExitStack) -> None:
        self._grpc: Any = importlib.import_module("grpc")
        self._clients = ports[:3]
        peers = [f"e{n}=http://127.0.0.1:{port}" for n, port in enumerate(ports[3:])]
        for number, (client, peer) in enumerate(zip(ports, peers, strict=False)):
            name, peer_url = peer.split("=")
            url = f"http://127.0.0.1:{client}"
            command = ["etcd", "--name", name, "--data-dir", str(folder / name / "data")]
            command += ["--listen-client-urls", url, "--advertise-client-urls", url]
            command += ["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]
            command += ["--initial-cluster", ",".join(peers), "--initial-cluster-state", "new"]
            stack.enter_context(running([*command, "--log-level", "error"], folder / f"e{number}"))
        self._text = value().encode()

    def wait(self) -> None:
        """Wait until one leads."""
        asyncio.run(self._leader())

    def round(self, in_flight: int, seconds: float) -> Round:
        return asyncio.run(self._round(in_flight, seconds))

    async def _round(self, in_flight: int, seconds: float) -> Round:
        leader = await self._leader()
        async with self._grpc.aio.insecure_channel(f"127.0.0.1:{leader}") as channel:
            call = channel.unary_unary("/etcdserverpb.KV/Put")

            async def put(number: int) -> object:
                return await call(field(1, b"k%d" % (number % KEYS)) + field(2, self._text))

            await put(0)  # The connection is made before the time runs.
            latencies: list[float] = []
            began = time.perf_counter()
            until = began + seconds
            await asyncio.gather(
                *(keep_doing(put, n, in_flight, until, latencies) for n in range(in_flight))
            )
            return summed_up(latencies, time.perf_counter() - began)

    async def _leader(self) -> int:
        """Return the client port of the leader: whose status names itself."""
        until = time.monotonic() + START
        while time.monotonic() < until:
            for port in self._clients:
                async with self._grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    status = channel.unary_unary("/etcdserverpb.Maintenance/Status")
                    try:
                        answer = dict(fields(await status(b"", timeout=1.0)))
                    except self._grpc.aio.AioRpcError:
                        continue
                header = answer.get(1, b"")
                assert isinstance(header, bytes)
                if answer.get(4) and answer.get(4) == dict(fields(header)).get(2):
                    return port
        raise TimeoutError(f"expected a leader of etcd's within {START:g} s, found none")


# The run.


def figures(rounds: int, seconds: float, say: Callable[[str], None]) -> list[Figures]:
    folder = Path(tempfile.mkdtemp(prefix="microos-bench-"))
    try:
        with ExitStack() as stack:
            ports = free_ports(9)
            ours, etcd = Ours(folder, ports[:3], stack), Etcd(folder, ports[3:], stack)
            ours.wait()
            etcd.wait()
            return measure(CLAIMS, {"ours": ours, "etcd": etcd}, rounds, seconds, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    if sys.argv[1:2] == ["--member"]:
        return run_member(*sys.argv[2:])
    if shutil.which("etcd") is None or importlib.util.find_spec("grpc") is None:
        print("needs etcd (Debian: etcd-server) and pip install --group bench", file=sys.stderr)
        return 1
    etcd = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout
    about = machine(etcd.splitlines()[0])
    return run("Durable puts: microos beside etcd.", "consensus_vs_peers.txt", about, figures)


def run_member(name: str, port: str, seeds: str) -> int:
    import trio

    settings = Settings.load(
        name=name,
        bind=f"127.0.0.1:{port}",
        seeds=tuple(seeds.split(",")),
        data_dir=Path("data"),
        cluster="bench",
        preset="lan",
    )
    trio.run(member, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
