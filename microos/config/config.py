"""What the cluster agrees on, live: documents in the log, read locally on every node.

A path names a document and a place in it: `orders.limits.per_minute` is the place
`limits.per_minute` of the document `orders`. Reading is local and free. Changing
goes through the log, exactly once; a change of one place leaves the others alone,
so two nodes that change different places of one document lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec

from microos import limits
from microos.codec import encode
from microos.config.machine import ConfigMachine
from microos.config.messages import Changed, Delete, Patch, Put, Written, decode_answer
from microos.errors import ConflictError, LimitError, RejectedError, by_name
from microos.hlc import HybridClock
from microos.node.kernel import Kernel
from microos.node.statistics import QueueStatistics
from microos.node.watch import Boards, Watch
from microos.raft.composite import Restored
from microos.raft.machine import Refused

T = TypeVar("T")

TIMEOUT = 5.0
"""Longest wait for a change by default [s]."""

UPDATE_TRIES = 64
"""How often `update` begins anew when others change the value meanwhile."""


class State(msgspec.Struct, frozen=True):
    """One document, as this node has applied it."""

    value: Any
    """Plain data; None where there is nothing."""
    version: int
    """Counts the changes of the document; 0 where there never was one."""
    revision: int
    """Where in the log the last change was made."""


class Config:
    """`node.config`."""

    def __init__(self, kernel: Kernel, machine: ConfigMachine) -> None:
        self._kernel = kernel
        self._machine = machine
        self._hlc = HybridClock()
        self._watchers: Boards[State] = Boards()
        kernel.register(machine, self._told)
        kernel.add_queues(self._queues)

    def get(self, path: str, *, namespace: str = "default") -> Any:
        """Return the plain value at `path` as this node knows it; None if there is none. No I/O."""
        return self.read(path, namespace=namespace).value

    def read(self, path: str, *, namespace: str = "default") -> State:
        """Return value, version and revision at `path` as this node knows them. No I/O."""
        name, *places = _parse(path)
        document = self._machine.get(namespace, name)
        if document is None:
            return State(None, self._machine.version_of(namespace, name), 0)
        value: Any = msgspec.msgpack.decode(document.document)
        for place in places:
            value = value.get(place) if isinstance(value, dict) else None
        return State(value, document.version, document.revision)

    async def read_latest(
        self, path: str, *, namespace: str = "default", timeout: float = TIMEOUT
    ) -> State:
        """Return the state at `path` including every change acknowledged before the call.

        Raises:
            NoQuorumError: A majority did not confirm in time.
        """
        await self._kernel.barrier(timeout=timeout)
        return self.read(path, namespace=namespace)

    def paths(self, *, namespace: str = "default") -> tuple[str, ...]:
        """Return the names of all documents, sorted. No I/O."""
        return self._machine.names(namespace)

    async def set(
        self,
        path: str,
        value: Any,
        *,
        if_version: int | None = None,
        namespace: str = "default",
        timeout: float = TIMEOUT,
    ) -> int:
        """Set the value at `path`; return the document's new version.

        Args:
            path: Document name, or document name and places, joined by dots.
            value: Anything MessagePack can say; a dataclass or Struct becomes a map.
            if_version: The document's version this change is based on; 0: not there yet.
            timeout: Longest wait for the change to be committed [s].

        Raises:
            ConflictError: The document has another version (`version`).
            LimitError: The document would grow beyond its limit.
            NoQuorumError, UncertainError, OverloadedError: As for every command.
        """
        name, *places = _parse(path)
        data = encode(msgspec.to_builtins(value, builtin_types=(bytes,)))
        hlc = self._stamp()
        if places:
            return await self._change(
                Patch(namespace, name, tuple(places), data, if_version, self._author, hlc), timeout
            )
        return await self._change(
            Put(namespace, name, data, if_version, self._author, hlc), timeout
        )

    async def delete(
        self,
        path: str,
        *,
        if_version: int | None = None,
        namespace: str = "default",
        timeout: float = TIMEOUT,
    ) -> int:
        """Delete what is at `path`, a document or a place in it; errors as `set`."""
        name, *places = _parse(path)
        return await self._change(
            Delete(namespace, name, tuple(places), if_version, self._author, self._stamp()), timeout
        )

    def watch(self, path: str, *, namespace: str = "default") -> Watch[State]:
        """Return a block that yields the state at `path` now, then the newest at each change.

        A document that is deleted yields a state whose value is None.
        """
        key = f"{namespace}/{_parse(path)[0]}"
        return self._watchers.watch(key, lambda: self.read(path, namespace=namespace))

    def value(self, path: str, of: type[T], *, namespace: str = "default") -> Value[T]:
        """Return a typed handle on `path`. Costs nothing, reaches for nothing."""
        _parse(path)
        return Value(self, path, of, namespace)

    @property
    def _author(self) -> str:
        return self._kernel.node

    def _stamp(self) -> int:
        return self._hlc.tick(self._kernel.runtime.clock.wall())

    async def _change(self, command: Put | Patch | Delete, timeout: float) -> int:
        data = await self._kernel.submit(self._machine.number, encode(command), timeout=timeout)
        match decode_answer(data):
            case Written(version):
                return version
            case Refused(kind, reason, message):
                raise by_name(kind, message, reason)
            case other:
                raise AssertionError(f"expected an answer to a change, found {other!r}")

    def _told(self, event: object) -> None:
        match event:
            case Changed():
                self._watchers.tell(f"{event.namespace}/{event.name}")
            case Restored():
                for key in self._watchers:
                    self._watchers.tell(key)

    def _queues(self) -> tuple[QueueStatistics, ...]:
        waiting, bound = self._watchers.waiting, len(self._watchers) * limits.WATCH_QUEUE
        return (QueueStatistics("config.watches", waiting, bound, "latest", 0),)


class Value(Generic[T]):
    """One value of a declared type: `current` is free, changes are a stream."""

    def __init__(self, config: Config, path: str, of: type[T], namespace: str) -> None:
        self._config = config
        self._path = path
        self._of = of
        self._namespace = namespace

    @property
    def current(self) -> T:
        """The value as this node knows it; the type's defaults where nothing is set.

        Raises:
            RejectedError: What is stored does not fit the type, or the type has no defaults.
        """
        return self._typed(self._config.read(self._path, namespace=self._namespace))

    @property
    def version(self) -> int:
        """Count of the document's changes as this node knows it."""
        return self._config.read(self._path, namespace=self._namespace).version

    async def set(
        self, value: T, *, if_version: int | None = None, timeout: float = TIMEOUT
    ) -> int:
        """Set the value; return the document's new version. Errors as `Config.set`."""
        return await self._config.set(
            self._path, value, if_version=if_version, namespace=self._namespace, timeout=timeout
        )

    async def update(self, change: Callable[[T], T], *, timeout: float = TIMEOUT) -> T:
        """Replace the value by `change` of it, begun anew when somebody else was faster.

        Raises:
            ConflictError: Others were faster 64 times in a row.
            NoQuorumError, UncertainError, OverloadedError: As for every command.
        """
        for _ in range(UPDATE_TRIES):
            state = await self._config.read_latest(
                self._path, namespace=self._namespace, timeout=timeout
            )
            value = change(self._typed(state))
            try:
                await self.set(value, if_version=state.version, timeout=timeout)
            except ConflictError:
                continue
            return value
        raise ConflictError(
            f"{self._path!r} was changed by others {UPDATE_TRIES} times during one update; "
            "hold a lock around it"
        )

    def watch(self) -> ValueWatch[T]:
        """Return a block that yields the value now, then the newest at each change."""
        return ValueWatch(self, self._config.watch(self._path, namespace=self._namespace))

    def _typed(self, state: State) -> T:
        found = {} if state.value is None else state.value
        try:
            return msgspec.convert(found, self._of)
        except msgspec.ValidationError as error:
            raise RejectedError(
                f"expected {self._of.__name__} at {self._path!r}, found {error}; "
                "set a value that fits, or give the type defaults"
            ) from error


class ValueWatch(Generic[T]):
    """The states of a `Value`: `async with` it, then `async for` the values."""

    def __init__(self, value: Value[T], states: Watch[State]) -> None:
        self._value = value
        self._states = states

    async def __aenter__(self) -> ValueWatch[T]:
        await self._states.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._states.__aexit__(kind, error, traceback)

    def __aiter__(self) -> ValueWatch[T]:
        return self

    async def __anext__(self) -> T:
        return self._value._typed(await self._states.__anext__())


def _parse(path: str) -> list[str]:
    """Return the document's name and the places in it.

    Raises:
        LimitError: Too long, or a part is empty.
    """
    parts = path.split(".")
    if not all(parts) or len(path) > limits.CONFIG_PATH_TEXT:
        raise LimitError(
            f"expected a path like `orders.limits` of at most {limits.CONFIG_PATH_TEXT} "
            f"characters and without empty parts, found {path!r}"
        )
    return parts
