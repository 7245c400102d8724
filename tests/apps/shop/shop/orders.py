"""What the shop's worker does."""

import humanize
from celery import shared_task


@shared_task
def total(prices: list[int]) -> str:
    """Return the sum of ``prices`` as a customer reads it."""
    return humanize.intcomma(sum(prices))


@shared_task(queue="invoices")
def invoice(order: int) -> str:
    """Return the name of an order's invoice."""
    return f"invoice-{order:05d}"


@shared_task
def catalogue() -> int:
    """Load more than fits into memory."""
    return len(bytearray(2**62))
