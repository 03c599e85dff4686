"""Which sealed datagrams are new: said by somebody who lives now, and not taken in before.

A window of counters tells a replay from a packet, once it is known where the sender's
counter stands. A node that has just started does not know, and somebody may play it a
recording. So a sender is believed when it has answered a question of this start; the
counter of the answer is where its window begins. What it sent just before waits, or may
still be on its way.

    a                                b
      Ping ─────────────────────────▶   who is a? keep the Ping
           ◀───────────────────────── question 17
      answer 17, question 23 ───────▶   a lives: the Ping is taken in
           ◀───────────────────────── Ack, answer 23

A contact is a datagram with the flag `wire.FLAG_CONTACT`, sealed as any, its payload 24
bytes: boot id of whom it is for, answer, question; 0 stands for none. A recorded answer
answers the question of another start. Whoever is asked answers, known or not: an answer
gives nothing away.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import msgspec

from microos.keyring import Replays
from microos.types import Address, BootId
from microos.wire import Datagram

WAITING_MAX = 64
"""Senders asked and not heard; the longest waiting makes room."""

KEPT_MAX = 4
"""Packets of each that wait for the answer."""

RECENT = 32
"""A packet sent more than so many before the answer is a recording."""

_CONTACT = struct.Struct("!QQQ")
_NUMBER = struct.Struct("!Q")

Packet = tuple[Datagram, Address]


class Waiting(msgspec.Struct):
    """A sender that was asked."""

    question: int
    packets: dict[int, Packet]
    """By counter."""


class Verdict(msgspec.Struct, frozen=True):
    """What is to be done about one packet."""

    taken: Sequence[Packet] = ()
    """To be taken in now, in order of their counters."""
    contact: bytes = b""
    """To be sent back as a contact, if there is anything."""
    is_replay: bool = False


class Contacts:
    """Who has shown in our own start that it lives, and what it has said since.

    Args:
        me: Our own start.
        entropy: Returns n bytes of chance.
    """

    def __init__(self, me: BootId, entropy: Callable[[int], bytes]) -> None:
        self._me = me
        self._entropy = entropy
        self._replays = Replays()
        self._waiting: dict[BootId, Waiting] = {}

    def receive(self, packet: Datagram, source: Address) -> Verdict:
        """Judge one authentic packet."""
        known = self._replays.knows(packet.sender)
        if packet.sender == self._me or (
            known and not self._replays.is_new(packet.sender, packet.counter)
        ):
            return Verdict(is_replay=True)
        if packet.is_contact:
            return self._contact(packet)
        if known:
            return Verdict(((packet, source),))
        waiting = self._ask(packet.sender)
        if len(waiting.packets) < KEPT_MAX:
            waiting.packets[packet.counter] = (packet, source)
        return Verdict(contact=_CONTACT.pack(packet.sender, 0, waiting.question))

    def _contact(self, packet: Datagram) -> Verdict:
        if len(packet.payload) != _CONTACT.size:
            return Verdict()
        addressee, answer, question = _CONTACT.unpack(packet.payload)
        if addressee != self._me:
            return Verdict()
        taken = self._believe(packet, answer)
        if not question:
            return Verdict(taken)
        # Ask in the same breath, so that both know each other after three packets.
        known = self._replays.knows(packet.sender)
        ours = 0 if known else self._ask(packet.sender).question
        return Verdict(taken, _CONTACT.pack(packet.sender, question, ours))

    def _believe(self, packet: Datagram, answer: int) -> Sequence[Packet]:
        """Believe the sender if it answers our question; return what has waited for that."""
        waiting = self._waiting.get(packet.sender)
        if waiting is None or answer != waiting.question:
            return ()
        del self._waiting[packet.sender]
        self._replays.begin(packet.sender, packet.counter, RECENT)
        kept = sorted(waiting.packets.items())
        return tuple(each for counter, each in kept if self._replays.is_new(packet.sender, counter))

    def _ask(self, sender: BootId) -> Waiting:
        waiting = self._waiting.get(sender)
        if waiting is None:
            if len(self._waiting) >= WAITING_MAX:
                del self._waiting[next(iter(self._waiting))]
            (question,) = _NUMBER.unpack(self._entropy(_NUMBER.size))
            waiting = self._waiting[sender] = Waiting(question | 1, {})
        return waiting

    def check(self) -> None:
        """Assert all invariants."""
        self._replays.check()
        assert len(self._waiting) <= WAITING_MAX
        for sender, waiting in self._waiting.items():
            assert len(waiting.packets) <= KEPT_MAX
            assert not self._replays.knows(sender)
