"""A small shop: three services that call each other and keep what they know in the store.

    orders.place(order) ──▶ stock.take ──▶ bucket "stock"      by update: none is sold twice
            │         └───▶ payments.charge ▶ bucket "payments"   if absent: none is charged twice
            └─ bucket "orders"   by put

    python examples/shop.py                               all of it, a cluster of its own
    python examples/shop.py --service orders --service stock --join 127.0.0.1:7946

Each service may run in any number of processes, and any of them may be killed at any time:
every endpoint does no more when it is called twice with the same order, so whoever is not
answered calls again. Everything else of a node (MICROOS_BIND, MICROOS_NAME, ...) is in the
environment. Ends in order on SIGTERM and Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

import microos


@dataclass(frozen=True)
class Order:
    id: str
    item: str
    count: int
    card: str = "4711"


@dataclass(frozen=True)
class Receipt:
    order_id: str
    charged_cents: int


@dataclass(frozen=True)
class Shelf:
    """One item: what is left of it, and who took how many."""

    left: int = 0
    price_cents: int = 0
    taken: dict[str, int] = field(default_factory=dict)


orders = microos.Service("orders", version="1.0")
payments = microos.Service("payments", version="1.0")
stock = microos.Service("stock", version="1.0")
SERVICES = {service.name: service for service in (orders, payments, stock)}


@orders.rpc(idempotent=True)
async def place(order: Order) -> Receipt:
    """Take the goods, charge the card, keep the order."""
    node = microos.current_node()
    cost_cents = await node.call(take, order.item, order.id, order.count, key=order.item)
    receipt = await node.call(charge, order.id, order.card, cost_cents)
    await node.kv.bucket("orders", Order).put(order.id, order)
    return receipt


@orders.rpc(idempotent=True)
async def find(order_id: str) -> Order | None:
    return await microos.current_node().kv.bucket("orders", Order).get(order_id)


@payments.rpc(idempotent=True)
async def charge(order_id: str, card: str, amount_cents: int) -> Receipt:
    """Charge a card once per order, however often this is called."""
    receipts = microos.current_node().kv.bucket("payments", Receipt)
    receipt = Receipt(order_id, amount_cents)
    try:
        await receipts.put(order_id, receipt, if_absent=True)
    except microos.ConflictError:
        receipt = await receipts.get(order_id) or receipt  # charged already
    return receipt


@stock.rpc(idempotent=True)
async def fill(item: str, count: int, price_cents: int) -> int:
    """Begin to sell an item; what is on sale already stays as it is. Return what is left."""
    shelves = microos.current_node().kv.bucket("stock", Shelf)
    shelf = await shelves.update(item, lambda old: old, initial=Shelf(count, price_cents))
    return shelf.left


@stock.rpc(idempotent=True)
async def take(item: str, order_id: str, count: int) -> int:
    """Take goods once per order; return what they cost [cents]."""

    def taken(shelf: Shelf) -> Shelf:
        if order_id in shelf.taken:
            return shelf
        if shelf.left < count:
            raise microos.RejectedError(f"expected {count} of {item!r}, found {shelf.left}")
        return Shelf(shelf.left - count, shelf.price_cents, {**shelf.taken, order_id: count})

    shelves = microos.current_node().kv.bucket("stock", Shelf)
    shelf = await shelves.update(item, taken, initial=Shelf())
    return count * shelf.price_cents


@stock.rpc(idempotent=True)
async def left(item: str) -> int:
    shelf = await microos.current_node().kv.bucket("stock", Shelf).get(item)
    return 0 if shelf is None else shelf.left


async def serve(names: Sequence[str], seeds: Sequence[str]) -> None:
    """Be a node that serves these until a signal comes."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with microos.open(*(SERVICES[name] for name in names), seeds=seeds) as node:
            print(f"{', '.join(names)} at {node.address}", flush=True)
            await anext(aiter(signals))


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a part of the shop, or all of it.")
    parser.add_argument("--service", action="append", choices=tuple(SERVICES), help="default: all")
    parser.add_argument("--join", default="", metavar="HOST:PORT[,...]", help="nodes to begin with")
    options = parser.parse_args()
    seeds = [seed for seed in options.join.split(",") if seed]
    trio.run(serve, options.service or list(SERVICES), seeds)


if __name__ == "__main__":
    main()
