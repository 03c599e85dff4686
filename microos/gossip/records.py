"""Records too large for a packet: pulled by hash, once, in pieces, over a link.

An Alive names the hash and size of its member's record. Whoever lacks the body asks the
one the news came from, and the owner if that one has it not (so the owner is not asked by
everybody), piece by piece: the next is asked for when one has arrived, so a pull is never
more than one page ahead of its reader. Until the last byte is here and the hash is right,
the old record serves.
"""

from __future__ import annotations

import msgspec

from microos.gossip import notes
from microos.gossip.desk import Desk
from microos.gossip.members import Entry
from microos.gossip.messages import (
    PAGE_BYTES,
    RecordPart,
    RecordPull,
    Sender,
)
from microos.hashing import u64
from microos.types import NodeId

PULL_SPREAD = 0.05
"""A pull begins after a random time up to this [s]."""


def record_hash(body: bytes) -> int:
    """Return xxh64 of a record; 0 for the empty one, which is never pulled."""
    return u64(body) or 1 if body else 0


class Pull(msgspec.Struct):
    """One record on its way here."""

    hash: int
    size: int
    source: NodeId
    """Whom to ask next."""
    body: bytearray = msgspec.field(default_factory=bytearray)

    def add(self, offset: int, part: bytes) -> bool:
        """Take in a piece; return whether it was the one asked for."""
        if not part or offset != len(self.body) or offset + len(part) > self.size:
            return False
        self.body += part
        return True

    @property
    def is_complete(self) -> bool:
        return len(self.body) == self.size


class Pulls:
    """Every pull under way, at most one per member."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._pulls: dict[NodeId, Pull] = {}

    def start(self, entry: Entry, sender: Sender | None, now: float) -> None:
        under_way = self._pulls.get(entry.node)
        if under_way is not None and under_way.hash == entry.announced_hash:
            return
        teller = self._desk.table.boots.get(sender.boot) if sender is not None else None
        source = teller.node if teller is not None and teller.present else entry.node
        self._pulls[entry.node] = Pull(entry.announced_hash, entry.announced_size, source)
        self._desk.timers.set(("pull", entry.node), now + PULL_SPREAD * self._desk.random.random())

    def on_pull(self, node: object, now: float) -> None:
        owner = NodeId(str(node))
        pull = self._pulls[owner]
        self._desk.out.stream(pull.source, RecordPull(owner, pull.hash, len(pull.body)))
        # If nothing comes the owner is asked, again and again.
        pull.source = owner
        self._desk.timers.set(("pull", owner), now + self._desk.settings.exchange_timeout)

    def end(self, node: NodeId) -> None:
        if self._pulls.pop(node, None) is not None:
            self._desk.timers.cancel(("pull", node))

    def on_record_pull(self, request: RecordPull, sender: Sender, node: NodeId, now: float) -> None:
        entry = self._desk.table.entries.get(request.node)
        if entry is None or entry.body_hash != request.hash or not entry.body:
            answer = RecordPart(request.node, request.hash, request.offset, 0, b"")
        else:
            part = entry.body[request.offset : request.offset + PAGE_BYTES]
            answer = RecordPart(request.node, request.hash, request.offset, len(entry.body), part)
        self._desk.out.stream(node, answer)

    def on_record_part(self, part: RecordPart, sender: Sender, node: NodeId, now: float) -> None:
        pull = self._pulls.get(part.node)
        if pull is None or pull.hash != part.hash:
            return
        if part.size == 0:
            # The owner itself lacks it only while newer news of it is on its way.
            soon = PULL_SPREAD if node != part.node else self._desk.settings.probe_interval
            self._desk.timers.set(("pull", part.node), now + soon)
            return
        if not pull.add(part.offset, part.body):
            return
        if not pull.is_complete:
            pull.source = node
            self.on_pull(part.node, now)
            return
        body = bytes(pull.body)
        if record_hash(body) != pull.hash:
            self._desk.out.note(notes.Dropped("record"))
            pull.body.clear()
            self._desk.timers.set(("pull", part.node), now + self._desk.settings.probe_interval)
            return
        entry = self._desk.table.entries[part.node]
        self.end(part.node)
        entry.body, entry.body_hash = body, part.hash
        self._desk.table.seen(entry)
        self._desk.out.note(notes.Updated(part.node))

    def check(self) -> None:
        """Assert every invariant."""
        for node, pull in self._pulls.items():
            assert pull.hash == self._desk.table.entries[node].announced_hash
            assert len(pull.body) <= pull.size
            assert self._desk.timers.at(("pull", node)) is not None
