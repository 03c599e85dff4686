"""What the shop's services say to each other, as in the examples."""

from __future__ import annotations

from dataclasses import dataclass

from microos.service.remote import remote


@dataclass(frozen=True)
class Order:
    id: str
    card: str
    total_cents: int


@dataclass(frozen=True)
class Receipt:
    order_id: str
    charged_cents: int


charge = remote("payments.charge", returns=Receipt, idempotent=True)
