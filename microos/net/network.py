"""What a node may ask of a network: datagrams, streams, and names resolved.

Two things implement it: `net/system.py` (real sockets under trio) and
`net/memory.py` (the simulator's). One contract suite, `tests/contract`, runs on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from microos.types import Address

Buffer = bytes | bytearray | memoryview


class Udp(Protocol):
    """One bound datagram socket."""

    address: Address

    def send(self, data: bytes, to: Address) -> None:
        """Send one datagram; never blocks, may drop, never raises for the network's sake."""

    async def receive(self) -> list[tuple[bytes, Address]]:
        """Wait for datagrams; return what has gathered, at least 1 and at most 64, in order.

        Raises:
            trio.ClosedResourceError: The socket was closed.
        """

    def close(self) -> None: ...


class Stream(Protocol):
    """One connection. One task reads, one task writes."""

    peer: Address

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`.

        Raises:
            trio.BrokenResourceError: The connection is gone.
            trio.ClosedResourceError: It was closed here.
        """

    sends_at_once: bool
    """Whether `send_nowait` is worth a try."""

    def send_nowait(self, data: bytes) -> int:
        """Send what can be sent at once; return how many bytes that was. 0 is always right.

        Never while `send_all` is under way; never raises for the connection's sake.
        """

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return 1..max_bytes bytes, or b"" at the orderly end.

        Raises:
            trio.BrokenResourceError: The connection was reset.
            trio.ClosedResourceError: It was closed here.
        """

    async def aclose(self) -> None:
        """Close in order: the peer reads what was sent, then the end. Idempotent."""

    def abort(self) -> None:
        """Reset: what was not sent is lost, the peer's reads break. Idempotent, never blocks."""


class Listener(Protocol):
    """One listening socket."""

    address: Address

    async def accept(self) -> Stream: ...
    def close(self) -> None: ...


class Network(Protocol):
    """Where sockets come from."""

    async def udp(self, at: Address) -> Udp:
        """Bind a datagram socket; port 0 takes a free one.

        Raises:
            OSError: EADDRINUSE and its kind.
        """

    async def dial(self, to: Address) -> Stream:
        """Connect. May hang for ever: the caller bounds it.

        Raises:
            ConnectionRefusedError: Nobody listens there: hard evidence.
            OSError: Any other reason.
        """

    async def listen(self, at: Address) -> Listener:
        """Listen; port 0 takes a free one.

        Raises:
            OSError: EADDRINUSE and its kind.
        """

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """Return the numeric addresses of a name, best first.

        Raises:
            OSError: The name is unknown.
        """
