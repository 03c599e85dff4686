"""Machine 2: the cluster's configuration, documents by (namespace, name).

A document is kept as canonical MessagePack (keys sorted, shortest forms), made
here from whatever form it came in, so its checksum is the same on every node.
`version` counts a document's changes and goes on after delete and recreate, which
makes it safe to compare and set on; `revision` is where in the log a change was
made. A patch is applied here and not by the client, so two nodes that change
different places of one document at once lose nothing.

Each change leaves an audit record; each record hashes the one before it, so none
can be altered or taken out unseen. The newest `AUDIT_RECORDS_MAX` are kept. Of
deleted documents the version is remembered, for the `DOCUMENTS_MAX` deleted last.

Whether a value is refused never depends on what a library or the depth of the
caller's stack happens to allow: members must not differ.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import msgspec

from microos import limits
from microos.codec import Decoder, encode
from microos.config.messages import (
    AuditRecord,
    Changed,
    Command,
    Delete,
    Document,
    Patch,
    Put,
    Result,
    Written,
    decode_command,
)
from microos.errors import RemoteProtocolError
from microos.hashing import xxh3
from microos.raft.entry import Stamp
from microos.raft.machine import Outcome, Refused, pieces
from microos.types import Revision, SessionId, Version, packed

NUMBER = 2

_Key = tuple[str, str]
"""(namespace, name)."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_NO_CHAIN = bytes(32)
_decode_value: Decoder[Any] = Decoder(Any)


class _FrozenDocument(msgspec.Struct, frozen=True, array_like=True):
    namespace: str
    name: str
    document: bytes | None
    """None: deleted; its version is remembered."""
    version: Version
    revision: Revision


class _State(msgspec.Struct, frozen=True, array_like=True):
    documents: tuple[_FrozenDocument, ...]
    """Ascending by revision."""
    chain_start: bytes
    """Chain before the first record."""
    audit: tuple[AuditRecord, ...]


_decode_state: Decoder[_State] = Decoder(_State)


class _RefusedError(Exception):
    """Carries a refusal out of the middle of a command; never leaves this module."""

    def __init__(self, error: str, reason: str, message: str) -> None:
        self.refused = Refused(error, reason, message)


