"""What a node does with a call it was sent: the context of a handler, middleware, the border."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from microos import limits
from microos.errors import ConflictError, NoQuorumError, RejectedError, RemoteError
from microos.router.call import current_deadline
from microos.service.current import Call, current_call, current_node
from microos.service.debug import NodeHealth, NodeStats, debug
from microos.service.remote import contract_of, remote
from microos.service.service import Service
from microos.service.serving import HandlerCall, HandlerFailed, Middleware, Proceed
from tests.service.nodes import Node, Sent

shop = Service("shop")
seen: list[Any] = []


class Broken(Exception):
    """Cannot even be shown."""

    def __str__(self) -> str:
        raise ValueError


ERRORS: dict[str, BaseException] = {
    "value": ValueError("no such card"),
    "long": RuntimeError("x" * 100_000),
    "half": OSError("\udc80"),
    "broken": Broken(),
    "type": TypeError("inside"),
    "conflict": ConflictError("taken", reason="exists", key="k"),
    "quorum": NoQuorumError("2 of 5", retry_after=1.5),
    "remote": RemoteError("further down", id="abc"),
    "group": ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
    "exit": SystemExit(3),
}


@shop.rpc
async def echo(text: str, times: int = 2) -> str:
    seen.append((current_node(), current_call(), current_deadline.get()))
    return text * times


@shop.rpc
async def fail(how: str) -> None:
    raise ERRORS[how]


@shop.rpc
async def lie() -> int:
    return "text"  # type: ignore[return-value]


@shop.rpc
async def sleep() -> None:
    await trio.sleep_forever()


@pytest.fixture(autouse=True)
def _forget() -> None:
    seen.clear()


def sent(endpoint: str, *arguments: object, **facts: Any) -> Sent:
    return Sent(endpoint, msgspec.msgpack.encode(arguments), **facts)


# The context of a handler.


async def test_a_handler_knows_its_node_its_call_and_its_deadline() -> None:
    node, other = Node(shop), Node(shop)
    facts = {"caller": "b", "deadline": 7.5, "attempt": 2, "metadata": {"tenant": "t"}}

    body = await node.send(sent("shop.echo", "ab", **facts))
    await other.send(sent("shop.echo", "ab"))

    assert msgspec.msgpack.decode(body) == "abab"
    assert seen[0] == (node, Call("b", 7.5, {"tenant": "t"}, 2, "shop.echo"), 7.5)
    assert seen[1][0] is other


@pytest.mark.parametrize("endpoint", ["shop.echo", "shop.fail"])
async def test_after_the_handler_its_context_is_gone(endpoint: str) -> None:
    try:
        await Node(shop).send(sent(endpoint, "value"))
    except RemoteError:
        pass

    assert current_deadline.get() is None
    with pytest.raises(RuntimeError):
        current_call()
    with pytest.raises(RuntimeError):
        current_node()


async def test_concurrent_calls_each_have_their_own_context() -> None:
    service = Service("both")
    found: dict[str, str] = {}

    @service.rpc
    async def wait(name: str) -> None:
        await trio.testing.wait_all_tasks_blocked()
        found[name] = current_call().caller

    node = Node(service)
    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(node.send, sent("both.wait", name, caller=name))

    assert found == {"a": "a", "b": "b"}


async def test_bad_arguments_never_reach_the_handler() -> None:
    node = Node(shop)

    with pytest.raises(RejectedError) as caught:
        await node.send(sent("shop.echo", 1))

    assert (caught.value.reason, caught.value.facts["path"]) == ("bad_request", "$[0]")
    assert seen == node.notes == []


# The border.


@pytest.mark.parametrize("how", ["conflict", "quorum", "remote"])
async def test_an_error_of_ours_passes_as_it_is(how: str) -> None:
    node = Node(shop)

    with pytest.raises(type(ERRORS[how])) as caught:
        await node.send(sent("shop.fail", how))

    assert caught.value is ERRORS[how]
    assert node.notes == []


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("value", "builtins.ValueError", "ValueError: no such card"),
        ("type", "builtins.TypeError", "TypeError: inside"),
        ("broken", "tests.service.test_serving.Broken", "Broken: <exception str() failed>"),
        ("group", "builtins.ExceptionGroup", "ExceptionGroup: two (2 sub-exceptions)"),
        ("half", "builtins.OSError", "OSError: ?"),
    ],
)
async def test_any_other_error_gets_an_id_that_both_sides_see(
    how: str, kind: str, text: str
) -> None:
    node = Node(shop)

    with pytest.raises(RemoteError) as caught:
        await node.send(sent("shop.fail", how))

    assert str(caught.value) == f"shop.fail: the handler raised {text}"
    assert caught.value.reason == "handler"
    assert caught.value.facts == {"type": kind, "id": "000000000001"}
    assert caught.value.__cause__ is ERRORS[how]
    (note,) = node.notes
    assert isinstance(note, HandlerFailed)
    assert (note.endpoint, note.id, note.error) == ("shop.fail", "000000000001", text)
    assert "in fail" in note.traceback


async def test_two_failures_have_two_ids() -> None:
    node = Node(shop)
    ids = []

    for _ in range(2):
        with pytest.raises(RemoteError) as caught:
            await node.send(sent("shop.fail", "value"))
        ids.append(caught.value.facts["id"])

    assert ids == ["000000000001", "000000000002"]


async def test_the_traceback_leaves_only_where_it_may() -> None:
    with pytest.raises(RemoteError) as caught:
        await Node(shop, remote_traceback=True).send(sent("shop.fail", "value"))

    assert "raise ERRORS[how]" in str(caught.value.facts["traceback"])


async def test_what_is_told_of_an_error_is_bounded() -> None:
    node = Node(shop, remote_traceback=True)

    with pytest.raises(RemoteError) as caught:
        await node.send(sent("shop.fail", "long"))

    assert len(str(caught.value)) < limits.HANDLER_ERROR_TEXT + 100
    assert len(str(caught.value.facts["traceback"])) == limits.TRACEBACK_TEXT


async def test_a_result_of_another_type_is_the_callees_fault() -> None:
    node = Node(shop)

    with pytest.raises(RemoteError, match="the result is not of its declared type: Expected `int`"):
        await node.call(lie)

    assert len(node.notes) == 1


@pytest.mark.parametrize("middleware", [(), (lambda call, proceed: proceed(call),)])
async def test_cancellation_and_exit_are_not_errors(middleware: tuple[Middleware, ...]) -> None:
    node = Node(shop, middleware=middleware)

    with trio.CancelScope() as scope:
        scope.cancel()
        await node.send(sent("shop.sleep"))
    with pytest.raises(SystemExit):
        await node.send(sent("shop.fail", "exit"))

    assert scope.cancelled_caught
    assert node.notes == []


# Middleware.


def noting(name: str) -> Middleware:
    async def middleware(call: HandlerCall, proceed: Proceed) -> Any:
        seen.append(f"{name} in")
        result = await proceed(call)
        seen.append(f"{name} out")
        return result

    return middleware


@pytest.mark.criterion("RPC-4")
async def test_the_first_middleware_is_the_outermost() -> None:
    node = Node(shop, middleware=(noting("a"), noting("b")))

    await node.call(echo, "ab", 1)

    assert [*seen[:2], *seen[3:]] == ["a in", "b in", "b out", "a out"]


@pytest.mark.criterion("RPC-4")
async def test_middleware_sees_the_call_and_may_change_it() -> None:
    async def change(call: HandlerCall, proceed: Proceed) -> Any:
        assert (call.endpoint, call.arguments, call.caller) == ("shop.echo", ("ab",), "b")
        assert (call.metadata, call.deadline, call.attempt) == ({"tenant": "t"}, 9.0, 3)
        call.arguments = ("cd", 1)
        call.metadata["user"] = "u"
        call.deadline = 4.0
        return await proceed(call)

    node = Node(shop, middleware=(change,))
    metadata = {"tenant": "t"}

    body = await node.send(
        sent("shop.echo", "ab", caller="b", deadline=9.0, attempt=3, metadata=metadata)
    )

    assert msgspec.msgpack.decode(body) == "cd"
    changed = Call("b", 4.0, {"tenant": "t", "user": "u"}, 3, "shop.echo")
    assert seen == [(node, changed, 4.0)]
    assert metadata == {"tenant": "t"}


@pytest.mark.criterion("RPC-4")
async def test_middleware_may_answer_itself_refuse_and_repeat() -> None:
    async def answer(call: HandlerCall, proceed: Proceed) -> Any:
        match call.arguments[0]:
            case "cached":
                return "from cache"
            case "refused":
                raise RejectedError("not today")
            case "broken":
                raise KeyError("not there")
        await proceed(call)
        return await proceed(call)

    node = Node(shop, middleware=(answer,))

    assert await node.call(echo, "cached", 1) == "from cache"
    with pytest.raises(RejectedError, match="not today"):
        await node.call(echo, "refused", 1)
    with pytest.raises(RemoteError, match="KeyError: 'not there'"):
        await node.call(echo, "broken", 1)
    assert seen == []
    assert await node.call(echo, "ab", 1) == "ab"
    assert len(seen) == 2


async def test_the_chain_is_composed_when_the_node_opens() -> None:
    middleware = [noting("a")]
    node = Node(shop, middleware=middleware)
    middleware.clear()

    await node.call(echo, "ab", 1)

    assert seen[0] == "a in"


def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="found 'shop' twice"):
        Node(shop, Service("shop"))


# What every node answers.


async def test_a_node_answers_for_its_health_and_its_stats() -> None:
    health = [NodeHealth(ready=False, reason="no quorum")]
    stats = NodeStats(started=1.0, uptime=2.5, memory_bytes=4096, threads=3, tasks=9, calls_in=1)
    node = Node(shop, debug(lambda: health[0], lambda: stats))

    first = await node.call(remote("Debug.Health", returns=dict[str, Any]))
    health[0] = NodeHealth(ready=True)
    second = await node.call(remote("Debug.Health", returns=NodeHealth))
    told = await node.call(remote("Debug.Stats", returns=dict[str, float]))

    assert first == {"ready": False, "reason": "no quorum", "status": "passing"}
    assert second == NodeHealth(ready=True)
    assert told == {
        "started": 1.0,
        "uptime": 2.5,
        "memory_bytes": 4096,
        "threads": 3,
        "tasks": 9,
        "calls_in": 1,
        "calls_out": 0,
    }


def test_what_a_node_says_of_itself_is_not_listed() -> None:
    service = debug(lambda: NodeHealth(ready=True), lambda: NodeStats(0.0, 0.0))

    assert [each.name for each in service.endpoints] == ["Debug.Health", "Debug.Stats"]
    assert all(each.internal and each.idempotent for each in service.endpoints)


def test_the_contract_of_a_handler_is_its_endpoint() -> None:
    assert contract_of(echo) is shop.endpoints[0]
