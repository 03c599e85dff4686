"""Founds a cluster exactly once, though nobody knows who will be there.

All nodes are configured with the same seed addresses. Sorted, they are the
*seats*; the node that listens at one answers for it. Which cluster there is, its
id and its first voters, is one value chosen by Paxos with the seats as acceptors:
any two majorities of a fixed list meet in a seat that remembers.

    proposer                               every seat
      Prepare(ballot) ───────────────────▶ promise, on disk, then
      ◀───────── Promise(what it accepted)
      Accept(ballot, cluster) ───────────▶ accept, on disk, then
      ◀───────────────────────── Accepted
      a majority: chosen; Chosen(cluster) to all

The live seat that sorts first proposes once it has seen a majority of the seats
for `quiet` without hearing of a cluster; the others wait two seconds longer for
each seat before theirs. That is politeness: safe it is in any order. Who has
promised and heard no end proposes again, with a higher ballot, so a proposer
that dies half-way blocks nothing (one irrevocable vote per seat would).

What this cannot do: a seat whose disk is lost between promise and end may promise
again, so the list must name nodes that keep their disk until the founding is done.

Source: Lamport, "Paxos Made Simple" (2001), §2.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Annotated, Any

import msgspec

from microos.codec import Decoder, encode
from microos.hashing import xxh3
from microos.raft.entry import Configuration, SnapshotMark
from microos.settings import RaftSettings
from microos.types import Address, Index, NodeId, Random, Term

RANK_DELAY = 2.0
"""How much longer each live seat waits than the one before it [s]."""

ROUND_PATIENCE = 1.0
"""Least wait for the end of a round, own or another's, before the next begins [s]; at most 2 ×."""

_Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Seats = Annotated[tuple[Address, ...], msgspec.Meta(max_length=1024)]
_Voters = Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=5)]