class ConfigMachine:
    """All documents of the cluster."""

    number = NUMBER
    version = 1

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._documents: dict[str, dict[str, Document]] = {}
        """By namespace and name."""
        self._deleted: dict[_Key, tuple[Version, Revision]] = {}
        """In the order of deletion."""
        self._count = 0
        self._bytes = 0
        self._digest = 0
        self._audit: deque[AuditRecord] = deque()
        self._chain_start = _NO_CHAIN
        self._chain = _NO_CHAIN

    # The machine.

    def apply(self, session: SessionId, command: bytes, stamp: Stamp) -> Outcome:
        """Do one command. Cost: O(document)."""
        try:
            result, events = self._apply(_command(command), stamp)
        except _RefusedError as no:
            return Outcome(encode(no.refused))
        return Outcome(encode(result), events)

    def _apply(self, command: Command, stamp: Stamp) -> tuple[Result, tuple[object, ...]]:
        key = (command.namespace, command.name)
        present = self.get(*key)
        version, revision = self._known(key)
        _expect(command, present, version)
        document = _wanted(command, present)
        if isinstance(command, Delete) and document == (present and present.document):
            return Written(version, revision), ()  # There was nothing to delete.
        self._expect_room(key, present, document)
        version = Version(version + 1)
        revision = Revision(packed(stamp.epoch, stamp.index))
        self._forget(key)
        self._remember(key, document, version, revision)
        checksum = b"" if document is None else sha256(document).digest()
        self._note(
            AuditRecord(revision, *key, version, command.author, command.hlc, checksum, _NO_CHAIN)
        )
        return Written(version, revision), (Changed(*key, version, revision, document),)

    def ended(self, sessions: tuple[SessionId, ...], stamp: Stamp) -> tuple[object, ...]:
        """Nothing here belongs to a session."""
        return ()

    def wake(self, stamp: Stamp) -> tuple[object, ...]:
        """Nothing here is ever due."""
        return ()

    def deadline(self) -> int | None:
        return None

    # Changing the tables. All arithmetic on count, bytes and digest is in these two.

    def _forget(self, key: _Key) -> None:
        known = self._known(key)
        if key in self._deleted:
            del self._deleted[key]
            self._digest -= _digest(key, *known, b"")
        documents = self._documents.get(key[0], {})
        present = documents.pop(key[1], None)
        if present is None:
            return
        if not documents:
            del self._documents[key[0]]
        self._count -= 1
        self._bytes -= len(present.document)
        self._digest -= _digest(key, *known, present.checksum)

    def _remember(
        self, key: _Key, document: bytes | None, version: Version, revision: Revision
    ) -> None:
        if document is None:
            self._deleted[key] = (version, revision)
            self._digest += _digest(key, version, revision, b"")
            if len(self._deleted) > limits.DOCUMENTS_MAX:
                self._forget(next(iter(self._deleted)))
            return
        present = Document(document, version, revision, sha256(document).digest())
        self._documents.setdefault(key[0], {})[key[1]] = present
        self._count += 1
        self._bytes += len(document)
        self._digest += _digest(key, version, revision, present.checksum)

    def _expect_room(self, key: _Key, present: Document | None, document: bytes | None) -> None:
        """Refuse growth beyond the limits; deleting and shrinking are always possible."""
        if document is None:
            return
        if len(document) > limits.DOCUMENT_MAX:
            raise _RefusedError(
                "LimitError",
                "size",
                f"expected a document of at most {limits.DOCUMENT_MAX} bytes at {key[1]!r}, "
                f"found {len(document)}; split it",
            )
        if present is None and self._count >= limits.DOCUMENTS_MAX:
            raise _RefusedError(
                "LimitError", "count", f"expected at most {limits.DOCUMENTS_MAX} documents"
            )
        grown = len(document) - (0 if present is None else len(present.document))
        if grown > 0 and self._bytes + grown > limits.DOCUMENTS_BYTES_MAX:
            raise _RefusedError(
                "LimitError",
                "quota",
                f"expected at most {limits.DOCUMENTS_BYTES_MAX} bytes in all documents; "
                "delete some first",
            )

    def _note(self, record: AuditRecord) -> None:
        self._chain = _chained(self._chain, record)
        self._audit.append(msgspec.structs.replace(record, chain=self._chain))
        if len(self._audit) > limits.AUDIT_RECORDS_MAX:
            self._chain_start = self._audit.popleft().chain

    # Reads: local, as of what this member has applied.

    def get(self, namespace: str, name: str) -> Document | None:
        """Return a document, None if there is none now."""
        return self._documents.get(namespace, {}).get(name)

    def version_of(self, namespace: str, name: str) -> Version:
        """Return how many changes a document has seen, deletes too; 0 if never there."""
        return self._known((namespace, name))[0]

    def names(self, namespace: str, prefix: str = "") -> tuple[str, ...]:
        """Return the names in a namespace that begin with `prefix`, sorted. Cost: O(n log n)."""
        return tuple(sorted(n for n in self._documents.get(namespace, {}) if n.startswith(prefix)))

    def list(self, namespace: str, prefix: str = "") -> tuple[tuple[str, Document], ...]:
        """Return the documents whose names begin with `prefix`, by name. Cost: O(n log n)."""
        documents = self._documents.get(namespace, {})
        return tuple((name, documents[name]) for name in self.names(namespace, prefix))

    def namespaces(self) -> tuple[str, ...]:
        """Return the namespaces that hold documents, sorted."""
        return tuple(sorted(self._documents))

    def audit(self) -> tuple[AuditRecord, ...]:
        """Return the newest audit records, oldest first."""
        return tuple(self._audit)

    def first_broken(self) -> Revision | None:
        """Return the revision of the first audit record that was tampered with, if any."""
        return _first_broken(self._chain_start, self._audit)

    @property
    def count(self) -> int:
        """How many documents there are now."""
        return self._count

    @property
    def revision(self) -> Revision:
        """The last change; 0 before the first."""
        return self._audit[-1].revision if self._audit else Revision(0)

    def _known(self, key: _Key) -> tuple[Version, Revision]:
        present = self.get(*key)
        if present is not None:
            return present.version, present.revision
        return self._deleted.get(key, (Version(0), Revision(0)))

    # Snapshots, digest, invariants.

    def freeze(self) -> Iterator[bytes]:
        """Return the state in chunks, copied at the call."""
        documents = [
            _FrozenDocument(namespace, name, one.document, one.version, one.revision)
            for namespace, named in self._documents.items()
            for name, one in named.items()
        ]
        documents += [
            _FrozenDocument(*key, None, version, revision)
            for key, (version, revision) in self._deleted.items()
        ]
        # One entry makes at most one change, so a revision names one document.
        documents.sort(key=lambda one: one.revision)
        return pieces(encode(_State(tuple(documents), self._chain_start, tuple(self._audit))))

    def restore(self, chunks: Iterable[bytes], version: int) -> None:
        """Replace the state.

        Raises:
            RemoteProtocolError: Not a frozen state of this machine, of another version, or
                its audit chain is broken.
        """
        if version != self.version:
            raise RemoteProtocolError(f"expected config of version {self.version}, found {version}")
        data = b"".join(chunks)
        state = _decode_state(data) if data else _State((), _NO_CHAIN, ())
        broken = _first_broken(state.chain_start, state.audit)
        if broken is not None:
            raise RemoteProtocolError(f"expected a whole audit chain, found a break at {broken:#x}")
        self._clear()
        for one in state.documents:
            key = (one.namespace, one.name)
            self._forget(key)
            self._remember(key, one.document, one.version, one.revision)
        self._chain_start = state.chain_start
        self._audit.extend(state.audit)
        self._chain = state.audit[-1].chain if state.audit else state.chain_start

    def digest(self) -> int:
        """Return a number equal exactly where documents and audit are. Cost: O(1)."""
        return (self._digest + int.from_bytes(self._chain[:8], "big")) & _MASK

    def check(self) -> None:
        """Assert all invariants. Cost: O(state)."""
        digest = size = count = 0
        for namespace, named in self._documents.items():
            assert named
            for name, one in named.items():
                key = (namespace, name)
                assert one.version > 0
                assert key not in self._deleted
                assert one.checksum == sha256(one.document).digest()
                assert one.document == _canonical(one.document)
                digest += _digest(key, one.version, one.revision, one.checksum)
                size += len(one.document)
                count += 1
        for key, (version, revision) in self._deleted.items():
            digest += _digest(key, version, revision, b"")
        assert (count, size) == (self._count, self._bytes)
        assert (digest - self._digest) & _MASK == 0
        assert count <= limits.DOCUMENTS_MAX >= len(self._deleted)
        assert size <= limits.DOCUMENTS_BYTES_MAX
        assert len(self._audit) <= limits.AUDIT_RECORDS_MAX
        assert self.first_broken() is None
        assert self._chain == (self._audit[-1].chain if self._audit else self._chain_start)


