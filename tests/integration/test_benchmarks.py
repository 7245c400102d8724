"""Every benchmark, with the least of everything, so that none rots. Nothing is said about speed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from harness import BIN, ENVIRONMENT, PORT_BASE, ROOT, LocalCluster, needs_servers

from tests.benchmarks.__main__ import WORKLOADS


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The inventory that `make bench` uses, elsewhere."""
    needs_servers()
    directory = tmp_path_factory.mktemp("clusters") / "benchtest"
    shutil.copytree(ROOT / "deploy/clusters/bench", directory)
    settings = yaml.safe_load((directory / "group_vars/all.yml").read_text())
    settings |= {"home": ".cluster/benchtest", "port_base": PORT_BASE + 2_000}
    (directory / "group_vars/all.yml").write_text(yaml.safe_dump(settings))
    cluster = LocalCluster("benchtest", directory)
    yield cluster
    cluster.make("cluster-destroy", "YES=1")


def quick(cluster: LocalCluster) -> list[dict[str, Any]]:
    """Run all benchmarks, each system once."""
    done = subprocess.run(
        [
            BIN / "python",
            "-m",
            "tests.benchmarks",
            "--quick",
            "--json",
            "--cluster",
            cluster.directory,
        ],
        cwd=ROOT,
        env={**ENVIRONMENT, "PYTHONPATH": "tests/benchmarks/app"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{cluster.logs()}"
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(1_500)  # seconds; a busy machine needs more than the usual ten minutes
def test_every_workload_runs_with_every_system_and_nothing_afterwards(bench: LocalCluster) -> None:
    found = quick(bench)
    measured = {table["bench"]: [row["name"] for row in table["rows"]] for table in found}
    assert measured == {name: workload.names(quick=True) for name, workload in WORKLOADS.items()}
    assert [row for table in found for row in table["rows"] if row["value"] <= 0] == []
    assert [process.name() for process in bench.processes()] == []
