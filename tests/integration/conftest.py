"""One real cluster for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from harness import LocalCluster, needs_servers, new_cluster

from clusterkit.runtime import client


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A started cluster with the default app; tests leave it as healthy as they found it."""
    needs_servers()
    started = new_cluster("itest", tmp_path_factory.mktemp("clusters"))
    started.make("cluster-destroy", "YES=1")  # what an interrupted run may have left
    started.up()
    yield started
    started.make("cluster-destroy", "YES=1")


@pytest.fixture(scope="session")
def app(cluster: LocalCluster) -> Celery:
    """A producer of the cluster."""
    return client.connect(cluster=cluster.name, path=cluster.home / "client.json")
