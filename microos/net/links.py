"""Links between this node and all others: dialled on demand, accepted, replaced, ended.

    send ─▶ outbox ─▶ writer ─▶ stream ─▶ reader ─▶ on_frame(channel, node, boot, body)
              │ bounded; urgent first
              └ no link: dial; refused while the outbox is full or the dial backs off

There is one link per pair of processes (node and boot); `peer.py` says which, when
there are two connections, `link.py` how one is written, read and kept alive, and
`handshake.py` how two processes meet. This is where they are put together.

Bytes that do not belong here are counted, end their connection, and reach nobody:
a browser, a scanner, a node of another cluster, a peer with a broken memory. With a
`sealer` all of it happens within TLS, and whoever comes without is refused, but for
the command line on this machine.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import trio

from microos import limits, wire
from microos.clock import Clock
from microos.errors import RemoteProtocolError
from microos.keyring import SealError
from microos.net.handshake import (
    Bye,
    Connection,
    Hello,
    Use,
    introduce,
    is_sound,
    link_frame,
    unpack_first_bytes,
)
from microos.net.link import Link
from microos.net.network import Listener, Network, Stream
from microos.net.notes import (
    DialFailed,
    DialResult,
    Foreign,
    LinkLost,
    LinkNote,
    LinkStatistics,
    LinkUp,
)
from microos.net.peer import Peer
from microos.net.sealed import Sealer, SpoiltError
from microos.types import Address, BootId, NodeId, Random
from microos.wire import Channel, WrongClusterError

HANDSHAKE_TIMEOUT = 2.0
"""From a connection's first moment to its `Use` [s]."""

DIAL_TIMEOUT = 1.0
"""For a dial made because there is something to send [s]."""

PART_TIMEOUT = 1.0
"""Longest wait for the other side to close a connection that did not become a link [s]."""

HTTP_TIMEOUT = 0.1
"""The same for an HTTP client, which waits for us [s]."""

ACCEPT_PAUSE = 0.1
"""Wait after a failed accept [s]."""

FOREIGN_INTERVAL = 60.0
"""A source of foreign bytes is noted once in this time [s]; counted it is always."""

SOURCES_MAX = 1024
"""Sources remembered for that."""


