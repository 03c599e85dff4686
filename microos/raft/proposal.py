"""What becomes of what is asked of a member: outcomes are values, never exceptions.

propose ─┬─ leader ───▶ Proposed │ Dropped
         └─ other ────▶ Forwarded (in portions) │ Dropped
change ─── leader ───▶ Proposed │ Dropped │ Refused
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import msgspec

from microos.raft.messages import ENTRIES_MAX
from microos.types import Index, NodeId, Term


class Proposed(msgspec.Struct, frozen=True, gc=False):
    """In the leader's log at `first..last`; committed if entries of `term` are applied there."""

    term: Term
    first: Index
    last: Index


class Forwarded(msgspec.Struct, frozen=True, gc=False):
    """Sent to the leader; whether it arrives nobody will say."""

    leader: NodeId


class Dropped(msgspec.Struct, frozen=True, gc=False):
    """Not taken, nothing happened; try again, at `leader` if there is one.

    `no_leader`, `not_leader`, `transfer` (`leader` is its target), `uncommitted`
    (too many bytes).
    """

    reason: str
    leader: NodeId | None


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The change is impossible now.

    `pending` (another one is not applied yet), or a word of `configuration.refusal`.
    """

    reason: str


Proposal: TypeAlias = Proposed | Forwarded | Dropped


def portions(data: Sequence[bytes], bytes_max: int) -> Iterator[tuple[bytes, ...]]:
    """Cut what is sent on into portions no larger than an append; a larger one goes alone.

    Args:
        data: At least one.
        bytes_max: Of one portion.
    """
    portion: list[bytes] = []
    size = 0
    for each in data:
        too_large = size + len(each) > bytes_max
        if portion and (too_large or len(portion) == ENTRIES_MAX):
            yield tuple(portion)
            portion, size = [], 0
        portion.append(each)
        size += len(each)
    yield tuple(portion)
