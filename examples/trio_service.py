"""Embed in a trio service: one object, one block; leaving the block leaves the cluster.

    python examples/trio_service.py        a cluster of its own, until SIGTERM or Ctrl-C

Where it listens and whom it joins is in the environment: `MICROOS_BIND=127.0.0.1:7950`,
`MICROOS_SEEDS=127.0.0.1:7946`.
"""

import signal

import trio

import microos
from contract import Order, Receipt, charge

orders = microos.Service("orders", version="1.4.0")


@orders.rpc
async def place(order: Order) -> Receipt:
    """Charge the card and confirm the order."""
    return await microos.current_node().call(charge, order.id, order.card, order.total_cents)


async def main() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with microos.open(orders) as node:
            print(f"orders at {node.address}", flush=True)
            await anext(aiter(signals))


if __name__ == "__main__":
    trio.run(main)
