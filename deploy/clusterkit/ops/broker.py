"""What the operator asks RabbitMQ's HTTP API."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx

from clusterkit.runtime.errors import ClusterUnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds a request may take.
_TIMEOUT = 5.0


@dataclass(frozen=True)
class Queue:
    """A queue as the broker counts it; ``ready`` and ``unacknowledged`` are messages."""

    name: str
    type: str
    ready: int
    unacknowledged: int
    consumers: int
    members: tuple[str, ...] = ()
    """Broker nodes that hold it; of a quorum queue, its members."""

    @classmethod
    def from_api(cls, item: dict[str, Any]) -> Self:
        """Make a queue from an item of ``/api/queues``; counters are absent for the first seconds."""
        return cls(
            name=item["name"],
            type=item.get("type", "?"),
            ready=item.get("messages_ready", 0),
            unacknowledged=item.get("messages_unacknowledged", 0),
            consumers=item.get("consumers", 0),
            members=tuple(item.get("members", ())),
        )


@dataclass(frozen=True)
class Node:
    """A broker node: ``running`` as its peers see it; alarms hold publishers back."""

    name: str
    running: bool
    memory_alarm: bool
    disk_alarm: bool
    partitioned_from: tuple[str, ...]

    @classmethod
    def from_api(cls, item: dict[str, Any]) -> Self:
        """Make a node from an item of ``/api/nodes``; of a node that is down little is known."""
        return cls(
            name=item["name"],
            running=item.get("running", False),
            memory_alarm=item.get("mem_alarm", False),
            disk_alarm=item.get("disk_free_alarm", False),
            partitioned_from=tuple(item.get("partitions", ())),
        )


class Broker:
    """RabbitMQ's HTTP API as one user, at whichever of ``urls`` answers.

    ``ca_file`` is the certificate authority of ``https`` addresses.
    """

    def __init__(self, urls: Sequence[str], user: str, password: str, ca_file: str = "") -> None:
        self._urls = list(urls)
        self._client = httpx.Client(
            auth=(user, password),
            timeout=_TIMEOUT,
            trust_env=False,
            verify=ssl.create_default_context(cafile=ca_file) if ca_file else False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """Return RabbitMQ's version."""
        return str(self._get("overview")["rabbitmq_version"])

    def queues(self) -> dict[str, Queue]:
        """Return every queue of the virtual host ``/`` by name."""
        found = self._get("queues/%2F", params={"disable_stats": "false", "enable_queue_totals": "true"})
        return {item["name"]: Queue.from_api(item) for item in found}

    def nodes(self) -> tuple[Node, ...]:
        """Return every node of the broker's cluster."""
        return tuple(Node.from_api(item) for item in self._get("nodes"))

    def definitions(self) -> dict[str, Any]:
        """Return users, rights, policies, exchanges, queues and bindings; only an administrator may."""
        found: dict[str, Any] = self._get("definitions")
        return found

    def add_definitions(self, definitions: dict[str, Any]) -> None:
        """Declare what is in ``definitions`` and not there; only an administrator may.

        Raises:
            ClusterUnreachableError: no broker answers, or it refuses them.
        """
        self._ask("POST", "definitions", json=definitions)

    def _get(self, path: str, params: dict[str, str] | None = None) -> Any:
        return self._ask("GET", path, params=params).json()

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        problems = []
        for url in tuple(self._urls):
            try:
                answer = self._client.request(method, f"{url.rstrip('/')}/api/{path}", **options)
                answer.raise_for_status()
            except httpx.HTTPError as error:
                problems.append(f"{url}: {error}")
                self._urls.append(self._urls.pop(0))  # the next question begins where one answers
            else:
                return answer
        raise ClusterUnreachableError(
            f"RabbitMQ's HTTP API does not answer: {'; '.join(problems)}",
            next_step="make cluster-logs SERVICE=rabbitmq",
        )
