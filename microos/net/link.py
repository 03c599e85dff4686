"""One connection in use: writes what waits, hands over what comes, and notices silence.

It does not know about others: which connection is *the* link of a node, and so may
write that node's outbox, is decided in `links.py`.

    outbox ─┐                       ┌─▶ Probe: Ack · Ack · Bye: the end
    Probe,  ├─▶ one write ─▶ stream ┤
    Ack     ┘   per turn            └─▶ every other frame ─▶ `frame`
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from microos import limits
from microos.clock import Clock
from microos.errors import RemoteProtocolError
from microos.net.handshake import (
    CHUNK,
    Ack,
    Bye,
    Connection,
    Hello,
    Probe,
    decode_link_message,
    link_frame,
)
from microos.net.notes import PeerStatistics
from microos.net.outbox import Outbox
from microos.types import BootId
from microos.wire import Channel

SILENCE = 10.0
"""A link that said nothing for this long is probed [s]."""

PROBE_WAIT = 5.0
"""Without a sign after the probe it is cut [s]: at most 15 s for a half-open link."""

DOUBT_WAIT = 1.0
"""The same for a link there is a reason to doubt [s]."""

LATE = 1.0
"""A timer this late [s] says that we were away: what the peer sent meanwhile is still unread."""

LINGER = 2.0
"""How long a link that was given up is read on [s]."""

WRITE_MAX = 256 * limits.KIB
"""Coalesced into one write [bytes]; a larger frame goes alone."""

EARLY_FRAMES = 16
"""So many frames leave before the turn is over, so that the other end begins with them."""

CONTROL_FRAMES_MAX = 16
"""Probes and Acks waiting on one link. A peer that probes without reading gets no more."""


class Link:
    """One process at the other end of one stream.

    Args:
        hello: What the other side said of itself.
        inbound: It dialled.
        our_boot: Our own.
    """

    def __init__(
        self,
        connection: Connection,
        hello: Hello,
        *,
        inbound: bool,
        our_boot: BootId,
        clock: Clock,
    ) -> None:
        self.connection = connection
        self.stream = connection.stream
        self.node = hello.node
        self.boot = hello.boot
        self.address = hello.address
        self.inbound = inbound
        self.dialler = hello.boot if inbound else our_boot
        self.outbox: Outbox | None = None
        """The node's outbox while this is its link."""
        self.heard_bye = False
        self.said_bye = False
        self.over = False
        self.frames_in = 0

        self._clock = clock
        self._since = clock.now()
        self._heard = self._since
        self._scope = trio.CancelScope()
        self._awake = trio.Event()
        self._idle = False
        """Whether the writer waits for something to write."""
        self._unsent = b""
        """What did not leave of an early write."""
        self._control: deque[bytes] = deque()
        self._farewell = ""
        self._deaf = False
        self._cut = False
        self._probes = 0
        self._asked_until: float | None = None
        self._undo_timer: Callable[[], None] = _nothing
        self._frames_out = 0
        self._bytes_in = 0
        self._bytes_out = 0
        self._writes = 0

    @property
    def is_clean(self) -> bool:
        """Whether one side has said Bye."""
        return self.heard_bye or self.said_bye

    # The two tasks.

    async def read(
        self,
        frame: Callable[[Channel, bytes], None],
        calls: Callable[[list[bytes]], None],
        malformed: Callable[[], None],
    ) -> bool:
        """Hand over every frame until the end; return whether to close in order, else to reset.

        Args:
            frame: Takes one frame; a `RemoteProtocolError` from it ends the link.
            calls: Takes frames of calls that came in a row, so that what one chunk has brought is
                answered in one go.
            malformed: Told once, when the other side has broken the protocol. Bye was queued.
        """
        self._watch()
        try:
            with self._scope:
                await self._read(frame, calls, malformed)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return not self._cut

    async def _read(
        self,
        frame: Callable[[Channel, bytes], None],
        calls: Callable[[list[bytes]], None],
        malformed: Callable[[], None],
    ) -> None:
        frames = self.connection.rest()
        while True:
            try:
                if self._deliver(frames, frame, calls):
                    return
                data = await self.stream.receive_some(CHUNK)
                if not data:
                    return
                self._heard = self._clock.now()
                self._asked_until = None
                self._bytes_in += len(data)
                frames = [] if self._deaf else self.connection.reader.feed(data)
            except RemoteProtocolError:
                frames = []
                malformed()
                self.part("protocol", deaf=True)

    def _deliver(
        self,
        frames: list[tuple[Channel, bytes]],
        frame: Callable[[Channel, bytes], None],
        calls: Callable[[list[bytes]], None],
    ) -> bool:
        """Hand over frames, in order; return whether Bye was among them."""
        row: list[bytes] = []
        for channel, body in frames:
            if channel is Channel.RPC:
                row.append(body)
                continue
            if row:
                self._hand_over(row, calls)
                row = []
            if self._deaf:  # The frame before has ended this link.
                return False
            self.frames_in += 1
            if channel is not Channel.LINK:
                frame(channel, body)
            elif self._take(body):
                return True
        if row:
            self._hand_over(row, calls)
        return False

    def _hand_over(self, row: list[bytes], calls: Callable[[list[bytes]], None]) -> None:
        if not self._deaf:
            self.frames_in += len(row)
            calls(row)

    def _take(self, body: bytes) -> bool:
        """Take in a message of the link itself; return whether it was Bye."""
        match decode_link_message(body):
            case Probe(number):
                self.tell(link_frame(Ack(number)))
            case Ack():
                pass  # Whatever is heard shows that somebody is there.
            case Bye():
                self.heard_bye = True
            case other:
                raise RemoteProtocolError(
                    f"expected Probe, Ack or Bye on a link, found {type(other).__name__}"
                )
        return self.heard_bye

    async def write(self) -> None:
        """Write what has gathered, again and again. Why it ends, the reader sees.

        The liberty of `house.md` 1.9: no lock and no awaited channel per frame. All that is
        queued in one turn of the loop leaves in one write, without any added delay.
        """
        try:
            while not self.over and not self.said_bye:
                frames = self._gather()
                if not (frames or self._unsent):
                    self._awake = trio.Event()
                    self._idle = True
                    await self._awake.wait()
                    self._idle = False
                    continue
                data = self._unsent + b"".join(frames)
                self._unsent = b""
                await self.stream.send_all(data)
                self._frames_out += len(frames)
                self._bytes_out += len(data)
                self._writes += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def _gather(self) -> list[bytes]:
        """Take what goes into the next write: the link's own frames, the outbox, Bye last."""
        frames = list(self._control)
        self._control.clear()
        if self.outbox is not None:
            frames += self.outbox.take(WRITE_MAX)
        if self._farewell and not self.outbox:
            frames.append(link_frame(Bye(self._farewell)))
            self.said_bye = True
        return frames

    def wake(self) -> None:
        """Say that there is something to write."""
        self._awake.set()
        outbox = self.outbox
        early = self._idle and self.stream.sends_at_once
        if early and outbox is not None and len(outbox) >= EARLY_FRAMES:
            self._write_early(outbox)

    def _write_early(self, outbox: Outbox) -> None:
        """Write within the turn what can be written without waiting."""
        if self._unsent or self._control or self._farewell or self.over:
            return
        frames = outbox.take(WRITE_MAX)
        data = b"".join(frames)
        sent = self.stream.send_nowait(data)
        self._unsent = data[sent:]
        self._frames_out += len(frames)
        self._bytes_out += sent
        self._writes += 1

    def tell(self, frame: bytes) -> None:
        """Queue one frame of the link itself, before all others."""
        if len(self._control) < CONTROL_FRAMES_MAX:
            self._control.append(frame)
            self._awake.set()

    # Its end.

    def retire(self) -> None:
        """Send nothing more of the node's; read on for a moment."""
        self.outbox = None
        self._clock.call_at(self._clock.now() + LINGER, self._scope.cancel)

    def part(self, reason: str, *, deaf: bool) -> None:
        """Say Bye; read on until the other side closes, or for a moment.

        Args:
            deaf: What still comes is thrown away.
        """
        self._deaf |= deaf
        self.bye(reason)
        self.retire()

    def bye(self, reason: str) -> None:
        """Say Bye after what is queued; the other side closes then."""
        self._farewell = self._farewell or reason
        self._awake.set()

    def cut(self) -> None:
        """End it at once."""
        self._cut = self._deaf = True
        self.outbox = None
        self._scope.cancel()

    def finish(self) -> None:
        """Let go of timer and writer: the reader has ended."""
        self.over = True
        self._undo_timer()
        self._awake.set()

    # Is anybody there?

    def doubt(self) -> None:
        """Probe at once, and wait only a moment for a sign."""
        if self._asked_until is None or self._asked_until > self._clock.now() + DOUBT_WAIT:
            self._ask(DOUBT_WAIT)

    def _watch(self) -> None:
        """Look whether the other side is silent; called by its own timer."""
        if self.over:
            return
        now = self._clock.now()
        if self._asked_until is None:
            if now < self._heard + SILENCE:
                self._arm(self._heard + SILENCE)
            else:
                self._ask(PROBE_WAIT)
        elif now > self._asked_until + LATE:
            self._ask(PROBE_WAIT)
        else:
            self.cut()

    def _ask(self, wait: float) -> None:
        self._probes += 1
        self.tell(link_frame(Probe(self._probes)))
        self._asked_until = self._clock.now() + wait
        self._arm(self._asked_until)

    def _arm(self, at: float) -> None:
        self._undo_timer()
        self._undo_timer = self._clock.call_at(at, self._watch)

    def statistics(self, outbox: Outbox) -> PeerStatistics:
        """Return its figures, with those of the outbox it writes."""
        now = self._clock.now()
        return PeerStatistics(
            node=self.node,
            boot=self.boot,
            address=self.address,
            inbound=self.inbound,
            age=now - self._since,
            silence=now - self._heard,
            frames_in=self.frames_in,
            frames_out=self._frames_out,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            writes=self._writes,
            queue_frames=len(outbox),
            queue_bytes=outbox.size_bytes,
            queue_drops=outbox.drops,
        )


def _nothing() -> None:
    pass
