"""A network in memory: datagrams and streams between hosts of one process, under given rules.

The hub knows who listens where; what *happens* to a packet is decided by `Rules`,
handed in, so the simulator's weather needs no import from here. `PlainRules`, good
enough for unit tests, delivers at once, or later, or not at all while cut.

    sender ──▶ rules: when, if at all ──▶ receiver's kernel ──▶ gate ──▶ its task
                        │                 (queue, buffer)
                        └ None: a datagram is lost, a segment is sent again

Streams are TCP as an application sees it: numbered segments put back into order,
64 KiB on their way at most, reads cut at arbitrary bytes, a reset after 15 s of
silence, a refusal where nobody listens, a dial that hangs while the way is cut. What
has arrived at a host waits in its kernel while the process is paused: only waking the
task passes the gate. A crash takes the whole host: in order of politeness, its
kernel resets what was open, or (silent) says nothing at all.
"""

from __future__ import annotations

import errno
import ipaddress
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from microos import limits
from microos.clock import Clock
from microos.types import Address

Gate = Callable[[Callable[[], object]], None]
"""Calls a function now, later, or never: how a process is paused or dead."""

WINDOW = 64 * limits.KIB
"""Bytes of one direction sent and not yet read."""

DATAGRAM_LIMIT = 65_507
"""Largest UDP payload over IPv4."""

BACKLOG = 128
SECOND = 1_000_000_000
RETRY_FIRST = SECOND // 5
RETRY_LAST = 4 * SECOND
GIVE_UP = 15 * SECOND
"""A stream whose segments meet nothing but silence for this long is reset [ns]."""

EPHEMERAL = 40_000
DATAGRAMS_PER_READ = 64


class Rules(Protocol):
    """What happens to packets. Times in integer nanoseconds."""

    def after(self, delay: int, fn: Callable[[], None]) -> None:
        """Call `fn` in `delay`, in order among equals."""

    def datagram(self, sender: str, receiver: str, data: bytes) -> Sequence[tuple[int, bytes]]:
        """Return (delay, bytes) of each copy that arrives; none if it is lost."""

    def segment(self, sender: str, receiver: str) -> int | None:
        """Return the delay of one segment of a stream, or None if it does not get through now."""

    def chunk(self, sender: str, receiver: str, size: int) -> int:
        """Return how many of `size` readable bytes one read gets, 1..size."""

    def delivered(self, kind: str, sender: str, receiver: str, data: bytes) -> None:
        """Take note of what has arrived."""


class PlainRules:
    """Everything arrives after `latency`; nothing between hosts that are `cut`.

    Args:
        clock: Needed for a latency and for sending again; without it all is immediate.
        latency: One way [s].
    """

    def __init__(self, clock: Clock | None = None, *, latency: float = 0.0) -> None:
        assert clock is not None or latency == 0.0
        self._clock = clock
        self._delay = round(latency * SECOND)
        self.cut: dict[tuple[str, str], bool] = {}
        """(sender, receiver) that do not hear each other, one way."""

    def after(self, delay: int, fn: Callable[[], None]) -> None:
        if delay == 0 or self._clock is None:
            fn()
        else:
            self._clock.call_at(self._clock.now() + delay / SECOND, fn)

    def datagram(self, sender: str, receiver: str, data: bytes) -> Sequence[tuple[int, bytes]]:
        return () if (sender, receiver) in self.cut else ((self._delay, data),)

    def segment(self, sender: str, receiver: str) -> int | None:
        return None if (sender, receiver) in self.cut else self._delay

    def chunk(self, sender: str, receiver: str, size: int) -> int:
        return size

    def delivered(self, kind: str, sender: str, receiver: str, data: bytes) -> None:
        pass


