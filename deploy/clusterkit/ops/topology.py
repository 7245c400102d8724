"""What the broker of a cluster holds before the first worker starts: queues, users, rights, policies.

All of it is one RabbitMQ definitions document, for 3.10 to 4.x. Queues carry no argument but their type:
workers declare them with the same single argument, and what may be tuned is a policy, which can change
while messages wait (an argument cannot: the worker's declaration would be refused with 406).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from clusterkit.runtime.nodename import SLOT_PATTERN

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster, QueueSettings
    from clusterkit.ops.secrets import Role, Secrets

VHOST: Final = "/"
#: The topic exchange tasks are published to (`clusterkit.runtime.queues.EXCHANGE`).
EXCHANGE: Final = "celery"
#: Exchange and queue of dead letters.
DEAD_LETTERS: Final = "celery.dead"
#: A full dead-letter queue refuses more, and what it refuses stays in its own queue: nothing is dropped.
DEAD_LETTERS_MAX_LENGTH: Final = 1_000_000
#: 4.0 drops a message after 20 deliveries unless told otherwise, and looking at a dead letter without
#: taking it is a delivery. 3.10 does not know 4.0's -1 for "no limit"; this is out of reach on both.
_NEVER: Final = 2**31 - 1

#: Levels of delayed delivery: level n holds a message 2^n seconds (kombu's native_delayed_delivery).
DELAY_BITS: Final = 28
DELAY_EXCHANGE: Final = "celery_delayed_delivery"
#: Where a delayed message enters.
DELAY_ENTRY: Final = f"celery_delayed_{DELAY_BITS - 1}"

#: RabbitMQ's own default, in ms: the broker's patience never gets shorter than this.
DEFAULT_CONSUMER_TIMEOUT: Final = 1_800_000
#: Seconds on top of the tasks' own time: RabbitMQ checks once a minute, and a worker needs a moment to
#: end a task that is over its limit and to start the next one.
CONSUMER_TIMEOUT_MARGIN: Final = 300

_NOTHING: Final = "^$"
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DELAYED = "celery_delayed_([0-9]|1[0-9]|2[0-7]|delivery)"
_HOST = "[A-Za-z0-9._-]+"
_PIDBOX, _REPLIES, _EVENTS = r"celery\.pidbox", r"reply\.celery\.pidbox", "celeryev"


@dataclass(frozen=True)
class Rights:
    """What one user of the broker may do; the regular expressions are RabbitMQ's (PCRE)."""

    role: Role
    purpose: str
    """Who uses it, and for what."""
    tags: tuple[str, ...] = ()
    """RabbitMQ's user tags: rights on the HTTP API."""
    configure: str = _NOTHING
    """Names the user may declare and delete."""
    write: str = _NOTHING
    """Exchanges it may publish to, queues it may bind."""
    read: str = _NOTHING
    """Queues it may consume, exchanges it may bind to."""
    routing_keys: dict[str, str] = field(default_factory=dict)
    """For each topic exchange, the routing keys it may publish with; others are not restricted."""


def matrix(cluster: Cluster) -> tuple[Rights, ...]:
    """Return the rights of every user of ``cluster``'s broker, the narrowest that work.

    Each was run against a broker on both sides: it can do its work, and is refused the rest
    (tests/integration/test_permissions.py).
    """
    return (
        Rights(
            "operator",
            "make and the clusterkit command: everything. An administrator could give itself any right",
            ("administrator",),
            *(".*",) * 3,
        ),
        _worker(cluster),
        _producer(cluster, "producer", "clients: publish tasks, now or delayed"),
        _producer(cluster, "scheduler", "the scheduler: publishes tasks that are due"),
        _flower(),
        # On 3.10 the HTTP API shows no queue to a user that may not open the vhost; rights to nothing do.
        Rights("monitor", "metrics and health checks over the HTTP API; reads no message", ("monitoring",)),
    )


def _worker(cluster: Cluster) -> Rights:
    queues = _either(cluster.queues)
    nodes = _either({node.name: None for node in cluster.worker_nodes})
    control = rf"{nodes}{SLOT_PATTERN}@{_HOST}\.{_PIDBOX}"
    return Rights(
        "worker",
        "worker nodes: take tasks, publish tasks (retries, chords), send events, answer control commands",
        configure=_names(EXCHANGE, queues, _DELAYED, _EVENTS, _PIDBOX, _REPLIES, control),
        write=_names(EXCHANGE, queues, _DELAYED, _EVENTS, _REPLIES, control),
        read=_names(EXCHANGE, queues, _DELAYED, _PIDBOX, control),
    )


