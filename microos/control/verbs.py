"""What a node answers to each verb that is one question with one answer.

Streams are in `server.py`. What a verb takes and gives is tabled in `messages.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from microos.clock import Clock
from microos.config.config import State
from microos.control.messages import (
    CallMade,
    ConfigDelete,
    ConfigGet,
    ConfigSet,
    KvDelete,
    KvGet,
    KvPut,
    Nothing,
    OfService,
    RingGone,
    RingShow,
)
from microos.control.view import NodeView
from microos.errors import NoQuorumError, RejectedError
from microos.gossip.members import Member
from microos.kv.bucket import Level
from microos.ring.epochs import Proof
from microos.ring.ring import Owner, Ring
from microos.service.remote import remote
from microos.types import NodeId


class Verbs:
    """Answers for one node.

    `all` has by name the type of a verb's arguments, and what answers it: of the arguments,
    and how long it may take [s].
    """

    def __init__(self, node: NodeView, clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self.all: dict[str, tuple[type, Callable[[Any, float], Awaitable[Any]]]] = {
            "members": (Nothing, self._members),
            "status": (Nothing, self._status),
            "services": (Nothing, self._services),
            "instances": (OfService, self._instances),
            "config.list": (Nothing, self._config_list),
            "config.get": (ConfigGet, self._config_get),
            "config.set": (ConfigSet, self._config_set),
            "config.delete": (ConfigDelete, self._config_delete),
            "call": (CallMade, self._call),
            "kv.get": (KvGet, self._kv_get),
            "kv.put": (KvPut, self._kv_put),
            "kv.delete": (KvDelete, self._kv_delete),
            "ring": (RingShow, self._ring),
            "ring.gone": (RingGone, self._ring_gone),
        }

    async def _members(self, _: Nothing, timeout: float) -> Any:
        now = self._clock.now()
        return [_member(member, now) for member in self._node.members()]

    async def _status(self, _: Nothing, timeout: float) -> Any:
        found = msgspec.to_builtins(self._node.statistics())
        endpoints = msgspec.to_builtins(self._node.router.statistics().endpoints)
        found["calls"] = {
            key: sum(each[key] for each in endpoints)
            for key in ("calls", "success", "error", "retries")
        }
        found["endpoints"] = endpoints
        try:
            found["store"] = msgspec.to_builtins(self._node.kv.statistics())
        except NoQuorumError:
            found["store"] = {}  # It has not started yet.
        return found

    async def _services(self, _: Nothing, timeout: float) -> Any:
        discovery = self._node.discovery
        return [
            {
                "service": name,
                "instances": len(discovery.instances(name)),
                "endpoints": list(discovery.endpoints(name)),
            }
            for name in discovery.services()
        ]

    async def _instances(self, ask: OfService, timeout: float) -> Any:
        instances = self._node.discovery.instances(ask.service)
        # Labels are read-only mappings, which only `dict` makes plain.
        return [msgspec.to_builtins(i, enc_hook=dict) for i in instances]

    async def _config_list(self, _: Nothing, timeout: float) -> Any:
        return list(self._node.config.paths())

    async def _config_get(self, ask: ConfigGet, timeout: float) -> Any:
        if ask.latest:
            latest = await self._node.config.read_latest(ask.path, timeout=timeout)
            return state_of(ask.path, latest)
        return state_of(ask.path, self._node.config.read(ask.path))

    async def _config_set(self, ask: ConfigSet, timeout: float) -> Any:
        version = await self._node.config.set(
            ask.path, ask.value, if_version=ask.if_version, timeout=timeout
        )
        return {"path": ask.path, "version": version}

    async def _config_delete(self, ask: ConfigDelete, timeout: float) -> Any:
        version = await self._node.config.delete(
            ask.path, if_version=ask.if_version, timeout=timeout
        )
        return {"path": ask.path, "version": version}

    async def _call(self, ask: CallMade, timeout: float) -> Any:
        untyped = remote(ask.endpoint, returns=Any, idempotent=ask.idempotent)
        return _plain(await self._node.call(untyped, *ask.arguments, timeout=timeout))

    async def _kv_get(self, ask: KvGet, timeout: float) -> Any:
        bucket = self._node.kv.bucket(ask.bucket)
        level: Level = "one" if ask.one else "quorum"
        item = await bucket.read(ask.key, consistency=level, timeout=timeout)
        return {
            "bucket": ask.bucket,
            "key": ask.key,
            "value": None if item is None else _plain(item.value),
            "version": "0" if item is None else str(item.version),
            "expires": None if item is None else item.expires,
        }

    async def _kv_put(self, ask: KvPut, timeout: float) -> Any:
        version = await self._node.kv.bucket(ask.bucket).put(
            ask.key,
            ask.value,
            ttl=ask.ttl,
            if_version=_condition(ask),
            consistency="one" if ask.one else None,
            timeout=timeout,
        )
        return {"bucket": ask.bucket, "key": ask.key, "version": str(version)}

    async def _kv_delete(self, ask: KvDelete, timeout: float) -> Any:
        version = await self._node.kv.bucket(ask.bucket).delete(
            ask.key,
            if_version=_condition(ask),
            consistency="one" if ask.one else None,
            timeout=timeout,
        )
        return {"bucket": ask.bucket, "key": ask.key, "version": str(version)}

    async def _ring(self, ask: RingShow, timeout: float) -> Any:
        names = {member.node: member.name for member in self._node.members()}
        return _ring(self._node.kv.ring(), names, with_slots=ask.slots)

    async def _ring_gone(self, ask: RingGone, timeout: float) -> Any:
        count = await self._node.kv.declare_gone(ask.node, timeout=timeout)
        return {"node": ask.node, "owners": count}


def _plain(value: Any) -> Any:
    """Return a value of the user as JSON can have it: text for keys, bytes (base64) and times."""
    return msgspec.to_builtins(value, str_keys=True)


def _condition(ask: KvPut | KvDelete) -> int | None:
    """Return the version that must be there, if any.

    Raises:
        RejectedError: One owner is to be enough as well, or it can be no version.
    """
    if ask.if_version is None:
        return None
    if ask.one:
        raise RejectedError("expected a condition or one owner, found both: a condition asks most")
    version = int(ask.if_version)
    if version >= 1 << 128:
        raise RejectedError(f"expected a version of at most 128 bits, found {version}")
    return version


def _ring(ring: Ring, names: Mapping[NodeId, str], *, with_slots: bool) -> dict[str, Any]:
    """Return the ring with names instead of ids. Cost: O(slots)."""
    boots = {member.owner: member for member in ring.members}
    first = Counter(row[0] for chain in ring.chains for row in chain[:1])

    def name(owner: Owner) -> str:
        return names.get(owner.node, owner.node)

    found: dict[str, Any] = {
        "epoch": ring.number,
        "revision": ring.revision,
        "paused": ring.paused,
        "joint": sum(len(chain) == 2 for chain in ring.chains),
        "members": [
            {
                "name": name(owner),
                "weight": member.weight,
                "zone": member.zone,
                "first": first[owner],
                "copies": len(ring.slots_of(owner)),
                "node": owner.node,
            }
            for owner, member in boots.items()
        ],
        # Still owners of something, and no members of the newest epoch.
        "former": [
            {
                "name": name(owner),
                "copies": len(slots),
                "gone": _proof(ring.gone.get(owner)),
                "node": owner.node,
            }
            for owner, slots in ring.holdings.items()
            if owner not in boots or owner in ring.gone
        ],
    }
    if with_slots:
        found["slots"] = [
            [[name(owner) for owner in row] for row in chain] for chain in ring.chains
        ]
    return found


def _proof(found: object) -> str:
    return found.name.lower() if isinstance(found, Proof) else ""


def _member(member: Member, now: float) -> dict[str, Any]:
    return {
        "name": member.name,
        "address": str(member.address),
        "state": member.state.name.lower(),
        "seconds": round(max(0.0, now - member.since), 3),
        "incarnation": member.incarnation,
        "score": member.score,
        "node": member.node,
        "labels": member.labels,
    }


def state_of(path: str, state: State) -> dict[str, Any]:
    """Return what is at a path of the config, as it is said."""
    return {
        "path": path,
        "value": state.value,
        "version": state.version,
        "revision": state.revision,
    }
