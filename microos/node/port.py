"""The one port of a node: datagrams and streams are served under the same number."""

from __future__ import annotations

import errno

from microos.errors import UnavailableError
from microos.net.network import Listener, Network, Udp
from microos.types import Address

TRIES = 16
"""How often a free port is looked for that serves datagrams and streams alike."""


async def bind(network: Network, wanted: Address) -> tuple[Listener, Udp]:
    """Open one port for streams and datagrams; port 0 is any that is free.

    Raises:
        UnavailableError: The port is taken, or there is no such address here.
    """
    for left in reversed(range(TRIES)):
        try:
            listener = await network.listen(wanted)
            try:
                return listener, await network.udp(listener.address)
            except OSError:
                listener.close()
                raise
        except OSError as error:
            if wanted.port == 0 and left:
                continue
            raise UnavailableError(
                f"expected to listen on {wanted}, found {_os_reason(error)}; "
                "stop what holds the port or choose another with bind",
                reason="bind",
            ) from error
    raise AssertionError("unreachable")


def _os_reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port in use"
    return error.strerror or str(error)
