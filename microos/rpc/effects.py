"""What a connection wants done: frames to send, and events to tell.

Events of outgoing calls are told to whoever waits for them, those of incoming calls to
whoever runs the handlers. Each outgoing call ends in exactly one `Answered` or `Failed`,
unless it was cancelled here; each `Incoming` ends with an answer or failure given by us, or
with exactly one `Cancelled`.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from microos.errors import MicroosError
from microos.rpc.messages import CancelReason, Load


class Answered(msgspec.Struct, frozen=True, gc=False):
    """A call of ours was answered."""

    id: int
    body: bytes
    load: Load | None


class Failed(msgspec.Struct, frozen=True):
    """A call of ours came to nothing, or nobody knows to what."""

    id: int
    error: MicroosError
    load: Load | None = None


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """The other side calls; `answer` or `fail` it."""

    id: int
    endpoint: str
    body: bytes
    deadline: float
    """On our clock [s]."""
    attempt: int
    metadata: Mapping[str, str] | None


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """Stop the handler of this incoming call: nobody waits, and no answer would be sent."""

    id: int
    reason: CancelReason


class Loaded(msgspec.Struct, frozen=True, gc=False):
    """The answer to a call that is no longer waited for told how busy the other side is."""

    load: Load


Event: TypeAlias = Answered | Failed | Incoming | Cancelled | Loaded


class Effects(msgspec.Struct, frozen=True):
    """Everything to be done, once."""

    frames: Sequence[bytes]
    """To be sent in this order, before `chunks`."""

    chunks: Sequence[bytes]
    """Bulk, to be sent in this order; frames of later effects may overtake it."""

    events: Sequence[Event]


NOTHING = Effects((), (), ())
