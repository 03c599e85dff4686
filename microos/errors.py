"""What can go wrong, sorted by what the caller can do next.

    MicroosError
    ├── UnavailableError      nothing happened; trying again (later, elsewhere) is safe
    │   ├── NoMemberError         no instance of that service is known
    │   ├── NoQuorumError         too few voters or replicas answer
    │   ├── OverloadedError       rate limit, full queue, shed by the callee
    │   └── CircuitOpenError      the breaker is open
    ├── UncertainError        it may have happened; retry only what is idempotent
    ├── RejectedError         the answer is no; trying again will not help
    │   ├── UnauthorizedError     who, or not allowed
    │   ├── ConflictError         the version read is no longer the version there
    │   └── LimitError            too big, too many, too long
    ├── RemoteError           the handler raised
    ├── LeaseLostError        the lock or leadership ended before its block did
    ├── ProtocolError         another node (RemoteProtocolError) or we (LocalProtocolError)
    ├── StorageError          the node's own files cannot be used
    └── SettingsError         wrong settings, all faults at once, before any socket opens

The first three are the whole retry policy. Every error carries `reason`, one
word of a closed set, and the facts as fields; a message says what was wanted,
what was found, and what to do, in one line. FoundationDB sorts its errors the
same way (what may be retried, what may have been committed).
"""

from __future__ import annotations

from collections.abc import Sequence


class MicroosError(Exception):
    """Anything microos raises on purpose."""

    reason: str = ""
    """One word of a closed set; which words, says each class."""

    def __init__(self, message: str, *, reason: str | None = None, **facts: object) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        self.facts = facts
        self.load: object = None
        """What the callee said of itself with it, if a callee did (`rpc.messages.Load`)."""


class UnavailableError(MicroosError):
    """Nothing happened; try again. `deadline`, `taken`, `draining`, `connection_lost`."""

    reason = "deadline"


class NoMemberError(UnavailableError):
    """No usable instance of a service. `unknown_service`, `none_usable`, `unassigned`."""

    reason = "unknown_service"


class NoQuorumError(UnavailableError):
    """Too few answer to decide anything. `voters`, `replicas`."""

    reason = "voters"


class OverloadedError(UnavailableError):
    """Asked to slow down. `rate_limit`, `queue_full`, `shed`."""

    reason = "queue_full"


class CircuitOpenError(UnavailableError):
    """The breaker is open everywhere. `open`."""

    reason = "open"


class UncertainError(MicroosError):
    """It may have happened: sent, and not answered. `deadline`, `connection_lost`."""

    reason = "deadline"


class RejectedError(MicroosError):
    """The answer is no. `bad_request`, `unknown_endpoint`, `cluster`, `version`."""

    reason = "bad_request"


class UnauthorizedError(RejectedError):
    """Identity unknown or not allowed. `unauthenticated`, `forbidden`."""

    reason = "forbidden"


class ConflictError(RejectedError):
    """What was read is no longer there. `version`, `exists`, `absent`."""

    reason = "version"


class LimitError(RejectedError):
    """Too big, too many, too long. `size`, `quota`, `count`."""

    reason = "size"


class RemoteError(MicroosError):
    """The handler on the other node raised. `handler`."""

    reason = "handler"


class LeaseLostError(MicroosError):
    """The lease ended before its block did. `expired`, `revoked`."""

    reason = "expired"


class ProtocolError(MicroosError):
    """Bytes or calls that break the protocol. `remote`, `local`."""


class RemoteProtocolError(ProtocolError):
    """Another node broke the protocol."""

    reason = "remote"


class LocalProtocolError(ProtocolError):
    """We broke the protocol: a bug of ours."""

    reason = "local"


class StorageError(MicroosError):
    """The node's own files cannot be used. `damaged`, `foreign`, `locked`, `full`, `failed`."""

    reason = "failed"


class SettingsError(MicroosError, ValueError):
    """Wrong settings: every fault, one line each."""

    reason = "settings"

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults), faults=tuple(faults))
        self.faults = tuple(faults)


def by_name(name: str, message: str, reason: str) -> MicroosError:
    """Return an error that travelled as the name of its class, e.g. a machine's refusal.

    A name this version does not know becomes a plain `MicroosError`.
    """
    kinds: list[type[MicroosError]] = [MicroosError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        if kind.__name__ == name and not issubclass(kind, SettingsError):
            return kind(message, reason=reason)
    return MicroosError(message, reason=reason)
