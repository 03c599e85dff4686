"""A stream with TLS around it, which is a stream again; over real sockets and simulated ones.

    seal(stream, session) ─▶ handshake ─▶ SealedStream

Knows no OpenSSL: a `Session` (`tls.py`) turns bytes into bytes, here they are carried. One
task reads while another writes, as with every stream: within TLS 1.3 nothing that is read
asks for a write, so the two never meet. A send that was cancelled half way has spoilt the
stream, as it would any.
"""

from __future__ import annotations

from typing import Protocol

import trio

from microos import limits
from microos.clock import Clock
from microos.errors import RemoteProtocolError
from microos.keyring import SealError
from microos.net.network import Buffer, Stream

CHUNK = 64 * limits.KIB
"""Carried at once [bytes]."""

FAREWELL = 1.0
"""Longest wait for room to say that nothing follows [s]."""


class SpoiltError(trio.BrokenResourceError):
    """What came was tampered with, or says that the other side does not believe us."""


class Session(Protocol):
    """One side of TLS, without I/O; see `tls.Session`."""

    peer: str

    def feed(self, data: bytes) -> None: ...
    def taken(self) -> bytes: ...
    def meet(self) -> bool: ...
    def read(self, size_max: int) -> bytes | None: ...
    def write(self, data: Buffer) -> None: ...
    def end(self) -> None: ...


class Sealer(Protocol):
    """Begins sessions; see `tls.Tls`."""

    def dial(self) -> Session: ...
    def accept(self) -> Session: ...


async def seal(stream: Stream, session: Session, clock: Clock, heard: bytes = b"") -> SealedStream:
    """Meet the other side; return the stream within. The caller bounds it.

    Args:
        heard: What was read from the stream already.

    Raises:
        SealError: No TLS, or nobody of this cluster; it was told.
        trio.BrokenResourceError, trio.ClosedResourceError: As the stream.
    """
    session.feed(heard)
    try:
        while not session.meet():
            await _carry(stream, session)
            data = await stream.receive_some(CHUNK)
            if not data:
                raise trio.BrokenResourceError("the connection ended within the handshake")
            session.feed(data)
    except SealError:
        try:
            await _carry(stream, session)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # It has hung up; what was wrong is worth more than that.
        raise
    await _carry(stream, session)
    return SealedStream(stream, session, clock)


async def _carry(stream: Stream, session: Session) -> None:
    """Send what has gathered."""
    data = session.taken()
    if data:
        await stream.send_all(data)


class SealedStream:
    """One connection within TLS."""

    sends_at_once = False

    def __init__(self, stream: Stream, session: Session, clock: Clock) -> None:
        self.peer = stream.peer
        self.node = session.peer
        """Who is there, by its certificate; "" for a command line."""
        self._stream = stream
        self._session = session
        self._clock = clock
        self._sending = False
        self._ended = False
        """The other side has said that nothing follows."""
        self._closed = False

    async def send_all(self, data: bytes) -> None:
        self._require_open()
        self._sending = True
        with memoryview(data) as view:
            for at in range(0, len(view), CHUNK):
                try:
                    self._session.write(view[at : at + CHUNK])
                except RemoteProtocolError as error:
                    raise SpoiltError(str(error)) from error
                await _carry(self._stream, self._session)
                self._require_open()
        self._sending = False

    def send_nowait(self, data: bytes) -> int:
        return 0  # What is sealed must then go as a whole.

    async def receive_some(self, max_bytes: int) -> bytes:
        waited = False
        while True:
            self._require_open()
            try:
                data = self._session.read(max_bytes)
            except RemoteProtocolError as error:
                raise SpoiltError(str(error)) from error
            if data is not None:
                break
            sealed = await self._stream.receive_some(CHUNK)
            waited = True
            if not sealed:
                # Without a word that nothing follows somebody may have cut it short.
                raise trio.BrokenResourceError("the connection ended in the middle")
            self._session.feed(sealed)
        if not waited:  # A busy stream must not keep the other tasks from running.
            await trio.lowlevel.checkpoint()
        self._ended = not data
        return data

    async def aclose(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        # Nothing may cut into a send that hangs, and who has ended does not listen.
        if not (self._sending or self._ended):
            self._session.end()
            with self._clock.timeout_at(self._clock.now() + FAREWELL):
                try:
                    await _carry(self._stream, self._session)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
        await self._stream.aclose()

    def abort(self) -> None:
        self._closed = True
        self._stream.abort()

    def _require_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the stream was closed")
