"""Ring epochs: who owns a slot now and who will, agreed on in the Raft log.

                 Propose                   owners of next pull           Settle
     settled ──────────────▶ joint ──────────────────────────▶ joint ──────────▶ settled
     current               current + next                                   current = what
                             │      ▲                                       was next
                             └──────┘ Propose: the new row takes the place of next;
                                      if it equals current, the slot is settled again

Each slot goes its own way, and its chain never has more than two rows. There is one
table, with three replicas. A row is taken from the table of the newest ring epoch
(`ring/placement.py`), with the boots its members have in it; so a member's restart is
a change of owners with an unchanged table, and so is a change of their order, since a
bucket with fewer replicas uses the first of a row. What is next in a joint slot, and
current in a settled one, is always the row of the newest epoch: rows are kept as they
are, so no older epoch is kept at all, however many slots are in change.

An owner is *gone* only on proof, never on suspicion: a newer boot of its node takes
part; it has left; an operator has said so. If fewer of a slot's current owners than
meet every quorum are not gone, what only they had is lost, and the slot may settle all
the same, as lossy.

State and commands are values; `apply` is a function of both, deterministic and total.

Frozen form, one MessagePack array: revision, number, members, owners (sorted), current
and next (per slot three indexes of owners, each 2 bytes little-endian, 0xFFFF for none),
positions (per slot 8 bytes little-endian), gone, newest boots, pause; about 20 KiB.

Source: the stages of Scylla's topology changes (topology-over-raft.md); Aguilera et al.,
"Dynamic Atomic Storage Without Consensus" (2011); kv.md 4.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from struct import Struct as Layout
from struct import error as LayoutError

import msgspec

from microos import limits
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.ring.notes import (
    CopiesLost,
    EpochProposed,
    Note,
    OwnersGone,
    RingPaused,
    RingResumed,
    SlotsSettled,
)
from microos.ring.placement import Scores, digest, table
from microos.ring.ring import SET_BYTES, SLOTS, Chain, Member, Owner, Ring, Row, slots_in, union
from microos.types import BootId, Incarnation, NodeId, Revision

REPLICAS = limits.RING_REPLICAS

_NO_ROWS: tuple[Row, ...] = ((),) * SLOTS
_NO_POSITIONS = (Revision(0),) * SLOTS


class Proof(IntEnum):
    """Why an owner is known to be dead for good."""

    BOOT = 0
    """A newer boot of its node takes part."""
    LEFT = 1
    """Answering no more was its last act, or a newer boot of its node takes no part."""
    WORD = 2
    """An operator has said so."""


class RingState(msgspec.Struct, frozen=True):
    """What Raft agrees on; never changed in place."""

    revision: Revision = Revision(0)
    """Of the last command that changed anything; 0: none has."""
    number: int = 0
    """The newest ring epoch; 0 before the first."""
    members: tuple[Member, ...] = ()
    """Of the newest ring epoch, by node."""
    current: tuple[Row, ...] = _NO_ROWS
    """Present owners by slot; empty rows before the first epoch."""
    next: tuple[Row, ...] = _NO_ROWS
    """Owners to be by slot; an empty row: settled."""
    positions: tuple[Revision, ...] = _NO_POSITIONS
    """By slot the revision of the command that last changed it."""
    gone: Mapping[Owner, Proof] = msgspec.field(default_factory=dict)
    """Owners in some chain that are proven dead, sorted."""
    newest: Mapping[NodeId, tuple[Incarnation, BootId]] = msgspec.field(default_factory=dict)
    """The newest boot known of each node that is a member or an owner, by node; so a proposer
    that has not heard of it cannot prove it dead by proposing an older one."""
    paused: str = ""
    """Why nothing is proposed at present; empty: it is."""

    def chain(self, slot: int) -> Chain:
        """Return current and, while the slot is joint, next; empty before the first epoch."""
        return _chain(self.current[slot], self.next[slot])

    def joint(self) -> tuple[int, ...]:
        """Return the slots in change, rising."""
        return tuple(slot for slot, row in enumerate(self.next) if row)

    def owners(self) -> tuple[Owner, ...]:
        """Return all owners of any slot, sorted."""
        return _owners(self.current, self.next)

    def ring(self, before: Ring | None = None) -> Ring:
        """Return the snapshot for look-ups, sharing the chains that are as `before`.

        Cost:
            About 1 ms.
        """
        chains = [_chain(*rows) for rows in zip(self.current, self.next, strict=True)]
        if before is not None:
            both = zip(before.chains, chains, strict=True)
            chains = [old if old == new else new for old, new in both]
        everyone = tuple(union(chain) if chain else () for chain in chains)
        holdings: dict[Owner, list[int]] = {}
        for slot, owners in enumerate(everyone):
            for owner in owners:
                holdings.setdefault(owner, []).append(slot)
        return Ring(
            self.revision,
            self.number,
            self.members,
            tuple(chains),
            everyone,
            self.positions,
            self.gone,
            {owner: tuple(slots) for owner, slots in holdings.items()},
            self.paused,
        )

    def check(self) -> None:
        """Assert all invariants. Cost: O(slots), and a table."""
        nodes = [member.node for member in self.members]
        assert nodes == sorted({*nodes})
        assert len(self.current) == len(self.next) == len(self.positions) == SLOTS
        assert bool(self.number) == bool(self.members)
        newest = _rows(self.members, Scores())
        for slot, row in enumerate(newest):
            assert row == (self.next[slot] or self.current[slot])
            assert self.next[slot] != self.current[slot] or not row
            assert bool(row) == (self.positions[slot] > 0)
            assert self.positions[slot] <= self.revision
        owners = self.owners()
        assert list(self.gone) == [owner for owner in owners if owner in self.gone]
        # A member may be gone by an operator's word alone.
        assert all(self.gone.get(member.owner, Proof.WORD) is Proof.WORD for member in self.members)
        assert list(self.newest) == sorted({*nodes, *(owner.node for owner in owners)})


# Commands: MessagePack arrays that begin with their tag.


class Propose(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Begin the next ring epoch."""

    number: int
    """The newest epoch's and one; so of two who propose at once one is refused."""
    members: tuple[Member, ...]
    """By node, each once; at least one."""
    gone: tuple[Owner, ...] = ()
    """Owners that answer no more: they have left, or restarted without taking part again."""
    digest: int = 0
    """Of the table the proposer computed (`placement.digest`)."""


