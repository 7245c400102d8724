"""`make compare` with every system, on a cluster of its own beside the one of the other tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import PORT_BASE, ROOT, LocalCluster, needs_servers, new_cluster

from clusterkit.ops.compare import report
from clusterkit.ops.compare.variants import VARIANTS
from clusterkit.runtime import client
from clusterkit.runtime.errors import TaskFailedError
from tasks.comparison_app import ALLOWED_FILE, CALL


@pytest.fixture(scope="module")
def comparing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The inventory of the cluster `compare`, on ports of its own."""
    needs_servers()
    settings = yaml.safe_load((ROOT / "deploy/clusters/compare/group_vars/all.yml").read_text())
    moved = {**settings, "home": ".cluster/itest-compare", "port_base": PORT_BASE + 1_000}
    cluster = new_cluster("itest-compare", tmp_path_factory.mktemp("clusters"), **moved)
    cluster.make("cluster-destroy", "YES=1")
    cluster.up()
    yield cluster
    cluster.make("cluster-destroy", "YES=1")


def compare(cluster: LocalCluster, *variables: str, code: int = 0) -> dict[str, Any]:
    done = cluster.make("compare", "JSON=1", "REPEATS=1", *variables, code=code)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_system_does_the_same_work_with_the_same_results(comparing: LocalCluster) -> None:
    found = compare(comparing, "N=6", "KEEP=1")
    assert found["problems"] == []
    assert [work["work"] for work in found["works"]] == ["primes", "mandelbrot", "crawl"]
    for work in found["works"]:
        assert [figure["variant"] for figure in work["figures"]] == [variant.name for variant in VARIANTS]
        assert all(figure["seconds"] > 0 and figure["memory"] > 0 for figure in work["figures"])
        assert all(
            bool(figure["servers"]) <= VARIANTS[number].celery
            for number, figure in enumerate(work["figures"])
        )
    files = {file.name for file in Path(found["directory"]).iterdir()}
    assert files == {report.PAGE, report.PICTURE, report.TABLE, report.DATA}


def test_while_it_stays_its_workers_call_nothing_that_was_not_allowed(comparing: LocalCluster) -> None:
    app = client.connect(path=comparing.home / "client.json")
    with pytest.raises(TaskFailedError, match="may not be called here"):
        client.wait(app.send_task(CALL, ["os:getcwd", []], queue="threads"), timeout=30)


def test_a_function_of_the_readers_is_compared_and_results_that_differ_are_told(
    comparing: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "readers.py").write_text(
        "import os\ndef same(n):\n    return (n, n)\ndef other():\n    return os.getpid()\n"
    )
    path = f"PYTHONPATH={tmp_path}"
    only = "ONLY=multiprocessing,prefork"
    found = compare(comparing, path, "TASK=readers:same", "ARGS=[[1], [2]]", only)
    assert [figure["problem"] for figure in found["works"][0]["figures"]] == ["", "", ""]
    assert not comparing.processes()  # without KEEP=1 the cluster is stopped
    found = compare(comparing, path, "TASK=readers:other", "N=4", "ONLY=multiprocessing", code=15)
    assert "results differ" in found["problems"][0]
    assert not comparing.processes()
    assert not (comparing.home / ALLOWED_FILE).exists()
