"""A bucket: keys of one name space, values of one type.

    carts = node.kv.bucket("carts", Cart, ttl=3600.0)
    await carts.put("ann", Cart(("book",)))
    cart = await carts.get("ann")

| level | write acknowledged by | read answered by | in a split |
|---|---|---|---|
| `quorum` (default) | most owners of the key | most of them, the newest wins | one side at most |
| `one` | one owner, sent to all | one owner | both sides, joined after it |

Writes with `if_absent` or `if_version` take effect one after the other, whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Generic, Literal, TypeVar

import msgspec

from microos import limits
from microos.codec import encode
from microos.errors import ConflictError, LimitError, RejectedError
from microos.kv.keeping import Keeping
from microos.ring.entry import (
    end_of,
    is_tombstone,
    milliseconds,
    number_of,
    shown_version_of,
    value_of,
)
from microos.ring.keeper import Keeper
from microos.ring.ring import seed_of, slot_of
from microos.ring.store import name_of
from microos.types import Version

T = TypeVar("T")

Level = Literal["one", "quorum"]
LEVELS = ("one", "quorum")

VERSIONS_END = 1 << 126
"""No write has a version from here on: its clock would have gone on for a million years."""

UPDATE_TRIES = 64
"""How often `update` begins anew when others change the value meanwhile."""


class Item(msgspec.Struct, Generic[T], frozen=True):
    """One value as it was read."""

    value: T
    version: Version
    expires: float | None
    """How long it lives still [s]; None: until it is deleted."""


class Bucket(Generic[T]):
    """A handle; making one costs nothing and touches no network."""

    def __init__(
        self,
        keeping: Keeping,
        name: str,
        type: Any,
        *,
        ttl: float | None,
        consistency: Level,
        timeout: float,
    ) -> None:
        if not name or "\0" in name or len(name.encode()) > limits.KV_BUCKET_TEXT:
            raise ValueError(
                f"expected a bucket name of 1..{limits.KV_BUCKET_TEXT} bytes without a zero, "
                f"found {name!r}"
            )
        self.name = name
        self._keeping = keeping
        self._ttl = _checked_ttl(ttl)
        self._level = _checked_level(consistency)
        self._timeout = timeout
        self._seed = seed_of(name)
        self._prefix = name_of(name, b"")
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(type)

    # Reading.

    async def get(
        self,
        key: str | bytes,
        *,
        consistency: Level | None = None,
        timeout: float | None = None,
    ) -> T | None:
        """Return the value of `key`; None if there is none.

        Args:
            key: 1..1024 bytes; text is its UTF-8.
            consistency: Instead of the bucket's.
            timeout: Instead of the node's `kv.timeout` [s].

        Raises:
            NoQuorumError: Too few owners of the key answer.
            RejectedError: What is there is not of this bucket's type.
        """
        entry = await self._read(key, consistency, timeout)
        if entry is None or is_tombstone(entry):
            return None
        return self._decoded(key, value_of(entry))

    async def read(
        self,
        key: str | bytes,
        *,
        consistency: Level | None = None,
        timeout: float | None = None,
    ) -> Item[T] | None:
        """Return value, version and what is left of its time; None if there is none.

        Errors as `get`.
        """
        entry = await self._read(key, consistency, timeout)
        if entry is None or is_tombstone(entry):
            return None
        left = end_of(entry)
        return Item(
            self._decoded(key, value_of(entry)),
            number_of(shown_version_of(entry)),
            left / 1000.0 if left else None,
        )

    async def exists(
        self,
        key: str | bytes,
        *,
        consistency: Level | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Return whether there is a value; errors as `get`."""
        entry = await self._read(key, consistency, timeout)
        return entry is not None and not is_tombstone(entry)

    async def _read(
        self, key: str | bytes, consistency: Level | None, timeout: float | None
    ) -> bytes | None:
        data = _key(key)
        slot, name = slot_of(self._seed, data), self._prefix + data
        one, wait = self._is_one(consistency), self._wait(timeout)

        def begin(keeper: Keeper, now: float) -> int:
            return keeper.get(slot, name, one=one, deadline=now + wait, now=now)

        entry = await self._keeping.run(begin)
        assert entry is None or isinstance(entry, bytes)
        return entry

    def _decoded(self, key: str | bytes, data: bytes) -> T:
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RejectedError(
                f"expected a {self._decoder.type!r} in bucket {self.name!r} under {key!r}, "
                f"found another value: {error}"
            ) from error

    # Writing.

    async def put(
        self,
        key: str | bytes,
        value: T,
        *,
        ttl: float | None = None,
        if_absent: bool = False,
        if_version: Version | int | None = None,
        version: Version | int | None = None,
        consistency: Level | None = None,
        timeout: float | None = None,
    ) -> Version:
        """Write a value; return its version.

        Args:
            ttl: How long it lives [s], resolution 1 ms; inf: for ever; default the bucket's.
            if_absent: Only if there is no value.
            if_version: Only over this version; 0 is the same as `if_absent`.
            version: That of an `UncertainError`: write the same again, over nothing newer.
            consistency: Instead of the bucket's; with a condition it is always `quorum`.
            timeout: Instead of the node's `kv.timeout` [s].

        Raises:
            ConflictError: `exists`, `version`, `absent`: the condition does not hold.
            NoQuorumError: Too few owners of the key are there; nothing happened.
            UncertainError: Sent, and not acknowledged by enough; `version` says which.
            LimitError: Key or value too long, or the owners are full.
            OverloadedError: Too many operations in flight.
        """
        data = encode(value)
        if len(data) > limits.KV_VALUE_MAX:
            raise LimitError(
                f"expected a value of at most {limits.KV_VALUE_MAX} bytes, found {len(data)}"
            )
        lives = _checked_ttl(ttl) or self._ttl
        left = 0 if lives is None else milliseconds(lives)
        condition = _condition(if_absent, if_version)
        return await self._write(key, data, left, condition, version, consistency, timeout)

    async def delete(
        self,
        key: str | bytes,
        *,
        if_version: Version | int | None = None,
        consistency: Level | None = None,
        timeout: float | None = None,
    ) -> Version:
        """Delete a value, also one that is not there; return the version of that.

        Args and errors as `put`.
        """
        condition = _condition(False, if_version)
        return await self._write(key, None, 0, condition, None, consistency, timeout)

    async def update(
        self,
        key: str | bytes,
        change: Callable[[T], T],
        *,
        initial: T,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> T:
        """Replace a value by `change` of it, losing nobody's change; return the new value.

        Args:
            change: From the present value to the next; may be called several times.
            initial: What `change` gets where there is no value.
            ttl: How long the new value lives [s]; default: what is left of the old one's time,
                else the bucket's.

        Raises:
            ConflictError: Others changed it again and again meanwhile.
            UncertainError, NoQuorumError, LimitError: As `put`.
        """
        for _ in range(UPDATE_TRIES):
            item = await self.read(key, consistency="quorum", timeout=timeout)
            value = change(initial if item is None else item.value)
            left = ttl if ttl is not None or item is None else item.expires
            known = 0 if item is None else item.version
            try:
                await self.put(key, value, ttl=left, if_version=known, timeout=timeout)
            except ConflictError:
                continue
            return value
        raise ConflictError(
            f"expected to change {key!r} in {UPDATE_TRIES} tries, found it changed by others each "
            "time; try again later"
        )

    async def _write(
        self,
        key: str | bytes,
        value: bytes | None,
        left: int,
        condition: Version | None,
        version: Version | int | None,
        consistency: Level | None,
        timeout: float | None,
    ) -> Version:
        data = _key(key)
        slot, name = slot_of(self._seed, data), self._prefix + data
        one, wait = self._is_one(consistency), self._wait(timeout)
        again = None if version is None else _checked_version(version, least=1)
        if condition is not None and (version is not None or consistency == "one"):
            raise TypeError("a write under a condition has a version of its own and level quorum")

        def begin(keeper: Keeper, now: float) -> int:
            deadline = now + wait
            if condition is not None:
                return keeper.atomic(
                    slot, name, value, left=left, condition=condition, deadline=deadline, now=now
                )
            return keeper.put(
                slot, name, value, left=left, one=one, version=again, deadline=deadline, now=now
            )

        written = await self._keeping.run(begin)
        assert isinstance(written, int)
        return Version(written)

    def _is_one(self, consistency: Level | None) -> bool:
        return (self._level if consistency is None else _checked_level(consistency)) == "one"

    def _wait(self, timeout: float | None) -> float:
        if timeout is not None and not 0.0 < timeout < inf:
            raise ValueError(f"timeout must be positive and finite, found {timeout!r}")
        return self._timeout if timeout is None else timeout

    def __repr__(self) -> str:
        return f"<Bucket {self.name} {self._level}>"


def _key(key: str | bytes) -> bytes:
    data = key.encode() if isinstance(key, str) else key
    if not 0 < len(data) <= limits.KV_KEY_MAX:
        raise LimitError(f"expected a key of 1..{limits.KV_KEY_MAX} bytes, found {len(data)}")
    return data


def _condition(if_absent: bool, if_version: Version | int | None) -> Version | None:
    if if_absent and if_version:
        raise TypeError(f"if_absent contradicts if_version={if_version}: give one of them")
    if if_absent:
        return Version(0)
    return None if if_version is None else _checked_version(if_version, least=0)


def _checked_version(version: int, *, least: int) -> Version:
    if not least <= version < VERSIONS_END:
        raise ValueError(f"a version is what put, read or an error said, found {version!r}")
    return Version(version)


def _checked_ttl(ttl: float | None) -> float | None:
    if ttl is not None and not ttl > 0.0:
        raise ValueError(f"ttl must be positive, found {ttl!r}; delete what is to be gone at once")
    return ttl


def _checked_level(consistency: str) -> Level:
    if consistency not in LEVELS:
        raise ValueError(f"consistency must be one of {', '.join(LEVELS)}, found {consistency!r}")
    return "one" if consistency == "one" else "quorum"