class Cluster(msgspec.Struct, frozen=True, array_like=True):
    """What a founding decides."""

    id: _Id
    """Random; the same over all epochs."""
    epoch: Annotated[int, msgspec.Meta(ge=1, lt=1 << 25)]
    voters: _Voters = ()
    """The first voters, sorted: 1, 3 or 5. Empty where only the id was heard of."""
    seed_digest: int = 0
    """Of the seats that decided; 0: nobody was asked."""

    def mark(self) -> SnapshotMark:
        """Return the snapshot that every first voter's log begins with."""
        assert self.voters
        return SnapshotMark(Index(1), Term(1), Configuration(voters=self.voters))


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Orders the rounds; no two proposers share one."""

    counter: _Count = 0
    seat: _Count = 0


_NONE = Ballot()


class FoundingState(msgspec.Struct, frozen=True, array_like=True):
    """What a seat must never forget until the founding is done."""

    seats: _Seats
    """The list these ballots belong to."""
    promised: Ballot = _NONE
    accepted: Ballot = _NONE
    value: Cluster | None = None
    """Accepted under `accepted`."""


# Messages. All but `Chosen` carry a digest of the seats: ballots of different lists do not mix.


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=1):
    ballot: Ballot
    seats: _Seats


class Promise(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """I will take part in no lower ballot; this I have accepted."""

    ballot: Ballot
    seed_digest: int
    accepted: Ballot
    value: Cluster | None


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=3):
    ballot: Ballot
    seed_digest: int
    value: Cluster


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=4):
    ballot: Ballot
    seed_digest: int


class Reject(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """I have promised a higher ballot."""

    ballot: Ballot
    seed_digest: int
    promised: Ballot


class Chosen(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """There is a cluster."""

    cluster: Cluster


FoundingMessage = Prepare | Promise | Accept | Accepted | Reject | Chosen
decode_founding_message: Decoder[FoundingMessage] = Decoder(FoundingMessage)

# Notes.


class RoundStarted(msgspec.Struct, frozen=True):
    ballot: Ballot


class RoundLost(msgspec.Struct, frozen=True):
    """Too few answered in time, or a seat had promised a higher ballot."""

    ballot: Ballot
    promises: int
    acceptances: int


class SeatsDiffer(msgspec.Struct, frozen=True):
    """Another node was given another list of seeds: nothing is founded with it."""

    sender: Address
    theirs: tuple[Address, ...]
    ours: tuple[Address, ...]


class SeatsChanged(msgspec.Struct, frozen=True):
    """This node accepted a founding under another list of seeds and proposes none under this."""

    before: tuple[Address, ...]
    now: tuple[Address, ...]


class FoundingEnded(msgspec.Struct, frozen=True):
    """A cluster is known; `chosen_here`: by counting, not by hearsay."""

    cluster: Cluster
    chosen_here: bool


class FoundingEffects(msgspec.Struct, frozen=True):
    """What is to be done, in this order."""

    persist: FoundingState | None = None
    """To be durable before any message is sent."""
    messages: tuple[tuple[Address, FoundingMessage], ...] = ()
    founded: Cluster | None = None
    """Once: the founding is over. Without voters, if that is all that was heard."""
    notes: tuple[object, ...] = ()


class _Round(msgspec.Struct):
    """A ballot of our own."""

    ballot: Ballot
    until: float
    promises: dict[Address, tuple[Ballot, Cluster | None]]
    value: Cluster | None = None
    """Proposed to be accepted; None while promises are gathered."""
    acceptances: dict[Address, None] = msgspec.field(default_factory=dict)


class Founding:
    """One node's part in the founding. Any node may listen; only seats vote and propose."""

    def __init__(
        self,
        me: NodeId,
        seat: Address | None,
        seats: Sequence[Address],
        state: FoundingState | None,
        *,
        settings: RaftSettings,
        random: Random,
        cluster_id: bytes,
        now: float,
    ) -> None:
        """Begin, or go on after a restart.

        Args:
            me: This node.
            seat: The seat this node answers for; None: it founds nothing and listens.
            seats: The same addresses on every node, in any order; none: listen.
            state: What was persisted before.
            settings: `quiet` and `voters` count.
            random: Jitter between rounds.
            cluster_id: 16 bytes of entropy.
            now: On the node's clock [s].
        """
        self._me = me
        self._seats = tuple(sorted(set(seats)))
        assert seat is None or seat in self._seats
        assert len(cluster_id) == 16
        self._seat = seat
        self._digest = xxh3(encode(self._seats))
        self._settings = settings
        self._random = random
        self._cluster_id = cluster_id
        self._majority = len(self._seats) // 2 + 1
        self._notes: list[object] = []
        self._state = self._resumed(state)
        self._highest = self._state.promised
        """Highest ballot seen anywhere."""
        self._seen: dict[Address, NodeId] = {}
        self._eligible: tuple[NodeId, ...] = ()
        self._majority_since = inf
        """Since when a majority of seats has been in sight."""
        self._not_before = now
        self._round: _Round | None = None
        self._cluster: Cluster | None = None
        self._dirty = False
        self._outbox: list[tuple[Address, FoundingMessage]] = []
        self._founded = False
        """To be told by the next `take`."""

    def _resumed(self, state: FoundingState | None) -> FoundingState:
        fresh = FoundingState(self._seats)
        if state is None or state.seats == self._seats:
            return state or fresh
        if state.value is not None:
            # A majority of the other list may have chosen it: voting again could found twice.
            self._notes.append(SeatsChanged(state.seats, self._seats))
            self._seat = None
        # A promise alone binds nobody: ballots of the other list are refused from now on.
        return fresh

    # Requests.

    def seen(
        self, seats_seen: Mapping[Address, NodeId], eligible: Sequence[NodeId], now: float
    ) -> None:
        """Say who is reachable at which seat, and who could vote. Cost: O(seats).

        Args:
            seats_seen: Live nodes by the seat they listen at, this node or not.
            eligible: Live nodes that may become voters.
            now: On the node's clock [s].
        """
        self._seen = {seat: seats_seen[seat] for seat in self._seats if seat in seats_seen}
        if self._seat is not None:
            self._seen[self._seat] = self._me
        self._eligible = tuple(sorted({*eligible, self._me}))
        if len(self._seen) < self._majority:
            self._majority_since = inf
        elif self._majority_since == inf:
            self._majority_since = now

    def heard(self, cluster: Cluster, now: float) -> None:
        """Stop: gossip tells of a cluster. If it is the one accepted here, its voters are known."""
        ours = self._state.value
        self._end(ours if ours is not None and ours.id == cluster.id else cluster, counted=False)

    # The four verbs.

    def receive(self, message: FoundingMessage, sender: Address, now: float) -> None:
        """Take in one message of the node that listens at `sender`. Nonsense is ignored."""
        if isinstance(message, Chosen):
            if _is_sound(message.cluster):
                self._end(message.cluster, counted=False)
            return
        if self._seat is None or sender not in self._seats or sender == self._seat:
            return
        if not self._is_of_our_list(message, sender):
            return
        match message:
            case Prepare() | Accept():
                self._vote(message, sender, now)
            case Promise():
                self._promised(message, sender)
            case Accepted(ballot):
                self._accepted(ballot, sender)
            case Reject():
                self._rejected(message, now)

    def wake(self, now: float) -> None:
        """Begin a round if it is time, give one up that took too long."""
        if self._round is not None and now >= self._round.until:
            self._give_up(now)
        if now >= self.deadline:
            self._propose(now)

    @property
    def deadline(self) -> float:
        """When `wake` is next wanted [s]; inf while a majority of seats is not in sight."""
        if self._cluster is not None or self._seat is None:
            return inf
        if self._round is not None:
            return self._round.until
        return max(self._not_before, self._due())

    def take(self) -> FoundingEffects:
        """Hand over what is to be done, and forget it."""
        effects = FoundingEffects(
            self._state if self._dirty else None,
            tuple(self._outbox),
            self._cluster if self._founded else None,
            tuple(self._notes),
        )
        self._dirty = self._founded = False
        self._outbox = []
        self._notes = []
        return effects

    # The acceptor.

    def _vote(self, message: Prepare | Accept, sender: Address, now: float) -> None:
        ballot = message.ballot
        if self._seats[ballot.seat : ballot.seat + 1] != (sender,):
            return
        if self._cluster is not None:
            if self._cluster.voters:
                self._send(sender, Chosen(self._cluster))
            return
        self._highest = max(self._highest, ballot)
        if ballot < self._state.promised:
            self._send(sender, Reject(ballot, self._digest, self._state.promised))
            return
        # Another's round is under way: let it end before ours begins.
        self._not_before = max(self._not_before, now + self._patience())
        if self._round is not None and self._round.ballot < ballot:
            self._lose()
        if isinstance(message, Prepare):
            self._promise(ballot)
            state = self._state
            self._send(sender, Promise(ballot, self._digest, state.accepted, state.value))
        elif ballot == self._state.accepted and message.value != self._state.value:
            # A proposer that lost its disk counts anew; a higher ballot will tell it what was.
            self._send(sender, Reject(ballot, self._digest, ballot))
        elif _is_sound(message.value):
            self._accept(ballot, message.value)
            self._send(sender, Accepted(ballot, self._digest))

    def _promise(self, ballot: Ballot) -> None:
        """Invariant: what is promised only rises (Lamport §2.2, P1a)."""
        assert ballot >= self._state.promised
        if ballot != self._state.promised:
            self._state = msgspec.structs.replace(self._state, promised=ballot)
            self._dirty = True

    def _accept(self, ballot: Ballot, value: Cluster) -> None:
        assert ballot >= self._state.promised
        if ballot == self._state.accepted:
            assert value == self._state.value  # One proposer, one value per ballot.
            return
        self._state = FoundingState(self._seats, ballot, ballot, value)
        self._dirty = True

    # The proposer.

    def _due(self) -> float:
        """When politeness lets us propose [s]."""
        assert self._seat is not None
        rank = sum(seat < self._seat for seat in self._seen)
        return self._majority_since + self._settings.quiet + RANK_DELAY * rank

    def _propose(self, now: float) -> None:
        assert self._seat is not None
        ballot = Ballot(self._highest.counter + 1, self._seats.index(self._seat))
        self._highest = ballot
        self._promise(ballot)
        own = (self._state.accepted, self._state.value)
        self._round = _Round(ballot, now + self._patience(), {self._seat: own})
        self._notes.append(RoundStarted(ballot))
        self._broadcast(Prepare(ballot, self._seats))
        self._ask_acceptance()

    def _promised(self, message: Promise, sender: Address) -> None:
        round = self._round
        if round is None or round.ballot != message.ballot or round.value is not None:
            return
        if (message.accepted == _NONE) != (message.value is None):
            return
        round.promises[sender] = (message.accepted, message.value)
        self._ask_acceptance()

    def _ask_acceptance(self) -> None:
        """With a majority's promises, propose what may be chosen already, else a new cluster."""
        round = self._round
        assert round is not None
        if len(round.promises) < self._majority:
            return
        _, value = max(round.promises.values(), key=lambda promise: promise[0])
        round.value = self._new_cluster(round) if value is None else value
        self._accept(round.ballot, round.value)
        self._broadcast(Accept(round.ballot, self._digest, round.value))
        assert self._seat is not None
        self._accepted(round.ballot, self._seat)

    def _accepted(self, ballot: Ballot, sender: Address) -> None:
        round = self._round
        if round is None or round.ballot != ballot or round.value is None:
            return
        round.acceptances[sender] = None
        if len(round.acceptances) >= self._majority:
            self._end(round.value, counted=True)

    def _rejected(self, message: Reject, now: float) -> None:
        self._highest = max(self._highest, message.promised)
        if self._round is not None and self._round.ballot == message.ballot:
            self._give_up(now)

    def _give_up(self, now: float) -> None:
        self._lose()
        self._not_before = now + self._patience()

    def _lose(self) -> None:
        round, self._round = self._round, None
        assert round is not None
        self._notes.append(RoundLost(round.ballot, len(round.promises), len(round.acceptances)))

    def _new_cluster(self, round: _Round) -> Cluster:
        """Return a cluster of live nodes, those first that have just answered.

        Its id is of this ballot alone, so an id never stands for two sets of voters.
        """
        answered = [self._seen[seat] for seat in round.promises if seat in self._seen]
        seated = [self._seen[seat] for seat in self._seats if seat in self._seen]
        able = dict.fromkeys(self._eligible)
        order = [node for node in (self._me, *answered, *seated, *self._eligible) if node in able]
        chosen = tuple(dict.fromkeys(order))[: voters_for(len(able), self._settings.voters)]
        tail = xxh3(self._cluster_id + encode(round.ballot)).to_bytes(8, "big")
        return Cluster(self._cluster_id[:8] + tail, 1, tuple(sorted(chosen)), self._digest)

    # The end, and the mail.

    def _end(self, cluster: Cluster, *, counted: bool) -> None:
        if self._cluster is not None:
            return
        self._cluster = cluster
        self._round = None
        self._founded = True
        self._notes.append(FoundingEnded(cluster, counted))
        if counted:
            self._broadcast(Chosen(cluster))

    def _patience(self) -> float:
        return ROUND_PATIENCE * (1.0 + self._random.random())

    def _is_of_our_list(self, message: Any, sender: Address) -> bool:
        if not isinstance(message, Prepare):
            return bool(message.seed_digest == self._digest)
        if message.seats == self._seats:
            return True
        self._notes.append(SeatsDiffer(sender, message.seats, self._seats))
        return False

    def _broadcast(self, message: FoundingMessage) -> None:
        for seat in self._seats:
            if seat != self._seat:
                self._send(seat, message)

    def _send(self, to: Address, message: FoundingMessage) -> None:
        self._outbox.append((to, message))

    def check(self) -> None:
        """Assert all invariants."""
        state = self._state
        assert state.seats == self._seats
        assert state.accepted <= state.promised <= self._highest
        assert (state.accepted == _NONE) == (state.value is None)
        assert state.value is None or _is_sound(state.value)
        round = self._round
        if round is not None:
            assert self._cluster is None
            assert self._seat is not None
            assert round.ballot == state.promised
            assert self._seats[round.ballot.seat] == self._seat
            assert self._seat in round.promises
            assert len(round.acceptances) < self._majority
            assert (round.value is not None) == (len(round.promises) >= self._majority)
            assert round.value is None or state.accepted == round.ballot


def solo(me: NodeId, cluster_id: bytes) -> Cluster:
    """Return the founding of a node that asks nobody: for development, tests, one machine."""
    return Cluster(cluster_id, 1, (me,))


def voters_for(nodes: int, wanted: int = 0) -> int:
    """Return how many of `nodes` are to vote: 1, 3 or 5, never an even number.

    Args:
        nodes: Live nodes that may vote, from 1.
        wanted: 1, 3 or 5; 0: as many as the nodes suggest.
    """
    size = min(wanted or 5, nodes, 5)
    return size if size % 2 else max(1, size - 1)


def _is_sound(cluster: Cluster) -> bool:
    """Whether a cluster from the wire is one that a founding can have made."""
    voters = cluster.voters
    return len(voters) in (1, 3, 5) and list(voters) == sorted(set(voters)) and all(voters)
