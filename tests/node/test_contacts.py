"""Only what a sender that lives has said, and once, is taken in."""

from __future__ import annotations

import random
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos.node.contacts import KEPT_MAX, RECENT, WAITING_MAX, Contacts, Verdict
from microos.types import Address, BootId
from microos.wire import Datagram

HERE = Address("10.0.0.1", 7)


class Node:
    """One start of a node: what it sends, hears and takes in."""

    def __init__(self, boot: int, seed: int = 1) -> None:
        self.boot = BootId(boot)
        self.contacts = Contacts(self.boot, random.Random(seed * 1000 + boot).randbytes)
        self.counter = 0
        self.taken: list[tuple[int, int]] = []
        """(sender, counter)"""

    def say(self, payload: bytes = b"ping", *, is_contact: bool = False) -> Datagram:
        self.counter += 1
        return Datagram(self.boot, self.counter, payload, is_contact)

    def hear(self, packet: Datagram) -> Verdict:
        verdict = self.contacts.receive(packet, HERE)
        self.contacts.check()
        self.taken += [(taken.sender, taken.counter) for taken, _ in verdict.taken]
        return verdict

    def answer(self, packet: Datagram) -> Datagram:
        """Hear a packet; return the contact it is answered with."""
        return self.say(self.hear(packet).contact, is_contact=True)


def introduce(a: Node, b: Node) -> None:
    """Let b believe a, and a believe b."""
    packet: Datagram | None = a.say()
    for receiver in (b, a, b, a):
        contact = receiver.hear(packet).contact if packet is not None else b""
        packet = receiver.say(contact, is_contact=True) if contact else None
    assert packet is None


def test_a_new_sender_is_heard_after_its_answer_and_knows_us_then() -> None:
    a, b = Node(1), Node(2)

    question = b.answer(a.say())
    assert b.taken == []
    answer = a.answer(question)
    last = b.answer(answer)
    assert b.taken == [(1, 1)]

    assert a.hear(last) == Verdict()
    a.hear(b.say())
    assert a.taken == [(2, b.counter)]


def test_what_waited_is_taken_in_order_and_once() -> None:
    a, b = Node(1), Node(2)
    packets = [a.say() for _ in range(KEPT_MAX + 2)]

    for packet in (packets[1], packets[0], packets[1], packets[2]):
        question = b.answer(packet)
    b.hear(a.answer(question))

    assert b.taken == [(1, 1), (1, 2), (1, 3)]
    assert b.hear(packets[2]).is_replay
    assert b.hear(packets[3]).taken, "it was on its way"


def test_of_a_sender_that_does_not_answer_little_is_kept() -> None:
    b = Node(2)

    for boot in range(10, 10 + 2 * WAITING_MAX):
        a = Node(boot)
        for _ in range(2 * KEPT_MAX):
            assert b.hear(a.say()).contact

    assert b.taken == []


def test_a_sender_known_is_heard_once() -> None:
    a, b = Node(1), Node(2)
    introduce(a, b)
    packet = a.say()

    assert b.hear(packet).taken
    assert b.hear(packet).is_replay


def test_a_recorded_answer_says_nothing_to_another_start() -> None:
    a, b = Node(1), Node(2)
    first = a.say()
    answer = a.answer(b.answer(first))
    again = Node(2, seed=2)

    again.hear(first)
    again.hear(answer)

    assert again.taken == []


def test_a_recording_of_one_that_lives_is_not_taken_in_with_its_answer() -> None:
    a, b = Node(1), Node(2)
    recorded = a.say()
    for _ in range(RECENT):
        a.say()

    b.hear(a.answer(b.answer(recorded)))

    assert b.taken == []
    assert b.hear(recorded).is_replay


@pytest.mark.parametrize("payload", [b"", b"x" * 23, b"\0" * 24, b"\xff" * 25])
def test_a_contact_that_is_none_is_no_matter(payload: bytes) -> None:
    a, b = Node(1), Node(2)

    assert b.hear(a.say(payload, is_contact=True)) == Verdict()


@given(st.lists(st.tuples(st.sampled_from(["say", "replay", "restart"]), st.integers(0, 500))))
def test_a_recording_is_never_taken_in_twice_nor_of_who_is_gone(
    steps: list[tuple[str, int]],
) -> None:
    """Somebody plays every node whatever it has ever heard on the wires, in any order."""
    seeds = count(2)
    nodes = [Node(1), Node(2)]
    wires: list[Datagram] = []

    def deliver(packet: Datagram, at: int) -> None:
        wires.append(packet)
        contact = nodes[at].hear(packet).contact
        if contact:
            deliver(nodes[at].say(contact, is_contact=True), 1 - at)

    for step, number in steps:
        at = number % 2
        before = [len(node.taken) for node in nodes]
        match step:
            case "say":
                deliver(nodes[at].say(), 1 - at)
                assert nodes[1 - at].taken, "what is said between the living is heard"
            case "replay" if wires:
                nodes[at].hear(wires[number % len(wires)])
            case "restart":
                seed = next(seeds)
                nodes[at] = Node(10 * seed + at, seed)
                before[at] = 0

        for node, other, heard in zip(nodes, nodes[::-1], before, strict=True):
            assert len(set(node.taken)) == len(node.taken)
            assert all(sender == other.boot for sender, _ in node.taken[heard:])


def test_a_question_for_somebody_else_is_not_answered() -> None:
    a, b, c = Node(1), Node(2), Node(3)
    question = b.answer(a.say())

    assert c.hear(question) == Verdict()
    assert a.hear(question).contact


def test_our_own_words_are_none_of_anothers() -> None:
    a = Node(1)

    assert a.hear(a.say()).is_replay
