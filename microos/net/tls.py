"""TLS 1.3 without I/O: what a node's links and the command line are sealed with.

    bytes of the wire ─▶ feed ─┐              ┌─▶ read  ─▶ bytes of the peer
                               ├─  OpenSSL  ──┤
    bytes for the wire ◀ taken ┘              └◀ write  ◀─ bytes for the peer

Both sides show a certificate of the cluster (`identity.py`), always: no setting skips a
check. Asked of the other side: TLS 1.3, ALPN `microos/1`, a chain to the authority of one
of our keys, exactly one name, and that of this cluster. That the name is the one in its
`Hello` is asked by `links.py`. OpenSSL is told not to look at a clock.

The contexts follow the keyring: after a change of keys the next handshake uses new ones.
The only importer of ssl; imported only where there is a secret.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.serialization import Encoding

from microos.errors import RemoteProtocolError
from microos.keyring import Keyring, SealError
from microos.net.identity import SERIAL_BITS, authority, leaf, node_of, uri_of
from microos.net.network import Buffer

ALPN = "microos/1"

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME, which the standard library has no name for."""


class Tls:
    """One node's side of every handshake.

    Args:
        label: The cluster's.
        name: The node's, for people.
        node: Its id; `identity.CONTROL` for a command line.
        entropy: Returns n bytes of chance, for keys and serials.

    Cost:
        Contexts 3 ms for each version of the keyring, a handshake 3 ms for both ends.
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        label: str,
        name: str,
        node: str,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._keyring = keyring
        self._label = label
        self._uri = uri_of(label, name, node)
        self._entropy = entropy
        self._version = -1
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._current()

    def dial(self) -> Session:
        """Begin a handshake as the side that dials."""
        return Session(self._current()[False], server=False, label=self._label)

    def accept(self) -> Session:
        """Begin a handshake as the side that was dialled."""
        return Session(self._current()[True], server=True, label=self._label)

    def _current(self) -> dict[bool, ssl.SSLContext]:
        if self._version != self._keyring.version:
            self._version = self._keyring.version
            self._contexts = self._made()
        return self._contexts

    def _made(self) -> dict[bool, ssl.SSLContext]:
        seeds = self._keyring.authorities()
        serial = int.from_bytes(self._entropy(SERIAL_BITS // 8), "big")
        sealing = self._keyring.sealing
        certificate, private = leaf(
            seeds[sealing], sealing, self._uri, secret=self._entropy(32), serial=serial
        )
        trusted = b"".join(
            authority(seed, id).public_bytes(Encoding.DER) for id, seed in seeds.items()
        )
        with _file(certificate + private) as path:
            return {server: _context(server, path, trusted) for server in (False, True)}


def _context(server: bool, chain: str, trusted: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # Nodes are named by id, not by where they happen to live.
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.set_alpn_protocols([ALPN])
    context.load_verify_locations(cadata=trusted)
    context.load_cert_chain(chain)
    if server:
        # A resumed session would outlive the keys that vouched for it.
        context.num_tickets = 0
    return context


@contextmanager
def _file(data: bytes) -> Iterator[str]:
    """Give OpenSSL the only thing it takes a private key from, a file: in memory if possible."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("microos"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as named:  # Mode 0600, gone after this block.
            named.write(data)
            named.flush()
            yield named.name


class Session:
    """One side of one connection: a handshake, then bytes both ways.

    Nothing the other side sends can raise anything but what is listed.
    """

    def __init__(self, context: ssl.SSLContext, *, server: bool, label: str) -> None:
        self._label = label
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._in, self._out, server_side=server)
        self.peer = ""
        """The verified id of the node there once `meet` was True; `CONTROL`: a command line."""

    def feed(self, data: bytes) -> None:
        """Take in bytes of the wire."""
        self._in.write(data)

    def taken(self) -> bytes:
        """Return the bytes for the wire that have gathered, and forget them."""
        return self._out.read()

    def meet(self) -> bool:
        """Go on with the handshake; return whether it is done. Until then: `taken`, `feed`.

        Raises:
            SealError: The other side speaks no TLS, or is not of this cluster. What is `taken`
                tells it so.
        """
        try:
            self._ssl.do_handshake()
            self.peer = _verified(self._ssl, self._label)
        except ssl.SSLWantReadError:
            return False
        except (ssl.SSLError, ValueError) as error:
            raise _unauthenticated(error) from error
        return True

    def read(self, size_max: int) -> bytes | None:
        """Return what the other side said: up to `size_max` bytes, b"" at its end, None: `feed`.

        Raises:
            RemoteProtocolError: The stream was tampered with, or the other side refused us.
        """
        try:
            return self._ssl.read(size_max)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLError, ValueError) as error:
            raise RemoteProtocolError(f"expected bytes within TLS, found {error}") from error

    def write(self, data: Buffer) -> None:
        """Seal bytes for the other side; they are `taken`.

        Raises:
            RemoteProtocolError: The stream has failed before.
        """
        try:
            with memoryview(data) as view:
                sent = 0
                while sent < len(view):
                    sent += self._ssl.write(view[sent:])
        except (ssl.SSLError, ValueError) as error:
            raise RemoteProtocolError(f"expected TLS that works, found {error}") from error

    def end(self) -> None:
        """Say that nothing follows, as well as that can be said."""
        try:
            self._ssl.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # It wants to hear the other side's end first, or is broken: said is said.


def _verified(peer: ssl.SSLObject, label: str) -> str:
    """Return whom the other side's certificate names; OpenSSL has checked its chain.

    Raises:
        SealError: Its protocol or name is not ours.
    """
    if peer.version() != "TLSv1.3" or peer.selected_alpn_protocol() != ALPN:
        raise SealError(
            f"expected TLS 1.3 and {ALPN}, found {peer.version()} and "
            f"{peer.selected_alpn_protocol()}",
            reason="unauthenticated",
        )
    certificate = peer.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    return node_of(names, label)  # type: ignore[arg-type]


def _unauthenticated(error: Exception) -> SealError:
    found = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error
    return SealError(
        f"expected a node of this cluster, found {found}; has it the same secret and label?",
        reason="unauthenticated",
    )
