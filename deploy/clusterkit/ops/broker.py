"""What the operator asks RabbitMQ's HTTP API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import httpx

from clusterkit.runtime.errors import ClusterUnreachableError

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

    @classmethod
    def from_api(cls, item: dict[str, Any]) -> Self:
        """Make a queue from an item of ``/api/queues``; counters are absent for the first seconds."""
        return cls(
            name=item["name"],
            type=item.get("type", "?"),
            ready=item.get("messages_ready", 0),
            unacknowledged=item.get("messages_unacknowledged", 0),
            consumers=item.get("consumers", 0),
        )


class Broker:
    """RabbitMQ's HTTP API as one user."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = url
        self._client = httpx.Client(base_url=url, auth=(user, password), timeout=_TIMEOUT, trust_env=False)

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

    def alarms(self) -> list[str]:
        """Return what holds publishers back: ``node: memory`` or ``node: disk``."""
        return [
            f"{node['name']}: {kind}"
            for node in self._get("nodes")
            for kind, raised in (("memory", node.get("mem_alarm")), ("disk", node.get("disk_free_alarm")))
            if raised
        ]

    def _get(self, path: str, params: dict[str, str] | None = None) -> Any:
        try:
            answer = self._client.get(f"/api/{path}", params=params)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise ClusterUnreachableError(
                f"RabbitMQ's HTTP API at {self._url} does not answer: {error}",
                next_step="make cluster-logs SERVICE=rabbitmq",
            ) from error
        return answer.json()
