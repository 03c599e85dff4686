"""Handlers and callers: the deadline travels along, the error says what may be done next.

python examples/rpc_calls.py        serves and calls in one process, and ends
"""

import trio

import contract
import microos
from contract import Receipt

payments = microos.Service("payments", version="2.0.1")


@payments.rpc(idempotent=True, timeout=2.0)
async def charge(order_id: str, card: str, amount_cents: int) -> Receipt:
    if amount_cents <= 0:
        raise microos.RejectedError(f"amount_cents must be positive, got {amount_cents}")
    print(f"charging {order_id} for {microos.current_call().caller[:4]}…")
    return Receipt(order_id, amount_cents)


async def pay(node: microos.Node, order_id: str, card: str, amount_cents: int) -> Receipt | None:
    try:
        return await node.call(contract.charge, order_id, card, amount_cents, timeout=1.5)
    except microos.UnavailableError as error:  # nothing happened: safe to try again later
        print(f"postponed {order_id}: {error}")
    except microos.UncertainError as error:  # it may have happened: ask before charging again
        print(f"unclear {order_id}: {error}")
    except microos.RejectedError as error:  # the answer is no: trying again will not help
        print(f"refused {order_id}: {error}")
    return None


async def main() -> None:
    async with microos.open() as node:
        assert await pay(node, "o-1", "4711", 995) is None  # nobody serves payments yet
    async with microos.open(payments) as node:
        await node.wait_ready()
        # By the contract, or by the handler itself; both know that it is a Receipt.
        receipt = await node.call(charge, "o-2", "4711", 1995)
        assert await pay(node, "o-2", "4711", 1995) == receipt
        assert await pay(node, "o-3", "4711", 0) is None
        print(f"{receipt.order_id}: {receipt.charged_cents / 100:.2f}")


if __name__ == "__main__":
    trio.run(main)
