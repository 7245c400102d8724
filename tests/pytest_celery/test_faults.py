"""Worker nodes in containers that are restarted or killed while tasks run: none is lost."""

from __future__ import annotations

import pytest
from celery import Celery, group
from celery.result import GroupResult
from pytest_celery import CeleryTestSetup


def numbered(app: Celery, count: int, seconds: float) -> GroupResult:
    tasks = (app.signature("tasks.probes.sleep", [seconds + n / 1000], queue="io") for n in range(count))
    result: GroupResult = group(tasks).apply_async()
    return result


def test_a_restarted_node_finishes_what_runs_and_goes_on_with_the_rest(celery_setup: CeleryTestSetup) -> None:
    sent = numbered(celery_setup.app, 12, seconds=0.5)
    sent.results[0].get(timeout=30)
    celery_setup.worker.restart()
    assert sent.get(timeout=60) == [0.5 + n / 1000 for n in range(12)]
    assert "worker: Warm shutdown" in celery_setup.worker.logs()


@pytest.mark.parametrize("nodes", [2])
def test_the_other_node_takes_over_from_one_that_is_killed(nodes: int, celery_setup: CeleryTestSetup) -> None:
    first, second = celery_setup.worker_cluster
    sent = numbered(celery_setup.app, 16, seconds=0.5)
    sent.results[0].get(timeout=30)
    first.kill()
    assert sent.get(timeout=60) == [0.5 + n / 1000 for n in range(16)]
    assert second.container.status == "running"
