"""The first examples, with their types: what they say must pass `mypy --strict`, and run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_type, cast

import pytest

from microos.errors import RejectedError, UnavailableError, UncertainError
from microos.service.current import current_call
from microos.service.current import current_node as anywhere
from microos.service.remote import Remote, remote
from microos.service.service import Service
from tests.service import contract
from tests.service.contract import Order, Receipt
from tests.service.nodes import Node, open_now

orders = Service("orders", version="1.4.0")
payments = Service("payments", version="2.0.1")
callers: list[str] = []


def current_node() -> Node:
    """Have the type that the façade gives it."""
    return cast(Node, anywhere())


@orders.rpc
async def place(order: Order) -> Receipt:
    """Charge the card and confirm the order."""
    return await current_node().call(contract.charge, order.id, order.card, order.total_cents)


@payments.rpc(scope="payments:charge", idempotent=True, timeout=2.0)
async def charge(order_id: str, card: str, amount_cents: int) -> Receipt:
    if amount_cents <= 0:
        raise RejectedError(f"amount_cents must be positive, got {amount_cents}")
    callers.append(current_call().caller)
    return Receipt(order_id, amount_cents)


async def pay(node: Node, order_id: str, card: str, amount_cents: int) -> Receipt | None:
    try:
        return await node.call(contract.charge, order_id, card, amount_cents, timeout=1.5)
    except UnavailableError:
        return None
    except UncertainError:
        return None


async def test_an_order_is_placed_by_one_service_and_charged_by_another() -> None:
    node = Node(orders, payments)
    callers.clear()

    receipt = assert_type(await node.call(place, Order("o1", "visa", 1200)), Receipt)

    assert receipt == Receipt("o1", 1200)
    assert await pay(node, "o2", "visa", 5) == Receipt("o2", 5)
    assert callers == ["ca11e4"] * 2
    with pytest.raises(RejectedError, match="must be positive, got 0"):
        await pay(node, "o3", "visa", 0)


async def test_a_remote_and_a_handler_are_called_alike_and_type_alike() -> None:
    node = Node(payments)

    by_remote = assert_type(await node.call(contract.charge, "o1", "visa", 3), Receipt)
    by_handler = assert_type(await node.call(charge, "o1", "visa", 3), Receipt)
    with open_now(node):
        by_itself = assert_type(await contract.charge("o1", "visa", 3), Receipt)

    assert by_remote == by_handler == by_itself == Receipt("o1", 3)


async def test_a_declared_handler_is_still_the_function() -> None:
    typed: Callable[[str, str, int], Coroutine[Any, Any, Receipt]] = charge

    with pytest.raises(RejectedError):
        await typed("o1", "visa", 0)
    with pytest.raises(RejectedError):
        await charge(order_id="o1", card="visa", amount_cents=0)
    assert charge.__name__ == "charge"
    assert place.__doc__ == "Charge the card and confirm the order."


async def test_a_wrong_argument_is_an_error_to_mypy_and_to_the_callee() -> None:
    node = Node(payments)

    with pytest.raises(RejectedError, match=r"`\$\[0\]`"):
        await node.call(charge, 1, "visa", 3)  # type: ignore[arg-type]


def test_what_a_remote_returns_is_inferred() -> None:
    assert_type(remote("a.b", returns=list[Receipt]), Remote[list[Receipt]])
    assert_type(remote("a.b", returns=None), Remote[None])
    assert_type(remote("a.b", returns=Receipt | None), Remote[Any])
