"""Who serves what: read locally, never over the network, never with an error.

Services are part of their node's member record, so a service cannot outlive its
node's membership, and there is nothing to deregister (Consul's orphans,
consul#1188, #9577, cannot occur). One snapshot, replaced whole when the members
change, serves all readers on any thread.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from microos import limits
from microos.codec import FOREIGN, encode
from microos.discovery.record import ServiceRecord, decode_record
from microos.errors import LimitError, RemoteProtocolError
from microos.gossip.members import Member, State
from microos.node.kernel import Kernel
from microos.node.statistics import QueueStatistics
from microos.node.watch import Boards, Watch
from microos.types import Address


class Instance(msgspec.Struct, frozen=True):
    """One running copy of a service."""

    service: str
    version: str
    node: str
    """Id of its node."""
    name: str
    """Name of its node."""
    address: str
    """HOST:PORT."""
    labels: Mapping[str, str]
    """Read-only."""
    endpoints: tuple[str, ...]
    state: str
    """`alive`, or `suspect`: still listed, picked last."""


_Snapshot = MappingProxyType[str, tuple[Instance, ...]]
_decode_schema = msgspec.json.Decoder(dict[str, Any])


class Discovery:
    """`node.discovery`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._own: dict[str, ServiceRecord] = {}
        self._records: dict[bytes, tuple[ServiceRecord, ...]] = {}
        self._snapshot: _Snapshot = MappingProxyType({})
        self._said: Mapping[str, tuple[ServiceRecord, ...]] = {}
        self._watchers: Boards[tuple[Instance, ...]] = Boards()
        self.malformed = 0
        """Records of other nodes that could not be read."""
        kernel.on_members(self._rebuild)
        kernel.add_queues(self._queues)

    # What this node serves.

    def announce(
        self,
        service: str,
        *,
        version: str = "",
        port: int = 0,
        labels: dict[str, str] | None = None,
        endpoints: tuple[str, ...] = (),
        schemas: dict[str, bytes] | None = None,
    ) -> None:
        """Make `service` known everywhere, or replace what was said of it.

        Args:
            service: 1..128 characters.
            version: For people and for picking.
            port: Where it listens, if not on the node's own port. Range 0..65535.
            labels: Small pairs of text that travel with it.
            endpoints: Names of what can be called.
            schemas: What they take and give, as JSON, by name.

        Raises:
            LimitError: Name, schema or record too long, or too many endpoints or services.
        """
        if not 0 < len(service) <= limits.SERVICE_NAME_TEXT:
            raise LimitError(
                f"expected a service name of 1..{limits.SERVICE_NAME_TEXT} characters, "
                f"found {len(service)}"
            )
        if max(len(endpoints), len(schemas or ())) > limits.ENDPOINTS_PER_SERVICE:
            raise LimitError(
                f"expected at most {limits.ENDPOINTS_PER_SERVICE} endpoints of {service!r}, "
                f"found {max(len(endpoints), len(schemas or ()))}; split the service",
                reason="count",
            )
        for name, schema in (schemas or {}).items():
            if len(schema) > limits.SCHEMA_MAX:
                raise LimitError(
                    f"expected at most {limits.SCHEMA_MAX} bytes of schema of {service}.{name}, "
                    f"found {len(schema)}; use smaller types"
                )
        record = ServiceRecord(service, version, port, labels or {}, endpoints, schemas or {})
        own = {**self._own, service: record}
        if len(own) > limits.SERVICES_PER_NODE:
            raise LimitError(
                f"expected at most {limits.SERVICES_PER_NODE} services on a node, found one more",
                reason="count",
            )
        self._publish(own)

    def withdraw(self, service: str) -> None:
        """Take back what was said of `service`; harmless if nothing was."""
        if service in self._own:
            self._publish({name: own for name, own in self._own.items() if name != service})

    def _publish(self, own: dict[str, ServiceRecord]) -> None:
        data = encode(tuple(own[name] for name in sorted(own)))
        if len(data) > limits.RECORD_MAX:
            raise LimitError(
                f"expected at most {limits.RECORD_MAX} bytes of services on a node, "
                f"found {len(data)}"
            )
        self._own = own
        self._kernel.announce(data)

    # What everybody serves.

    def instances(self, service: str) -> tuple[Instance, ...]:
        """Return the known instances of `service`, those alive first. No I/O, no error."""
        return self._snapshot.get(service, ())

    def services(self) -> tuple[str, ...]:
        """Return the names of all known services, sorted. No I/O, no error."""
        return tuple(self._snapshot)

    def endpoints(self, service: str) -> tuple[str, ...]:
        """Return all endpoint names known of `service`, sorted. No I/O, no error."""
        return tuple(sorted({name for i in self.instances(service) for name in i.endpoints}))

    def schema(self, service: str, endpoint: str) -> dict[str, Any] | None:
        """Return what an endpoint takes and gives, or None if nobody says. No I/O, no error.

        Of several instances the first that says it, in the order of `instances`. The
        keys are `arguments` and `returns`, two JSON schemas, and their common `$defs`.

        Cost: It is decoded at each call, at most `limits.SCHEMA_MAX` bytes.
        """
        for record in self._said.get(service, ()):
            if endpoint in record.schemas:
                try:
                    return _decode_schema.decode(record.schemas[endpoint])
                except FOREIGN:
                    self.malformed += 1
        return None

    def watch(self, service: str) -> Watch[tuple[Instance, ...]]:
        """Return a block that yields the instances now, then the newest at each change of them."""
        return self._watchers.watch(service, lambda: self.instances(service))

    def _rebuild(self) -> None:
        """Publish a new snapshot and tell those whose service has changed."""
        listed: dict[str, list[tuple[Instance, ServiceRecord]]] = {}
        records: dict[bytes, tuple[ServiceRecord, ...]] = {}
        for member in self._kernel.members():
            if member.state in (State.ALIVE, State.SUSPECT):
                for service in self._read(member, records):
                    listed.setdefault(service.name, []).append(
                        (_instance(member, service), service)
                    )
        self._records = records
        before = self._snapshot
        for pairs in listed.values():
            pairs.sort(key=_order)
        self._snapshot = MappingProxyType(
            {name: tuple(instance for instance, _ in listed[name]) for name in sorted(listed)}
        )
        self._said = {name: tuple(record for _, record in listed[name]) for name in listed}
        for name in self._watchers:
            if before.get(name, ()) != self._snapshot.get(name, ()):
                self._watchers.tell(name)

    def _read(
        self, member: Member, records: dict[bytes, tuple[ServiceRecord, ...]]
    ) -> tuple[ServiceRecord, ...]:
        """Return a member's services; each record is decoded once."""
        data = member.record
        if not data:
            return ()
        if data not in records:
            known = self._records.get(data)
            if known is None:
                try:
                    known = decode_record(data)
                except RemoteProtocolError:
                    self.malformed += 1
                    known = ()
            records[data] = known
        return records[data]

    def _queues(self) -> tuple[QueueStatistics, ...]:
        waiting, bound = self._watchers.waiting, len(self._watchers) * limits.WATCH_QUEUE
        return (QueueStatistics("discovery.watches", waiting, bound, "latest", 0),)


def _instance(member: Member, service: ServiceRecord) -> Instance:
    port = service.port or member.address.port
    return Instance(
        service=service.name,
        version=service.version,
        node=member.node,
        name=member.name,
        address=str(Address(member.address.host, port)),
        labels=MappingProxyType(service.labels),
        endpoints=service.endpoints,
        state=member.state.name.lower(),
    )


def _order(pair: tuple[Instance, ServiceRecord]) -> tuple[bool, str]:
    instance, _ = pair
    return (instance.state != "alive", instance.node)
