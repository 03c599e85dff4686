"""The store: typed buckets; whoever changes what another changes as well uses `update`.

python examples/kv.py        a node of its own, a few carts, and it ends
"""

from dataclasses import dataclass, replace

import trio

import microos


@dataclass(frozen=True)
class Cart:
    items: tuple[str, ...] = ()


async def add(node: microos.Node, user: str, item: str) -> Cart:
    """Add an item; two tabs may do so at once and neither is lost."""
    carts = node.kv.bucket("carts", Cart, ttl=3600.0)
    return await carts.update(
        user, lambda cart: replace(cart, items=(*cart.items, item)), initial=Cart()
    )


async def main() -> None:
    async with microos.open() as node:
        await node.wait_ready()
        async with trio.open_nursery() as tabs:
            for item in ("book", "pen", "lamp"):
                tabs.start_soon(add, node, "ann", item)

        carts = node.kv.bucket("carts", Cart)
        cart = await carts.get("ann")
        assert cart is not None
        assert sorted(cart.items) == ["book", "lamp", "pen"]
        print("ann has", *cart.items)

        # A version is what a condition is about: of two writers who read the same, one is told no.
        read = await carts.read("ann")
        assert read is not None
        await carts.put("ann", Cart(), if_version=read.version)
        try:
            await carts.put("ann", Cart(("vase",)), if_version=read.version)
        except microos.ConflictError as error:
            print("too late:", error)

        await carts.delete("ann")
        assert await carts.get("ann") is None


if __name__ == "__main__":
    trio.run(main)
