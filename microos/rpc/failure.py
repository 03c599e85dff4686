"""Errors on their way to the caller, and back into what they were.

A callee's error of `microos.errors` arrives as the same class, with its reason, its
message and its facts; a class of a user's own arrives as the nearest of ours it is made
of. Facts that the wire does not know arrive as text. Whatever is too long is cut rather
than refused: an error that cannot be told would be a worse one.
"""

from __future__ import annotations

from microos import errors
from microos.codec import encode
from microos.errors import MicroosError
from microos.rpc.messages import (
    ERROR_TEXT,
    FACT_BYTES,
    FACTS_BYTES,
    FACTS_MAX,
    MESSAGE_BYTES,
    Fact,
    Failure,
    Load,
)

RETRY_AFTER = "retry_after"
"""The one fact with a field of its own: when to try again [s]."""

RETRY_AFTER_MAX = 1e9
INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1
"""What MessagePack has."""


def failure_of(id: int, error: MicroosError, load: Load | None) -> Failure:
    """Return the frame that tells the caller of call `id` about an error."""
    facts = dict(error.facts)
    after = facts.pop(RETRY_AFTER, None)
    if not isinstance(after, int | float) or not 0.0 <= after <= RETRY_AFTER_MAX:
        after = -1.0
    told = _told(facts)
    return Failure(
        id,
        load,
        _name(error),
        _cut(error.reason, ERROR_TEXT),
        _cut(str(error), MESSAGE_BYTES),
        after,
        {name: fact for name, fact in told.items() if not isinstance(fact, bytes)} or None,
        {name: fact for name, fact in told.items() if isinstance(fact, bytes)} or None,
    )


def error_of(failure: Failure) -> MicroosError:
    """Return the error a frame tells of; a class we do not know becomes a `MicroosError`."""
    error = errors.by_name(failure.error, failure.message, failure.reason)
    error.facts.update(failure.facts or {})
    error.facts.update(failure.blobs or {})
    if failure.retry_after >= 0.0:
        error.facts[RETRY_AFTER] = failure.retry_after
    return error


def _name(error: MicroosError) -> str:
    """Return the nearest class that the other side has, too."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


def _told(facts: dict[str, object]) -> dict[str, Fact | bytes]:
    """Return as many facts as there is room for, in their order."""
    told: dict[str, Fact | bytes] = {}
    room = FACTS_BYTES
    for name, value in facts.items():
        word, fact = _cut(name, ERROR_TEXT), _fact(value)
        size = len(encode(word)) + len(encode(fact))
        if len(told) < FACTS_MAX and size <= room:
            told[word] = fact
            room -= size
    return told


def _fact(value: object) -> Fact | bytes:
    match value:
        case bytes():
            return bytes(value[:FACT_BYTES])
        case bool() | None:
            return value
        case float():
            return float(value)
        case int() if INT_MIN <= value <= INT_MAX:
            return int(value)
        case _:
            return _cut(str(value), FACT_BYTES)


def _cut(text: str, size_max: int) -> str:
    """Return the text as far as its UTF-8 has room; what cannot be written becomes `?`."""
    return text.encode("utf-8", "replace")[:size_max].decode("utf-8", "ignore")
