"""One lab of blank hosts for all tests here, brought up once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from harness import ROOT
from labcluster import FIGURES, HOSTS, KEPT_LAB, LAB, LabCluster, needs_docker, up_result

from clusterkit.runtime import client


@pytest.fixture(scope="session")
def cluster() -> Iterator[LabCluster]:
    """A cluster on seven hosts that were blank; tests leave it as healthy as they found it."""
    needs_docker()
    if KEPT_LAB:
        yield LabCluster(KEPT_LAB, ROOT / "deploy" / "clusters" / KEPT_LAB)
        return
    lab = LabCluster(LAB, ROOT / "deploy" / "clusters" / LAB)
    lab.lab("lab-down")  # what an interrupted run may have left
    lab.lab("lab-up", f"HOSTS={HOSTS}")
    result = up_result(lab.make("cluster-up", "JSON=1"))
    FIGURES.append(f"{HOSTS} hosts from blank to serving: {result['seconds']} s")
    yield lab
    lab.lab("lab-down")


@pytest.fixture(scope="session")
def app(cluster: LabCluster) -> Celery:
    """A producer of the cluster."""
    return client.connect(path=cluster.model.state_dir / "client.json")