class Settle(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Make next current in these slots, where they are as the proposer saw them."""

    slots: bytes
    """Bit set. Those that are not joint, or have changed since `seen`, stay as they are."""
    seen: Revision
    """What the proposer knew."""
    lossy: bytes = b""
    """Bit set of those in which copies are lost; empty: in none."""


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """An operator's word that these owners are dead for good. A wrong one may lose data."""

    owners: tuple[Owner, ...]


class Pause(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Propose nothing until resumed."""

    reason: str
    """Not empty, at most `limits.LABEL_TEXT` characters."""


class Resume(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Propose again."""


Command = Propose | Settle | Gone | Pause | Resume
decode_command: Decoder[Command] = Decoder(Command)


# What a command comes to.


class Denied(msgspec.Struct, frozen=True):
    """The state's no: class of the error tree, reason, one sentence."""

    error: str
    reason: str
    message: str


class Done(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The state is as the command wanted it."""

    revision: Revision
    """Of the state."""
    number: int
    """The newest ring epoch."""
    count: int
    """Slots, or owners, that the command changed."""


class Applied(msgspec.Struct, frozen=True):
    """State, answer and what happened, after a command."""

    state: RingState
    """The very one before if the command changed nothing."""
    result: Done | Denied
    notes: tuple[Note, ...] = ()


def apply(
    state: RingState, command: Command, revision: Revision, kept: Scores | None = None
) -> Applied:
    """Do one command.

    Args:
        state: Before it.
        command: Well formed; whether it is acceptable is judged here.
        revision: Where in the log it stands; above the state's.
        kept: Scores of earlier tables; changes the cost, never the outcome.

    Cost:
        `Propose`: a table. Else O(slots).
    """
    assert revision > state.revision
    match command:
        case Propose():
            wrong = _fault(state, command)
            return Applied(state, wrong) if wrong else _propose(state, command, revision, kept)
        case Settle():
            return _settle(state, command, revision)
        case Gone():
            return _gone(state, command, revision)
        case Pause():
            return _pause(state, command, revision)
        case Resume():
            if not state.paused:
                return Applied(state, _done(state))
            after = msgspec.structs.replace(state, revision=revision, paused="")
            return Applied(after, _done(after), (RingResumed(),))


# Propose.


def _fault(state: RingState, command: Propose) -> Denied | None:
    """Return what is wrong with a proposal, None if nothing is."""
    members = command.members
    if command.number != state.number + 1:
        return Denied(
            "ConflictError",
            "version",
            f"expected ring epoch {state.number + 1}, found {command.number}; read it again",
        )
    if state.paused:
        return _stale(f"the ring paused ({state.paused})")
    if not 0 < len(members) <= limits.RING_MEMBERS_MAX:
        return Denied(
            "LimitError",
            "count",
            f"expected 1..{limits.RING_MEMBERS_MAX} members, found {len(members)}",
        )
    nodes = [member.node for member in members]
    if nodes != sorted({*nodes}):
        return _bad("members by node, each once")
    proposed = {member.owner for member in members}
    if not all(is_sound(member) for member in members):
        return _bad(
            f"members with a node, a boot, a weight of 1..{limits.RING_WEIGHT_MAX} "
            f"and a zone of at most {limits.LABEL_TEXT} bytes"
        )
    if any(owner in proposed for owner in command.gone):
        return _bad("nobody both gone and a member")
    if command.digest != digest(members, REPLICAS):
        return _bad("the digest of the table that this version computes")
    if any(owner in proposed for owner in state.gone):
        return _stale("an owner that is gone among the members")
    for member in members:
        incarnation, boot = state.newest.get(member.node, (member.incarnation, member.boot))
        if member.boot != boot and member.incarnation < incarnation:
            return _stale(f"an older boot of {member.node} than the one that is known")
    return None


def is_sound(member: Member) -> bool:
    """Return whether every field of a member is within its range."""
    return (
        0 < len(member.node.encode()) <= limits.NAME_TEXT
        and 0 < member.boot < 1 << 64
        and 1 <= member.weight <= limits.RING_WEIGHT_MAX
        and len(member.zone.encode()) <= limits.LABEL_TEXT
        and 0 <= member.incarnation < 1 << 63
    )


def _bad(wanted: str) -> Denied:
    return Denied("RejectedError", "bad_request", f"expected {wanted}")


def _stale(found: str) -> Denied:
    return Denied("ConflictError", "version", f"found {found}; look again")


def _propose(
    state: RingState, command: Propose, revision: Revision, kept: Scores | None
) -> Applied:
    newest = _rows(command.members, kept)
    current, next = list(state.current), list(state.next)
    changed: dict[int, None] = {}
    for slot, row in enumerate(newest):
        if row == (next[slot] or current[slot]):
            continue
        changed[slot] = None
        if not current[slot]:
            current[slot] = row  # The first epoch: there is nobody to pull from.
        else:
            next[slot] = () if row == current[slot] else row
    gone = {**state.gone, **_proven(state, command)}
    after = _settled(
        state,
        revision,
        current,
        next,
        changed,
        gone,
        number=command.number,
        members=command.members,
    )
    joint = sum(map(bool, next))
    notes: list[Note] = [
        EpochProposed(command.number, revision, len(command.members), len(changed), joint)
    ]
    news = tuple(owner for owner in after.gone if owner not in state.gone)
    if news:
        notes.append(OwnersGone(revision, news))
    return Applied(after, _done(after, len(changed)), tuple(notes))


def _proven(state: RingState, command: Propose) -> dict[Owner, Proof]:
    """Return the owners that a proposal proves dead."""
    boots = {member.node: member.boot for member in command.members}
    replaced = [o for o in state.owners() if boots.get(o.node, o.boot) != o.boot]
    return {
        **dict.fromkeys(command.gone, Proof.LEFT),
        **dict.fromkeys(replaced, Proof.BOOT),
    }


# Settle.


def _settle(state: RingState, command: Settle, revision: Revision) -> Applied:
    if len(command.slots) != SET_BYTES or len(command.lossy) not in (0, SET_BYTES):
        return Applied(state, _bad(f"sets of slots of {SET_BYTES} bytes"))
    current, next = list(state.current), list(state.next)
    lossy = {*slots_in(command.lossy)}
    changed: dict[int, None] = {}
    for slot in slots_in(command.slots):
        if next[slot] and state.positions[slot] <= command.seen:
            current[slot], next[slot] = next[slot], ()
            changed[slot] = None
    if not changed:
        return Applied(state, _done(state))
    after = _settled(state, revision, current, next, changed, state.gone)
    notes: list[Note] = [SlotsSettled(revision, len(changed), sum(map(bool, next)))]
    lost = tuple(slot for slot in changed if slot in lossy)
    if lost:
        former = [o for slot in lost for o in state.current[slot] if o in state.gone]
        notes.append(CopiesLost(revision, lost, tuple(sorted({*former}))))
    return Applied(after, _done(after, len(changed)), tuple(notes))


# Gone, Pause.


def _gone(state: RingState, command: Gone, revision: Revision) -> Applied:
    named = {*command.owners}
    news = tuple(o for o in state.owners() if o in named and o not in state.gone)
    if not news:
        return Applied(state, _done(state))
    gone = {**state.gone, **dict.fromkeys(news, Proof.WORD)}
    after = msgspec.structs.replace(
        state, revision=revision, gone={owner: gone[owner] for owner in sorted(gone)}
    )
    return Applied(after, _done(after, len(news)), (OwnersGone(revision, news),))


def _pause(state: RingState, command: Pause, revision: Revision) -> Applied:
    if not 0 < len(command.reason) <= limits.LABEL_TEXT:
        return Applied(state, _bad(f"a reason of 1..{limits.LABEL_TEXT} characters"))
    if state.paused == command.reason:
        return Applied(state, _done(state))
    after = msgspec.structs.replace(state, revision=revision, paused=command.reason)
    return Applied(after, _done(after), (RingPaused(command.reason),))


# What they share.


def _settled(
    state: RingState,
    revision: Revision,
    current: list[Row],
    next: list[Row],
    changed: Mapping[int, None],
    gone: Mapping[Owner, Proof],
    *,
    number: int | None = None,
    members: tuple[Member, ...] | None = None,
) -> RingState:
    """Return the state with new chains; what is kept of former owners and nodes is dropped."""
    members = state.members if members is None else members
    owners = _owners(current, next)
    newest = dict(state.newest)
    newest.update({m.node: (m.incarnation, m.boot) for m in members})
    nodes = sorted({*(member.node for member in members), *(owner.node for owner in owners)})
    return msgspec.structs.replace(
        state,
        revision=revision,
        number=state.number if number is None else number,
        members=members,
        current=tuple(current),
        next=tuple(next),
        positions=tuple(
            revision if slot in changed else position
            for slot, position in enumerate(state.positions)
        ),
        gone={owner: gone[owner] for owner in owners if owner in gone},
        newest={node: newest[node] for node in nodes},
    )


def _rows(members: Iterable[Member], kept: Scores | None) -> tuple[Row, ...]:
    """Return the owners of each slot; equal rows are one object."""
    owners = [member.owner for member in members]
    found = table(members, REPLICAS, kept)
    rows = {indexes: tuple(owners[index] for index in indexes) for indexes in found}
    return tuple(rows[indexes] for indexes in found)


def _chain(current: Row, next: Row) -> Chain:
    if not current:
        return ()
    return (current, next) if next else (current,)


def _owners(current: Iterable[Row], next: Iterable[Row]) -> tuple[Owner, ...]:
    rows = {**dict.fromkeys(current), **dict.fromkeys(next)}
    return tuple(sorted({owner for row in rows for owner in row}))


def _done(state: RingState, count: int = 0) -> Done:
    return Done(state.revision, state.number, count)


# Frozen and thawed.


class _Frozen(msgspec.Struct, frozen=True, array_like=True):
    revision: Revision
    number: int
    members: tuple[Member, ...]
    owners: tuple[Owner, ...]
    current: bytes
    next: bytes
    positions: bytes
    gone: tuple[tuple[Owner, Proof], ...]
    newest: tuple[tuple[NodeId, Incarnation, BootId], ...]
    paused: str


_decode_frozen: Decoder[_Frozen] = Decoder(_Frozen)
_ROW = Layout(f"<{REPLICAS}H")
_POSITIONS = Layout(f"<{SLOTS}Q")
_NOBODY = 0xFFFF


def frozen(state: RingState) -> bytes:
    """Return a state as bytes; equal states give equal bytes. Cost: about 1 ms."""
    owners = state.owners()
    index = {owner: number for number, owner in enumerate(owners)}

    def packed(rows: tuple[Row, ...]) -> bytes:
        each = {
            row: _ROW.pack(*(index[o] for o in row), *[_NOBODY] * (REPLICAS - len(row)))
            for row in dict.fromkeys(rows)
        }
        return b"".join([each[row] for row in rows])

    return encode(
        _Frozen(
            state.revision,
            state.number,
            state.members,
            owners,
            packed(state.current),
            packed(state.next),
            _POSITIONS.pack(*state.positions),
            tuple(state.gone.items()),
            tuple((node, *known) for node, known in state.newest.items()),
            state.paused,
        )
    )


def thawed(data: bytes) -> RingState:
    """Return the state of such bytes.

    Raises:
        RemoteProtocolError: They are none.
    """
    found = _decode_frozen(data)
    try:
        state = RingState(
            found.revision,
            found.number,
            found.members,
            _unpacked(found.current, found.owners),
            _unpacked(found.next, found.owners),
            _POSITIONS.unpack(found.positions),
            dict(found.gone),
            {node: (incarnation, boot) for node, incarnation, boot in found.newest},
            found.paused,
        )
    except (IndexError, LayoutError) as error:
        raise RemoteProtocolError(f"expected a frozen ring, found {error}") from error
    return state


def _unpacked(data: bytes, owners: tuple[Owner, ...]) -> tuple[Row, ...]:
    if len(data) != SLOTS * _ROW.size:
        raise IndexError(f"{len(data)} bytes of rows")
    rows: dict[tuple[int, ...], Row] = {}
    for indexes in _ROW.iter_unpack(data):
        if indexes not in rows:
            rows[indexes] = tuple(owners[index] for index in indexes if index != _NOBODY)
    return tuple(rows[indexes] for indexes in _ROW.iter_unpack(data))
