"""A blocking socket with TLS around it, for the command line.

The standard library's own would do, but one thread waits here for the node while
another cancels, and OpenSSL's connections are not to be shared: so waiting happens on
the plain socket, outside of the lock that guards the session. Imported only by who has
a secret.
"""

from __future__ import annotations

import os
import socket
import threading

from microos import limits
from microos.errors import RemoteProtocolError
from microos.keyring import Keyring, parse_keys
from microos.net.identity import CONTROL
from microos.net.tls import Tls


class SealedSocket:
    """One connection to a node whose certificate was verified.

    Args:
        plain: Connected, with a timeout; belongs to this from now on.

    Raises:
        ValueError: The secret is none.
        SealError: The node is not of this cluster, or has another secret.
        OSError: It hung up.
    """

    def __init__(self, plain: socket.socket, *, cluster: str, secret: str) -> None:
        keyring = Keyring(parse_keys(secret), cluster)
        tls = Tls(keyring, label=cluster, name="", node=CONTROL, entropy=os.urandom)
        self._plain = plain
        self._session = tls.dial()
        self._guard = threading.Lock()
        self._sending = threading.Lock()
        while not self._session.meet():
            self._plain.sendall(self._session.taken())
            data = self._plain.recv(64 * limits.KIB)
            if not data:
                raise ConnectionResetError("the connection was closed")
            self._session.feed(data)
        self._plain.sendall(self._session.taken())

    def settimeout(self, timeout: float) -> None:
        self._plain.settimeout(timeout)

    def sendall(self, data: bytes) -> None:
        with self._sending:
            with self._guard:
                try:
                    self._session.write(data)
                except RemoteProtocolError as error:
                    raise ConnectionAbortedError(str(error)) from error
                sealed = self._session.taken()
            self._plain.sendall(sealed)

    def recv(self, size_max: int) -> bytes:
        while True:
            with self._guard:
                try:
                    data = self._session.read(size_max)
                except RemoteProtocolError as error:
                    raise ConnectionAbortedError(str(error)) from error
            if data is not None:
                return data
            sealed = self._plain.recv(64 * limits.KIB)
            if not sealed:
                return b""
            with self._guard:
                self._session.feed(sealed)

    def close(self) -> None:
        """End it. What was asked has been answered by then, or nobody waits for it."""
        self._plain.close()
