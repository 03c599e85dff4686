"""What the lock machine is asked, what it answers, and what it tells.

Commands and results are MessagePack arrays that begin with their tag; a tag is
never used again for another thing. An owner is (session, owner number): the
session is that of the command, the number is the client's own, a new one for
each block that takes a lock.
"""

import msgspec

from microos.codec import Decoder
from microos.raft.machine import Refused
from microos.types import FencingToken, SessionId

# Commands.


class Acquire(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Take a lock, or stand in its queue. Repeated by the same owner, it changes nothing."""

    namespace: str
    name: str
    owner: int
    wait: bool
    """False: if it is taken, do not queue."""


class Release(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Give a lock back. Late, repeated, or with another token it frees nobody's lock."""

    namespace: str
    name: str
    owner: int
    token: FencingToken


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Leave the queue; if the grant has won the race, give the lock back."""

    namespace: str
    name: str
    owner: int


Command = Acquire | Release | Cancel
decode_command: Decoder[Command] = Decoder(Command)

# Results.


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=1):
    token: FencingToken


class Queued(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Not yet; a `Grant` will tell."""

    position: int
    """1: the next."""


class Taken(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Another owner has it, and the caller did not want to wait."""

    session: SessionId
    owner: int


class Released(msgspec.Struct, frozen=True, array_like=True, tag=4):
    freed: bool
    """False: it was not the caller's under that token."""


class Cancelled(msgspec.Struct, frozen=True, array_like=True, tag=5):
    freed: bool
    """The caller had already been granted the lock, and has given it back."""


Result = Refused | Granted | Queued | Taken | Released | Cancelled
decode_answer: Decoder[Result] = Decoder(Result)

# Events.


class Grant(msgspec.Struct, frozen=True):
    """An owner has the lock from here on."""

    namespace: str
    name: str
    session: SessionId
    owner: int
    token: FencingToken


class Freed(msgspec.Struct, frozen=True):
    """Its owner gave the lock back."""

    namespace: str
    name: str
    session: SessionId
    owner: int
    token: FencingToken


class Lost(msgspec.Struct, frozen=True):
    """The session ended, and with it this ownership or place in the queue."""

    namespace: str
    name: str
    session: SessionId
    owner: int
    token: FencingToken
    """0: it was waiting."""


# Reads.


class LockInfo(msgspec.Struct, frozen=True):
    """One lock that is owned or about to be."""

    namespace: str
    name: str
    session: SessionId
    """Its owner's, 0: nobody's at the moment."""
    owner: int
    token: FencingToken
    waiters: int
