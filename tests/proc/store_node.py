"""One node as a process of its own that does with the store what it is told on standard input.

    python store_node.py NAME BIND SEEDS [client]

Each line is a JSON array, verb first; each has one line in answer. End of input: leave in order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import trio

import microos
from microos.errors import MicroosError
from microos.kv.bucket import Bucket
from microos.settings import Settings

AT_ONCE = 32


async def main(name: str, bind: str, seeds: str, *kind: str) -> None:
    settings = Settings.load(
        name=name,
        bind=bind,
        seeds=tuple(seeds.split(",")),
        cluster="proc",
        raft={"quiet": 0.5},
        ring={"participate": "client" not in kind},
    )
    async with microos.open(settings=settings) as node:
        await node.wait_ready()
        things = node.kv.bucket("things", int)
        say({"ready": name})
        async for line in trio.wrap_file(sys.stdin):
            verb, *arguments = json.loads(line)
            match verb:
                case "put":
                    say(await each(arguments[0], partial(put, things, arguments[0])))
                case "get":
                    say(await each(arguments[0], things.get))
                case "delete":
                    say(await each(arguments[0], things.delete))
                case "owned":
                    say(node.kv.statistics().slots)


async def put(things: Bucket[int], values: dict[str, int], key: str) -> int:
    return await things.put(key, values[key])


async def each(
    keys: Iterable[str], do: Callable[[str], Coroutine[Any, Any, object]]
) -> list[object]:
    """Do the same for all keys, some at once; errors by name."""
    items = list(keys)
    found: list[object] = [None] * len(items)
    limit = trio.CapacityLimiter(AT_ONCE)

    async def one(at: int) -> None:
        async with limit:
            try:
                found[at] = await do(items[at])
            except MicroosError as error:
                found[at] = type(error).__name__

    async with trio.open_nursery() as nursery:
        for at in range(len(items)):
            nursery.start_soon(one, at)
    return found


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
