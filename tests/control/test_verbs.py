"""What a node answers to the verbs on calls, store and ring, on a network in memory."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from microos.control.messages import Answer, Failure, Request
from microos.ring.ring import SLOTS
from tests.control.test_server import Place

BIG = 1 << 100


@pytest.fixture
def place() -> Place:
    return Place()


async def test_a_call_is_routed_with_the_arguments_and_the_time_of_its_request(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers() as [talker]:
        arguments = ["o-1", {"count": 2}, None]
        answer = await talker.ask("call", endpoint="orders.place", arguments=arguments)
        again = await talker.ask("call", endpoint="orders.place", idempotent=True)

        assert (answer, again) == (Answer(1, arguments), Answer(1, []))
        assert place.node.calls == [
            ("orders.place", False, tuple(arguments), 2.0),
            ("orders.place", True, (), 2.0),
        ]


async def test_a_result_comes_as_json_can_have_it(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [talker]:
        answer = await talker.ask("call", endpoint="orders.odd")

        assert answer == Answer(1, {"1": "eA==", "when": "2026-01-01T00:00:00Z"})


async def test_what_a_handler_raised_is_a_failure_of_the_call(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers() as [talker]:
        raised = await talker.ask("call", endpoint="orders.refuse")
        unnamed = await talker.ask("call", endpoint="orders")

        assert (raised.error, raised.reason) == ("RemoteError", "handler")
        assert (unnamed.error, "service.function" in unnamed.message) == ("RejectedError", True)


async def test_a_value_goes_round_with_its_version_as_text(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers() as [talker]:
        put = await talker.ask("kv.put", bucket="carts", key="ann", value=["book"], ttl=9.0)
        got = await talker.ask("kv.get", bucket="carts", key="ann")
        absent = await talker.ask("kv.get", bucket="carts", key="bob", one=True)

        version = str(BIG + 1)
        assert put.result == {"bucket": "carts", "key": "ann", "version": version}
        assert (got.result["value"], got.result["version"]) == (["book"], version)
        assert got.result["expires"] == 9.0
        assert (absent.result["value"], absent.result["version"]) == (None, "0")
        asked = place.node.kv.buckets["carts"].asked
        assert asked == [("quorum", 2.0), ("quorum", 2.0), ("one", 2.0)]


async def test_a_condition_is_a_version_of_any_size(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers() as [talker]:
        key = {"bucket": "carts", "key": "ann"}
        first = await talker.ask("kv.put", **key, value=1, if_version="0")
        second = await talker.ask("kv.put", **key, value=2, if_version="0")
        third = await talker.ask("kv.put", **key, value=3, if_version=first.result["version"])
        gone = await talker.ask("kv.delete", **key, if_version=third.result["version"])

        assert second.error == "ConflictError"
        assert (third.result["version"], gone.result["version"]) == (str(BIG + 2), str(BIG + 3))
        assert place.node.kv.buckets["carts"].items == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"if_version": "1", "one": True}, "found both"),
        ({"if_version": "-1"}, "regex"),
        ({"if_version": "9" * 39}, "128 bits"),
        ({"ttl": 0.0}, "> 0"),
        ({"bucket": ""}, "has a name"),
    ],
)
async def test_a_write_that_makes_no_sense_is_rejected(
    autojump_clock: MockClock, place: Place, arguments: dict[str, Any], words: str
) -> None:
    async with place.talkers() as [talker]:
        failure = await talker.ask("kv.put", **{"bucket": "b", "key": "k", "value": 1, **arguments})

        assert (failure.error, words in failure.message) == ("RejectedError", True), failure


async def test_the_ring_is_told_with_names(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [talker]:
        ring = (await talker.ask("ring", slots=True)).result

        assert (ring["epoch"], ring["joint"], ring["paused"]) == (3, 1, "")
        rows = [(m["name"], m["weight"], m["first"], m["copies"]) for m in ring["members"]]
        assert rows == [("a", 2, SLOTS - 1, SLOTS), ("b", 1, 1, SLOTS)]
        dead = {"name": "d" * 32, "node": "d" * 32, "copies": 1, "gone": "left"}
        assert ring["former"] == [dead]
        assert ring["slots"][0] == [["a", "b"]]
        assert ring["slots"][-1] == [["b", "d" * 32], ["b", "a"]]


async def test_an_operator_gives_a_word(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [talker]:
        answer = await talker.ask("ring.gone", node="b")

        assert answer == Answer(1, {"node": "b", "owners": 1})
        assert place.node.kv.gone == ["b"]


async def test_status_has_calls_and_store(autojump_clock: MockClock, place: Place) -> None:
    async with place.talkers() as [talker]:
        status = (await talker.ask("status")).result

        assert status["calls"] == {"calls": 6, "success": 4, "error": 2, "retries": 8}
        assert [each["endpoint"] for each in status["endpoints"]] == ["orders.place", "stock.take"]
        assert status["store"]["ring_epoch"] == 5


@pytest.mark.parametrize(
    ("verb", "arguments", "name"),
    [
        ("call", {"endpoint": "orders.place"}, "arguments"),
        ("kv.put", {"bucket": "b", "key": "k"}, "value"),
    ],
)
async def test_values_nested_as_deep_as_python_bears_do_not_end_the_node(
    autojump_clock: MockClock, place: Place, verb: str, arguments: dict[str, Any], name: str
) -> None:
    replies = set()
    for depth in range(sys.getrecursionlimit() - 250, sys.getrecursionlimit()):
        nested = msgspec.Raw(b"\x91" * depth + b"\x90")
        async with place.talkers(2) as [hostile, talker]:
            replies.add(type(await hostile.ask(verb, **arguments, **{name: nested})))
            assert isinstance(await talker.ask("status"), Answer)

    assert replies == {Answer, Failure}


async def test_a_request_without_arguments_is_refused_by_name(
    autojump_clock: MockClock, place: Place
) -> None:
    async with place.talkers() as [talker]:
        await talker.say(Request(1, "kv.get", 2.0, {}))
        failure = await talker.hear()

        assert (failure.error, "bucket" in failure.message) == ("RejectedError", True)
