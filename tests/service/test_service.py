"""What a service is made of, and what the cluster is told of it."""

from __future__ import annotations

import msgspec
import pytest

from microos.discovery.record import decode_record
from microos.service.remote import contract_of
from microos.service.service import Service, records
from tests.service.contract import Order, Receipt


def declared(name: str = "orders") -> Service:
    service = Service(name, version="1.4.0", labels={"tier": "core"}, parallel=2)

    @service.rpc
    async def place(order: Order) -> Receipt:
        raise AssertionError

    @service.rpc(scope="orders:repair", timeout=2.0, public=True, internal=True)
    async def repair() -> None: ...

    return service


def test_flags_are_those_declared() -> None:
    place, repair = declared().endpoints

    assert (place.name, place.scope, place.timeout) == ("orders.place", None, None)
    assert not (place.idempotent or place.public or place.internal)
    assert (repair.name, repair.scope, repair.timeout) == ("orders.repair", "orders:repair", 2.0)
    assert repair.public
    assert repair.internal


def test_two_endpoints_of_one_name_are_refused() -> None:
    service = declared()

    async def place() -> None: ...

    with pytest.raises(ValueError, match=r"expected one orders\.place, found a second"):
        service.rpc(place)
    with pytest.raises(TypeError, match="expected a remote or a declared handler"):
        contract_of(place)


def test_a_function_is_declared_once() -> None:
    async def place() -> None: ...

    Service("orders").rpc(place)

    with pytest.raises(ValueError, match=r"found it as orders\.place already"):
        Service("shop").rpc(place)
    assert contract_of(place).name == "orders.place"


@pytest.mark.parametrize(
    ("name", "parallel", "why"),
    [
        ("", 1, "expected a service name of 1..128 characters"),
        ("s" * 129, 1, "expected a service name of 1..128 characters"),
        ("orders", 0, "expected parallel of at least 1, found 0"),
    ],
)
def test_nonsense_is_refused(name: str, parallel: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Service(name, parallel=parallel)


def test_labels_cannot_be_changed_from_outside() -> None:
    labels = {"tier": "core"}
    service = Service("orders", labels=labels)
    labels["tier"] = "edge"

    assert service.labels == {"tier": "core"}
    with pytest.raises(TypeError):
        service.labels["tier"] = "edge"  # type: ignore[index]


def test_the_cluster_is_told_of_all_but_the_internal_endpoints() -> None:
    service = declared()

    (record,) = records([service])

    assert (record.name, record.version, record.labels) == ("orders", "1.4.0", {"tier": "core"})
    assert record.endpoints == ("place",)
    assert record.schemas == {"place": service.endpoints[0].schema}
    assert decode_record(msgspec.msgpack.encode((record,))) == (record,)
