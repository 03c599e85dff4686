"""The command line's end of a control connection: a blocking socket, and no trio.

    with Client("127.0.0.1:7946", cluster="local", timeout=5.0) as client:
        members = client.call("members")
        with client.stream("config.watch", path="orders") as states:
            for state in states: ...

One request at a time. Every wait has a deadline; while a stream runs the node says
`Beat`, and silence ends it. What the node refused comes back as the error it raised.
With a secret all of it happens within TLS, and the node is verified as by another node.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from microos import limits, wire
from microos.codec import encode
from microos.control.messages import (
    SILENCE,
    Answer,
    Beat,
    Cancel,
    End,
    Failure,
    Item,
    Request,
    decode_reply,
)
from microos.errors import (
    LimitError,
    MicroosError,
    RejectedError,
    RemoteProtocolError,
    SettingsError,
    UnauthorizedError,
    UnavailableError,
    UncertainError,
    by_name,
)
from microos.hashing import label_hash
from microos.types import parse_address
from microos.wire import Channel, FrameReader

GRACE = 1.0
"""How much longer than the node we wait, so that its own, better error comes first [s]."""

CHANGING = ("config.set", "config.delete", "call", "kv.put", "kv.delete", "ring.gone")
"""Verbs that may have happened although nobody said so."""

Reply = Answer | Failure | Item | End | Beat


class Socket(Protocol):
    """A connected socket, plain or sealed."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size_max: int, /) -> bytes: ...
    def settimeout(self, timeout: float, /) -> None: ...
    def close(self) -> None: ...


class Client:
    """One connection to one node; a block."""

    def __init__(
        self, address: str, *, cluster: str, timeout: float, secret: str | None = None
    ) -> None:
        """Connect.

        Args:
            address: HOST:PORT of any node.
            cluster: The cluster's label.
            timeout: Longest wait for the connection and for each answer [s].
            secret: The cluster's; None: speak in the clear, to a node on this machine.

        Raises:
            RejectedError: The address is not one.
            SettingsError: The secret is none.
            UnauthorizedError: The node has another secret.
            UnavailableError: No node answers there.
        """
        self.address = address
        self.timeout = timeout
        self._next = 0
        self._replies: deque[Reply] = deque()
        self._reader = FrameReader()
        self._head: bytes | None = b""
        plain = _connected(address, timeout)
        self._socket: Socket = plain
        if secret is not None:
            self._socket = _sealed(plain, address, cluster, secret)
        self._send(wire.pack_preface(label_hash(cluster), wire.FLAG_CONTROL))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a lock held through it is given back by the node."""
        self._socket.close()

    def call(self, verb: str, **arguments: Any) -> Any:
        """Return the node's answer to `verb`.

        Raises:
            UnavailableError, UncertainError, RejectedError, ...: As the node raised it, or
                because it did not answer within the timeout.
        """
        request = self._ask(verb, self.timeout, arguments)
        try:
            deadline = time.monotonic() + self.timeout + GRACE
            while isinstance(reply := self._reply(request, deadline), Beat):
                pass
        except UnavailableError as error:
            if verb in CHANGING:
                raise UncertainError(
                    f"{error}; it may have happened", reason=error.reason
                ) from error
            raise
        if isinstance(reply, Failure):
            raise _said(reply)
        if not isinstance(reply, Answer):
            raise RemoteProtocolError(f"expected an answer, found {type(reply).__name__}")
        return reply.result

    def stream(self, verb: str, *, patience: float | None = None, **arguments: Any) -> Stream:
        """Begin a stream.

        Args:
            patience: How long the node may take until the first item [s]; default: the timeout.
        """
        return Stream(self, self._ask(verb, patience or self.timeout, arguments))

    # For Stream.

    def _ask(self, verb: str, timeout: float, arguments: dict[str, Any]) -> int:
        self._next += 1
        self._send_message(Request(self._next, verb, timeout, arguments))
        return self._next

    def _send_message(self, message: Request | Cancel) -> None:
        try:
            body = encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise RejectedError(f"expected what MessagePack can carry, found {error}") from error
        if len(body) > limits.CONTROL_FRAME_MAX:
            raise LimitError(
                f"expected a request of at most {limits.CONTROL_FRAME_MAX} bytes, found {len(body)}"
            )
        self._send(wire.pack_frame(Channel.CONTROL, body))

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self.timeout)
            self._socket.sendall(data)
        except OSError as error:
            # The node may have said why before it closed.
            raise self._last_words() or self._gone(error) from error

    def _reply(self, request: int, deadline: float) -> Reply:
        """Return the next reply to `request`, a `Failure` of the connection, or a `Beat`.

        Raises:
            UnavailableError: Nothing came until the deadline, or the connection ended.
        """
        while True:
            reply = self._next_reply(deadline)
            match reply:
                case Failure(id=id) if id in (0, request):
                    return reply
                case Beat():
                    return reply
                case Answer(id=id) | Item(id=id) | End(id=id) if id == request:
                    return reply

    def _next_reply(self, deadline: float) -> Reply:
        while not self._replies:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._silent()
            # A single wait beyond what select can count would be an error of its own.
            self._socket.settimeout(min(left, 3600.0))
            try:
                data = self._socket.recv(64 * limits.KIB)
            except TimeoutError:
                continue
            except OSError as error:
                raise self._gone(error) from error
            if not data:
                raise self._gone(None)
            self._take(data)
        return self._replies.popleft()

    def _take(self, data: bytes) -> None:
        """Read frames; a node that refuses us begins with a preface, as it does to nodes."""
        if self._head is not None:
            self._head += data
            if len(self._head) < wire.PREFACE_SIZE:
                return
            data, self._head = self._head, None
            if data[:2] == wire.MAGIC:
                data = data[wire.PREFACE_SIZE :]
        for channel, body in self._reader.feed(data):
            if channel is Channel.LINK:
                raise _refused(self.address, body)
            if channel is Channel.CONTROL:
                self._replies.append(decode_reply(body))

    def _last_words(self) -> MicroosError | None:
        try:
            reply = self._next_reply(time.monotonic() + GRACE)
        except MicroosError as error:
            return error
        return _said(reply) if isinstance(reply, Failure) else None

    def _silent(self) -> UnavailableError:
        return UnavailableError(
            f"the node at {self.address} did not answer within {self.timeout:g} s; "
            "try another with --node or wait longer with --timeout"
        )

    def _gone(self, error: OSError | None) -> UnavailableError:
        why = f": {error.strerror or error}" if error else ""
        return UnavailableError(
            f"the node at {self.address} closed the connection{why}; try again or another node"
        )


class Stream:
    """A running request that says more than one thing: a block, and an iterator over its values."""

    def __init__(self, client: Client, request: int) -> None:
        self._client = client
        self._request = request
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except MicroosError:
            if error is None:
                raise

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next value.

        Raises:
            UnavailableError: The node is gone, or silent for `SILENCE`.
            MicroosError: What ended the stream, e.g. `LeaseLostError`.
        """
        while not self._over:
            try:
                reply = self._client._reply(self._request, time.monotonic() + SILENCE)
            except MicroosError:
                self._over = True
                raise
            match reply:
                case Item(value=value):
                    return value
                case End():
                    self._over = True
                case Failure():
                    self._over = True
                    raise _said(reply)
                case Answer():
                    raise RemoteProtocolError("expected a stream of values, found one answer")
        raise StopIteration

    def cancel(self) -> None:
        """Ask for the end; iteration then stops by itself. From any thread."""
        if not self._over:
            self._client._send_message(Cancel(self._request))

    def close(self) -> None:
        """End the stream and wait until the node has given back what it held.

        Raises:
            MicroosError: As iterating.
        """
        self.cancel()
        for _ in self:
            pass


