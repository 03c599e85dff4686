"""What only real sockets do."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
from trio.testing import MockClock

from microos.net.system import SystemListener, SystemNetwork
from microos.types import Address

ANY = Address("127.0.0.1", 0)


class Hindered:
    """A listening socket whose first accepts fail as the kernel lets them."""

    def __init__(self, inner: socket.socket, errors: list[int]) -> None:
        self._inner = inner
        self._errors = errors

    def accept(self) -> tuple[socket.socket, object]:
        if self._errors:
            raise OSError(self._errors.pop(0), "hindered")
        return self._inner.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


async def _hindered(errors: list[int]) -> SystemListener:
    listener = await SystemNetwork().listen(ANY)
    listener._sock = Hindered(listener._sock, errors)  # type: ignore[assignment]
    return listener


async def test_accept_survives_dead_connections_and_full_tables(autojump_clock: MockClock) -> None:
    errors = [errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EPROTO]
    listener = await _hindered(errors)
    ours = await SystemNetwork().dial(listener.address)

    theirs = await listener.accept()

    assert errors == []
    assert trio.current_time() >= 0.3  # It waited while there were no descriptors.
    for thing in (ours, theirs):
        thing.abort()
    listener.close()


async def test_accept_on_a_ruined_listener_raises() -> None:
    listener = await _hindered([errno.EBADF])

    with pytest.raises(OSError, match="hindered"):
        await listener.accept()

    listener.close()


async def test_streams_do_not_wait_for_company() -> None:
    listener = await SystemNetwork().listen(ANY)
    ours = await SystemNetwork().dial(listener.address)
    theirs = await listener.accept()

    for stream in (ours, theirs):
        assert stream._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        stream.abort()
    listener.close()


async def test_a_dial_to_its_own_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    at = Address(*holder.getsockname())
    connect = socket.socket.connect

    def from_there(self: socket.socket, to: tuple[str, int]) -> None:
        holder.close()
        self.bind(to)  # What the kernel does by chance, once in 28,000 dials.
        connect(self, to)

    monkeypatch.setattr(socket.socket, "connect", from_there)
    with pytest.raises(ConnectionRefusedError):
        await SystemNetwork().dial(at)


@pytest.mark.parametrize("host", ["example.com", "", "1.2.3", "fe80::1%évil", "a\0b", "::1%x y"])
async def test_only_numeric_addresses_are_dialled(host: str) -> None:
    with pytest.raises(OSError, match="numeric"):
        await SystemNetwork().dial(Address(host, 80))


async def test_unknown_names_are_os_errors() -> None:
    with pytest.raises(OSError, match=r".+"):
        await SystemNetwork().resolve("." * 300, 80)
