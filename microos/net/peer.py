"""One node we speak to: what waits for it, which connection is its link, when to dial again.

Two connections between the same two processes come to be when both dial at once, or
when one side has lost the first and the other does not know yet. Which one is used
must be decided alike on both sides, and there must be no moment without one:

| the second is | then |
|---|---|
| dialled by the same side | it replaces the first, which its dialler must have lost |
| dialled by the smaller boot | it replaces the first; the first's dialler says `Bye(duplicate)` |
| dialled by the larger boot | it is the spare; the first is probed at once (it may be half open) |

The larger boot ends its own connection as soon as it sees the smaller one's; until
then either works. A connection of another boot of the node replaces all others.
"""

from __future__ import annotations

from microos.net.link import Link
from microos.net.outbox import Outbox
from microos.types import Address, NodeId, Random

BACKOFF_MIN = 0.05
BACKOFF_MAX = 5.0
BACKOFF_JITTER = 0.2
"""The n-th dial in a row that failed is followed by a pause of 50 ms × 2ⁿ ≤ 5 s, ± 20 %."""


class Peer:
    """One node, its outbox, and at most two links: one in use, one spare."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.outbox = Outbox()
        self.link: Link | None = None
        self.spare: Link | None = None
        self.is_dialling = False
        self._failures = 0
        self._failed_at: Address | None = None
        self._retry_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing but a backoff would be forgotten with it."""
        return self.link is None and not self.is_dialling

    # Which link is in use.

    def adopt(self, link: Link) -> Link | None:
        """Take a new connection in, by the table above; return the link of an ended boot, if any.

        That one has been cut.
        """
        old, spare = self.link, self.spare
        if old is None:
            self._use(link)
        elif old.boot != link.boot:
            self.spare = None
            old.cut()
            if spare is not None:
                spare.cut()
            self._use(link)
            return old
        elif old.inbound == link.inbound:
            self._use(link)
            old.retire()
        elif link.dialler < old.dialler:
            self._use(link)
            if old.inbound:
                old.retire()
            else:
                old.part("duplicate", deaf=False)
        else:
            if spare is not None:
                spare.retire()
            self.spare = link
            old.doubt()
        return None

    def lose(self, link: Link) -> bool:
        """Take note that a link has ended; return whether the node has none left by that."""
        if self.spare is link:
            self.spare = None
        if self.link is not link:
            return False
        link.outbox = None
        self.link = None
        if self.spare is None:
            return True
        spare, self.spare = self.spare, None
        self._use(spare)
        return False

    def close(self, reason: str) -> None:
        """Say Bye over every link and be without one."""
        for link in (self.link, self.spare):
            if link is not None:
                link.part(reason, deaf=True)
        self.link = self.spare = None

    def _use(self, link: Link) -> None:
        if self.link is not None:
            self.link.outbox = None
        self.link = link
        link.outbox = self.outbox
        link.wake()

    # When it may be dialled.

    def may_dial(self, address: Address, now: float) -> bool:
        """Return whether the backoff is over; a new address has none."""
        return address != self._failed_at or now >= self._retry_at

    def dial_failed(self, address: Address, now: float, random: Random) -> None:
        """Begin the next, longer pause."""
        pause = min(BACKOFF_MAX, BACKOFF_MIN * 2.0 ** min(self._failures, 16))
        pause *= 1.0 + BACKOFF_JITTER * (2.0 * random.random() - 1.0)
        self._failures += 1
        self._failed_at = address
        self._retry_at = now + pause

    def heard(self) -> None:
        """Forget the failures: a first frame has come."""
        self._failures = 0
        self._failed_at = None

    @property
    def has_failed(self) -> bool:
        return self._failures > 0

    def check(self) -> None:
        """Assert all invariants."""
        self.outbox.check()
        assert self.link is not None or self.is_dialling or len(self.outbox) == 0
        assert self.link is not None or self.spare is None
        if self.link is not None:
            assert self.link.node == self.node
            assert self.link.outbox is self.outbox
        if self.link is not None and self.spare is not None:
            assert self.spare.outbox is None
            assert self.spare.node == self.node
            assert self.spare.boot == self.link.boot
            assert self.spare.inbound != self.link.inbound
