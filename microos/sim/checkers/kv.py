"""What must hold of the store of a group whose keepers the world can look into (kv.md 14).

| invariant | how it is seen |
|---|---|
| kv.hidden | at the instant of an acknowledgement no quorum of copies that vote lacks it |
| kv.stale_read, kv.order | nothing acknowledged before it began is above what it came to |
| kv.written_twice | no value is written over by two writes under a condition |
| kv.absent_once | of two writes over nothing there is a delete between |
| kv.no_effect | what was said not to have happened is never read |
| kv.provenance | what is read was written, to this key, and one version is one value |
| kv.version | what was acknowledged is known by the version it was acknowledged with |
| kv.settled, kv.copies, kv.lost | at the end slots are settled, copies equal and newest |
| kv.service, kv.deadline | in the quiet tail operations succeed; each ends by its deadline |

All of it is asked of operations at `quorum` only. *Hidden* is the rule behind the others, and
finds a breach at once: a reader that asked now, whoever it is and whatever ring it goes by,
must meet the version. It is also exclusivity: two quorums that do not know of each other
cannot both be there.

Memory is what owners have, so a slot may lose what it knew while W of its current owners
have ended and are not replaced yet. What was begun before the end of such a time binds
nobody (kv.md 4.7).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import inf

from microos.ring.entry import number_of, version_of
from microos.ring.epochs import RingState
from microos.ring.keeper import Keeper
from microos.ring.quorum import wanted
from microos.ring.ring import Owner, Row
from microos.sim.customers import KvOperation, place_of
from microos.sim.world import SECOND, World

Known = tuple[int, KvOperation]


class KvChecker:
    """The checks of one world's store.

    Args:
        keys: All that are used.
        keepers: Of the processes that run.
    """

    def __init__(
        self, world: World, keys: Sequence[bytes], keepers: Callable[[], Mapping[Owner, Keeper]]
    ) -> None:
        self._world = world
        self._keys = keys
        self._keepers = keepers
        self._slots = dict.fromkeys(place_of(key)[0] for key in keys)
        self.history: list[KvOperation] = []
        self._of: dict[bytes, list[KvOperation]] = {key: [] for key in keys}
        self.state = RingState()
        """Of the ring, as committed."""
        self._gone: dict[Owner, None] = {}
        """Owners whose process has ended."""
        self._lost_until: dict[int, float] = {}
        """By slot: until when copies were lost [ns]; inf: they are being lost now."""
        self._ends: dict[bytes, list[int]] = {key: [] for key in keys}
        self._newest: dict[bytes, list[Known]] = {key: [] for key in keys}
        """Of each key the operations that bind, in order of their end; with the newest so far."""
        self._value_of: dict[tuple[bytes, int], int] = {}
        """(key, version): the number of the operation whose value that is."""
        self._over: dict[tuple[bytes, int], KvOperation] = {}
        """By key and version: the write that took place over it."""
        self._seen: dict[int, KvOperation] = {}
        """By the number of a value: the first read of it."""

    def _fail(self, invariant: str, detail: str, kind: str = "safety") -> None:
        self._world.fail(kind, f"kv.{invariant}", detail)

    # What happens to the ring and its owners.

    def moved(self, state: RingState) -> None:
        """The ring has been changed, by an entry that is now committed."""
        if state is not self.state:
            if state.number != self.state.number:
                self._world.sometimes("ring.epoch")
            self.state = state
            self._look_for_losses()

    def crashed(self, owner: Owner) -> None:
        self._gone[owner] = None
        self._look_for_losses()

    def _look_for_losses(self) -> None:
        for slot in self._slots:
            row = self.state.current[slot]
            lost = bool(row) and sum(o in self._gone for o in row) >= wanted(len(row))
            if lost:
                self._lost_until[slot] = inf
                for key in self._keys:
                    if place_of(key)[0] == slot:
                        self._ends[key].clear()
                        self._newest[key].clear()
            elif self._lost_until.get(slot) == inf:
                self._lost_until[slot] = self._world.now
                self._world.sometimes("kv.copies_lost")

    def _binds(self, operation: KvOperation) -> bool:
        """Return whether later ones may rely on it: nothing was lost since before it began."""
        return operation.begun_ns > self._lost_until.get(operation.slot, -1)

    # Operations.

    def began(self, operation: KvOperation) -> None:
        self._of[operation.key].append(operation)

    def ended(self, operation: KvOperation) -> None:
        if operation.outcome in ("unavailable", "conflict") and operation.number in self._seen:
            reader = self._seen[operation.number]
            self._fail("no_effect", f"{operation}, but it was read: {reader}")
        if operation.outcome != "ok":
            return
        if operation.kind == "get":
            self._read(operation)
        elif operation.kind == "put":
            self._name(operation, operation.number)
        if operation.one or not self._binds(operation):
            return
        self._compare(operation)
        if operation.version and not (operation.kind == "get" and operation.is_gone):
            self._look_for_readers_without(operation)
        if operation.condition is not None:
            self._conditional(operation)
        self._keep(operation)

    def _read(self, read: KvOperation) -> None:
        """What was found was written here, and by one that did not fail for sure."""
        if read.found is None:
            return
        if not 0 <= read.found < len(self.history):
            self._fail("provenance", f"{read}: nobody wrote that")
            return
        writer = self.history[read.found]
        if writer.key != read.key or writer.kind != "put":
            self._fail("provenance", f"{read} found what was written by {writer}")
        if writer.outcome in ("unavailable", "conflict"):
            self._fail("no_effect", f"{read} found what did not happen: {writer}")
        if (
            writer.outcome == "ok"
            and writer.ended_ns is not None
            and writer.ended_ns < read.begun_ns
            and not (read.one or writer.one)
            and self._binds(writer)
            and writer.shown != read.shown
        ):
            self._fail("version", f"{read} found another version of {writer}")
        self._seen.setdefault(read.found, read)
        self._name(read, read.found)

    def _name(self, operation: KvOperation, value: int) -> None:
        """One version is one value."""
        known = self._value_of.setdefault((operation.key, operation.shown), value)
        if known != value:
            self._fail("provenance", f"{operation}: value {value}, that version was {known}")

    def _compare(self, operation: KvOperation) -> None:
        """What bound it before it began is not above it; a write is above all of that."""
        known = self._known(operation)
        if known is None:
            return
        version, before = known
        if operation.kind == "get":
            assert operation.ended_ns is not None
            if operation.version < version and not (
                operation.version == 0
                and self._may_be_gone(operation.key, version, operation.ended_ns)
            ):
                self._fail("stale_read", f"{operation}, known before it began: {before}")
        elif operation.version <= version:
            self._fail("order", f"{operation}, known before it began: {before}")

    def _may_be_gone(self, key: bytes, version: int, by_ns: int) -> bool:
        """Whether what was known may have been removed, or ended, and its trace be gone too."""
        return any(
            (other.kind == "delete" or (other.kind == "put" and other.left_ms))
            and other.outcome not in ("unavailable", "conflict")
            and other.begun_ns <= by_ns
            and (other.version == 0 or other.version >= version)
            for other in self._of[key]
        )

    def _known(self, operation: KvOperation) -> Known | None:
        at = bisect_left(self._ends[operation.key], operation.begun_ns)
        return self._newest[operation.key][at - 1] if at else None

    def _keep(self, operation: KvOperation) -> None:
        ends, newest = self._ends[operation.key], self._newest[operation.key]
        assert operation.ended_ns is not None
        best = newest[-1] if newest else (0, operation)
        if operation.version > best[0]:
            writer = operation
            if operation.found is not None and not operation.is_gone:
                writer = self.history[operation.found]  # It knows whether it was to end.
            best = (operation.version, writer)
        ends.append(operation.ended_ns)
        newest.append(best)

    def _conditional(self, write: KvOperation) -> None:
        """A version is written over once; between two writes over nothing there is a delete."""
        if write.condition:
            other = self._over.get((write.key, write.condition))
            if other is not None and self._binds(other):
                self._fail("written_twice", f"{other}, then {write}")
            self._over[write.key, write.condition] = write
            return
        for other in self._of[write.key]:
            took = other.outcome == "ok" and other.condition == 0 and other.kind == "put"
            if other is not write and took and self._binds(other):
                first, second = sorted((other, write), key=lambda o: o.version)
                if not self._may_be_deleted(first, second):
                    self._fail("absent_once", f"{first}, then {second}, and no delete between")

    def _may_be_deleted(self, first: KvOperation, second: KvOperation) -> bool:
        """Whether a delete may have taken effect between two writes."""
        assert second.ended_ns is not None
        return any(
            delete.kind == "delete"
            and delete.outcome not in ("unavailable", "conflict")
            and delete.begun_ns <= second.ended_ns
            and (delete.ended_ns is None or delete.ended_ns >= first.begun_ns)
            for delete in self._of[first.key]
        )

    def _look_for_readers_without(self, operation: KvOperation) -> None:
        """Nobody who asked now would come to a quorum of copies that lack it."""
        slot, name = place_of(operation.key)
        keepers = self._keepers()
        looked: dict[int, None] = {}
        for reader in keepers.values():
            ring = reader.ring
            chain = ring.chains[slot]
            if not chain or ring.revision in looked:
                continue
            looked[ring.revision] = None

            def lacks(owner: Owner, votes: bool, at: int = ring.revision) -> bool:
                keeper = keepers.get(owner)
                if keeper is None:
                    return False
                replica = keeper.replica
                if replica.ring.positions[slot] > at:
                    return False  # It would say so, and the reader begin anew.
                if votes and (slot not in replica.synced or replica.ring.revision < at):
                    return False
                return number_of(version_of(replica.store.get(slot, name, 0))) < operation.version

            def without(row: Row, votes: bool) -> bool:
                return sum(lacks(owner, votes) for owner in row) >= wanted(len(row))

            if without(chain[0], True) and (len(chain) == 1 or without(chain[1], False)):
                detail = f"{operation} is unknown to a quorum as {reader.me} sees it: {chain}"
                self._fail("hidden", detail)
                return

    # At the end.

    def overdue(self, running: Mapping[str, float]) -> None:
        """Every operation of a process that runs has ended by its deadline.

        Args:
            running: Clients' process (node and boot) and since when nothing held it up [ns].
        """
        for operation in self.history:
            since = running.get(operation.client.rpartition(".")[0])
            if operation.ended_ns is None and since is not None:
                begun = max(float(operation.begun_ns), since)
                if begun + (operation.timeout * 1.2 + 0.5) * SECOND < self._world.now:
                    self._fail("deadline", f"{operation} has not ended", "liveness")

    def final(self, since_ns: int, nodes: Sequence[str]) -> None:
        """Judge what is there after the quiet tail.

        Args:
            since_ns: From when on everything had to succeed.
            nodes: Names of those that take part.
        """
        keepers = self._keepers()
        for keeper in keepers.values():
            keeper.check()
        for operation in self.history:
            refused = operation.outcome not in ("ok", "conflict")
            node = operation.client.partition(".")[0]
            if operation.begun_ns >= since_ns and refused and node in nodes:
                self._fail("service", f"{operation}; ring {self.state.number}", "liveness")
        if not self.state.number:
            self._fail("settled", "there is no ring", "liveness")
            return
        for key in self._keys:
            self._final(key, keepers)

    def _final(self, key: bytes, keepers: Mapping[Owner, Keeper]) -> None:
        slot, name = place_of(key)
        row = self.state.current[slot]
        if self.state.next[slot] or any(owner not in keepers for owner in row):
            detail = f"{key!r}: {row}, next {self.state.next[slot]}, ring {self.state.number}"
            self._fail("settled", detail, "liveness")
            return
        found = [
            number_of(version_of(keepers[owner].replica.store.get(slot, name, 0))) for owner in row
        ]
        if len({*found}) != 1:
            self._fail("copies", f"{key!r}: {dict(zip(row, found, strict=True))}", "liveness")
        newest = self._newest[key][-1] if self._newest[key] else None
        if newest is None or found[0] >= newest[0]:
            return
        if found[0] or not self._may_be_gone(key, newest[0], self._world.now):
            self._fail("lost", f"{key!r}: the owners have {found}, known was {newest}")
