"""Bodies that come in pieces, put together again: strictly in order, and bounded.

    Call or Answer, size 150    bytes   0 ..  64
    Chunk at  64                       64 .. 128
    Chunk at 128                      128 .. 150: whole

A link keeps its order, but a node may change its link, or refuse a frame for want of
room; then a piece is missing and its body is given up, alone. What no change of links
can explain (a piece twice, more than was announced) breaks the protocol.
"""

from __future__ import annotations

from enum import Enum
from typing import Generic, TypeVar

from microos import limits
from microos.errors import RemoteProtocolError
from microos.rpc.messages import Answer, Call, Chunk

First = TypeVar("First", Call, Answer)


class Progress(Enum):
    """What one more piece has made of a body."""

    MORE = "more"
    WHOLE = "whole"
    MISSING = "missing"
    """A piece before it never came."""
    FULL = "full"
    """Too many bytes of incomplete bodies."""


class Arrivals(Generic[First]):
    """The incomplete bodies of one direction, each with the frame it began in."""

    def __init__(self) -> None:
        self.bodies: dict[int, tuple[First, bytearray]] = {}
        """By id. To be looked at only."""
        self.size_bytes = 0
        """Received and not complete."""

    def begin(self, first: First) -> None:
        """Wait for the rest of a body that has begun.

        Raises:
            RemoteProtocolError: The frame holds all it announces, or more.
        """
        assert first.id not in self.bodies
        if len(first.body) >= first.size:
            raise RemoteProtocolError(
                f"expected the beginning of {first.size} bytes, found {len(first.body)}"
            )
        self.bodies[first.id] = (first, bytearray(first.body))
        self.size_bytes += len(first.body)

    def add(self, chunk: Chunk) -> Progress:
        """Take in one more piece of a body that is there; unless `MORE`, it is to be popped.

        Raises:
            RemoteProtocolError: It was there before, or is more than was announced.
        """
        first, body = self.bodies[chunk.id]
        end = chunk.at + len(chunk.data)
        if chunk.at < len(body) or end > first.size:
            raise RemoteProtocolError(
                f"expected bytes {len(body)}..{first.size} of a body, found {chunk.at}..{end}"
            )
        if chunk.at > len(body):
            return Progress.MISSING
        if self.size_bytes + len(chunk.data) > limits.RPC_ARRIVING_MAX:
            return Progress.FULL
        body += chunk.data
        self.size_bytes += len(chunk.data)
        return Progress.WHOLE if end == first.size else Progress.MORE

    def pop(self, id: int) -> tuple[First, bytes] | None:
        """Remove a body; return the frame it began in and what has come of it. None: not there."""
        found = self.bodies.pop(id, None)
        if found is None:
            return None
        first, body = found
        self.size_bytes -= len(body)
        return first, bytes(body)

    def clear(self) -> None:
        """Give all of them up."""
        self.bodies.clear()
        self.size_bytes = 0

    def check(self) -> None:
        """Assert all invariants."""
        assert self.size_bytes == sum(len(body) for _, body in self.bodies.values())
        assert len(self.bodies) <= limits.RPC_CALLS_MAX
        for id, (first, body) in self.bodies.items():
            assert first.id == id
            assert len(body) < first.size <= limits.RPC_BODY_MAX
