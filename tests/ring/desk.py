"""One keeper whose asks are answered by hand."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from microos.ring.entry import pack, version_bytes
from microos.ring.epochs import frozen
from microos.ring.keeper import Ask, Effects, Keeper, KeeperSettings, Moved, Silent, Told, Up
from microos.ring.messages import Answer, Code, Did
from microos.ring.ring import SLOTS
from microos.types import Version
from tests.ring.log import Log, owner

NAME = b"b\0k"
SETTINGS = KeeperSettings(
    size_max=1 << 20,
    compare_interval=1e6,
    drop_grace=10.0,
    tombstone_window=3600.0,
    transfer_rate=1 << 25,
)


@cache
def moved(*epochs: str) -> Moved:
    log = Log()
    for names in epochs:
        log.propose(names)
    return Moved(log.state.ring(), frozen(log.state))


class Desk:
    """One keeper and what it wants done."""

    def __init__(
        self, me: str = "a", names: str = "abc", up: str | None = None, *, short: bool = False
    ) -> None:
        """Make it; unless `short`, reads and writes go the long way (`ring/short.py`)."""
        self.now = 100.0
        self._epochs: tuple[str, ...] = (names,)
        self.keeper = Keeper(
            owner(me), SETTINGS, random=random.Random(1), now=self.now, wall=1_700_000_000.0
        )
        if not short:
            self.keeper._ways._find = lambda slot: None  # type: ignore[method-assign]
        self.up(names if up is None else up)
        self.keeper.receive(moved(names), self.now)
        self.slot = next(s for s in range(SLOTS) if self.order(s)[0] == owner(names[0]))
        self.asks: list[Ask] = []
        self.done: dict[int, object] = {}
        self.answers: list[tuple[int, Did]] = []

    def order(self, slot: int) -> Any:
        return self.keeper.ring.current(slot)

    def up(self, names: str) -> None:
        self.keeper.receive(Up({owner(name).node: owner(name).boot for name in names}), self.now)

    def propose(self, names: str) -> None:
        self._epochs += (names,)
        self.keeper.receive(moved(*self._epochs), self.now)
        self.perform()

    def perform(self) -> None:
        effects: Effects = self.keeper.take()
        self.asks += effects.asks
        self.done |= dict(effects.done)
        self.answers += effects.answers
        self.keeper.check()

    def put(self, value: bytes | None = b"v", **how: Any) -> int:
        options: dict[str, Any] = {"left": 0, "one": False, "version": None, **how}
        deadline = self.now + options.pop("timeout", 2.0)
        number = self.keeper.put(self.slot, NAME, value, deadline=deadline, now=self.now, **options)
        self.perform()
        return number

    def get(self, *, one: bool = False) -> int:
        number = self.keeper.get(self.slot, NAME, one=one, deadline=self.now + 2.0, now=self.now)
        self.perform()
        return number

    def atomic(self, condition: int = 0, value: bytes = b"v", left: int = 0) -> int:
        number = self.keeper.atomic(
            self.slot,
            NAME,
            value,
            left=left,
            condition=Version(condition),
            deadline=self.now + 2.0,
            now=self.now,
        )
        self.perform()
        return number

    def take(self, name: str) -> Ask:
        """Return the first ask that waits for an answer of a node."""
        at = next(n for n, ask in enumerate(self.asks) if ask.owner.node == name)
        return self.asks.pop(at)

    def answer(
        self, name: str, code: int = Code.OK, entry: bytes | None = None, **more: Any
    ) -> Ask:
        ask = self.take(name)
        revision = more.pop("revision", self.keeper.ring.revision)
        self.tell(ask, Answer(int(code), revision, 1, entry, **more))
        return ask

    def tell(self, ask: Ask, answer: Any) -> None:
        self.keeper.receive(Told(ask.token, answer), self.now)
        self.perform()

    def silent(self, name: str, *, sent: bool = True) -> None:
        self.keeper.receive(Silent(self.take(name).token, sent), self.now)
        self.perform()

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the keeper whenever it wishes."""
        until = self.now + seconds
        while self.keeper.deadline <= until:
            self.now = max(self.now, self.keeper.deadline)
            self.keeper.wake(self.now)
            self.perform()
        self.now = until

    @property
    def asked(self) -> list[str]:
        return sorted(ask.owner.node for ask in self.asks)


def entry(stamp: int, data: bytes = b"v", *, left: int = 0, flags: int = 0) -> bytes:
    return pack(version_bytes(stamp, 1), end=left, flags=flags, value=data)
