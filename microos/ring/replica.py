"""One owner's side: what it keeps of each slot, whether its copy may vote, what it promised.

| a copy of a slot | is | votes |
|---|---|---|
| synced | in current, whole | in current and in next |
| ready | in next, whole for this position; the leader is told, and settles | in next |
| neither | being filled | in next |

An owner always takes a plain write that is newer, whatever ring the writer goes by, and
says whether the slot has changed since: then the writer repeats (kv.md 4.3). An atomic
write is refused where a newer ballot was promised or the slot has changed: with ballots
that are versions this is Paxos per key without a leader (Rystsov, "CASPaxos:
Replicated State Machines without logs", arXiv:1802.07000).
"""

from __future__ import annotations

from microos import limits
from microos.ring.entry import (
    HEAD,
    NOTHING,
    head_of,
    incoming,
    is_atomic,
    is_newer,
    outgoing,
    version_of,
)
from microos.ring.messages import (
    Accept,
    Answer,
    AnyAnswer,
    AnyRequest,
    Code,
    Compare,
    Compared,
    Do,
    Entries,
    Fetch,
    Found,
    GetRing,
    Keep,
    Kept,
    List,
    Listing,
    Prepare,
    Purge,
    Read,
    ReadMany,
    RingState,
    Write,
    WriteMany,
)
from microos.ring.ring import SLOTS, Owner, Ring
from microos.ring.stamps import Stamps
from microos.ring.store import Store