def _command(data: bytes) -> Command:
    """Decode a command and check what its parts alone can tell."""
    try:
        command = decode_command(data)
    except RemoteProtocolError:
        raise _RefusedError(
            "RejectedError", "bad_request", "expected a command of the config machine"
        ) from None
    path = () if isinstance(command, Put) else command.path
    if not command.name or not all(path) or (isinstance(command, Patch) and not path):
        raise _RefusedError("RejectedError", "bad_request", "expected a name and no empty place")
    if sum(len(part) + 1 for part in (command.name, *path)) - 1 > limits.CONFIG_PATH_TEXT:
        raise _RefusedError(
            "LimitError",
            "size",
            f"expected a path of at most {limits.CONFIG_PATH_TEXT} characters",
        )
    if len(command.namespace) > limits.NAME_TEXT or len(command.author) > limits.LABEL_TEXT:
        raise _RefusedError(
            "LimitError",
            "size",
            f"expected a namespace of at most {limits.NAME_TEXT} characters "
            f"and an author of at most {limits.LABEL_TEXT}",
        )
    return command


def _expect(command: Command, present: Document | None, version: Version) -> None:
    """Refuse a change that is based on another version."""
    wanted = command.if_version
    if wanted is None or wanted == version or (wanted == 0 and present is None):
        return
    state = "" if present is not None or not version else " (deleted)"
    raise _RefusedError(
        "ConflictError",
        "version",
        f"expected version {wanted} of {command.name!r}, found version {version}{state}; "
        "read it again",
    )


