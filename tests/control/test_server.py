"""The node's end, on a network in memory and on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from microos import limits, wire
from microos.clock import SystemClock
from microos.codec import encode
from microos.control.messages import (
    SILENCE,
    Answer,
    Beat,
    Cancel,
    End,
    Failure,
    Item,
    Request,
    decode_reply,
)
from microos.control.server import IDLE, REQUESTS_MAX
from microos.hashing import label_hash
from microos.net.memory import MemoryNetwork, PlainRules
from microos.net.network import Stream
from microos.wire import Channel, FrameReader
from tests.control.nodes import FakeNode, serving


class Talker:
    """A client that says and hears single messages."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._reader = FrameReader()
        self._heard: list[Any] = []

    async def say(self, *messages: Request | Cancel) -> None:
        data = b"".join(wire.pack_frame(Channel.CONTROL, encode(message)) for message in messages)
        await self.stream.send_all(data)

    async def hear(self, *, beats: bool = False) -> Any:
        """Return the next message; None at the end of the connection."""
        with trio.fail_after(100.0):
            while True:
                while not self._heard:
                    data = await self.stream.receive_some(64 * limits.KIB)
                    if not data:
                        return None
                    self._heard += [decode_reply(body) for _, body in self._reader.feed(data)]
                message = self._heard.pop(0)
                if beats or not isinstance(message, Beat):
                    return message

    async def ask(self, verb: str, **arguments: Any) -> Any:
        await self.say(Request(1, verb, 2.0, arguments))
        return await self.hear()


class Place:
    """One node, and whoever dials it."""

    def __init__(self) -> None:
        self.node = FakeNode()
        self.network = MemoryNetwork(PlainRules(SystemClock(), latency=0.001))

    @asynccontextmanager
    async def talkers(self, count: int = 1) -> AsyncIterator[list[Talker]]:
        async with serving(self.node, self.network.host("node")) as address:
            client = self.network.host("client")
            streams = [await client.dial(address) for _ in range(count)]
            for stream in streams:
                await stream.send_all(wire.pack_preface(label_hash("local"), wire.FLAG_CONTROL))
            yield [Talker(stream) for stream in streams]
            for stream in streams:
                stream.abort()


@pytest.fixture
def place() -> Place:
    return Place()


