"""The pool is a word in the inventory, and changing it touches that node alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, group
from harness import LocalCluster


def nodes(**io: Any) -> list[dict[str, Any]]:
    return [
        {"name": "cpu", "pool": "prefork", "queues": ["cpu"], "concurrency": "auto"},
        {"name": "io", "queues": ["io"], **io},
        {"name": "default", "pool": "prefork", "queues": ["default"], "concurrency": 2},
    ]


@pytest.fixture(scope="module", autouse=True)
def _as_it_was(cluster: LocalCluster) -> Iterator[None]:
    yield
    cluster.settings()
    cluster.up()


@pytest.mark.parametrize(
    ("pool", "concurrency", "slots"),
    [("gevent", 50, 50), ("eventlet", 50, 50), ("threads", 8, 8), ("solo", "auto", 1)],
)
def test_a_node_changes_its_pool_by_one_word_and_only_it_restarts(
    pool: str, concurrency: int | str, slots: int, cluster: LocalCluster, app: Celery
) -> None:
    before = cluster.pids()
    cluster.settings(worker_nodes=nodes(pool=pool, concurrency=concurrency))
    cluster.up()
    status = cluster.status()
    after = cluster.pids()
    assert {name for name in before if before[name] != after.get(name)} == {"worker-io"}
    io = next(node for node in status["nodes"] if node["name"] == "io@localhost")
    assert (io["pool"], io["concurrency"], io["problem"]) == (pool, slots, "")
    tasks = group(app.signature("tasks.probes.sleep", [0.05], queue="io") for _ in range(10))
    assert len(tasks.apply_async().get(timeout=30)) == 10
