"""The schemas of endpoints, from one node's record to any other node's reader."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from microos import limits
from microos.codec import encode
from microos.discovery.discovery import Discovery
from microos.discovery.record import ServiceRecord, decode_record
from microos.errors import LimitError, RemoteProtocolError
from microos.gossip.members import State
from microos.node.kernel import Kernel
from microos.types import Address

SCHEMA: dict[str, Any] = {"arguments": {"type": "array"}, "returns": {"type": "null"}, "$defs": {}}


class Members:
    """A kernel that knows records only: announcing makes one of node `a`."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[bytes, State]] = {}
        self.discovery = Discovery(cast(Kernel, self))

    def on_members(self, told: Any) -> None:
        self._told = told

    def add_queues(self, queues: Any) -> None: ...

    def members(self) -> list[Any]:
        at = Address("127.0.0.1", 1)
        return [
            SimpleNamespace(node=node, name=node, address=at, record=record, state=state)
            for node, (record, state) in self._records.items()
        ]

    def announce(self, record: bytes) -> None:
        self.say("a", record)

    def say(self, node: str, record: bytes, state: State = State.ALIVE) -> None:
        self._records[node] = record, state
        self._told()


def record(*, schema: bytes) -> bytes:
    return encode((ServiceRecord("shop", endpoints=("place",), schemas={"place": schema}),))


def test_a_schema_announced_can_be_read() -> None:
    members = Members()

    schemas = {"place": msgspec.json.encode(SCHEMA)}
    members.discovery.announce("shop", endpoints=("place", "other"), schemas=schemas)

    assert members.discovery.schema("shop", "place") == SCHEMA
    assert members.discovery.schema("shop", "other") is None
    assert members.discovery.schema("other", "place") is None


def test_a_reader_cannot_change_what_the_next_one_reads() -> None:
    members = Members()
    members.say("b", record(schema=msgspec.json.encode(SCHEMA)))
    first = members.discovery.schema("shop", "place")
    assert first is not None

    first["arguments"]["type"] = "spoilt"

    assert members.discovery.schema("shop", "place") == SCHEMA


def test_of_several_instances_the_first_alive_one_speaks() -> None:
    members = Members()
    members.say("b", record(schema=b'{"of":"b"}'), State.SUSPECT)
    members.say("d", record(schema=b'{"of":"d"}'))
    members.say("c", record(schema=b'{"of":"c"}'))

    assert members.discovery.schema("shop", "place") == {"of": "c"}
    members.say("c", b"", State.DEAD)
    assert members.discovery.schema("shop", "place") == {"of": "d"}


@pytest.mark.parametrize("schema", [b"", b"[1]", b"{", b"\xff", b"[" * 60_000])
def test_a_schema_that_is_none_is_counted_and_the_next_instance_asked(schema: bytes) -> None:
    members = Members()
    members.say("b", record(schema=schema))

    assert members.discovery.schema("shop", "place") is None
    assert members.discovery.malformed == 1
    members.say("c", record(schema=b"{}"))
    assert members.discovery.schema("shop", "place") == {}


def test_too_long_a_schema_and_too_many_endpoints_are_refused() -> None:
    members = Members()

    with pytest.raises(LimitError, match=r"bytes of schema of shop\.place"):
        members.discovery.announce("shop", schemas={"place": bytes(limits.SCHEMA_MAX + 1)})
    for endpoints, schemas in ((1025, 0), (0, 1025)):
        with pytest.raises(LimitError, match="expected at most 1024 endpoints of 'shop'"):
            members.discovery.announce(
                "shop",
                endpoints=tuple(map(str, range(endpoints))),
                schemas={str(number): b"{}" for number in range(schemas)},
            )
    assert members.discovery.services() == ()
    with pytest.raises(RemoteProtocolError):
        decode_record(record(schema=bytes(limits.SCHEMA_MAX + 1)))


def test_a_node_without_schemas_and_one_with_more_still_read_each_other() -> None:
    old = encode([["shop", "1", 0, {}, ["place"]]])
    new = encode([["shop", "1", 0, {}, ["place"], {"place": b"{}"}, "more"]])

    assert decode_record(old) == (ServiceRecord("shop", "1", endpoints=("place",)),)
    assert decode_record(new)[0].schemas == {"place": b"{}"}