def _producer(cluster: Cluster, role: Role, purpose: str) -> Rights:
    queues = _either(cluster.queues)
    return Rights(
        role,
        purpose,
        write=_names(EXCHANGE, DELAY_ENTRY),
        routing_keys={EXCHANGE: _names(queues), DELAY_ENTRY: rf"^([01]\.){{{DELAY_BITS}}}{queues}$"},
    )


def _flower() -> Rights:
    answers = rf"{_UUID}\.{_REPLIES}"
    own_events = rf"{_EVENTS}\.{_UUID}"
    return Rights(
        "flower",
        "Flower and `celery inspect`: see events, send control commands, read queue figures; publish no task",
        ("monitoring",),
        configure=_names(_EVENTS, own_events, _PIDBOX, _REPLIES, answers),
        write=_names(own_events, _PIDBOX, answers),
        read=_names(_EVENTS, own_events, _REPLIES, answers),
    )


def _either(names: Any) -> str:
    # Names of queues and nodes hold letters, digits, - and _: nothing to escape.
    return f"({'|'.join(names)})"


def _names(*patterns: str) -> str:
    return f"^({'|'.join(patterns)})$"


def definitions(cluster: Cluster, secrets: Secrets) -> dict[str, Any]:
    """Return the definitions document, as `rabbitmqctl import_definitions` and the HTTP API take it.

    The same cluster and secrets give the same document, and importing it again changes nothing.
    Importing removes nothing either: not the user guest, nor a queue that left the inventory.
    """
    rights = matrix(cluster)
    return {
        # Without a name RabbitMQ makes one of the host's, and looks that up at every login: 5 s now and
        # then where the host's own name is not in its hosts file (4.0.5).
        "global_parameters": [{"name": "cluster_name", "value": cluster.name}],
        "vhosts": [{"name": VHOST}],
        "users": [_user(one, secrets.broker[one.role]) for one in rights],
        "permissions": [_permission(one) for one in rights],
        "topic_permissions": [
            {"user": one.role, "vhost": VHOST, "exchange": exchange, "write": keys, "read": _NOTHING}
            for one in rights
            for exchange, keys in one.routing_keys.items()
        ],
        "exchanges": [_exchange(name) for name in (EXCHANGE, DEAD_LETTERS, *_delay_exchanges())],
        "queues": [
            *(_classic_queue(name) if cluster.stock else _queue(name) for name in cluster.queues),
            _queue(DEAD_LETTERS),
            *(_queue(_level(level), _delay_arguments(level)) for level in range(DELAY_BITS)),
        ],
        "bindings": [*_task_bindings(cluster), *_delay_bindings()],
        "policies": [
            *(() if cluster.stock else (_queue_policy(*queue) for queue in cluster.queues.items())),
            _policy(
                DEAD_LETTERS,
                {
                    "delivery-limit": _NEVER,
                    "max-length": DEAD_LETTERS_MAX_LENGTH,
                    "overflow": "reject-publish",
                },
            ),
        ],
    }


def members(cluster: Cluster) -> list[dict[str, str]]:
    """Return the broker's nodes, as role `rabbitmq` takes them: host, Erlang name, address."""
    return [
        {
            "name": host,
            "node": f"rabbit-{cluster.name}@{cluster.internal_name(host) if cluster.tls else 'localhost'}",
            "address": cluster.listen_address(host),
        }
        for host in cluster.group("brokers")
    ]


def consumer_timeout_ms(cluster: Cluster) -> int:
    """Return RabbitMQ's `consumer_timeout` for ``cluster``, in milliseconds.

    The broker closes the channel of a consumer that keeps a message longer unacknowledged, and with late
    acknowledgement a worker keeps it until the task has ended. A worker holds ``prefetch_multiplier``
    messages per slot, so the last of them waits for the others of its slot before it runs itself:

        longest ``prefetch_multiplier * time_limit`` of all worker nodes + 300 s,

    and never less than RabbitMQ's default of 30 minutes. A task with a longer time limit of its own, or a
    rate limit, needs the node's ``time_limit`` raised to it.
    """
    longest = max(node.prefetch_multiplier * node.time_limit for node in cluster.worker_nodes)
    return max((longest + CONSUMER_TIMEOUT_MARGIN) * 1_000, DEFAULT_CONSUMER_TIMEOUT)


