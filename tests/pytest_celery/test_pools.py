"""The default app in containers, on every pool."""

from __future__ import annotations

import pytest
from celery import Celery, chord, group
from pytest_celery import CeleryTestSetup

from clusterkit.ops import status
from clusterkit.ops.model import POOLS, Cluster, Pool

TEXTS = ["the quick brown fox", "jumps over the lazy dog", "the end"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_node_answers_computes_and_joins_a_chord(
    pool: Pool, cluster: Cluster, celery_setup: CeleryTestSetup, operator: Celery
) -> None:
    app = celery_setup.app
    node = f"{celery_setup.worker.worker_name}@worker"
    asked = operator.control.inspect(destination=[node], timeout=10, limit=1)
    assert asked.ping() == {node: {"ok": "pong"}}
    assert app.send_task("tasks.compute.fibonacci", [30]).get(timeout=30) == 832040
    counts = group(app.signature("tasks.text.count_words", [text], queue="cpu") for text in TEXTS)
    total = chord(counts, app=app)(app.signature("tasks.text.merge_counts", queue="default"))
    assert total.get(timeout=30)["the"] == 3
    told = next(one for one in status.nodes(cluster, operator) if one.name == node)
    assert (told.pool, told.problem) == (pool, "")
    assert "tasks can be lost" not in celery_setup.worker.logs()
