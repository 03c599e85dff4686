"""Values to MessagePack and back, checked at the border.

Everything we send or store is a msgspec Struct written as plain MessagePack,
which any language can read. Foreign bytes can raise exactly three exceptions
inside msgspec; here, and nowhere else, they become one `RemoteProtocolError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from microos.errors import RemoteProtocolError

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder(order="deterministic")
encode: Callable[[Any], bytes] = _encoder.encode
"""Return the MessagePack of a value; equal values give equal bytes."""

FOREIGN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that decoding arbitrary bytes may raise."""


class Decoder(Generic[T]):
    """Reads one type from bytes. Make it once, at import."""

    def __init__(self, of: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(of)
        self._name = getattr(of, "__name__", str(of))

    def __call__(self, data: bytes | memoryview) -> T:
        """Return the value in `data`.

        Raises:
            RemoteProtocolError: The bytes are not one such value.
        """
        try:
            value: T = self._decoder.decode(data)
        except FOREIGN as error:
            raise RemoteProtocolError(f"expected {self._name}, found {error}") from error
        return value


class BatchDecoder(Generic[T]):
    """Reads one array of tagged messages, skipping those of a kind it does not know."""

    def __init__(self, of: Any, *, limit: int) -> None:
        self._all = msgspec.msgpack.Decoder(list[of])
        self._one = msgspec.msgpack.Decoder(of)
        self._raw = msgspec.msgpack.Decoder(list[msgspec.Raw])
        self._limit = limit

    def __call__(self, data: bytes | memoryview) -> tuple[list[T], int]:
        """Return (messages, how many were skipped).

        Raises:
            RemoteProtocolError: Not an array, or more messages than the limit.
        """
        try:
            found: list[T] = self._all.decode(data)
            skipped = 0
        except FOREIGN:
            found, skipped = self._each(data)
        if len(found) + skipped > self._limit:
            raise RemoteProtocolError(
                f"expected at most {self._limit} messages in one packet, found "
                f"{len(found) + skipped}"
            )
        return found, skipped

    def _each(self, data: bytes | memoryview) -> tuple[list[T], int]:
        try:
            parts = self._raw.decode(data)
        except FOREIGN as error:
            raise RemoteProtocolError(f"expected an array of messages, found {error}") from error
        found: list[T] = []
        for part in parts:
            try:
                found.append(self._one.decode(part))
            except FOREIGN:
                continue
        return found, len(parts) - len(found)