class Links:
    """All links of one node.

    Args:
        me: The own Hello, as of now; node and boot never change.
        label: Hash of the cluster's label.
        address_of: Where a node listens; None if unknown.
        on_frame: Called with (channel, node, boot, body) for every frame, in order, at once. A
            `RemoteProtocolError` from it ends the link.
        on_calls: The same for frames of calls that came in a row: (node, boot, bodies).
        on_note: Called with every note, after what it tells has been done.
        on_control: Serves one connection of the command line; None refuses them.
        admit: Returns "" if this Hello is welcome, else one word why not (a–z and _).
        sealer: Puts TLS around every connection; None: there is no secret, all is plain.
    """

    def __init__(
        self,
        me: Callable[[], Hello],
        *,
        label: int,
        clock: Clock,
        random: Random,
        network: Network,
        address_of: Callable[[NodeId], Address | None],
        on_frame: Callable[[Channel, NodeId, BootId, bytes], None],
        on_calls: Callable[[NodeId, BootId, list[bytes]], None],
        on_note: Callable[[LinkNote], None],
        on_control: Callable[[Stream], Awaitable[None]] | None,
        admit: Callable[[Hello], str],
        sealer: Sealer | None = None,
    ) -> None:
        self._me = me
        self._label = label
        self._clock = clock
        self._random = random
        self._network = network
        self._address_of = address_of
        self._on_frame = on_frame
        self._on_calls = on_calls
        self._on_note = on_note
        self._on_control = on_control
        self._admit = admit
        self._sealer = sealer

        self._nursery: trio.Nursery | None = None
        self._peers: dict[NodeId, Peer] = {}
        self._open: dict[Connection, None] = {}
        self._live: dict[Link, None] = {}
        self._dialling = 0
        self._leaving = False
        self._ended = trio.Event()
        self._sources: dict[str, float] = {}
        self._drops = 0
        self._counts: Counter[str] = Counter()
        self._failure = ""

    # What others ask for.

    def send(
        self,
        node: NodeId,
        channel: Channel,
        body: bytes,
        *,
        urgent: bool = False,
        bulk: bool = False,
    ) -> bool:
        """Queue one frame for a node; dial it if there is no link. Never blocks.

        Args:
            body: 1 byte up to the channel's limit in `wire.BODY_MAX`.
            urgent: Goes before everything that is not.
            bulk: Goes after everything that is not.

        Returns:
            False if it was dropped: the outbox is full, the address is unknown, or the last dial
            failed a moment ago. True promises an attempt, nothing more.

        Cost:
            One CRC and one copy of the body; the write itself comes at the end of the turn.
        """
        assert 0 < len(body) <= wire.BODY_MAX[channel]
        return self.send_each(node, channel, (body,), urgent=urgent, bulk=bulk) == 1

    def send_each(
        self,
        node: NodeId,
        channel: Channel,
        bodies: Sequence[bytes],
        *,
        urgent: bool = False,
        bulk: bool = False,
    ) -> int:
        """Queue frames for a node, in order; return how many of the first were taken.

        Arguments and meaning as `send`; its cost less what looking for the node costs.
        """
        peer = self._peers.get(node)
        if peer is None or peer.is_idle:
            peer = self._call(node)
        taken = 0
        if peer is not None:
            put = peer.outbox.put
            for body in bodies:
                if not put(wire.pack_frame(channel, body), urgent=urgent, bulk=bulk):
                    break
                taken += 1
            if taken and peer.link is not None:
                peer.link.wake()
        self._drops += len(bodies) - taken
        return taken

    async def dial(self, address: Address, node: NodeId | None, timeout: float) -> DialResult:
        """Connect anew: proof that, and which, node lives at an address. While `run` runs.

        The connection becomes the link if there is none to that process; if there is one,
        it stays, and is asked at once whether it still answers.

        Args:
            address: Numeric.
            node: Who is expected; None takes anybody. Somebody else is `rejected:other`.
            timeout: For everything together [s].
        """
        result = DialResult("timeout")
        if self._nursery is None or self._leaving or self._is_full():
            return DialResult("failed")
        self._dialling += 1
        try:
            with self._clock.timeout_at(self._clock.now() + timeout):
                result = await self._knock(address, node)
        finally:
            self._dialling -= 1
        self._counts["dialled" if result.outcome == "ok" else "dials_failed"] += 1
        return result

    def close(self, node: NodeId, reason: str) -> None:
        """End the link to a node with `Bye(reason)`; what is queued for it is dropped.

        Args:
            reason: One word, a–z and _.
        """
        peer = self._peers.get(node)
        if peer is None or peer.link is None:
            return
        boot = peer.link.boot
        peer.close(reason)
        self._drop_outbox(peer)
        self._on_note(LinkLost(node, boot, clean=True))

    def forgive(self, node: NodeId) -> None:
        """Forget that dials of a node have failed: it has been heard to live since."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.heard()

    async def bye(self, timeout: float) -> None:
        """Write what is queued, say `Bye(leave)` everywhere, wait until all have closed.

        From now on nothing is sent, dialled or accepted.

        Args:
            timeout: Then the links that are left are cut [s].
        """
        self._leaving = True
        for link in list(self._live):
            link.bye("leave")
        with self._clock.timeout_at(self._clock.now() + timeout):
            while self._live:
                self._ended = trio.Event()
                await self._ended.wait()
        for link in list(self._live):
            link.cut()

    def statistics(self) -> LinkStatistics:
        """Return what is open, queued and counted."""
        return LinkStatistics(
            links=tuple(
                peer.link.statistics(peer.outbox)
                for _, peer in sorted(self._peers.items())
                if peer.link is not None
            ),
            connections=len(self._open),
            drops=self._drops,
            failure=self._failure,
            **self._counts,
        )

    # Accepting.

    async def run(self, listener: Listener) -> None:
        """Accept, and keep all links, until cancelled; then every link is reset.

        A closed listener ends the accepting only.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._accept(listener, nursery)
                await trio.Event().wait()
        finally:
            self._leaving = True
            self._nursery = None
            self._peers.clear()
            for connection in list(self._open):
                self._drop(connection)

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                self._fault(error)
                await self._clock.sleep_until(self._clock.now() + ACCEPT_PAUSE)
                continue
            if self._leaving or self._is_full():
                self._counts["refused"] += 1
                stream.abort()
                continue
            self._counts["accepted"] += 1
            connection = Connection(stream)
            self._open[connection] = None
            nursery.start_soon(self._accepted, connection)

    async def _accepted(self, connection: Connection) -> None:
        """Live through one accepted connection. Whatever goes wrong ends it alone.

        A broken invariant is no such thing: it ends the node, better gone than wrong.
        """
        try:
            await self._welcome(connection)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # It went away before it was a link.
        except AssertionError:
            raise
        except Exception as error:
            self._fault(error)
        finally:
            self._drop(connection)

    async def _welcome(self, connection: Connection) -> None:
        """Find out who dialled, and be at its service."""
        flags, link, refused = 0, None, False
        words, wait = b"", PART_TIMEOUT
        source = connection.stream.peer
        with self._clock.timeout_at(self._clock.now() + HANDSHAKE_TIMEOUT) as scope:
            head = await connection.first_bytes()
            if not head:
                self._counts["silent"] += 1  # A dial given up, or a balancer that looks for a port.
                return
            try:
                if self._sealer is not None and head.startswith(wire.TLS):
                    await connection.seal(self._sealer.accept(), self._clock, head)
                    head = await connection.first_bytes()
                flags = unpack_first_bytes(head, self._label)
                self._require_seal(connection, flags)
                if not flags & wire.FLAG_CONTROL:
                    link, words = await self._answer(connection)
            except WrongClusterError:
                self._foreign(source, "wrong_cluster")
                words = wire.pack_preface(self._label) + link_frame(Bye("cluster"))
            except SealError as error:
                self._foreign(source, error.reason)
                refused = True  # Of TLS it has been told by TLS.
                if error.reason == "plain":
                    words = wire.pack_preface(self._label) + link_frame(Bye("plain"))
            except RemoteProtocolError:
                what = _describe(head)
                self._foreign(source, what)
                if what == "http":
                    words, wait = wire.HTTP_ANSWER, HTTP_TIMEOUT
        if scope.cancelled_caught:
            self._foreign(source, "silent")
        elif link is not None:
            await self._serve(link)
        elif words or refused:
            await self._take_leave(connection, words, wait)
        elif flags & wire.FLAG_CONTROL:
            await self._control(connection.stream)

    def _require_seal(self, connection: Connection, flags: int) -> None:
        """See that who comes without TLS may.

        Raises:
            SealError: It may not.
        """
        if self._sealer is None or connection.peer is not None:
            return
        if not (flags & wire.FLAG_CONTROL and self._is_local(connection.stream.peer)):
            raise SealError("expected TLS, found a plain connection", reason="plain")

    def _is_local(self, source: Address) -> bool:
        """Whether a connection has not left this machine: whoever is here may ask the node."""
        return _is_loopback(source.host) and (
            _is_loopback(here := self._me().address.host) or here in ("0.0.0.0", "::")
        )

    async def _answer(self, connection: Connection) -> tuple[Link | None, bytes]:
        """Introduce ourselves to a dialler; return (the link, if it wants one, last words if not).

        Raises:
            RemoteProtocolError: It breaks the protocol.
        """
        preface = wire.pack_preface(self._label)
        hello = await connection.message()
        if not isinstance(hello, Hello):
            raise RemoteProtocolError(f"expected Hello, found {type(hello).__name__}")
        objection = self._objection(hello, connection)
        if objection:
            return None, preface + link_frame(Bye(objection))
        await connection.stream.send_all(preface + link_frame(self._me()))
        answer = await connection.message()
        if isinstance(answer, Bye):
            return None, b""  # It only wanted to know.
        if not isinstance(answer, Use):
            raise RemoteProtocolError(f"expected Use or Bye, found {type(answer).__name__}")
        if self._leaving:
            return None, link_frame(Bye("leave"))
        link = self._link(connection, hello, inbound=True)
        return link, b""

    async def _control(self, stream: Stream) -> None:
        if self._on_control is None:
            self._counts["refused"] += 1
            return
        self._counts["control"] += 1
        await self._on_control(stream)
        await stream.aclose()

    # Dialling.

    def _call(self, node: NodeId) -> Peer | None:
        """Begin to dial a node; return None if that cannot be done now."""
        assert node != self._me().node, "a node does not link to itself"
        address = self._address_of(node)
        if address is None or self._nursery is None or self._leaving:
            return None
        peer = self._peer(node)
        if not peer.may_dial(address, self._clock.now()):
            return None
        peer.is_dialling = True
        self._nursery.start_soon(self._dial_for, peer, address)
        return peer

    async def _dial_for(self, peer: Peer, address: Address) -> None:
        result = await self.dial(address, peer.node, DIAL_TIMEOUT)
        peer.is_dialling = False
        if peer.link is not None:
            return
        if result.outcome != "ok":
            peer.dial_failed(address, self._clock.now(), self._random)
        self._drop_outbox(peer)
        if result.outcome != "ok":
            self._on_note(DialFailed(peer.node, address, result.outcome))

    async def _knock(self, address: Address, node: NodeId | None) -> DialResult:
        """Dial and introduce ourselves; the connection becomes the link if one is missing."""
        try:
            connection = Connection(await self._network.dial(address))
        except ConnectionRefusedError:
            return DialResult("refused")
        except ConnectionResetError:
            return DialResult("reset")
        except OSError:
            return DialResult("failed")
        self._open[connection] = None
        is_kept = False
        try:
            if self._sealer is not None:
                await connection.seal(self._sealer.dial(), self._clock)
            begun = self._clock.now()
            answer = await introduce(connection, self._label, self._me())
            # No checkpoint from here on: nobody comes between the decision and the link.
            if isinstance(answer, Bye):
                return DialResult(f"rejected:{answer.reason}")
            rtt = self._clock.now() - begun
            is_kept = self._nursery is not None
            return self._decide(connection, answer, node, rtt)
        except SpoiltError:
            self._foreign(address, "unauthenticated")
            return DialResult("rejected:unauthenticated")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return DialResult("reset")
        except WrongClusterError:
            self._foreign(address, "wrong_cluster")
            return DialResult("rejected:cluster")
        except SealError as error:
            self._foreign(address, error.reason)
            if self._nursery is not None:
                # It is told by TLS; a reset could overtake that.
                is_kept = True
                self._nursery.start_soon(self._dismiss, connection, b"")
            return DialResult(f"rejected:{error.reason}")
        except RemoteProtocolError:
            self._foreign(address, "foreign")
            return DialResult("rejected:foreign")
        finally:
            if not is_kept:
                self._drop(connection)

    def _decide(
        self, connection: Connection, hello: Hello, node: NodeId | None, rtt: float
    ) -> DialResult:
        """Decide what becomes of a connection we dialled: the link, or a Bye."""
        outcome, last_word = "ok", ""
        objection = self._objection(hello, connection)
        if not objection and node is not None and hello.node != node:
            objection = "other"
        peer = self._peers.get(hello.node)
        if objection:
            outcome, last_word = f"rejected:{objection}", objection
        elif self._leaving or self._nursery is None:
            last_word = "leave"
        elif peer is not None and peer.link is not None and peer.link.boot == hello.boot:
            peer.link.doubt()
            last_word = "duplicate"
        if self._nursery is None:
            pass  # Everything is being torn down; the caller drops the connection.
        elif last_word:
            words = link_frame(Bye(last_word))
            self._nursery.start_soon(self._dismiss, connection, words)
        else:
            link = self._link(connection, hello, inbound=False)
            link.tell(link_frame(Use()))
            self._nursery.start_soon(self._serve, link)
        return DialResult(outcome, hello.node, hello.boot, rtt)

    async def _dismiss(self, connection: Connection, words: bytes) -> None:
        try:
            await self._take_leave(connection, words, PART_TIMEOUT)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._drop(connection)

    # Both ways.

    def _objection(self, hello: Hello, connection: Connection) -> str:
        """Return why a Hello is not welcome, "" if it is."""
        me = self._me()
        if hello.label != me.label:
            self._foreign(connection.stream.peer, "wrong_cluster")
            objection = "cluster"
        elif connection.peer is not None and connection.peer != hello.node:
            self._foreign(connection.stream.peer, "unauthenticated")
            objection = "identity"
        elif hello.node == me.node:
            objection = "self"
        elif not is_sound(hello.address):
            objection = "address"
        else:
            objection = self._admit(hello)
        if objection:
            self._counts["rejected"] += 1
        return objection

    async def _take_leave(self, connection: Connection, words: bytes, wait: float) -> None:
        """Say the last words on a connection that is no link, and close it."""
        with self._clock.timeout_at(self._clock.now() + wait):
            await connection.part(words)
        await connection.stream.aclose()

    def _link(self, connection: Connection, hello: Hello, *, inbound: bool) -> Link:
        """Return a connection as a link that has been taken into use; `_serve` it."""
        our_boot = self._me().boot
        link = Link(connection, hello, inbound=inbound, our_boot=our_boot, clock=self._clock)
        self._live[link] = None
        peer = self._peer(hello.node)
        is_first = peer.link is None
        ended = peer.adopt(link)
        if ended is not None:
            self._counts["lost"] += 1
            self._on_note(LinkLost(ended.node, ended.boot, clean=False))
        if is_first or ended is not None:
            self._on_note(LinkUp(link.node, link.boot, link.address, inbound))
        return link

    async def _serve(self, link: Link) -> None:
        """Read and write one link until it ends."""
        assert self._nursery is not None
        self._nursery.start_soon(link.write)
        in_order = False
        try:
            in_order = await link.read(
                lambda channel, body: self._frame(link, channel, body),
                lambda bodies: self._calls(link, bodies),
                lambda: self._malformed(link),
            )
        except AssertionError:
            raise
        except Exception as error:
            self._fault(error)
        finally:
            link.finish()
            self._counts["skipped"] += link.connection.reader.skipped
            del self._live[link]
            self._open.pop(link.connection, None)
            self._ended.set()
            if not in_order:
                link.stream.abort()
        self._lost(link)
        if in_order:
            await link.stream.aclose()

    def _frame(self, link: Link, channel: Channel, body: bytes) -> None:
        """Take in one frame.

        Raises:
            RemoteProtocolError: It breaks the protocol.
        """
        if channel is Channel.CONTROL:
            raise RemoteProtocolError("expected no frame of the command line on a link, found one")
        peer = self._peers.get(link.node)
        if peer is not None:
            peer.heard()
        self._on_frame(channel, link.node, link.boot, body)

    def _calls(self, link: Link, bodies: list[bytes]) -> None:
        """Take in frames of calls.

        Raises:
            RemoteProtocolError: One of them breaks the protocol.
        """
        peer = self._peers.get(link.node)
        if peer is not None:
            peer.heard()
        self._on_calls(link.node, link.boot, bodies)

    def _malformed(self, link: Link) -> None:
        self._foreign(link.stream.peer, "malformed")
        self._lost(link)

    def _lost(self, link: Link) -> None:
        """Take note that a link is none any more."""
        peer = self._peers.get(link.node)
        if peer is None or not peer.lose(link):
            return
        if link.frames_in == 0 and not link.inbound:
            # It accepts and hangs up: dial it no faster than one that refuses.
            peer.dial_failed(link.address, self._clock.now(), self._random)
        self._counts["lost"] += not link.is_clean
        self._drop_outbox(peer)
        self._on_note(LinkLost(link.node, link.boot, link.is_clean))

    def _peer(self, node: NodeId) -> Peer:
        peer = self._peers.get(node)
        if peer is None:
            if len(self._peers) >= 2 * limits.LINKS_MAX:
                self._peers = {n: p for n, p in self._peers.items() if not p.is_idle}
            peer = self._peers[node] = Peer(node)
        return peer

    def _drop_outbox(self, peer: Peer) -> None:
        """Throw away what waits for a node without a link; forget the node if it was in order."""
        if peer.is_dialling:
            return
        self._drops += len(peer.outbox)
        peer.outbox.clear()
        if not peer.has_failed:
            self._peers.pop(peer.node, None)

    def _drop(self, connection: Connection) -> None:
        """Forget a connection; reset it unless it was closed. Idempotent."""
        self._open.pop(connection, None)
        connection.stream.abort()

    def _is_full(self) -> bool:
        return len(self._open) + self._dialling >= limits.LINKS_MAX

    # Faults.

    def _foreign(self, source: Address, what: str) -> None:
        """Count what does not belong here; note it once per source and minute."""
        self._counts[what] += 1
        self.note_foreign(source, what)

    def note_foreign(self, source: Address, what: str) -> None:
        """Note, once per source and minute, what does not belong here, datagrams included."""
        now = self._clock.now()
        if now < self._sources.get(source.host, now):
            return
        self._sources.pop(source.host, None)
        if len(self._sources) >= SOURCES_MAX:
            del self._sources[next(iter(self._sources))]
        self._sources[source.host] = now + FOREIGN_INTERVAL
        self._on_note(Foreign(source, what))

    def _fault(self, error: Exception) -> None:
        self._counts["failures"] += 1
        self._failure = f"{type(error).__name__}: {error}"

    def check(self) -> None:
        """Assert all invariants."""
        assert len(self._open) <= limits.LINKS_MAX
        assert len(self._peers) <= 3 * limits.LINKS_MAX
        assert len(self._sources) <= SOURCES_MAX
        for node, peer in self._peers.items():
            assert node == peer.node
            peer.check()
            assert peer.link is None or peer.link in self._live
            assert peer.spare is None or peer.spare in self._live


def _describe(head: bytes) -> str:
    """Return what the first bytes of a connection were, if not ours."""
    if head[:4] in wire.HTTP_METHODS:
        return "http"
    if head.startswith(wire.TLS):
        return "sealed"
    return "malformed" if head[:2] == wire.MAGIC else "foreign"


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # How a socket of both kinds says IPv4.
    return bool((mapped or address).is_loopback)