def _said(failure: Failure) -> MicroosError:
    """Return what the node raised."""
    return by_name(failure.error, failure.message, failure.reason)


def _connected(address: str, timeout: float) -> socket.socket:
    try:
        at = parse_address(address)
    except ValueError as error:
        raise RejectedError(f"--node: {error}") from error
    try:
        return socket.create_connection((at.host, at.port), timeout)
    except OSError as error:
        raise UnavailableError(
            f"no node answers at {address}: {error.strerror or error}; "
            "start one with microos-node, or name another with --node HOST:PORT"
        ) from error


def _sealed(plain: socket.socket, address: str, cluster: str, secret: str) -> Socket:
    """Return the socket within TLS, the node at the other end verified."""
    # Here, because only who has a secret pays for OpenSSL.
    from microos.control.sealed import SealedSocket
    from microos.keyring import SealError

    try:
        return SealedSocket(plain, cluster=cluster, secret=secret)
    except SealError as error:
        plain.close()
        raise UnauthorizedError(
            f"the node at {address} is not of cluster {cluster!r} or has another secret; "
            "say --cluster LABEL, or the secret that it was started with",
            reason="unauthenticated",
        ) from error
    except OSError as error:
        plain.close()
        raise UnavailableError(
            f"the node at {address} hung up within the TLS handshake: "
            f"{error.strerror or error}; has it been given a secret?"
        ) from error
    except ValueError as error:
        plain.close()
        raise SettingsError([f"secret: {error}"]) from error


def _refused(address: str, body: bytes) -> MicroosError:
    """Return why a node said goodbye instead of serving: `[kind, reason]` on its link channel."""
    try:
        _, reason = msgspec.msgpack.decode(body, type=tuple[int, str])
    except msgspec.MsgspecError:
        reason = "unreadable"
    if reason == "cluster":
        return RejectedError(
            f"the node at {address} belongs to a cluster of another label; say --cluster LABEL",
            reason="cluster",
        )
    if reason == "plain":
        return UnauthorizedError(
            f"the node at {address} speaks only to who has the cluster's secret; "
            "set MICROOS_SECRET or say --secret-file FILE",
            reason="unauthenticated",
        )
    return UnavailableError(f"the node at {address} refused the connection: {reason}")