def _user(rights: Rights, password: str) -> dict[str, Any]:
    return {
        "name": rights.role,
        "password_hash": password_hash(rights.role, password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": list(rights.tags),
        "limits": {},
    }


def password_hash(user: str, password: str) -> str:
    """Return RabbitMQ's salted SHA-256 hash of ``password``.

    The salt follows from user and password, so that the definitions only change with the password; that
    two users of one password get different hashes is what it is for.
    """
    salt = hmac.digest(password.encode(), f"rabbitmq:{user}".encode(), "sha256")[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _permission(rights: Rights) -> dict[str, Any]:
    return {
        "user": rights.role,
        "vhost": VHOST,
        "configure": rights.configure,
        "write": rights.write,
        "read": rights.read,
    }


def _exchange(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "vhost": VHOST,
        "type": "topic",
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": {},
    }


def _queue(name: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "vhost": VHOST,
        "durable": True,
        "auto_delete": False,
        "arguments": {"x-queue-type": "quorum", **(arguments or {})},
    }


def _classic_queue(name: str) -> dict[str, Any]:
    """Return a queue as Celery's own defaults declare it."""
    return {**_queue(name), "arguments": {}}


def _binding(source: str, destination: str, routing_key: str, kind: str = "queue") -> dict[str, Any]:
    return {
        "source": source,
        "vhost": VHOST,
        "destination": destination,
        "destination_type": kind,
        "routing_key": routing_key,
        "arguments": {},
    }


def _policy(queue: str, definition: dict[str, Any]) -> dict[str, Any]:
    # Anchored, one queue each: only one policy applies to a queue, and none may match celery_delayed_*.
    return {
        "vhost": VHOST,
        "name": queue,
        "pattern": f"^{queue.replace('.', '[.]')}$",
        "apply-to": "queues",
        "definition": definition,
        "priority": 0,
    }


def _queue_policy(name: str, settings: QueueSettings) -> dict[str, Any]:
    return _policy(
        name,
        {
            # A message that may not be delivered again is kept, not dropped; `at-least-once` keeps it in
            # its queue until the dead-letter queue has it, which needs `reject-publish`.
            "dead-letter-exchange": DEAD_LETTERS,
            "dead-letter-strategy": "at-least-once",
            "overflow": "reject-publish",
            "delivery-limit": settings.delivery_limit,
            "max-length": settings.max_length,
        },
    )


def _task_bindings(cluster: Cluster) -> list[dict[str, Any]]:
    """Bind the task queues, under their names and, for delayed tasks, under any delay before the name."""
    bindings = [_binding(DEAD_LETTERS, DEAD_LETTERS, "#")]
    for queue in cluster.queues:
        delayed = f"#.{queue}"
        bindings += [
            _binding(EXCHANGE, queue, queue),
            _binding(EXCHANGE, queue, delayed),
            _binding(DELAY_EXCHANGE, EXCHANGE, delayed, "exchange"),
        ]
    return bindings


def _level(level: int) -> str:
    return f"celery_delayed_{level}"


def _delay_exchanges() -> list[str]:
    return [*(_level(level) for level in range(DELAY_BITS)), DELAY_EXCHANGE]


def _next_after(level: int) -> str:
    return _level(level - 1) if level else DELAY_EXCHANGE


def _delay_arguments(level: int) -> dict[str, Any]:
    return {
        "x-overflow": "reject-publish",
        "x-message-ttl": 2**level * 1_000,
        "x-dead-letter-exchange": _next_after(level),
        "x-dead-letter-strategy": "at-least-once",
    }


def _delay_bindings() -> list[dict[str, Any]]:
    """Bind the levels: the bit of a level says whether a message waits there or goes straight on.

    The same as kombu's ``declare_native_delayed_delivery_exchanges_and_queues``; a unit test compares.
    """
    bindings = []
    for level in reversed(range(DELAY_BITS)):
        higher_bits = "*." * (DELAY_BITS - 1 - level)
        bindings += [
            _binding(_level(level), _level(level), f"{higher_bits}1.#"),
            _binding(_level(level), _next_after(level), f"{higher_bits}0.#", "exchange"),
        ]
    return bindings
