"""Celery as it comes, for a cluster that drills compare with the kit's own: it loses tasks.

Early acknowledgements, no confirms, no `mandatory`, Celery's own task class, consumer, producer and result
backend. What finds the cluster stays (addresses, passwords, queue names), and so does the record of what ran.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.defaults import DEFAULTS

from clusterkit.runtime import results

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clusterkit.runtime.clusterfile import ClusterFile

#: Names of the exchange and of what carries the message: without them nothing would reach the queues.
_WAY_TO_THE_QUEUES = {"task_default_exchange", "task_default_exchange_type"}


def undo(app: Celery, cluster: ClusterFile, changed: Iterable[str]) -> None:
    """Give ``app`` Celery's own classes and its defaults for the settings ``changed``."""
    app.task_cls, app.amqp_cls, app.control_cls = Celery.task_cls, Celery.amqp_cls, Celery.control_cls
    app.conf.update(
        {name: DEFAULTS[name] for name in changed if name in DEFAULTS and name not in _WAY_TO_THE_QUEUES}
    )
    app.conf.update(
        broker_transport_options={},
        broker_failover_strategy=DEFAULTS["broker_failover_strategy"],
        clusterkit_publish_deadline=None,
        **_results(cluster),
    )


def _results(cluster: ClusterFile) -> dict[str, Any]:
    urls = cluster.result_url
    settings: dict[str, Any] = {"result_backend": urls}
    if cluster.ca_file:
        settings["redis_backend_use_ssl"] = {
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_ca_certs": cluster.ca_file,
        }
    if cluster.result_master:
        login = results.places(cluster)[0]
        settings["result_backend_transport_options"] = {
            "master_name": cluster.result_master,
            "sentinel_kwargs": {
                "username": login.username,
                "password": login.password,
                **(
                    {"ssl": True, "ssl_cert_reqs": "required", "ssl_ca_certs": cluster.ca_file}
                    if cluster.ca_file
                    else {}
                ),
            },
        }
    return settings
