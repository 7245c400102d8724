"""The shop's Celery app. It knows nothing of the kit but the line marked below."""

from celery import Celery, shared_task

from clusterkit.runtime import configure  # the one added line, with its call

app = Celery("shop", include=["shop.orders"])
app.conf.task_routes = {"shop.orders.invoice": {"queue": "invoices"}}
configure(app)


@shared_task
def ping() -> str:
    """Answer."""
    return "pong"
