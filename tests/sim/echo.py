"""The smallest world with everything in it: nodes that echo, over bad weather, pauses and crashes.

python tests/sim/echo.py SEED      prints the trace hash
"""

from __future__ import annotations

from collections import Counter

import trio

from microos.net.memory import MemoryNetwork
from microos.net.network import Stream
from microos.sim.clock import Line
from microos.sim.loop import simulate
from microos.sim.network import SimulatedNetwork, Weather
from microos.sim.process import Process
from microos.sim.world import SECOND, World
from microos.types import Address

NODES = 5
LENGTH = 20 * SECOND


class EchoWorld:
    """Five nodes ping each other by datagrams and streams for 20 virtual seconds."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.seen: Counter[str] = Counter()
        weather = Weather(loss_ppm=50_000, duplication_ppm=10_000, corruption_ppm=10_000)
        self.rules = SimulatedNetwork(self.world, weather)
        self.hub = MemoryNetwork(self.rules)
        self.lines = [Line(self.world, offset=i * SECOND, ppm=i * 100) for i in range(NODES)]
        self.boots = [0] * NODES
        self.processes: dict[int, Process] = {}

    def run(self) -> str:
        simulate(self.world, self._main)
        assert self.world.failure is None, self.world.failure
        return self.world.trace_hash()

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            for node in range(NODES):
                self._boot(nursery, node)
            chance = self.world.random("plan")
            for _ in range(8):
                self._plan(nursery, chance.randrange(LENGTH), chance.randrange(NODES))
            end = trio.Event()
            self.world.at(LENGTH, end.set)
            await end.wait()
            nursery.cancel_scope.cancel()

    def _plan(self, nursery: trio.Nursery, at: int, node: int) -> None:
        def fault() -> None:
            self.world.trace("fault", str(node))
            process = self.processes[node]
            if at % 3 == 0:
                process.gate.pause()
                self.world.after(SECOND, process.gate.resume)
            elif at % 3 == 1:
                process.crash(silent=at % 2 == 0)
                self.world.after(SECOND, lambda: self._boot(nursery, node))
            else:
                self.rules.cut(f"n{node}", f"n{(node + 1) % NODES}")
                self.world.after(
                    SECOND, lambda: self.rules.mend(f"n{node}", f"n{(node + 1) % NODES}")
                )

        self.world.at(at, fault, 0)

    def _boot(self, nursery: trio.Nursery, node: int) -> None:
        self.boots[node] += 1
        process = Process(
            self.world,
            f"n{node}",
            self.boots[node],
            line=self.lines[node],
            hub=self.hub,
            ip=f"10.0.0.{node}",
        )
        self.processes[node] = process
        nursery.start_soon(process.run, self._node)

    async def _node(self, process: Process) -> None:
        udp = await process.network.udp(Address("", 7000))
        listener = await process.network.listen(Address("", 7000))

        async def answer_datagrams() -> None:
            while True:
                for data, sender in await udp.receive():
                    self.seen["datagram"] += 1
                    if data.startswith(b"ping"):
                        udp.send(b"pong" + data[4:], sender)

        async def answer_streams() -> None:
            async with trio.open_nursery() as streams:
                while True:
                    streams.start_soon(self._echo, await listener.accept())

        async def ask() -> None:
            chance = process.random("ask")
            for number in range(10_000):
                await process.clock.sleep_until(process.clock.now() + 0.05 + chance.random() / 10)
                other = Address(f"10.0.0.{chance.randrange(NODES)}", 7000)
                udp.send(b"ping %d %s" % (number, process.entropy(4)), other)
                if number % 8 == 0:
                    with process.clock.timeout_at(process.clock.now() + 0.5):
                        await self._ask_once(process, other, number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_datagrams)
            nursery.start_soon(answer_streams)
            nursery.start_soon(ask)

    async def _ask_once(self, process: Process, other: Address, number: int) -> None:
        data = b"%d;" % number * 2000
        try:
            stream = await process.network.dial(other)
        except OSError:
            self.seen["refused"] += 1
            return
        try:
            await stream.send_all(data)
            back = b""
            while len(back) < len(data):
                back += await stream.receive_some(4096)
            assert back == data
            self.seen["stream"] += 1
            await stream.aclose()
        except trio.BrokenResourceError:
            self.seen["reset"] += 1
        finally:
            stream.abort()

    async def _echo(self, stream: Stream) -> None:
        try:
            while data := await stream.receive_some(4096):
                await stream.send_all(data)
            await stream.aclose()
        except trio.BrokenResourceError:
            stream.abort()