class MemoryNetwork:
    """The wires between all hosts. `host()` gives one process its view of them."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules: Rules = rules or PlainRules()
        self.names: dict[str, tuple[str, ...]] = {"localhost": ("127.0.0.1",)}
        """What `resolve` knows besides numeric addresses."""
        self._hosts: dict[str, MemoryHost] = {}
        self._of_ip: dict[str, str] = {}
        self._of_address: dict[Address, str] = {}
        self._udps: dict[Address, MemoryUdp] = {}
        self._listeners: dict[Address, MemoryListener] = {}
        self._port = EPHEMERAL

    def host(self, name: str, *, ip: str = "127.0.0.1", gate: Gate | None = None) -> MemoryHost:
        """Return the network as one process on host `name` sees it; the process before it is gone.

        Several hosts may share an ip, as processes of one machine do.
        """
        before = self._hosts.get(name)
        if before is not None:
            before.crash()
        host = MemoryHost(self, name, ip, gate or _now)
        self._hosts[name] = host
        self._of_ip[ip] = name
        return host

    def home(self, address: Address) -> str | None:
        """Return the host that answers for an address, None if there is no such machine."""
        return self._of_address.get(address) or self._of_ip.get(address.host)

    def streams(self) -> int:
        """Return how many ends of streams are open."""
        return sum(len(host.streams) for host in self._hosts.values())

    def _claim(self, host: MemoryHost, at: Address, taken: dict[Address, object]) -> Address:
        ip = host.ip if at.host in ("", "0.0.0.0", "::") else at.host
        address = Address(ip, at.port)
        while at.port == 0 and (address.port == 0 or address in taken):
            address = Address(ip, self.next_port())
        if address in taken:
            raise OSError(errno.EADDRINUSE, f"address {address} is in use")
        self._of_address[address] = host.name
        return address

    def next_port(self) -> int:
        self._port = self._port + 1 if self._port < 65_535 else EPHEMERAL
        return self._port


class MemoryHost:
    """One process's `Network`, from its start to its crash."""

    def __init__(self, hub: MemoryNetwork, name: str, ip: str, gate: Gate) -> None:
        self.hub = hub
        self.name = name
        self.ip = ip
        self.gate = gate
        self.up = True
        self.silent = False
        """Down without a trace: nothing there refuses or resets."""
        self.streams: dict[MemoryStream, None] = {}
        self._udps: dict[MemoryUdp, None] = {}
        self._listeners: dict[MemoryListener, None] = {}

    async def udp(self, at: Address) -> MemoryUdp:
        await trio.lowlevel.checkpoint()
        self._require_up()
        udp = MemoryUdp(self, self.hub._claim(self, at, {**self.hub._udps}))
        self.hub._udps[udp.address] = udp
        self._udps[udp] = None
        return udp

    async def listen(self, at: Address) -> MemoryListener:
        await trio.lowlevel.checkpoint()
        self._require_up()
        listener = MemoryListener(self, self.hub._claim(self, at, {**self.hub._listeners}))
        self.hub._listeners[listener.address] = listener
        self._listeners[listener] = None
        return listener

    async def dial(self, to: Address) -> MemoryStream:
        self._require_up()
        knock = _Knock(self, to)
        knock.send()
        try:
            return await knock.answer()
        except BaseException:
            knock.give_up()
            raise

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        await trio.lowlevel.checkpoint()
        if host in self.hub.names:
            return tuple(Address(ip, port) for ip in self.hub.names[host])
        try:
            return (Address(str(ipaddress.ip_address(host)), port),)
        except ValueError:
            raise OSError(f"expected a known name, found {host!r}") from None

    def crash(self, *, silent: bool = False) -> None:
        """End the process: its sockets close, and the kernel resets its streams unless `silent`."""
        if not self.up:
            return
        self.up = False
        self.silent = silent
        for stream in list(self.streams):
            stream.kill()
        for listener in list(self._listeners):
            listener.close()
        for udp in list(self._udps):
            udp.close()

    def _require_up(self) -> None:
        if not self.up:
            raise OSError(errno.ENETDOWN, f"host {self.name} is down")


class MemoryUdp:
    """One bound datagram socket."""

    def __init__(self, host: MemoryHost, address: Address) -> None:
        self.address = address
        self.drops = 0
        self._host = host
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._open = True

    def send(self, data: bytes, to: Address) -> None:
        hub = self._host.hub
        receiver = hub.home(to)
        if not self._open or len(data) > DATAGRAM_LIMIT or receiver is None:
            return
        for delay, copy in hub.rules.datagram(self._host.name, receiver, bytes(data)):
            hub.rules.after(delay, _Arrival(self, copy, to))

    async def receive(self) -> list[tuple[bytes, Address]]:
        if self._queue:
            await trio.lowlevel.checkpoint()
        while not self._queue:
            if not self._open:
                raise trio.ClosedResourceError("the socket was closed")
            await self._lot.park()
        take = min(len(self._queue), DATAGRAMS_PER_READ)
        return [self._queue.popleft() for _ in range(take)]

    def close(self) -> None:
        if self._open:
            self._open = False
            self._queue.clear()
            self._host.hub._udps.pop(self.address, None)
            self._host._udps.pop(self, None)
            self._lot.unpark_all()

    def arrive(self, data: bytes, sender: MemoryUdp) -> None:
        """Take a datagram into the kernel's queue."""
        if len(self._queue) >= limits.UDP_QUEUE:
            self.drops += 1
            return
        self._host.hub.rules.delivered("datagram", sender._host.name, self._host.name, data)
        self._queue.append((data, sender.address))
        if len(self._queue) == 1:
            self._host.gate(self._lot.unpark_all)


class _Arrival:
    """A datagram under way; finds out at the end whether anybody is there."""

    __slots__ = ("data", "sender", "to")

    def __init__(self, sender: MemoryUdp, data: bytes, to: Address) -> None:
        self.sender = sender
        self.data = data
        self.to = to

    def __call__(self) -> None:
        there = self.sender._host.hub._udps.get(self.to)
        if there is not None:
            there.arrive(self.data, self.sender)


