"""What a node observes, as lines for people or for machines, written at once.

    2026-11-23T10:00:00.123Z info gossip.joined node=3f… name=b address=127.0.0.1:7947
    {"time":"2026-11-23T10:00:00.123Z","level":"info","event":"gossip.joined","node":"3f…",…}

Only what an operator wants to know is printed; the rest is in `microos status`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import msgspec

LEVELS = {
    "BecameLeader": "info",
    "ConfigurationChanged": "info",
    "EpochProposed": "info",
    "Founded": "info",
    "Joined": "info",
    "LeaderChanged": "info",
    "Left": "info",
    "Moved": "info",
    "Ready": "info",
    "Refuted": "info",
    "Restarted": "info",
    "RingResumed": "info",
    "SnapshotRestored": "info",
    "SteppedDown": "info",
    "Accused": "warning",
    "ClusterMismatch": "warning",
    "Died": "warning",
    "Foreign": "warning",
    "NameConflict": "warning",
    "OwnersGone": "warning",
    "RemovalsHeld": "warning",
    "RingPaused": "warning",
    "Stalled": "warning",
    "Suspected": "warning",
    "UdpBlocked": "warning",
    "CopiesLost": "error",
    "IdentityConflict": "error",
    "Quarantined": "error",
    "StorageFailed": "error",
}
"""Notes that are printed, by the name of their class."""


class Printer:
    """Writes lines to standard output."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        write: Callable[[str], object] = sys.stdout.write,
        flush: Callable[[], None] = sys.stdout.flush,
    ) -> None:
        self._as_json = as_json
        self._wall = wall
        self._write = write
        self._flush = flush

    def note(self, source: str, note: object) -> None:
        """Print one note, if it is one of those that are printed."""
        name = type(note).__name__
        if name in LEVELS and isinstance(note, msgspec.Struct):
            fields = {field: getattr(note, field) for field in note.__struct_fields__}
            self.line(LEVELS[name], f"{source}.{_snake(name)}", fields)

    def line(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """Print one line."""
        time = self._wall().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._as_json:
            head = {"time": time, "level": level, "event": event}
            plain = {key: _plain(value) for key, value in fields.items()}
            text = msgspec.json.encode({**plain, **head}).decode()
        else:
            words = [f"{key}={_quoted(_plain(value))}" for key, value in fields.items()]
            text = " ".join([time, level, event, *words])
        self._write(f"{text}\n")
        self._flush()


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.name.lower()
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return value.hex()
        case tuple() | list() | set() | frozenset():
            return [_plain(each) for each in value]
        case _:
            return str(value)


def _quoted(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list():
            return ",".join(_quoted(each) for each in value) or "-"
    text = str(value)
    # A text of others must not be able to forge a line or a field.
    plain = text.isprintable() and not any(c in ' "=' for c in text) and text
    return text if plain else msgspec.json.encode(text).decode()
