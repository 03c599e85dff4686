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

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from microos.settings import Settings

SEED = 1
VALUE_SIZE = 256
KEYS = 1000
"""Names written in turn; the state stays small, as it is for etcd."""

CLAIMS = {"raft.put.sequential": 1, "raft.put.64": 64}
"""Claim to puts in flight."""

START = 60.0
"""Longest wait for three processes to have a leader [s]."""

RESULT = Path(__file__).parent / "results" / "consensus_vs_peers.txt"

Put = Callable[[int], Awaitable[object]]


class Round(msgspec.Struct, frozen=True):
    """What one round of one system came to."""

    per_second: float
    p50_ms: float
    p99_ms: float


class Figures(msgspec.Struct, frozen=True):
    """One claim: both systems, the medians over all rounds."""

    claim: str
    ours: Round
    peer: Round

    @property
    def ratio(self) -> float:
        return self.ours.per_second / self.peer.per_second


def value() -> str:
    return random.Random(SEED).randbytes(VALUE_SIZE // 2).hex()


def summed_up(latencies: list[float], seconds: float) -> Round:
    ordered = sorted(latencies)
    at = [ordered[int(share * (len(ordered) - 1))] * 1000 for share in (0.5, 0.99)]
    return Round(len(ordered) / seconds, *at)


def median_of(rounds: list[Round]) -> Round:
    return Round(
        statistics.median(r.per_second for r in rounds),
        statistics.median(r.p50_ms for r in rounds),
        statistics.median(r.p99_ms for r in rounds),
    )


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
                        keep_putting, put, first, int(in_flight), began + float(seconds), latencies
                    )
            done = summed_up(latencies, time.perf_counter() - began)
            print(msgspec.json.encode(done).decode(), flush=True)


async def keep_putting(
    put: Put, first: int, step: int, until: float, latencies: list[float]
) -> None:
    """Put number `first`, `first + step`, … until the time is up."""
    number = first
    began = time.perf_counter()
    while began < until:
        await put(number)
        now = time.perf_counter()
        latencies.append(now - began)
        began = now
        number += step


class Ours:
    """Three members; whichever leads does the putting."""

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
                *(keep_putting(put, n, in_flight, until, latencies) for n in range(in_flight))
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


@contextmanager
def running(command: list[str], folder: Path, **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its errors in `folder`; the end of the block kills it."""
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stderr=log, **{"stdout": log, **pipes})  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


# The run.


def measure(rounds: int, seconds: float, say: Callable[[str], None]) -> list[Figures]:
    """Run both, in turns, `rounds` times `seconds` per claim."""
    folder = Path(tempfile.mkdtemp(prefix="microos-bench-"))
    try:
        with ExitStack() as stack:
            ports = free_ports(9)
            systems: tuple[Ours | Etcd, ...] = (
                Ours(folder, ports[:3], stack),
                Etcd(folder, ports[3:], stack),
            )
            for system in systems:
                system.wait()
                system.round(64, min(1.0, seconds))  # Warm: connections, code, first segments.
            found: dict[str, tuple[list[Round], list[Round]]] = {c: ([], []) for c in CLAIMS}
            for number in range(rounds):
                for claim, in_flight in CLAIMS.items():
                    for system, kept in zip(systems, found[claim], strict=True):
                        kept.append(system.round(in_flight, seconds))
                    ours, peer = (kept[-1].per_second for kept in found[claim])
                    say(f"round {number + 1}  {claim:<20} ours {ours:8.0f}/s  etcd {peer:8.0f}/s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [Figures(c, median_of(ours), median_of(peer)) for c, (ours, peer) in found.items()]


def machine() -> str:
    cores = os.cpu_count()
    etcd = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout
    load = os.getloadavg()[0]
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores, load {load:.1f} at the start, "
        f"Python {platform.python_version()}, {etcd.splitlines()[0]}, seed {SEED}"
    )


def table(found: list[Figures]) -> str:
    lines = [
        f"{'claim':<20} {'ours':>9} {'etcd':>9} {'ratio':>6}   "
        f"{'ours p50/p99':>18}   {'etcd p50/p99':>18}"
    ]
    for one in found:
        ours, peer = one.ours, one.peer
        lines.append(
            f"{one.claim:<20} {ours.per_second:>7.0f}/s {peer.per_second:>7.0f}/s "
            f"{one.ratio:>6.2f}   {ours.p50_ms:>7.2f}/{ours.p99_ms:>7.2f} ms   "
            f"{peer.p50_ms:>7.2f}/{peer.p99_ms:>7.2f} ms"
        )
    return "\n".join(lines)


def as_json(one: Figures) -> str:
    return json.dumps(
        {
            "claim": one.claim,
            "ours": round(one.ours.per_second, 1),
            "peer": round(one.peer.per_second, 1),
            "ratio": round(one.ratio, 3),
            "better": "higher",
            "unit": "ops/s",
        }
    )


def main() -> int:
    if sys.argv[1:2] == ["--member"]:
        return run_member(*sys.argv[2:])
    parser = argparse.ArgumentParser(description="Durable puts: microos beside etcd.")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 s; else 5 of 5 s")
    parser.add_argument("--json", action="store_true", help="one JSON line per claim")
    parser.add_argument("--save", action="store_true", help=f"keep the table in {RESULT.name}")
    options = parser.parse_args()
    if shutil.which("etcd") is None or importlib.util.find_spec("grpc") is None:
        print("needs etcd (Debian: etcd-server) and pip install --group bench", file=sys.stderr)
        return 1
    about = machine()
    rounds, seconds = (2, 2.0) if options.quick else (5, 5.0)
    found = measure(rounds, seconds, lambda line: print(line, file=sys.stderr, flush=True))
    text = f"{about}\nmedians of {rounds} rounds of {seconds:g} s\n\n{table(found)}\n"
    print("\n".join(map(as_json, found)) if options.json else f"\n{text}")
    if options.save:
        RESULT.write_text(text, encoding="utf-8")
    return 0


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