class MemoryListener:
    """One listening socket."""

    def __init__(self, host: MemoryHost, address: Address) -> None:
        self.address = address
        self.host = host
        self._backlog: deque[MemoryStream] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._open = True

    async def accept(self) -> MemoryStream:
        if self._backlog:
            await trio.lowlevel.checkpoint()
        while not self._backlog:
            if not self._open:
                raise trio.ClosedResourceError("the listener was closed")
            await self._lot.park()
        return self._backlog.popleft()

    def close(self) -> None:
        if self._open:
            self._open = False
            self.host.hub._listeners.pop(self.address, None)
            self.host._listeners.pop(self, None)
            for stream in self._backlog:
                stream.abort()
            self._backlog.clear()
            self._lot.unpark_all()

    def offer(self, stream: MemoryStream) -> bool:
        """Put a new connection into the backlog; return False if that is full."""
        if len(self._backlog) >= BACKLOG:
            return False
        self._backlog.append(stream)
        self.host.gate(self._lot.unpark_all)
        return True


class _Knock:
    """One attempt to connect: sent again and again until answered or given up."""

    def __init__(self, host: MemoryHost, to: Address) -> None:
        self._host = host
        self._to = to
        self._pause = SECOND
        self._stream: MemoryStream | None = None
        self._error: OSError | None = None
        self._done = False
        self._lot = trio.lowlevel.ParkingLot()

    async def answer(self) -> MemoryStream:
        if self._done:
            await trio.lowlevel.checkpoint()
        while not self._done:
            await self._lot.park()
        if self._error is not None:
            raise self._error
        assert self._stream is not None
        return self._stream

    def give_up(self) -> None:
        self._done = True
        if self._stream is not None:
            self._stream.abort()

    def send(self) -> None:
        if self._done or not self._host.up:
            return
        rules = self._host.hub.rules
        there = self._host.hub.home(self._to)
        delay = None if there is None else rules.segment(self._host.name, there)
        if there is None or delay is None:
            self._again(self.send)
        else:
            rules.after(delay, self._arrive)

    def _arrive(self) -> None:
        if self._done or not self._host.up:
            return
        hub = self._host.hub
        listener = hub._listeners.get(self._to)
        name = hub.home(self._to)
        assert name is not None
        there = listener.host if listener is not None else hub._hosts[name]
        if there.silent:
            self._again(self.send)
        elif listener is None:
            self._return(there.name, self._refuse)
        else:
            back = Address(self._host.ip, hub.next_port())
            ours, theirs = pair(self._host, there, back, self._to)
            if listener.offer(theirs):
                self._stream = ours
                self._return(there.name, self._connected)
            else:
                ours.forget()
                theirs.forget()
                self._again(self.send)

    def _return(self, there: str, fn: Callable[[], None]) -> None:
        if self._done:
            return
        rules = self._host.hub.rules
        delay = rules.segment(there, self._host.name)
        if delay is None:
            self._again(lambda: self._return(there, fn))
        else:
            rules.after(delay, fn)

    def _connected(self) -> None:
        if not self._done:
            self._done = True
            self._host.gate(self._lot.unpark_all)

    def _refuse(self) -> None:
        if not self._done:
            self._done = True
            self._error = ConnectionRefusedError(
                errno.ECONNREFUSED, f"nobody listens at {self._to}"
            )
            self._host.gate(self._lot.unpark_all)

    def _again(self, fn: Callable[[], None]) -> None:
        self._host.hub.rules.after(self._pause, fn)
        self._pause = min(2 * self._pause, 60 * SECOND)


