"""The words that must not be mixed up, as types: ids, counters, addresses, and chance handed in.

A number taken from the replicated log is meaningful only together with the
epoch of the cluster it was counted in: after a lost quorum the log may begin
again. `packed` joins both into one integer that fits a signed 64-bit column.

    bit  63 | 62 ........ 38 | 37 ................. 0
          0 | cluster epoch  | index in the raft log
"""

from collections.abc import MutableSequence, Sequence
from typing import Any, NewType, Protocol, TypeVar

import msgspec

NodeId = NewType("NodeId", str)
"""One data directory's life: 128 random bits as 32 hex digits, never used twice."""

BootId = NewType("BootId", int)
"""One start of a process: 64 random bits, never 0."""

Term = NewType("Term", int)
Index = NewType("Index", int)
Incarnation = NewType("Incarnation", int)
Version = NewType("Version", int)
Revision = NewType("Revision", int)
"""Where in the log a change was made: packed (cluster epoch, index)."""

SessionId = NewType("SessionId", int)
"""Packed (cluster epoch, index) of the entry that opened the session."""

FencingToken = NewType("FencingToken", int)
"""Packed (cluster epoch, index) of the grant; strictly increasing over the cluster's life."""

INDEX_BITS = 38

T = TypeVar("T")


def packed(epoch: int, index: int) -> int:
    """Return `index` of the log of cluster epoch `epoch` as one number that never repeats.

    Args:
        epoch: Founding of the cluster, counted from 1. Range 1..2**25 - 1.
        index: Raft index, counted from 1. Range 0..2**38 - 1.
    """
    assert 0 < epoch < 1 << 25
    assert 0 <= index < 1 << INDEX_BITS
    return epoch << INDEX_BITS | index


def unpacked(number: int) -> tuple[int, int]:
    """Return (cluster epoch, index) of a number made by `packed`."""
    return number >> INDEX_BITS, number & (1 << INDEX_BITS) - 1


class Address(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """Where a node listens, for datagrams and for streams alike."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address written as `host:port` or `[ipv6]:port`.

    Raises:
        ValueError: Not of that form, or the port is not within 0..65535.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"expected HOST:PORT, found {text!r}")
    return Address(host, int(port))


class Random(Protocol):
    """Chance, handed in: the only source of randomness a core may use (`random.Random` fits)."""

    def random(self) -> float: ...
    def randrange(self, stop: int, /) -> int: ...
    def choice(self, seq: Sequence[T], /) -> T: ...
    def sample(self, population: Sequence[T], k: int) -> list[T]: ...
    def shuffle(self, x: MutableSequence[Any]) -> None: ...
