"""The caller's half of a contract."""

from __future__ import annotations

import datetime
import threading
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from microos.errors import RemoteProtocolError
from microos.service.remote import contract_of, remote
from microos.service.service import Service
from tests.service.contract import Order, Receipt, charge
from tests.service.nodes import Contract

orders = Service("orders")


@orders.rpc(idempotent=True, timeout=0.5)
async def place(order: Order) -> Receipt:
    return Receipt(order.id, order.total_cents)


@pytest.mark.parametrize("callee", [charge, place])
def test_both_halves_are_contracts(callee: object) -> None:
    contract: Contract = contract_of(callee)

    assert contract.idempotent
    assert contract.decode(msgspec.msgpack.encode(Receipt("o1", 3))) == Receipt("o1", 3)


def test_a_contract_has_the_name_and_the_timeout_declared() -> None:
    assert (contract_of(place).name, contract_of(place).timeout) == ("orders.place", 0.5)
    assert (contract_of(charge).name, contract_of(charge).timeout) == ("payments.charge", None)


@pytest.mark.parametrize("callee", [print, "payments.charge", None, orders])
def test_what_is_no_contract_is_told_what_would_be(callee: object) -> None:
    with pytest.raises(TypeError, match=r'pass microos\.remote\("service\.function", returns='):
        contract_of(callee)


def test_arguments_are_an_array_of_messagepack() -> None:
    body = charge.encode(("o1", Order("o1", "visa", 2), 3))

    assert msgspec.msgpack.decode(body) == [
        "o1",
        {"id": "o1", "card": "visa", "total_cents": 2},
        3,
    ]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.datetime),
        (Decimal("1.50"), Decimal),
        ({1: "one", 2: "two"}, dict[int, str]),
        ({"a": {"b"}}, dict[str, set[str]]),
        (b"\x00", bytes),
        (None, type(None)),
    ],
)
def test_what_msgspec_writes_may_travel(value: object, kind: Any) -> None:
    (back,) = msgspec.msgpack.decode(charge.encode((value,)), type=tuple[kind])

    assert back == value


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize("value", [threading.Lock(), 1j, 2**70, "\ud800", endless(), object()])
def test_what_cannot_travel_is_misuse(value: object) -> None:
    with pytest.raises(TypeError, match=r"payments\.charge: expected a value that MessagePack can"):
        charge.encode((value,))


def test_an_answer_of_another_type_breaks_the_protocol() -> None:
    with pytest.raises(RemoteProtocolError, match="expected Receipt"):
        charge.decode(msgspec.msgpack.encode({"order_id": 1}))


@pytest.mark.parametrize("name", ["charge", ".charge", "payments.", "", "p." + "c" * 128])
def test_a_name_is_a_service_and_a_function(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected a name as service\.function of at most 128"):
        remote(name, returns=int)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match="expected a timeout above 0 s, or inf"):
        remote("a.b", returns=int, timeout=timeout)


@pytest.mark.parametrize("returns", [object, Order | Receipt, threading.Thread])
def test_a_result_that_cannot_be_decoded_is_refused_when_declared(returns: Any) -> None:
    with pytest.raises(TypeError, match=r"a\.b: expected types that msgspec can tell apart"):
        remote("a.b", returns=returns)


async def test_called_without_a_node_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="expected one open node"):
        await charge("o1", "visa", 3)
