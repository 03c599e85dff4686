"""What keeps copies whole: fill them, compare them, hand over what is not ours, forget the dead.

    fill      a slot is ours and this copy is not whole: compare with the sources; list and
              fetch where it differs; with enough of them counted it is whole
    compare   now and then all slots shared with one other owner; differences are pulled
    hand over a slot is no longer ours: what its owners lack is put there, then it is dropped
    purge     tombstones older than the window that *every* owner has are forgotten everywhere

A source counts if it is synced and knows this position of the slot: what was
acknowledged before is then at one of any M of them (M + W > N), and what is acknowledged
later is told that the slot has changed, and is repeated at the new owners (kv.md 4.6).

What a copy had before it was filled, none of those sources has and is older than the window
may have been deleted, and the trace of that be gone: it is forgotten, not brought back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf

from microos import limits
from microos.hlc import COUNTER_BITS
from microos.ring.entry import stamp_of
from microos.ring.messages import (
    AnyAnswer,
    Compare,
    Compared,
)
from microos.ring.passes import Desk, Handing, Pass, Pulling, Purging
from microos.ring.quorum import sources
from microos.ring.ring import Owner

PASSES_MAX = 4
"""Slots under way at once: a slow one holds up few others, and nobody is flooded."""

PAUSE = 0.1
"""Before sources that could not vouch are asked again [s]."""

PATIENCE = 2.0
"""How long a fill waits for sources beyond those it needs [s]: a write that one owner alone has
acknowledged is lost with that owner, but not with the move."""

TRANSFER_BURST = 0.1
"""What may be fetched at once without a pause, as time at the transfer rate [s]."""

PURGE_INTERVAL = 60.0

HURRIED_GRACE = 0.2
"""How long a leaving node keeps a slot that is no longer its own [s]."""


class Fill:
    """One copy that is not whole."""

    __slots__ = ("counted", "merged", "position", "since", "unconfirmed")

    def __init__(self, position: int, since: float, unconfirmed: dict[bytes, None]) -> None:
        self.position = position
        self.since = since
        self.counted: dict[Owner, None] = {}
        """Sources whose entries are all here."""
        self.merged: dict[Owner, None] = {}
        """Owners whose entries are all here, whole themselves or not."""
        self.unconfirmed = unconfirmed
        """Names of old entries here that no source is known to have."""


class Upkeep:
    """The upkeep of one node's copies.

    Args:
        compare_interval: Between two comparisons with some other owner [s].
        drop_grace: How long a slot that is no longer ours is kept at least [s].
        tombstone_window: How long a removed value leaves a trace at least [s].
        transfer_rate: How fast entries of other copies are fetched [bytes/s].
    """

    def __init__(
        self,
        desk: Desk,
        *,
        compare_interval: float,
        drop_grace: float,
        tombstone_window: float,
        transfer_rate: int,
        now: float,
    ) -> None:
        self.desk = desk
        self.replica = desk.replica
        self.window = tombstone_window
        self._compare_interval = compare_interval
        self._drop_grace = drop_grace
        self._fills: dict[int, Fill] = {}
        self._comparing: dict[Owner, None] = {}
        """Owners that owe a comparison."""
        self._passes: deque[Pass] = deque()
        self._busy: dict[int, None] = {}
        """Slots of passes that wait or are under way."""
        self._under_way = 0
        self._foreign: dict[int, float] = {}
        """Slots that are not ours, and when they may be dropped [s]."""
        self._drop_at = inf
        self._compared = desk.replica.me
        """Whom this node compared with last."""
        self._purging = 0
        self._fill_at = inf
        self._compare_at = now + compare_interval * (0.75 + 0.5 * desk.random.random())
        self._purge_at = now + PURGE_INTERVAL
        self._rate = transfer_rate
        self._paid_at = now
        """When all that was fetched would have come at the transfer rate [s]."""
        self._held: deque[Pulling] = deque()
        """Passes that wait until they may fetch."""
        self.bytes_pulled = 0

    @property
    def deadline(self) -> float:
        fetch_at = self._paid_at - TRANSFER_BURST if self._held else inf
        return min(self._fill_at, self._compare_at, self._purge_at, self._drop_at, fetch_at)

    @property
    def filling(self) -> int:
        """How many copies are not whole."""
        return len(self._fills)

    @property
    def foreign(self) -> int:
        """How many slots are kept that are not this node's."""
        return len(self._foreign)

    def hurry(self, now: float) -> None:
        """Let go of what is not ours without grace: this node is leaving."""
        if self._drop_grace > HURRIED_GRACE:
            self._drop_grace = HURRIED_GRACE
            self._foreign.clear()
            self._find_foreign(now)

    # What happens.

    def moved(self, changed: Iterable[int], now: float) -> None:
        """The ring has moved on in these slots."""
        replica = self.replica
        for slot in changed:
            self._fills.pop(slot, None)
            if replica.ring.chains[slot] and self._is_to_fill(slot):
                old = self._old(slot, now)
                self._fills[slot] = Fill(replica.ring.positions[slot], now, old)
        self._find_foreign(now)
        for slot in list(self._fills):
            self._look(slot, now)
        if self._fills:
            self._fill_at = min(self._fill_at, now)

    def _is_to_fill(self, slot: int) -> bool:
        """Whether the copy is not whole, and worth filling: of next, or of a current that stays."""
        chain = self.replica.ring.chains[slot]
        return self.replica.me in chain[-1] and not self.replica.is_whole(slot)

    def _old(self, slot: int, now: float) -> dict[bytes, None]:
        """Return the names of entries here that may have been deleted and forgotten elsewhere."""
        replica = self.replica
        if slot in replica.synced:
            return {}
        before = self.before(now)
        entries = replica.store.entries(slot)
        return dict.fromkeys(name for name, entry in entries if stamp_of(entry) < before)

    def _find_foreign(self, now: float) -> None:
        """Note which slots are kept that are not ours, and when they may be dropped."""
        everyone, me = self.replica.ring.everyone, self.replica.me
        grace = now + self._drop_grace
        kept = self.replica.store.slots()
        self._foreign = {s: self._foreign.get(s, grace) for s in kept if me not in everyone[s]}
        self._drop_at = min(self._foreign.values(), default=inf)

    def wake(self, now: float) -> None:
        """Do what is due."""
        while self._held and now >= self._paid_at - TRANSFER_BURST:
            self._held.popleft().fetch(now)
        if now >= self._fill_at:
            self._fill_at = inf
            self._ask_sources(now)
        if now >= self._compare_at:
            pause = self._compare_interval * (0.75 + 0.5 * self.desk.random.random())
            self._compare_at = now + pause
            self._compare_with_next()
            self._find_foreign(now)
        if now >= self._drop_at:
            self._find_foreign(now)
            for slot, at in list(self._foreign.items()):
                if now >= at:
                    self._foreign[slot] = now + self._drop_grace
                    self._let_go(slot, now)
            self._drop_at = min(self._foreign.values(), default=inf)
        if now >= self._purge_at:
            self._purge_at = now + PURGE_INTERVAL
            self._purge_old(now)

    # Filling.

    def _sources(self, slot: int) -> list[Owner]:
        """Return the owners, besides this one, whose copies this one is filled from."""
        ring, me = self.replica.ring, self.replica.me
        return [o for o in ring.current(slot) if o != me and o not in ring.gone]

    def _look(self, slot: int, now: float) -> None:
        """Count the copy as whole if enough of its sources are in it."""
        fill = self._fills.get(slot)
        if fill is None:
            return
        ring, me = self.replica.ring, self.replica.me
        current = ring.current(slot)
        living = [owner for owner in current if owner not in ring.gone]
        own = me in living and slot in self.replica.synced
        if not own and me in living and len(ring.chains[slot]) == 1:
            living.remove(me)  # In place: the others must be enough.
        missing = [o for o in self._sources(slot) if o not in fill.counted]
        needed = min(sources(len(current)), len(living))
        # What all of them have is all there is, even if none of them is whole.
        enough = len(fill.counted) + own >= needed
        if not enough and any(o not in fill.merged for o in missing):
            return
        late = now >= fill.since + PATIENCE
        if not late and any(self.desk.is_up(owner) for owner in missing):
            return
        del self._fills[slot]
        if enough:
            for name in fill.unconfirmed:
                self.replica.store.forget(slot, name)
        self.replica.made_whole(slot)

    def _ask_sources(self, now: float) -> None:
        """Compare every copy that is not whole with each source that it lacks."""
        wanted: dict[Owner, dict[int, int]] = {}
        for slot, fill in self._fills.items():
            if slot in self._busy:
                continue
            digest = self.replica.store.digest(slot)
            for owner in self._sources(slot):
                busy = owner in fill.merged or owner in self._comparing
                if not busy and self.desk.is_up(owner):
                    wanted.setdefault(owner, {})[slot] = digest
        for owner, digests in wanted.items():
            self._compare(owner, digests)
        if self._fills:
            self._fill_at = min(self._fill_at, now + PAUSE)
            for slot in list(self._fills):
                self._look(slot, now)

    def _compare(self, owner: Owner, digests: dict[int, int]) -> None:
        self._comparing[owner] = None
        revision, stamp = self.replica.ring.revision, self.desk.stamp()
        self.desk.ask_for(self, owner, Compare(owner.boot, revision, stamp, tuple(digests.items())))

    def answered(self, owner: Owner, answer: AnyAnswer | None, now: float) -> None:
        """Take in a comparison."""
        self._comparing.pop(owner, None)
        if not isinstance(answer, Compared):
            return
        unsynced = dict.fromkeys(answer.unsynced)
        for slot in answer.equal:
            if slot not in unsynced:
                self.confirm(slot, None)
            self.count(slot, owner, answer.revision, slot not in unsynced, now)
        for slot in answer.different:
            self._pull(slot, owner)
        self._go_on(now)
        if self._fills:
            self._fill_at = min(self._fill_at, now + PAUSE)

    def count(self, slot: int, owner: Owner, revision: int, synced: bool, now: float) -> None:
        """Count an owner whose entries are all here, as of a ring it knew; a source if `synced`."""
        fill = self._fills.get(slot)
        if fill is not None and revision >= fill.position and owner in self._sources(slot):
            fill.merged[owner] = None
            if synced:
                fill.counted[owner] = None
            self._look(slot, now)

    def confirm(self, slot: int, names: Iterable[bytes] | None) -> None:
        """A source has entries of these names, None: of all that are here."""
        fill = self._fills.get(slot)
        if fill is None:
            return
        if names is None:
            fill.unconfirmed.clear()
        else:
            for name in names:
                fill.unconfirmed.pop(name, None)

    def _go_on(self, now: float) -> None:
        while self._passes and self._under_way < PASSES_MAX:
            self._under_way += 1
            self._passes.popleft().begin(now)

    def ended(self, work: Pass, now: float) -> None:
        """A pass is over."""
        self._under_way -= 1
        self._busy.pop(work.slot, None)
        self._go_on(now)
        if self._fills and not self._passes:
            self._fill_at = min(self._fill_at, now)

    def may_fetch(self, work: Pulling, now: float) -> bool:
        """Return whether a page may be fetched now; if not, `work.fetch` is called when it may.

        A page is charged when it is asked for, and corrected by `fetched`.
        """
        if now < self._paid_at - TRANSFER_BURST:
            self._held.append(work)
            return False
        self._paid_at = max(self._paid_at, now) + limits.KV_PAGE_BYTES / self._rate
        return True

    def fetched(self, size: int) -> None:
        """A page has come, or will not."""
        self._paid_at += (size - limits.KV_PAGE_BYTES) / self._rate
        self.bytes_pulled += size

    # Comparing.

    def _compare_with_next(self) -> None:
        """Compare all settled slots shared with some other owner: with each in its turn."""
        ring, me, replica = self.replica.ring, self.replica.me, self.replica
        shared: dict[Owner, dict[int, int]] = {}
        for slot in ring.slots_of(me):
            if slot in replica.synced and len(ring.chains[slot]) == 1:
                for owner in ring.chains[slot][0]:
                    if owner != me and self.desk.is_up(owner):
                        shared.setdefault(owner, {})[slot] = replica.store.digest(slot)
        if not shared:
            return
        owners = sorted(shared)
        owner = next((o for o in owners if o > self._compared), owners[0])
        self._compared = owner
        if owner not in self._comparing:
            self._compare(owner, shared[owner])

    def differs(self, owner: Owner, slots: Iterable[int], now: float) -> None:
        """Another owner has compared and found these slots different: it may be the newer one."""
        for slot in slots:
            if slot in self.replica.synced and len(self.replica.ring.chains[slot]) == 1:
                self._pull(slot, owner)
        self._go_on(now)

    def _pull(self, slot: int, owner: Owner) -> None:
        if slot not in self._busy and self.replica.me in self.replica.ring.everyone[slot]:
            self._busy[slot] = None
            self._passes.append(Pulling(self, slot, owner))

    # Handing over.

    def _let_go(self, slot: int, now: float) -> None:
        """Drop a slot that is not ours once its owners have what is here."""
        if slot in self._busy:
            return
        owners = [o for o in self.replica.ring.current(slot) if self.desk.is_up(o)]
        if owners:
            self._busy[slot] = None
            self._passes.append(Handing(self, slot, self.desk.random.choice(owners)))
            self._go_on(now)

    def dropped(self, slot: int) -> None:
        """A slot's entries are where they belong."""
        if self.replica.me not in self.replica.ring.everyone[slot]:
            self.replica.store.drop(slot)
            self._foreign.pop(slot, None)

    # Forgetting.

    def before(self, now: float) -> int:
        """Return the stamp before which tombstones are old."""
        age = int(self.window * 1000.0) << COUNTER_BITS
        return max(0, self.replica.stamps.peek(now) - age)

    def _purge_old(self, now: float) -> None:
        """Begin to forget old tombstones, in slots where this node is first owner."""
        replica = self.replica
        if self._purging or not replica.store.tombstones:
            return
        for slot in replica.store.slots():
            chain = replica.ring.chains[slot]
            if len(chain) != 1 or chain[0][0] != replica.me or slot not in replica.synced:
                continue
            old = replica.store.old_tombstones(slot, self.before(now), limits.KV_PAGE_NAMES)
            if old and all(self.desk.is_up(owner) for owner in chain[0]):
                self._purging += 1
                Purging(self, slot, chain[0], old).begin()

    def purged(self) -> None:
        self._purging -= 1

    def check(self) -> None:
        """Assert the invariants."""
        assert 0 <= self._under_way <= PASSES_MAX
        assert len(self._busy) == self._under_way + len(self._passes)
        assert len(self._held) <= self._under_way
        for slot in self._fills:
            assert not self.replica.is_whole(slot)
            assert self.replica.me in self.replica.ring.everyone[slot]
