"""The settings under which no task is lost: one place for workers, scheduler, Flower and clients.

Sources: Celery's configuration reference and the defects of 5.7 named beside the work-arounds.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

from clusterkit.runtime import calls, drill, probe, resize, results, stock
from clusterkit.runtime.clusterfile import CONFIG_VARIABLE, ClusterFile
from clusterkit.runtime.queues import EXCHANGE, queues

if TYPE_CHECKING:
    from celery import Celery

#: What protects tasks, whatever the cluster. Each line says from what.
NO_LOSS: Final[dict[str, Any]] = {
    # A task's message stays with the broker until the task has ended: a killed process loses nothing.
    "task_acks_late": True,
    # A task whose pool process died runs again (at most `delivery_limit` times, then dead letters).
    "task_reject_on_worker_lost": True,
    # A task over its hard time limit is delivered again, not forgotten; again up to the limit.
    "task_acks_on_timeout": False,
    # A task that raised has run: its error is in the result store. Tasks that want the dead-letter
    # queue for their failures set acks_on_failure=False themselves.
    "task_acks_on_failure": True,
    # After a lost connection the broker delivers running tasks again: end the first run, so that
    # the same task does not run twice at once.
    "worker_cancel_long_running_tasks_on_connection_loss": True,
    # A message delivered again although its task is known to have succeeded is not run again.
    "worker_deduplicate_successful_tasks": True,
    # A misspelt queue is an error, not a new queue that nobody reads.
    "task_create_missing_queues": False,
    "task_default_exchange": EXCHANGE,
    "task_default_exchange_type": "topic",
    # Delayed tasks (ETA, countdown, retry) wait in replicated queues too.
    "broker_native_delayed_delivery_queue_type": "quorum",
    # A worker tries for ever to come back; the default gives up after 100 tries and exits.
    "broker_connection_max_retries": None,
    "broker_connection_retry_on_startup": True,
    # celery #10290, #6760: a channel closed by the broker (consumer timeout, locked control queue)
    # would end the worker; with this it reconnects.
    "broker_channel_error_retry": True,
    # The same defect at its root (kombu #2237): after a half-open drop the worker meets its own
    # stale exclusive control queue. Durable as well, for a quorum queue (clusterkit.runtime.control)
    # is nothing else. Node names must be unique: the inventory sees to that.
    "control_queue_exclusive": False,
    "control_queue_durable": True,
    # Seconds until either side notices a dead consumer connection; the default is 120.
    "broker_heartbeat": 30,
    "broker_transport_options": {
        # A publish returns when the broker has the message on disk, not when the socket took it.
        "confirm_publish": True,
        # Milliseconds unacknowledged data may wait for a peer; py-amqp's 1000 is harsh between hosts.
        "socket_settings": {socket.TCP_USER_TIMEOUT: 15_000} if hasattr(socket, "TCP_USER_TIMEOUT") else {},
    },
    # One message ahead per pool process; raised per worker node for short tasks.
    "worker_prefetch_multiplier": 1,
    # Seconds a new pool process may take to come up on a busy host; the default of 4 kills it.
    "worker_proc_alive_timeout": 30.0,
    # A result that cannot be stored now is stored later; the message is not acknowledged before.
    "result_backend_always_retry": True,
    # Nothing but JSON is read or written: no message can carry code.
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "result_accept_content": ["json"],
    # A message nobody can read goes to the dead letters: see clusterkit.runtime.consumer.
    "worker_consumer": "clusterkit.runtime.consumer:Consumer",
}

#: What is chosen for the operator, not for safety.
OPERATION: Final[dict[str, Any]] = {
    "worker_send_task_events": True,  # Flower shows tasks by their events
    "result_extended": True,  # a result tells its task's name and worker node
    "redbeat_key_prefix": "clusterkit:redbeat:",
    "beat_scheduler": "redbeat.RedBeatScheduler",
    # Seconds: a scheduler looks this often; another takes over when the lock is this old.
    "beat_max_loop_interval": 5,
    "redbeat_lock_timeout": 30,
}


def configure(app: Celery) -> Celery:
    """Give ``app`` the kit's settings and return it; call it last, after the app's own settings.

    Without ``$CLUSTERKIT_CONFIG`` (a test, a developer's shell) the broker and the result store stay
    as the app has them.

    Raises:
        NoClusterError, BadInputError: ``$CLUSTERKIT_CONFIG`` or ``$CLUSTERKIT_NODE_FILE`` names a file that
            is not there or not right.
    """
    app.task_cls = "clusterkit.runtime.task:Task"
    app.amqp_cls = "clusterkit.runtime.publish:AMQP"
    app.control_cls = "clusterkit.runtime.control:Control"
    app.conf.update({**NO_LOSS, **OPERATION})
    probe.register(app)
    resize.attach(app)
    drill.register(app)
    calls.register(app)
    path = os.environ.get(CONFIG_VARIABLE)
    return join(app, ClusterFile.load(path)) if path else app


def join(app: Celery, cluster: ClusterFile) -> Celery:
    """Point ``app`` at ``cluster`` as the role its file was written for, and return it."""
    _join(app, cluster)
    if cluster.stock:
        stock.undo(app, cluster, NO_LOSS)
    return app


def _join(app: Celery, cluster: ClusterFile) -> None:
    declare = cluster.role == "worker"
    service = os.environ.get("CLUSTERKIT_SERVICE", cluster.role)
    app.conf.update(
        # Of several brokers each process begins with another, so that they share the load. Not by Celery's
        # "shuffle", which draws again at each try and may draw a dead one every time.
        broker_url=";".join(_shuffled(cluster.broker_url.split(";"))),
        broker_failover_strategy="round-robin",
        broker_use_ssl=_broker_tls(cluster),
        result_expires=cluster.result_expires,
        task_queues=queues(cluster.queues, declare=declare, kind="classic" if cluster.stock else "quorum"),
        task_default_queue=cluster.default_queue,
        task_default_routing_key=cluster.default_queue,
        broker_transport_options={
            **NO_LOSS["broker_transport_options"],
            # The name operators see in RabbitMQ's list of connections.
            "client_properties": {"connection_name": f"{service}@{socket.gethostname()}"},
        },
        # Tasks sent by name alone go where the deployed release has them; an app's own routes win.
        task_routes=_with_routes_of_release(app, cluster),
        clusterkit_publish_deadline=None if cluster.may_wait_for_broker else PUBLISH_DEADLINE,
    )
    results.attach(app, cluster)


def _shuffled(urls: list[str]) -> list[str]:
    return random.sample(urls, len(urls))


def _broker_tls(cluster: ClusterFile) -> dict[str, Any] | bool:
    if not cluster.ca_file:
        return False
    # With a name to look for in the certificate py-amqp also checks that the broker is the one meant.
    return {
        "ca_certs": cluster.ca_file,
        "cert_reqs": ssl.CERT_REQUIRED,
        "server_hostname": cluster.broker_name,
    }


#: Seconds after which a producer that cannot publish gets an error. Neither Celery nor py-amqp
#: gives one while the broker holds publishers back in a memory or disk alarm (celery #5410).
PUBLISH_DEADLINE: Final = 15.0


def _with_routes_of_release(app: Celery, cluster: ClusterFile) -> list[Any]:
    own = app.conf.task_routes or []
    release = {name: {"queue": queue} for name, queue in cluster.tasks.items() if queue}
    return [*(own if isinstance(own, (list, tuple)) else [own]), release]


def weakened(app: Celery) -> dict[str, tuple[Any, Any]]:
    """Return the settings of ``NO_LOSS`` that ``app`` no longer has: name -> (has, should have)."""
    transport_options = "broker_transport_options"
    changed = {
        name: (app.conf.get(name), value)
        for name, value in NO_LOSS.items()
        if name != transport_options and app.conf.get(name) != value
    }
    if not app.conf.get(transport_options, {}).get("confirm_publish"):
        changed[f"{transport_options}.confirm_publish"] = (False, True)
    return changed
