"""What the config machine is asked, what it answers, and what it tells.

Commands and results are MessagePack arrays that begin with their tag. A document
travels as the MessagePack of a plain value: nil, booleans, integers, floats,
strings, bytes, arrays, and maps with string keys.
"""

import msgspec

from microos.codec import Decoder
from microos.raft.machine import Refused
from microos.types import Revision, Version

# Commands. `if_version`: the version the change is based on; 0: there is no document; None: any.


class Put(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Replace a whole document, or make it."""

    namespace: str
    name: str
    document: bytes
    if_version: int | None = None
    author: str = ""
    hlc: int = 0
    """Time of the author, for display alone."""


class Patch(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Set the value at one place in a document; maps that are missing on the way are made."""

    namespace: str
    name: str
    path: tuple[str, ...]
    value: bytes
    if_version: int | None = None
    author: str = ""
    hlc: int = 0


class Delete(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Remove one place of a document, or with an empty path the document."""

    namespace: str
    name: str
    path: tuple[str, ...] = ()
    if_version: int | None = None
    author: str = ""
    hlc: int = 0


Command = Put | Patch | Delete
decode_command: Decoder[Command] = Decoder(Command)

# Results.


class Written(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The document is as the command wanted it."""

    version: Version
    """Of the document. Unchanged if there was nothing to delete."""
    revision: Revision


Result = Refused | Written
decode_answer: Decoder[Result] = Decoder(Result)

# Events.


class Changed(msgspec.Struct, frozen=True):
    """A document was changed."""

    namespace: str
    name: str
    version: Version
    revision: Revision
    document: bytes | None
    """Canonical MessagePack; None: it was deleted."""


# Reads.


class Document(msgspec.Struct, frozen=True):
    """One document."""

    document: bytes
    """Canonical MessagePack: equal values are equal bytes."""
    version: Version
    revision: Revision
    checksum: bytes
    """SHA-256 of `document`."""


class AuditRecord(msgspec.Struct, frozen=True, array_like=True):
    """One change: what, by whom, and a hash over it and all before it."""

    revision: Revision
    namespace: str
    name: str
    version: Version
    author: str
    hlc: int
    checksum: bytes
    """SHA-256 of the document after the change; empty: it was deleted."""
    chain: bytes
    """SHA-256 of the chain before and this record without its chain."""
