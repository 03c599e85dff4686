"""What the router says of itself: frozen values, counted from the node's start."""

from collections.abc import Mapping

import msgspec


class EndpointStatistics(msgspec.Struct, frozen=True):
    """One endpoint as this node has called it."""

    endpoint: str
    calls: int
    """Logical calls begun; those cancelled or under way are neither success nor error."""
    success: int
    error: int
    retries: int
    """Attempts beyond the first; a call that an instance declined to drain counts, too."""


class InstanceStatistics(msgspec.Struct, frozen=True):
    """One instance as this node sees it."""

    service: str
    node: str
    in_flight: int
    """Own attempts under way."""
    suspect: bool
    """Passed over for the moment: it failed, takes too long, drains, or gossip suspects it."""
    breakers: Mapping[str, str]
    """By endpoint, of those called there: `closed`, `open` or `half_open`."""


class RouterStatistics(msgspec.Struct, frozen=True):
    """All calls of one node."""

    endpoints: tuple[EndpointStatistics, ...]
    """By name."""
    instances: tuple[InstanceStatistics, ...]
    """By service and node, of the services called."""
