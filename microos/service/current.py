"""Where am I: the node and the call that the running code belongs to.

    current_node()  1. the node whose handler runs here (a context variable)
                    2. the process's only open node
                    3. RuntimeError

A context variable alone is not enough: ASGI servers run lifespan and requests as
sibling tasks, so what lifespan sets is not reliably seen in requests
(Kludex/uvicorn#1151). Therefore `nodes`, the one registry of this process; nothing
but `current_node` decides by it.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import msgspec

from microos.router.call import current_deadline

nodes: dict[Any, None] = {}
"""The open nodes, oldest first. Loosely typed, because the node stands above."""


class Call(msgspec.Struct, frozen=True):
    """What a handler may know of the call it answers."""

    caller: str
    """Id of the node that calls; never taken from metadata."""

    deadline: float
    """When the caller gives up, on this node's clock [s]; `inf` if never."""

    metadata: Mapping[str, str]
    """What the caller sent along, keys in lower case."""

    attempt: int
    """1 for the first try, one more for each further one."""

    endpoint: str
    """`service.function`."""


_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
_node: ContextVar[Any] = ContextVar("current_node", default=None)


def current_call() -> Call:
    """Return the call that the running handler answers.

    Raises:
        RuntimeError: No handler runs here.
    """
    call = _call.get()
    if call is None:
        raise RuntimeError(
            "expected to be in a running handler, found no call here; "
            "hand what you need of the call to code that runs outside of its handler"
        )
    return call


def current_node() -> Any:
    """Return the node whose handler runs here, or else the process's only open node.

    Raises:
        RuntimeError: Neither; none or several nodes are open.
    """
    node = _node.get()
    if node is not None:
        return node
    open_now = tuple(nodes)
    if len(open_now) != 1:
        advice = "hand the node on" if open_now else "use it inside `async with microos.open(...)`"
        raise RuntimeError(
            f"expected one open node in this process, found {len(open_now) or 'none'}; {advice}"
        )
    return open_now[0]


def opened(node: Any) -> None:
    """Count `node` among the open ones of this process."""
    nodes[node] = None


def closed(node: Any) -> None:
    """Count `node` no longer; harmless if it is not counted."""
    nodes.pop(node, None)


class answering:
    """A block in which `node` and `call` are the current ones, its deadline that of calls made.

    A class and no generator: every call of a handler goes through it.
    """

    __slots__ = ("_at", "_by", "_on")

    def __init__(self, node: Any, call: Call) -> None:
        self._on = _node.set(node)
        self._by = _call.set(call)
        self._at = current_deadline.set(call.deadline)

    def __enter__(self) -> None:
        """Nothing is left to do: what it makes current is so from the start."""

    def __exit__(self, *_: object) -> None:
        current_deadline.reset(self._at)
        _call.reset(self._by)
        _node.reset(self._on)
