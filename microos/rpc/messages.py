"""What a call brings back: the answer's bytes, and what the callee says of itself."""

import msgspec


class Load(msgspec.Struct, frozen=True, array_like=True):
    """How busy a callee is, told with each answer."""

    in_flight: int
    service_us: int
    cap: int = 1
    flags: int = 0
    """1: draining."""


class Reply(msgspec.Struct, frozen=True):
    """An answer."""

    body: bytes
    load: Load | None
