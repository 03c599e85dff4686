"""Nonsense from the other side: nothing but RemoteProtocolError, every invariant holds."""

from __future__ import annotations

from contextlib import suppress
from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos import limits
from microos.codec import encode
from microos.errors import RejectedError, RemoteProtocolError
from microos.rpc.core import Connection
from microos.rpc.effects import Incoming
from microos.rpc.messages import (
    FOREVER_MS,
    Answer,
    Call,
    Cancel,
    CancelReason,
    Chunk,
    Failure,
    Frame,
    Goaway,
    Load,
)

ids = st.integers(1, 6)
small = st.binary(max_size=9)
sizes = st.sampled_from([0, 0, 1, 9, 20, limits.RPC_BODY_MAX, limits.RPC_BODY_MAX + 1, 2**63 - 1])
loads = st.none() | st.just(Load(2**63 - 1, 0, 0, 255))
budgets = st.sampled_from([0, 1, 20, 5000, FOREVER_MS])
offsets = st.integers(0, 20) | st.sampled_from([limits.RPC_CHUNK, 2**63 - 1])
frames = st.one_of(
    st.builds(Call, ids, st.text(max_size=9), budgets, st.integers(0, 9), st.none(), sizes, small),
    st.builds(Answer, ids, loads, sizes, small),
    st.builds(Failure, ids, loads, st.text(max_size=9), st.text(max_size=9), st.text()),
    st.builds(Chunk, ids, st.booleans(), offsets, st.binary(min_size=1, max_size=9)),
    st.builds(Cancel, ids, st.sampled_from(CancelReason)),
    st.builds(Goaway, budgets),
)


class Victim:
    """A connection with calls of its own, whose handlers do something at times."""

    def __init__(self) -> None:
        self.core = Connection(count(1))
        self.now = 100.0

    def receive(self, body: bytes) -> None:
        self.now += 0.004
        with suppress(RemoteProtocolError):
            self.core.receive(body, self.now)
        self.core.check()

    def act(self, choice: int) -> None:
        if choice == 0 and not self.core.peer_draining:
            self.core.call("s.f", b"", deadline=self.now + 0.05, now=self.now)
        for event in self.core.take().events:
            if isinstance(event, Incoming) and choice == 1:
                self.core.answer(event.id, b"x" * 9, None)
            elif isinstance(event, Incoming) and choice == 2:
                self.core.fail(event.id, RejectedError("no"), None)
        if choice == 3:
            self.core.wake(self.now)
        self.core.check()


@pytest.mark.criterion("RPC-13")
@settings(max_examples=80)
@given(st.lists(st.tuples(frames, st.integers(0, 9)), max_size=60))
def test_well_formed_nonsense_raises_nothing_but_our_error(
    schedule: list[tuple[Frame, int]],
) -> None:
    victim = Victim()

    for frame, choice in schedule:
        victim.act(choice)
        victim.receive(encode(frame))


@pytest.mark.criterion("RPC-13")
@settings(max_examples=80)
@given(
    frame=frames,
    noise=st.binary(max_size=60),
    places=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
    end=st.integers(0, 100),
)
def test_damaged_and_arbitrary_bytes_raise_nothing_but_our_error(
    frame: Frame, noise: bytes, places: list[tuple[int, int]], end: int
) -> None:
    victim = Victim()
    victim.act(0)
    damaged = bytearray(encode(frame))
    for place, byte in places:
        damaged[place % len(damaged)] = byte

    for body in (bytes(damaged), bytes(damaged[:end]), noise, bytes(damaged) + noise):
        victim.receive(body)
        victim.act(1)


@pytest.mark.criterion("RPC-13")
@settings(max_examples=60)
@given(frame=frames, place=st.integers(0, 7), value=st.integers() | st.text() | small | st.none())
def test_fields_of_any_type_raise_nothing_but_our_error(
    frame: Frame, place: int, value: object
) -> None:
    victim = Victim()
    victim.act(0)
    fields = msgspec.to_builtins(frame, builtin_types=(bytes,))
    fields[place % len(fields)] = value

    with suppress(OverflowError):  # MessagePack has no such integer: nobody can send it.
        victim.receive(encode(fields))
    victim.act(2)


def test_a_flood_of_beginnings_is_bounded() -> None:
    victim = Victim()
    piece = b"x" * limits.RPC_CHUNK

    for id in range(1, 2 * limits.RPC_CALLS_MAX):
        victim.core.receive(
            encode(Call(id, "f", 9999, 1, None, limits.RPC_BODY_MAX, b"")), victim.now
        )
        victim.core.receive(encode(Chunk(id, True, 0, piece)), victim.now)

    victim.core.check()
    statistics = victim.core.statistics()
    assert statistics.arriving_bytes <= limits.RPC_ARRIVING_MAX
    assert statistics.running <= limits.RPC_CALLS_MAX
