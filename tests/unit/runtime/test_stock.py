"""A cluster for comparison runs Celery as it comes; everybody else what the kit sets."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.app.defaults import DEFAULTS

from clusterkit.runtime import configure
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.drill import DRILL
from clusterkit.runtime.settings import NO_LOSS, join, weakened

#: What the app needs to reach the cluster's queues at all.
SHARED = {"task_default_exchange", "task_default_exchange_type"}


def joined(**more: Any) -> Celery:
    file = ClusterFile(
        cluster="unit",
        role="worker",
        broker_url="amqp://worker:secret@127.0.0.1:1//",
        result_url="sentinel://worker:secret@127.0.0.1:2/0",
        queues=("default",),
        default_queue="default",
        celery_app="tasks.app:app",
        result_master="results",
        **more,
    )
    return join(configure(Celery("unit", set_as_current=False)), file)


@pytest.mark.parametrize("name", sorted(NO_LOSS.keys() - SHARED))
def test_a_stock_app_has_celerys_own_default(name: str) -> None:
    wanted = {} if name == "broker_transport_options" else DEFAULTS[name]
    assert joined(stock=True).conf.get(name) == wanted


def test_a_stock_app_has_celerys_own_classes() -> None:
    app = joined(stock=True)
    classes = [type(app.amqp), type(app.control), type(app.tasks[DRILL]).__mro__[1], type(app.backend)]
    assert all(each.__module__.startswith("celery.") for each in classes), classes


def test_a_stock_app_declares_classic_queues() -> None:
    (queue,) = joined(stock=True).conf.task_queues
    assert not queue.queue_arguments


def test_any_other_app_has_the_kits_settings() -> None:
    app = joined()
    assert not weakened(app)
    assert DRILL in app.tasks