def _wanted(command: Command, present: Document | None) -> bytes | None:
    """Return the document as it is to be, canonical; None: not there."""
    match command:
        case Put():
            return _canonical(command.document)
        case Delete(path=()):
            return None
        case Delete():
            return None if present is None else _without(present.document, command.path)
        case Patch():
            return _with(present, command.path, _value(command.value))


def _with(present: Document | None, path: tuple[str, ...], value: Any) -> bytes:
    root = None if present is None else _decode_value(present.document)
    root = {} if root is None else root
    at = root
    for depth, part in enumerate(path):
        if not isinstance(at, dict):
            raise _RefusedError(
                "RejectedError",
                "bad_request",
                f"expected a map at {'.'.join(path[:depth]) or 'the top'!r}, found another value; "
                "replace it first",
            )
        if depth == len(path) - 1:
            at[part] = value
        else:
            at = _child(at, part)
    return _canonical(encode(root))


def _child(at: dict[str, Any], part: str) -> Any:
    """Return what is in `at` under `part`; where that is nothing, a new map."""
    if at.get(part) is None:
        at[part] = {}
    return at[part]


def _without(document: bytes, path: tuple[str, ...]) -> bytes:
    root = at = _decode_value(document)
    for part in path[:-1]:
        at = at.get(part) if isinstance(at, dict) else None
    if isinstance(at, dict):
        at.pop(path[-1], None)
    return encode(root)


def _canonical(data: bytes) -> bytes:
    return encode(_value(data))


def _value(data: bytes) -> Any:
    """Decode a plain value. All faults get the same words: which one is found may differ."""
    try:
        value = _decode_value(data)
    except (RemoteProtocolError, TypeError):
        plain = False
    else:
        plain = _is_plain(value, limits.DOCUMENT_DEPTH_MAX)
    if not plain:
        raise _RefusedError(
            "RejectedError",
            "bad_request",
            "expected MessagePack of plain values: maps with string keys, arrays, strings, bytes, "
            f"numbers, booleans, nil, nested at most {limits.DOCUMENT_DEPTH_MAX} deep",
        )
    return value


def _is_plain(value: Any, depth: int) -> bool:
    match value:
        case dict():
            return depth > 0 and all(
                isinstance(key, str) and _is_plain(child, depth - 1) for key, child in value.items()
            )
        case list():
            return depth > 0 and all(_is_plain(child, depth - 1) for child in value)
        case None | bool() | int() | float() | str() | bytes():
            return True
        case _:
            return False


def _chained(chain: bytes, record: AuditRecord) -> bytes:
    plain = msgspec.structs.replace(record, chain=b"")
    return sha256(chain + encode(plain)).digest()


def _first_broken(chain: bytes, records: Iterable[AuditRecord]) -> Revision | None:
    for record in records:
        chain = _chained(chain, record)
        if record.chain != chain:
            return record.revision
    return None


def _digest(key: _Key, version: Version, revision: Revision, checksum: bytes) -> int:
    return xxh3(encode((key, version, revision, checksum)))
