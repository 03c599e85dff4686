"""What members of a raft group say to each other.

Each message is a MessagePack array `[kind, term, ...]`. The term is the sender's,
but in a `PreVote` and its grant it is the term asked for. Sender and receiver are
those of the link. No message carries the data of a snapshot: that travels beside.

| kind | message | from, to |
|---|---|---|
| 1, 2 | `PreVote`, `PreVoteAnswer` | pre-candidate, voters |
| 3, 4 | `Vote`, `VoteAnswer` | candidate, voters |
| 5, 6 | `Append`, `AppendAnswer` | leader, everyone |
| 7, 8 | `Heartbeat`, `HeartbeatAnswer` | leader, everyone |
| 9 | `Snapshot` | leader, who is too far behind |
| 10 | `TimeoutNow` | leader, target of a transfer |
| 11 | `TransferLeader` | anyone, leader |
| 12 | `Propose` | anyone, leader |
| 13, 14 | `ReadIndex`, `ReadIndexAnswer` | anyone, leader |

Source: Ongaro, dissertation, §3, §3.10, §6.4, §9.6; etcd-io/raft, raftpb.
"""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from microos import limits
from microos.codec import Decoder
from microos.errors import RemoteProtocolError
from microos.raft.entry import Entry, Kind, SnapshotMark, decode_configuration
from microos.types import Index, NodeId, Term

ENTRIES_MAX = 65_536
"""Entries, or proposals, in one message. What we send is bounded by the settings."""

Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
AnyTerm = Annotated[Term, Meta(ge=0, le=(1 << 62) - 1)]
AnyIndex = Annotated[Index, Meta(ge=0, le=(1 << 62) - 1)]
AnyNode = Annotated[NodeId, Meta(min_length=1, max_length=limits.NAME_TEXT)]


class PreVote(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Would you vote for me in this term? Changes nothing at anyone (dissertation §9.6)."""

    term: AnyTerm
    """The term asked for."""
    last_index: AnyIndex
    last_term: AnyTerm
    commit: AnyIndex = Index(0)
    """Known committed, so that who cannot stand for want of news learns of it."""
    commit_term: AnyTerm = Term(0)
    """Term of the entry at `commit`."""


class PreVoteAnswer(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A grant echoes the term asked for; a refusal carries the own term."""

    term: AnyTerm
    granted: bool
    commit: AnyIndex = Index(0)
    commit_term: AnyTerm = Term(0)


class Vote(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Vote for me in this term (RequestVote, §3.4)."""

    term: AnyTerm
    last_index: AnyIndex
    last_term: AnyTerm
    commit: AnyIndex = Index(0)
    commit_term: AnyTerm = Term(0)
    force: bool = False
    """The leader itself asked for this election: a lease does not stand against it."""


class VoteAnswer(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Yes or no. Leaves when the vote is durable."""

    term: AnyTerm
    granted: bool
    commit: AnyIndex = Index(0)
    commit_term: AnyTerm = Term(0)


class Append(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Entries that follow the previous one (AppendEntries, §3.5)."""

    term: AnyTerm
    previous_index: AnyIndex
    previous_term: AnyTerm
    commit: AnyIndex
    entries: Annotated[tuple[Entry, ...], Meta(max_length=ENTRIES_MAX)]


class AppendAnswer(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Durable up to `index`; or, rejected, that the entry at `index` is not the leader's."""

    term: AnyTerm
    index: AnyIndex
    reject: bool = False
    hint_index: AnyIndex = Index(0)
    """Where to try next."""
    hint_term: AnyTerm = Term(0)
    """Term of the entry at `hint_index`; 0: unknown."""


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """I lead; answer with the round."""

    term: AnyTerm
    commit: AnyIndex
    """At most what the receiver has acknowledged."""
    round: Number
    """Newest read round."""


class HeartbeatAnswer(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """You lead, as of that round."""

    term: AnyTerm
    round: Number


class Snapshot(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """The log before `mark` is gone; its data travels beside and has arrived in whole."""

    term: AnyTerm
    mark: SnapshotMark


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """You have everything: stand for election now (§3.10)."""

    term: AnyTerm


class TransferLeader(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """Hand your leadership to that voter."""

    term: AnyTerm
    to: AnyNode


class Propose(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """Append these commands. Forwarded once, never again, never answered."""

    term: AnyTerm
    data: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=ENTRIES_MAX)]


class ReadIndex(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """Up to where must I have applied to read what is newest now (§6.4)?"""

    term: AnyTerm
    context: Number


class ReadIndexAnswer(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """Up to `index`."""

    term: AnyTerm
    context: Number
    index: AnyIndex


Message: TypeAlias = (
    PreVote
    | PreVoteAnswer
    | Vote
    | VoteAnswer
    | Append
    | AppendAnswer
    | Heartbeat
    | HeartbeatAnswer
    | Snapshot
    | TimeoutNow
    | TransferLeader
    | Propose
    | ReadIndex
    | ReadIndexAnswer
)


class MessageDecoder(Decoder[Message]):
    """Reads one message, and refuses what no honest member would send."""

    def __init__(self) -> None:
        super().__init__(Message)
        self._name = "a raft message"

    def __call__(self, data: bytes | memoryview) -> Message:
        """Return the message in `data`; the core may rely on its form.

        Raises:
            RemoteProtocolError: Not a message; entries with gaps, falling or future
                terms, or an unreadable configuration; a commit or a mark without a term.
        """
        message = super().__call__(data)
        if isinstance(message, Append):
            _check_append(message)
        elif isinstance(message, Snapshot):
            _check_mark(message)
        return message


def _check_append(message: Append) -> None:
    index, term, time = message.previous_index, message.previous_term, 0
    if (index == 0) != (term == 0):
        raise RemoteProtocolError(
            f"expected index and term both 0 or neither, found {index}/{term}"
        )
    for entry in message.entries:
        index = Index(index + 1)
        if entry.index != index or not max(term, 1) <= entry.term <= message.term:
            raise RemoteProtocolError(
                f"expected entry {index} of a term within {term}..{message.term}, "
                f"found entry {entry.index} of term {entry.term}"
            )
        if entry.time < time:
            raise RemoteProtocolError(f"expected log time {time} or later, found {entry.time}")
        term, time = entry.term, entry.time
        if entry.kind == Kind.CONFIGURATION:
            decode_configuration(entry.data)
        elif entry.kind not in (Kind.COMMAND, Kind.EMPTY):
            raise RemoteProtocolError(f"expected an entry of kind 0..2, found {entry.kind}")


def _check_mark(message: Snapshot) -> None:
    mark = message.mark
    if mark.index < 1 or not 1 <= mark.term <= message.term or not mark.configuration.voters:
        raise RemoteProtocolError(
            f"expected a snapshot of index ≥ 1, term 1..{message.term}, with voters, found {mark}"
        )


decode_message: Decoder[Message] = MessageDecoder()
"""Bytes to message; the other way is `codec.encode`."""