async def test_a_verb_is_answered_once(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [talker]:
        assert await talker.ask("config.set", path="a", value={"b": [1]}) == Answer(
            1, {"path": "a", "version": 1}
        )
        assert await talker.ask("config.get", path="a") == Answer(
            1, {"path": "a", "value": {"b": [1]}, "version": 1, "revision": 7}
        )


@pytest.mark.parametrize(
    ("verb", "arguments", "error", "words"),
    [
        ("config.set", {"path": "a", "value": 1, "if_version": 5}, "ConflictError", "found 0"),
        ("config.get", {"path": 3}, "RejectedError", "Expected `str`, got `int` - at `$.path`"),
        ("config.get", {"path": "a", "now": 1}, "RejectedError", "unknown field"),
        ("config.get", {"path": "a" * 300}, "RejectedError", "length <= 256"),
        ("lock", {"name": "a", "ttl": -1.0}, "RejectedError", "> 0"),
        ("lock", {"name": "a", "ttl": 13.0}, "RejectedError", "ttl must not be 13"),
        ("fly", {}, "RejectedError", "expected one of members, status,"),
    ],
)
async def test_a_refusal_names_its_error(
    autojump_clock: MockClock,
    place: Place,
    verb: str,
    arguments: dict[str, Any],
    error: str,
    words: str,
) -> None:
    async with place.talkers() as [talker]:
        failure = await talker.ask(verb, **arguments)

        assert isinstance(failure, Failure)
        assert (failure.id, failure.error) == (1, error)
        assert words in failure.message


async def test_a_verb_waits_no_longer_than_its_request_says(
    autojump_clock: MockClock, place: Place
) -> None:
    place.node.config.quorum = False
    async with place.talkers() as [talker]:
        started = trio.current_time()

        failure = await talker.ask("config.set", path="a", value=1)

        assert failure.error == "NoQuorumError"
        assert trio.current_time() - started == pytest.approx(2.0, abs=0.1)


async def test_a_watch_says_the_present_then_each_change(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers(2) as [watcher, changer]:
        first = await watcher.ask("config.watch", path="a")
        await changer.ask("config.set", path="a", value=1)
        second = await watcher.hear()
        await watcher.say(Cancel(1))

        assert [first.value["version"], second.value["version"]] == [0, 1]
        assert await watcher.hear() == End(1)


async def test_a_lock_is_held_until_it_is_cancelled(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers(2) as [owner, other]:
        assert await owner.ask("lock", name="x") == Item(1, {"name": "x", "token": 1})
        taken = await other.ask("lock", name="x", wait=0.0)
        await owner.say(Cancel(1))

        assert (taken.error, taken.reason) == ("UnavailableError", "taken")
        assert await owner.hear() == End(1)
        assert (await other.ask("lock", name="x")).value["token"] == 2


async def test_the_end_of_a_connection_gives_its_locks_back(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers(2) as [owner, other]:
        await owner.ask("lock", name="x")
        owner.stream.abort()

        assert (await other.ask("lock", name="x")).value["token"] == 2


async def test_cancelling_a_wait_leaves_the_queue(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers(2) as [owner, other]:
        await owner.ask("lock", name="x")
        await other.say(Request(1, "lock", 2.0, {"name": "x"}))
        await trio.sleep(1.0)
        await other.say(Cancel(1))

        assert await other.hear() == End(1)
        assert place.node.sync.granted == 1


async def test_a_lost_lease_is_said(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [owner]:
        await owner.ask("lock", name="x")
        place.node.sync.lose("x")

        assert (await owner.hear()).error == "LeaseLostError"


async def test_a_stream_has_a_sign_of_life_well_within_the_silence(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers() as [talker]:
        await talker.ask("config.watch", path="a")
        started = trio.current_time()

        assert await talker.hear(beats=True) == Beat()
        assert trio.current_time() - started < SILENCE / 3


async def test_an_idle_connection_is_closed(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [talker]:
        started = trio.current_time()

        assert await talker.hear() is None
        assert trio.current_time() - started == pytest.approx(IDLE, abs=1.0)


async def test_a_running_stream_is_not_idle(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [talker]:
        await talker.ask("config.watch", path="a")
        await trio.sleep(3 * IDLE)
        await place.node.config.set("a", 1, if_version=None, timeout=1.0)

        assert (await talker.hear()).value["version"] == 1


async def test_connections_are_bounded_and_counted(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers(limits.CONTROL_CLIENTS + 1) as talkers:
        answers = [await talker.ask("status") for talker in talkers]
        (queue,) = place.node.server.queues()

        (refused,) = [answer for answer in answers if isinstance(answer, Failure)]

        assert (refused.id, refused.error) == (0, "OverloadedError")
        assert (queue.size, queue.bound, queue.drops) == (len(talkers) - 1, queue.bound, 1)


async def test_requests_of_one_connection_are_bounded(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers() as [talker]:
        asks = [Request(id, "config.watch", 1.0, {"path": "a"}) for id in range(1, 100)]
        await talker.say(*asks)
        heard = [await talker.hear() for _ in asks]

        assert sum(isinstance(reply, Item) for reply in heard) == REQUESTS_MAX
        assert {r.error for r in heard if isinstance(r, Failure)} == {"OverloadedError"}


async def test_a_request_id_in_use_is_refused(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [talker]:
        await talker.ask("config.watch", path="a")

        assert "not in use" in (await talker.ask("status")).message


async def test_an_answer_too_large_becomes_an_error(
    autojump_clock: MockClock, place: Place
) -> None:
    place.node.config.states = dict.fromkeys(
        (f"{n}" * 200 for n in range(10_000, 13_000)), place.node.config.read("")
    )
    async with place.talkers() as [talker]:
        assert (await talker.ask("config.list")).error == "LimitError"


@given(
    data=st.binary(max_size=200)
    | st.binary(max_size=60).map(lambda b: wire.pack_frame(6, b"x" + b))
)
@settings(max_examples=40)
def test_foreign_bytes_end_one_connection_only(data: bytes) -> None:
    async def main() -> None:
        place = Place()
        async with place.talkers(2) as [stranger, talker]:
            await stranger.stream.send_all(data)
            with trio.move_on_after(1.0):
                while (reply := await stranger.hear()) is not None:
                    assert isinstance(reply, Failure)

            assert isinstance(await talker.ask("status"), Answer)

    trio.run(main, clock=MockClock(autojump_threshold=0.0))
