"""What happens to packets: latency, loss, copies, flipped bits, cuts and clogs.

The n-th packet of a link meets a fate that depends on (seed, link, n) only, and on
the cuts and clogs of its instant. Delays are integers of nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import xxhash

from microos.sim.world import MILLISECOND, SECOND, U64, World, exponential, uniform

PPM = 1_000_000
RARE_ONE_IN = 1000
RARE_FACTOR = 100
DELAY_MAX = 10 * SECOND

COPIES, FLIP, LOSS, LATENCY, CHUNK, BIAS = range(6)
"""Salts: each question about a packet has chance of its own."""


class Weather(msgspec.Struct):
    """How all links behave. Changed by the quiet tail, never by a link's own luck."""

    latency_min_ns: int = MILLISECOND // 5
    latency_mean_ns: int = MILLISECOND
    """Of the exponential part, on top of the least."""
    loss_ppm: int = 0
    duplication_ppm: int = 0
    corruption_ppm: int = 0
    rare: bool = True
    """One packet in 1000 takes 100 times as long."""
    bias: bool = True
    """Each link is up to twice as slow as the fastest."""


class _Link:
    __slots__ = ("bias", "datagrams", "id", "segments")

    def __init__(self, id: int, bias: int) -> None:
        self.id = id
        self.bias = bias
        self.datagrams = 0
        self.segments = 0


class SimulatedNetwork:
    """The `Rules` of `net.memory`, and of the messages of layer `cores`."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world = world
        self.weather = weather
        self.horizon = 0
        """What is sent before it arrives by it, so that old weather ends in the quiet tail [ns]."""
        self._cuts: dict[tuple[str, str], int] = {}
        self._clogs: dict[tuple[str, str], int] = {}
        self._links: dict[tuple[str, str], _Link] = {}

    # Faults. Cuts are counted, so each undoes itself whatever else is cut.

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing through from `sender` to `receiver`."""
        key = (sender, receiver)
        self._cuts[key] = self._cuts.get(key, 0) + 1

    def mend(self, sender: str, receiver: str) -> None:
        """Undo one `cut`; harmless when everything has been healed meanwhile."""
        key = (sender, receiver)
        left = self._cuts.get(key, 1) - 1
        if left:
            self._cuts[key] = left
        else:
            self._cuts.pop(key, None)

    def is_cut(self, sender: str, receiver: str) -> bool:
        return (sender, receiver) in self._cuts

    def clog(self, sender: str, receiver: str, until: int) -> None:
        """Hold back what is sent from `sender` to `receiver` before `until` [ns] until then."""
        key = (sender, receiver)
        self._clogs[key] = max(until, self._clogs.get(key, 0))

    def calm(self, weather: Weather) -> None:
        """Heal everything and go on with this weather."""
        self._cuts.clear()
        self._clogs.clear()
        self.weather = weather

    # Rules.

    def after(self, delay: int, fn: Callable[[], None]) -> None:
        self.world.after(delay, fn)

    def datagram(self, sender: str, receiver: str, data: bytes) -> Sequence[tuple[int, bytes]]:
        link = self._link(sender, receiver)
        number = link.datagrams
        link.datagrams = number + 1
        if self._cuts and (sender, receiver) in self._cuts:
            return ()
        weather = self.weather
        chance = self.world.chance
        if weather.loss_ppm and chance(link.id, number, LOSS) % PPM < weather.loss_ppm:
            return ()
        if weather.corruption_ppm and chance(link.id, number, FLIP) % PPM < weather.corruption_ppm:
            data = _flipped(data, chance(link.id, number, FLIP + 16))
        first = (self._delay(link, sender, receiver, 2 * number), data)
        if (
            weather.duplication_ppm
            and chance(link.id, number, COPIES) % PPM < weather.duplication_ppm
        ):
            return first, (self._delay(link, sender, receiver, 2 * number + 1), data)
        return (first,)

    def segment(self, sender: str, receiver: str) -> int | None:
        link = self._link(sender, receiver)
        number = link.segments
        link.segments = number + 1
        if self._cuts and (sender, receiver) in self._cuts:
            return None
        delay = self._delay(link, sender, receiver, 2 * number, 32)
        loss = self.weather.loss_ppm
        if loss and self.world.chance(link.id, number, LOSS + 32) % PPM < loss:
            delay += 200 * MILLISECOND  # Lost and sent again, as TCP does.
        return delay

    def chunk(self, sender: str, receiver: str, size: int) -> int:
        link = self._link(receiver, sender)
        number = link.segments
        link.segments = number + 1
        bits = self.world.chance(link.id, number, CHUNK)
        if bits & 3 or size == 1:
            return size
        return uniform(bits, 1, size + 1)

    def delivered(self, kind: str, sender: str, receiver: str, data: bytes) -> None:
        self.world.trace(kind, sender, receiver, data)

    def _link(self, sender: str, receiver: str) -> _Link:
        link = self._links.get((sender, receiver))
        if link is None:
            id = xxhash.xxh3_64_intdigest(f"{sender}>{receiver}".encode())
            bias = self.world.chance(id, 0, BIAS) % PPM
            link = self._links[sender, receiver] = _Link(id, bias)
        return link

    def _delay(self, link: _Link, sender: str, receiver: str, number: int, salt: int = 0) -> int:
        weather = self.weather
        bits = self.world.chance(link.id, number, LATENCY + salt)
        delay = weather.latency_min_ns + exponential(bits, weather.latency_mean_ns)
        if weather.bias:
            delay += delay * link.bias // PPM
        if weather.rare and (bits & (U64 >> 16) - 1) % RARE_ONE_IN == 0:
            delay *= RARE_FACTOR
        delay = min(delay, DELAY_MAX)
        if self.world.now < self.horizon:
            delay = min(delay, self.horizon - self.world.now)
        if self._clogs:
            held = self._clogs.get((sender, receiver), 0) - self.world.now
            if held > 0:
                delay += held
        return delay


def _flipped(data: bytes, bits: int) -> bytes:
    if not data:
        return data
    place = bits % (8 * len(data))
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)
