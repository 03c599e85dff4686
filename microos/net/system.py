"""The real network: plain non-blocking sockets, waited for by trio.

Sockets of the standard library are used rather than trio's, because a datagram
costs 2.7 µs when up to 64 are read per wake-up, and 7.1 µs one by one; a plain
`sendto` costs a third of an awaited one (measured on loopback, two shared cores).

    kernel ──readable──▶ wait_readable, once ──▶ recvfrom until empty, ≤ 64 ──▶ one list

Nothing here looks up a name except `resolve`: an address that came over the wire
is used only if it is numeric, so no packet can make the loop wait for DNS.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

import trio

from microos import limits
from microos.types import Address

DATAGRAMS_PER_WAKE = 64
"""More would keep the other tasks waiting."""

RECEIVE_BUFFER = 4 * limits.MIB
"""Asked of the kernel for datagrams: what gathers while the loop is busy must not be lost."""

BACKLOG = 128
FULL_PAUSE = 0.1
"""Wait before the next accept when the process or the system is out of descriptors [s]."""

_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BAD_LISTENER = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class SystemUdp:
    """One bound datagram socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._family = sock.family
        self._buffer = bytearray(limits.DATAGRAM_MAX)
        self.address = _address(sock.getsockname())
        self.drops = 0
        """Datagrams the kernel would not take, or whose address cannot be used."""

    def send(self, data: bytes, to: Address) -> None:
        if self._sock.fileno() < 0 or not _is_usable(to, self._family):
            self.drops += 1
            return
        try:
            self._sock.sendto(data, (to.host, to.port))
        except OSError:
            self.drops += (
                1  # A full buffer, no route, too long: all are loss, which gossip expects.
            )

    async def receive(self) -> list[tuple[bytes, Address]]:
        await trio.lowlevel.checkpoint()
        while True:
            if self._sock.fileno() < 0:
                raise trio.ClosedResourceError("the socket was closed")
            found = self._drain()
            if found:
                return found
            await trio.lowlevel.wait_readable(self._sock)

    def _drain(self) -> list[tuple[bytes, Address]]:
        """Read what is there. The bytes are copied: the buffer is used again."""
        found: list[tuple[bytes, Address]] = []
        for _ in range(DATAGRAMS_PER_WAKE):
            try:
                size, source = self._sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:
                continue  # An ICMP error of an earlier datagram; reading it took it off the queue.
            found.append((bytes(self._buffer[:size]), _address(source)))
        return found

    def close(self) -> None:
        _close(self._sock)


class SystemStream:
    """One TCP connection."""

    sends_at_once = True

    def __init__(self, sock: socket.socket, peer: Address) -> None:
        sock.setblocking(False)
        # Frames are coalesced above; Nagle would only hold back the last one.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self.peer = peer

    async def send_all(self, data: bytes) -> None:
        # Sent first, then rested: what waits for these bytes waits for a turn less.
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                self._require_open()
                try:
                    sent += self._sock.send(view[sent:])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
                    waited = True
                except OSError as error:
                    raise trio.BrokenResourceError(f"sending failed: {error}") from error
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, data: bytes) -> int:
        try:
            return self._sock.send(data)
        except OSError:  # Full, closed or broken: `send_all` will say which.
            return 0

    async def receive_some(self, max_bytes: int) -> bytes:
        assert max_bytes > 0
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            self._require_open()
            try:
                data = self._sock.recv(max_bytes)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                waited = True
            except OSError as error:
                raise trio.BrokenResourceError(f"receiving failed: {error}") from error
            else:
                if not waited:  # A busy stream must not keep the other tasks from running.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return data

    async def aclose(self) -> None:
        _close(self._sock)
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        if self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            _close(self._sock)

    def _require_open(self) -> None:
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError("the stream was closed")


class SystemListener:
    """One listening TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.address = _address(sock.getsockname())

    async def accept(self) -> SystemStream:
        """Return the next connection. One that died in the queue is skipped; no error ends it.

        Raises:
            trio.ClosedResourceError: The listener was closed.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._sock.fileno() < 0:
                raise trio.ClosedResourceError("the listener was closed")
            try:
                sock, source = self._sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError as error:
                if error.errno in _BAD_LISTENER:
                    raise
                # Linux hands out the errors of a dead connection here (accept(2)).
                await trio.sleep(FULL_PAUSE if error.errno in _FULL else 0.0)
                continue
            try:
                return SystemStream(sock, _address(source))
            except OSError:
                sock.close()  # Reset before it was even taken.

    def close(self) -> None:
        _close(self._sock)


class SystemNetwork:
    """Where real sockets come from."""

    async def udp(self, at: Address) -> SystemUdp:
        await trio.lowlevel.checkpoint()
        sock = _socket(at, socket.SOCK_DGRAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            sock.bind((at.host, at.port))
            return SystemUdp(sock)
        except BaseException:
            sock.close()
            raise

    async def dial(self, to: Address) -> SystemStream:
        sock = _socket(to, socket.SOCK_STREAM)
        try:
            await _connect(sock, to)
            return SystemStream(sock, to)
        except BaseException:
            _close(sock)
            raise

    async def listen(self, at: Address) -> SystemListener:
        await trio.lowlevel.checkpoint()
        sock = _socket(at, socket.SOCK_STREAM)
        try:
            # On Linux: bind again at once after a restart, never beside a living listener.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((at.host, at.port))
            sock.listen(BACKLOG)
            return SystemListener(sock)
        except BaseException:
            sock.close()
            raise

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(errno.EINVAL, f"expected a host name, found {host!r}") from error
        return tuple(dict.fromkeys(_address(sockaddr) for *_, sockaddr in found))


async def _connect(sock: socket.socket, to: Address) -> None:
    """Connect without blocking.

    Raises:
        ConnectionRefusedError: Nobody listens there.
        OSError: Any other reason.
    """
    await trio.lowlevel.checkpoint()
    try:
        sock.connect((to.host, to.port))
    except BlockingIOError:
        await trio.lowlevel.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code != 0:
            raise OSError(code, f"dialling {to} failed: {os.strerror(code)}") from None
    try:
        to_itself = sock.getsockname() == sock.getpeername()
    except OSError as error:
        raise ConnectionResetError(errno.ECONNRESET, f"{to} accepted and reset") from error
    if to_itself:
        # TCP's simultaneous open: the kernel chose the dialled port itself as our own.
        raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {to}")


def _socket(at: Address, kind: socket.SocketKind) -> socket.socket:
    """Return a non-blocking socket of the family of a numeric address."""
    family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
    if not _is_usable(at, family):
        raise OSError(errno.EADDRNOTAVAIL, f"expected a numeric address, found {at}; resolve it")
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _is_usable(address: Address, family: int) -> bool:
    """Return whether an address is numeric, of this family, and has a port."""
    if not 0 <= address.port <= 65535:
        return False
    host, percent, zone = address.host.partition("%")
    if percent and not (family == socket.AF_INET6 and zone.isascii() and zone.isalnum()):
        return False
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the text.
        return False
    return True


def _address(sockaddr: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> Address:
    return Address(str(sockaddr[0]), int(sockaddr[1]))


def _close(sock: socket.socket) -> None:
    """Close, and wake whoever waits on it with `ClosedResourceError`. Idempotent."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()