class Replica:
    """The copies of one node."""

    def __init__(self, me: Owner, store: Store, stamps: Stamps) -> None:
        self.me = me
        self.store = store
        self.stamps = stamps
        self.ring = Ring()
        self.state = b""
        """The ring's state as it travels, for whoever is behind."""
        self.synced: dict[int, None] = {}
        """Slots of which this copy votes in current."""
        self.ready: dict[int, None] = {}
        """Joint slots of which it is whole for next, at their present position."""
        self._promises: dict[tuple[int, bytes], bytes] = {}
        self._floor = NOTHING
        """Every ballot is refused up to it: what was promised and forgotten."""

    # The ring moves on.

    def turn(self, ring: Ring, state: bytes) -> list[int]:
        """Go by a newer ring; return the slots that have changed.

        Args:
            state: The same, as it travels.
        """
        before = self.ring
        if ring.revision <= before.revision:
            return []
        changed = [s for s in range(SLOTS) if ring.positions[s] != before.positions[s]]
        for slot in changed:
            if self._still_votes(ring, slot):
                self.synced[slot] = None
            else:
                self.synced.pop(slot, None)
        for slot in changed:
            self.ready.pop(slot, None)
        if changed and self._promises:
            # What was promised at an earlier position is refused by that alone.
            moved = dict.fromkeys(changed)
            self._promises = {at: b for at, b in self._promises.items() if at[0] not in moved}
        self.ring, self.state = ring, state
        return changed

    def _still_votes(self, ring: Ring, slot: int) -> bool:
        """Return whether this copy of a slot that has changed is whole in its new current.

        Over one ring epoch nobody can have left the owners and come back; over more it may
        have missed what was acknowledged meanwhile, though the row looks the same.
        """
        old, current = self.ring.chains[slot], ring.current(slot)
        if self.me not in current:
            return False
        if ring.number == 1:
            return True  # The first ring epoch: there is nothing to have had before it.
        if not old or ring.number > self.ring.number + 1:
            return False
        if current == old[0]:
            return slot in self.synced
        return current == old[-1] and slot in self.ready

    def is_whole(self, slot: int) -> bool:
        """Return whether nothing is left to be fetched for this slot."""
        chain = self.ring.chains[slot]
        if len(chain) == 2 and self.me in chain[1]:
            return slot in self.ready
        return slot in self.synced

    def made_whole(self, slot: int) -> None:
        """Count this copy as whole at the slot's present position."""
        chain = self.ring.chains[slot]
        if len(chain) == 2 and self.me in chain[1]:
            self.ready[slot] = None
        if self.me in chain[0]:
            self.synced[slot] = None

    # Requests.

    def serve(self, request: AnyRequest, now: float) -> AnyAnswer:
        """Answer one request. Cost: that of the store, no waiting.

        Args:
            now: On this keeper's clock [s].
        """
        self.stamps.hear(request.stamp, now)
        if request.boot != self.me.boot:
            return self._answer(Code.WRONG_BOOT, now)
        match request:
            case Read():
                return self._read(request, now)
            case ReadMany():
                return self._read_many(request, now)
            case WriteMany():
                return self._write_many(request, now)
            case Write():
                return self._write(request, now)
            case Prepare():
                return self._prepare(request, now)
            case Accept():
                return self._accept(request, now)
            case Compare():
                return self._compare(request, now)
            case List():
                return self._list(request, now)
            case Fetch():
                return self._fetch(request, now)
            case Keep():
                return self._keep(request, now)
            case Purge():
                for name, version in request.names:
                    self.store.purge(request.slot, name, version)
                return self._answer(self._code(request.slot, request.revision), now)
            case Do():
                raise AssertionError("whoever keeps this replica decides")
            case GetRing():
                return RingState(0, self.ring.revision, self.stamps.peek(now), self.state)

    def _answer(
        self, code: int, now: float, entry: bytes | None = None, promised: bytes = b""
    ) -> Answer:
        return Answer(code, self.ring.revision, self.stamps.peek(now), entry, promised)

    def _code(self, slot: int, revision: int) -> int:
        """Return how the asker's ring and this one differ where it matters."""
        ring = self.ring
        if ring.positions[slot] > revision:
            return Code.NEWER_SLOT
        return Code.BEHIND if revision > ring.revision else Code.OK

    def _read(self, request: Read, now: float) -> Answer:
        slot, at = request.slot, int(now * 1000.0)
        code = self._code(slot, request.revision)
        if slot not in self.synced:
            code |= Code.UNSYNCED
        entry = self.store.get(slot, request.name, at)
        return self._answer(code, now, None if entry is None else outgoing(entry, at))

    def _read_many(self, request: ReadMany, now: float) -> Found:
        ring, revision, stamp = self.ring, request.revision, self.stamps.peek(now)
        if revision > ring.revision:
            return Found(Code.BEHIND, ring.revision, stamp, (b"",) * len(request.names))
        store, synced, positions, at = self.store, self.synced, ring.positions, int(now * 1000.0)
        kept = [store.get(slot, name, at) for slot, name in request.names]
        heads = tuple(
            [
                head_of(entry) if positions[slot] <= revision and slot in synced else b""
                for entry, (slot, _) in zip(kept, request.names, strict=True)
            ]
        )
        if not request.whole:
            return Found(Code.OK, ring.revision, stamp, heads)
        size = 0
        entries: list[bytes | None] = []
        for entry in kept:
            size += len(entry or b"")
            if entries and size > limits.KV_PAGE_BYTES:
                break
            entries.append(None if entry is None else outgoing(entry, at))
        return Found(Code.OK, ring.revision, stamp, heads, tuple(entries))

    def _write_many(self, request: WriteMany, now: float) -> Kept:
        ring, revision, positions = self.ring, request.revision, self.ring.positions
        codes = bytearray()
        for slot, name, entry in request.entries:
            refused = self.take(slot, name, entry, now, bows=False)
            code = Code.NEWER_SLOT if positions[slot] > revision else Code.OK
            codes.append(code if refused is None else code | refused[0])
        code = Code.BEHIND if revision > ring.revision else Code.OK
        return Kept(code, ring.revision, self.stamps.peek(now), bytes(codes))

    def _write(self, request: Write, now: float) -> Answer:
        slot, name = request.slot, request.name
        code = self._code(slot, request.revision)
        newer = self.take(slot, name, request.entry, now, bows=request.repair)
        if newer is None:
            return self._answer(code, now)
        return self._answer(code | newer[0], now, *newer[1:])

    def take(
        self, slot: int, name: bytes, entry: bytes, now: float, *, bows: bool
    ) -> tuple[int, bytes | None, bytes] | None:
        """Keep an entry that has come, if it is newer; return why not: code, entry, ballot."""
        at = int(now * 1000.0)
        kept = self.store.get(slot, name, at)
        entry = incoming(entry, at)
        if not is_newer(entry, kept):
            if version_of(kept) == version_of(entry):
                return None
            assert kept is not None
            return Code.NEWER_VERSION, kept[:HEAD], b""
        if bows and is_atomic(entry):
            promised = self._promised(slot, name)
            if promised > version_of(entry):
                return Code.REFUSED, None, promised
        if not self.store.has_room(slot, name, entry):
            return Code.FULL, None, b""
        self.store.apply(slot, name, entry)
        return None

    # Atomic writes.

    def _prepare(self, request: Prepare, now: float) -> Answer:
        slot, name, ballot = request.slot, request.name, request.ballot
        code = self._code(slot, request.revision)
        if code:
            return self._answer(code, now)
        at = int(now * 1000.0)
        entry = self.store.get(slot, name, at)
        highest = max(self._promised(slot, name), version_of(entry))
        if ballot <= highest:
            return self._answer(Code.REFUSED, now, promised=highest)
        self._promise(slot, name, ballot)
        code = Code.OK if slot in self.synced else Code.UNSYNCED
        return self._answer(code, now, None if entry is None else outgoing(entry, at))

    def _accept(self, request: Accept, now: float) -> Answer:
        slot, name = request.slot, request.name
        code = self._code(slot, request.revision)
        if code:
            return self._answer(code, now)
        ballot = version_of(request.entry)
        promised = self._promised(slot, name)
        if promised > ballot:
            return self._answer(Code.REFUSED, now, promised=promised)
        kept = self.store.get(slot, name, int(now * 1000.0))
        if kept is not None and is_atomic(kept) and version_of(kept) > ballot:
            return self._answer(Code.REFUSED, now, promised=version_of(kept))
        refused = self.take(slot, name, request.entry, now, bows=False)
        if refused is not None and refused[0] == Code.FULL:
            return self._answer(Code.FULL, now)
        # A plain write that is newer stands after this one, and hides it.
        if promised == ballot:
            self._promises.pop((slot, name), None)
        return self._answer(Code.OK, now)

    def _promised(self, slot: int, name: bytes) -> bytes:
        return self._promises.get((slot, name), self._floor)

    def _promise(self, slot: int, name: bytes, ballot: bytes) -> None:
        self._promises.pop((slot, name), None)
        if len(self._promises) >= limits.KV_PROMISES_MAX:
            oldest = next(iter(self._promises))
            self._floor = max(self._floor, self._promises.pop(oldest))
        self._promises[slot, name] = ballot

    # Copies.

    def _compare(self, request: Compare, now: float) -> Compared:
        equal: list[int] = []
        different: list[int] = []
        unsynced: list[int] = []
        for slot, digest in request.digests:
            if self._code(slot, request.revision) == Code.OK:
                (equal if self.store.digest(slot) == digest else different).append(slot)
                if slot not in self.synced:
                    unsynced.append(slot)
        revision, stamp = self.ring.revision, self.stamps.peek(now)
        code = Code.BEHIND if request.revision > revision else Code.OK
        return Compared(code, revision, stamp, tuple(equal), tuple(different), tuple(unsynced))

    def _list(self, request: List, now: float) -> Listing:
        slot, store = request.slot, self.store
        code = self._code(slot, request.revision)
        revision, stamp = self.ring.revision, self.stamps.peek(now)
        if code:
            return Listing(code, revision, stamp)
        if slot not in self.synced:
            code = Code.UNSYNCED
        if store.digest(slot) == request.digest:
            return Listing(code, revision, stamp, equal=True)
        names = store.names(slot, request.after, limits.KV_PAGE_NAMES)
        at = int(now * 1000.0)
        listed = tuple((name, version_of(store.get(slot, name, at))) for name in names)
        return Listing(code, revision, stamp, False, listed, len(names) < limits.KV_PAGE_NAMES)

    def _fetch(self, request: Fetch, now: float) -> Entries:
        at = int(now * 1000.0)
        found: list[tuple[bytes, bytes]] = []
        size = 0
        for name in request.names:
            entry = self.store.get(request.slot, name, at)
            if entry is None:
                continue
            size += len(name) + len(entry)
            if found and size > limits.KV_PAGE_BYTES:
                break
            found.append((name, outgoing(entry, at)))
        return Entries(0, self.ring.revision, self.stamps.peek(now), tuple(found))

    def _keep(self, request: Keep, now: float) -> Answer:
        """Keep what every owner is to have: plain entries and tombstones."""
        code = self._code(request.slot, request.revision)
        for name, entry in request.entries:
            refused = self.take(request.slot, name, entry, now, bows=True)
            if refused is not None and refused[0] != Code.NEWER_VERSION:
                code |= refused[0]
        return self._answer(code, now)

    def take_pulled(self, slot: int, name: bytes, entry: bytes, now: float, *, bows: bool) -> bool:
        """Keep an entry of another copy; return False if it must be decided first.

        Args:
            bows: In a settled slot an atomic entry that is not at a quorum must not get there
                while a newer ballot is promised. While the slot is joint, current decides.
        """
        refused = self.take(slot, name, entry, now, bows=bows)
        return refused is None or refused[0] != Code.REFUSED

    def check(self) -> None:
        """Assert the invariants. Cost: O(entries)."""
        self.store.check()
        for slot in self.synced:
            assert self.me in self.ring.current(slot)
        for slot in self.ready:
            assert self.me in self.ring.next(slot)
        assert len(self._promises) <= limits.KV_PROMISES_MAX