class MemoryStream:
    """One end of a connection."""

    sends_at_once = False

    def __init__(self, host: MemoryHost, peer: Address) -> None:
        self.peer = peer
        self.host = host
        self.closed = False
        self.broken = False
        self._out: _Way
        self._in: _Way
        host.streams[self] = None

    async def send_all(self, data: bytes) -> None:
        self._require_open()
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            self._require_open()
            room = WINDOW - self._out.outstanding
            if room <= 0:
                await self._out.writers.park()
                continue
            self._out.push(bytes(view[:room]))
            view = view[room:]
        self._require_open()

    def send_nowait(self, data: bytes) -> int:
        return 0  # The rules of the network decide when anything is sent.

    async def receive_some(self, max_bytes: int) -> bytes:
        assert max_bytes > 0
        if self._in.readable():
            await trio.lowlevel.checkpoint()
        while not self._in.readable():
            self._require_open()
            await self._in.readers.park()
        if self.closed:
            raise trio.ClosedResourceError("the stream was closed")
        return self._in.read(max_bytes)

    async def aclose(self) -> None:
        if self._in.unread():
            self.abort()  # As TCP does: the peer must not believe that we read all of it.
        elif not self.closed and not self.broken:
            self._out.push(None)
        self._end()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        if not self.closed and not self.broken:
            self._out.cut_off()
            self._out.signal_reset()
        self._end()

    def kill(self) -> None:
        """End because the process did: the kernel resets the peer, unless the host fell silent."""
        self._out.cut_off()
        if not self.closed and not self.broken and not self.host.silent:
            self._out.signal_reset()
        self._end()

    def forget(self) -> None:
        """Undo a connection that never came to be."""
        self._end()

    def reset(self) -> None:
        """Take in a reset, from the peer or from our own kernel that gave up."""
        if not self.closed:
            self.broken = True
            self._out.cut_off()
            self.host.streams.pop(self, None)
            self._wake()

    def _end(self) -> None:
        self.closed = True
        self.host.streams.pop(self, None)
        self._wake()

    def _wake(self) -> None:
        self.host.gate(self._in.readers.unpark_all)
        self.host.gate(self._out.writers.unpark_all)

    def _require_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("the stream was closed")
        if self.broken:
            raise trio.BrokenResourceError("the connection was reset")


def pair(
    a: MemoryHost, b: MemoryHost, at_a: Address, at_b: Address
) -> tuple[MemoryStream, MemoryStream]:
    """Return the two ends of one new connection."""
    ours, theirs = MemoryStream(a, at_b), MemoryStream(b, at_a)
    there, back = _Way(ours, theirs), _Way(theirs, ours)
    ours._out, ours._in = there, back
    theirs._out, theirs._in = back, there
    return ours, theirs


class _Way:
    """One direction of a connection."""

    def __init__(self, source: MemoryStream, sink: MemoryStream) -> None:
        self.outstanding = 0
        """Bytes written and not yet read, 0..WINDOW."""
        self.readers = trio.lowlevel.ParkingLot()
        self.writers = trio.lowlevel.ParkingLot()
        self._source = source
        self._sink = sink
        self._rules = source.host.hub.rules
        self._from = source.host.name
        self._to = sink.host.name
        self._sent = 0
        self._expected = 0
        self._early: dict[int, bytes | None] = {}
        self._buffer = bytearray()
        self._ended = False
        self._dead = False

    # At the sender.

    def push(self, data: bytes | None) -> None:
        """Send one segment; None is the orderly end."""
        if data is not None:
            self.outstanding += len(data)
            assert self.outstanding <= WINDOW
        self._launch(self._sent, data, 0, RETRY_FIRST)
        self._sent += 1

    def cut_off(self) -> None:
        """Lose everything still under way."""
        self._dead = True

    def signal_reset(self) -> None:
        """Tell the sink's end that this connection is no more, if the way is open."""
        delay = self._rules.segment(self._from, self._to)
        if delay is not None:
            self._rules.after(delay, self._sink.reset)

    def _launch(self, number: int, data: bytes | None, waited: int, pause: int) -> None:
        if self._dead:
            return
        delay = self._rules.segment(self._from, self._to)
        if delay is None:
            self._relaunch(number, data, waited, pause)
        else:
            self._rules.after(delay, lambda: self._arrive(number, data, waited, pause))

    def _relaunch(self, number: int, data: bytes | None, waited: int, pause: int) -> None:
        if waited >= GIVE_UP:
            self._source.reset()
            return
        later = min(2 * pause, RETRY_LAST)
        self._rules.after(pause, lambda: self._launch(number, data, waited + pause, later))

    # At the receiver.

    def _arrive(self, number: int, data: bytes | None, waited: int, pause: int) -> None:
        if self._dead:
            return
        here = self._sink.host
        if here.silent and here.hub._hosts[here.name] is here:
            self._relaunch(number, data, waited, pause)
            return
        if self._sink.closed or self._sink.broken:
            self._dead = True
            if data is not None:
                self._sink._out.signal_reset()
            return
        self._early[number] = data
        while self._expected in self._early:
            part = self._early.pop(self._expected)
            self._expected += 1
            self._rules.delivered("segment", self._from, self._to, part or b"")
            if part is None:
                self._ended = True
            else:
                self._buffer += part
        if self.readable():
            here.gate(self.readers.unpark_all)

    def readable(self) -> bool:
        return bool(self._buffer) or self._ended

    def unread(self) -> bool:
        return bool(self._buffer)

    def read(self, max_bytes: int) -> bytes:
        if not self._buffer:
            return b""
        size = self._rules.chunk(self._from, self._to, min(max_bytes, len(self._buffer)))
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.outstanding -= size
        if self.writers:
            self._source.host.gate(self.writers.unpark_all)
        return data


def _now(fn: Callable[[], object]) -> None:
    fn()
