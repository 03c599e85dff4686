"""Which node and which call the running code belongs to."""

from __future__ import annotations

import pytest

from microos.router.call import current_deadline
from microos.service.current import Call, answering, current_call, current_node
from tests.service.nodes import open_now

CALL = Call("a", 7.0, {}, 1, "orders.place")


def test_without_a_node_there_is_none() -> None:
    with pytest.raises(RuntimeError, match=r"found none; use it inside `async with microos\.open"):
        current_node()


def test_the_only_open_node_is_the_current_one() -> None:
    with open_now("one"):
        assert current_node() == "one"

    with pytest.raises(RuntimeError):
        current_node()


def test_of_several_open_nodes_none_is_meant() -> None:
    with open_now("one", "two"), pytest.raises(RuntimeError, match="found 2; hand the node on"):
        current_node()


def test_a_node_that_closed_leaves_the_other_alone() -> None:
    with open_now("one"):
        with open_now("two"):
            pass
        with open_now("one"):
            assert current_node() == "one"

        # Counted once, however often it was opened, and closed by the first that says so.
        with pytest.raises(RuntimeError):
            current_node()


def test_a_running_handler_decides_among_several() -> None:
    with open_now("one", "two"), answering("two", CALL):
        assert current_node() == "two"


def test_a_call_within_a_call_gives_way_to_the_outer_one() -> None:
    with answering("one", CALL):
        with answering("two", Call("b", 3.0, {}, 2, "payments.charge")):
            assert (current_node(), current_call().caller, current_deadline.get()) == (
                "two",
                "b",
                3,
            )
        assert (current_node(), current_call(), current_deadline.get()) == ("one", CALL, 7.0)

    assert current_deadline.get() is None


def test_outside_of_a_handler_there_is_no_call() -> None:
    with pytest.raises(RuntimeError, match="expected to be in a running handler"):
        current_call()


def test_what_is_told_of_a_call_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        CALL.caller = "b"  # type: ignore[misc]
