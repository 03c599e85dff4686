"""The replicated machine, made of named ones; applied in log order on every member.

`apply` is deterministic and total: it depends on its arguments and on what was
applied before, on nothing else (no clock, no set order, no environment), and a bad
command is a `Refused` result, never an exception. An exception stops the node:
better gone than different.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from microos import limits
from microos.raft.entry import Stamp
from microos.types import SessionId


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The machine's no, as a value: the class of the error tree, its reason, one sentence."""

    error: str
    """`ConflictError`, `LimitError`, `RejectedError`, `UnavailableError`."""
    reason: str
    message: str


class Outcome(msgspec.Struct, frozen=True):
    """What one command came to."""

    result: bytes
    """MessagePack of the machine's own result Struct, or of `Refused`; kept for retries."""
    events: tuple[object, ...] = ()
    """Told to this node's listeners, in log order; never stored."""


class Machine(Protocol):
    """One named part of the replicated state."""

    number: int
    version: int

    def apply(self, session: SessionId, command: bytes, stamp: Stamp) -> Outcome:
        """Do one command of `session` (0: of nobody)."""

    def ended(self, sessions: tuple[SessionId, ...], stamp: Stamp) -> tuple[object, ...]:
        """Forget what these sessions own; return the events of it."""

    def wake(self, stamp: Stamp) -> tuple[object, ...]:
        """Do what log time has made due before the entry at `stamp`; return the events."""

    def deadline(self) -> int | None:
        """Return the log time at which `wake` is next wanted [µs]."""

    def freeze(self) -> Iterator[bytes]:
        """Return the state as of now in chunks of at most `limits.SNAPSHOT_CHUNK`.

        The chunks are pieces of one run of bytes; where it is cut means nothing.
        """

    def restore(self, chunks: Iterable[bytes], version: int) -> None:
        """Replace the state by a frozen one; by the empty state if there are no bytes.

        Raises:
            RemoteProtocolError: The bytes are not a frozen state of this machine.
        """

    def digest(self) -> int:
        """Return a number that is equal exactly where the state is. Cost: O(1)."""


def pieces(data: bytes, size: int = limits.SNAPSHOT_CHUNK) -> Iterator[bytes]:
    """Cut one run of bytes into chunks of at most `size`; none if it is empty."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
