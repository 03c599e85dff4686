"""What a member takes in besides time, and what one turn of it wants done."""

from typing import TypeAlias

import msgspec

from microos.raft.entry import Applied, Entry, Persist, Persisted, SnapshotSent, Unreachable
from microos.raft.messages import Message
from microos.raft.notes import Note
from microos.types import Index, NodeId

Event: TypeAlias = Message | Persisted | Applied | Unreachable | SnapshotSent


class ReadReady(msgspec.Struct, frozen=True, gc=False):
    """The read of `context` may be answered once everything up to `index` is applied."""

    context: int
    index: Index


class Effects(msgspec.Struct, frozen=True):
    """What one turn wants done. Nothing in `messages` depends on `persist` of the same turn."""

    persist: Persist | None = None
    """To storage, at once, in the order handed out; `Persisted` when durable."""
    messages: tuple[tuple[NodeId, Message], ...] = ()
    """To the network, at once."""
    committed: tuple[Entry, ...] = ()
    """To be applied in order; `Applied` afterwards. All of it is durable here."""
    reads: tuple[ReadReady, ...] = ()
    dropped: tuple[int, ...] = ()
    """Contexts of reads that will not be answered; ask again under a new one."""
    notes: tuple[Note, ...] = ()


class Outbox:
    """What the turn under way has gathered to be handed over."""

    def __init__(self) -> None:
        self.messages: list[tuple[NodeId, Message]] = []
        self.ready: list[ReadReady] = []
        self.dropped: list[int] = []
        self.notes: list[Note] = []

    def send(self, node: NodeId, message: Message) -> None:
        """Send at once."""
        self.messages.append((node, message))

    @property
    def has_news(self) -> bool:
        """Whether anything was gathered."""
        return bool(self.messages or self.ready or self.dropped or self.notes)

    def take(self, persist: Persist | None, committed: tuple[Entry, ...]) -> Effects:
        """Hand over, and forget, what was gathered."""
        effects = Effects(
            persist=persist,
            messages=tuple(self.messages),
            committed=committed,
            reads=tuple(self.ready),
            dropped=tuple(self.dropped),
            notes=tuple(self.notes),
        )
        self.messages.clear()
        self.ready.clear()
        self.dropped.clear()
        self.notes.clear()
        return effects
