"""This node's part in the ring: what it says of itself, and on the leader what is proposed.

    settings, leaving ─▶ user state of gossip ─▶ every member table
    member table, reports of owners ─▶ Proposer (on the leader) ─▶ Propose, Settle in the log

A node that leaves first says that it takes part no more; it goes on answering until no
slot is its own, so that everything it keeps has been pulled by others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec

from microos import limits
from microos.clock import Clock
from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError
from microos.gossip.members import Member
from microos.node.ownership import OwnershipMachine, Proposer
from microos.node.steward import STATES
from microos.ring.planner import Report, Seen, View
from microos.settings import RingSettings
from microos.types import NodeId

STATE_RING = 2
"""User state of this kind says whether and how a node takes part in the ring."""

ENDPOINT = "microos.ring.report"

decode_report: Decoder[Report] = Decoder(Report)


class Word(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of its part."""

    participate: bool
    weight: Annotated[int, msgspec.Meta(ge=1, le=limits.RING_WEIGHT_MAX)] = 1
    zone: Annotated[str, msgspec.Meta(max_length=limits.NAME_TEXT)] = ""


_decode_word: Decoder[Word] = Decoder(Word)


class Participation:
    """The ring, as this node takes part in it.

    Args:
        members: The member table.
        score: This node's own health, 0 is well.
        leads: Whether it leads the raft group.
        submit: Commits a command of the ring's machine.
        say: Publishes a user state: (kind, body).
        observe: Told what the planner notes.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        settings: RingSettings,
        machine: OwnershipMachine,
        members: Callable[[], tuple[Member, ...]],
        score: Callable[[], int],
        leads: Callable[[], bool],
        submit: Callable[[bytes], Awaitable[bytes]],
        say: Callable[[int, bytes], None],
        observe: Callable[[object], None],
    ) -> None:
        self._settings = settings
        self._members = members
        self._score = score
        self._say = say
        self._words: dict[bytes, Word | None] = {}
        self.proposer = Proposer(
            clock=clock,
            settings=settings,
            state=lambda: machine.state,
            seen=self._seen,
            leads=leads,
            submit=submit,
            observe=observe,
        )

    def begin(self) -> None:
        """Say that this node takes part, if its settings want it to."""
        settings = self._settings
        word = Word(settings.participate, settings.weight, settings.zone)
        self._say(STATE_RING, encode(word))

    def end(self) -> None:
        """Say that it takes part no more."""
        self._say(STATE_RING, encode(Word(False)))

    def takes_part(self, node: NodeId) -> bool:
        """Return whether a node says that it takes part."""
        for member in self._members():
            if member.node == node:
                word = self._word(member)
                return word is not None and word.participate
        return False

    def _seen(self) -> Seen:
        """Return the members as the planner wants them."""
        views = []
        for member in self._members():
            word = self._word(member)
            views.append(
                View(
                    member.node,
                    member.boot,
                    member.incarnation,
                    STATES[member.state],
                    member.since,
                    word is not None and word.participate,
                    word.weight if word is not None else 1,
                    word.zone if word is not None else "",
                )
            )
        return Seen(tuple(views), self._score())

    def _word(self, member: Member) -> Word | None:
        """Return what a member says; None if it has not, or nobody can read it."""
        for kind, body in member.states:
            if kind == STATE_RING:
                if body not in self._words:
                    if len(self._words) >= 4 * limits.RING_MEMBERS_MAX:
                        self._words.clear()
                    try:
                        self._words[body] = _decode_word(body)
                    except RemoteProtocolError:
                        self._words[body] = None
                return self._words[body]
        return None

    # Reports, on the leader.

    def reported(self, body: bytes, sender: NodeId) -> bytes:
        """Take in a report of an owner that came as a call.

        Raises:
            RemoteProtocolError: It is none.
        """
        report = decode_report(body)
        if report.owner.node == sender:
            self.proposer.report(report)
        return b"\xc0"
