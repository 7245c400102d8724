"""Another project's app, from a wheel: deployed to the same cluster by two lines of its inventory."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import BIN, ROOT, LocalCluster

from clusterkit.runtime import client

SHOP = ROOT / "tests" / "apps" / "shop"
SHOP_SETTINGS = {
    "celery_app": "shop.worker:app",
    "queues": {"default": {}, "invoices": {"delivery_limit": 3}},
    "worker_nodes": [
        {"name": "shop", "pool": "prefork", "queues": ["default"], "concurrency": 2},
        {"name": "invoices", "pool": "threads", "queues": ["invoices"], "concurrency": 2},
    ],
}


def wheel_of(project: Path, target: Path) -> Path:
    subprocess.run([BIN / "uv", "build", "-q", "--wheel", "--out-dir", target, project], check=True)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def shop(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("shop")
    source = Path(shutil.copytree(SHOP, folder / "source"))
    cluster.settings(app_source=str(wheel_of(source, folder / "dist")), **SHOP_SETTINGS)
    cluster.up()
    yield cluster
    cluster.settings()
    cluster.up()


def test_its_worker_nodes_run_in_place_of_the_others(shop: LocalCluster) -> None:
    status = shop.status()
    assert status["healthy"], status["problems"]
    assert {node["name"]: node["pool"] for node in status["nodes"]} == {
        "shop@localhost": "prefork",
        "invoices@localhost": "threads",
    }
    services = {service["name"] for service in status["services"]}
    assert {"worker-shop", "worker-invoices"} <= services
    assert not services & {"worker-cpu", "worker-io", "worker-default"}


def test_its_tasks_run_with_its_own_dependencies_and_routes(shop: LocalCluster) -> None:
    total = shop.run_client("submit.py", "shop.orders.total", "[[1000000, 234]]", "--wait")
    assert (total.returncode, json.loads(total.stdout)) == (0, "1,000,234")
    invoice = shop.run_client("submit.py", "shop.orders.invoice", "[7]", "--wait")
    assert (invoice.returncode, json.loads(invoice.stdout)) == (0, "invoice-00007")


def test_running_out_of_memory_is_an_ordinary_failure(shop: LocalCluster) -> None:
    before = shop.pid_of("worker-shop")
    app = client.connect(path=shop.home / "client.json")
    with pytest.raises(MemoryError):
        app.send_task("shop.orders.catalogue").get(timeout=30)
    assert app.send_task("shop.worker.ping").get(timeout=20) == "pong"
    assert shop.pid_of("worker-shop") == before


def test_a_release_that_cannot_be_imported_touches_no_service(shop: LocalCluster, tmp_path: Path) -> None:
    source = Path(shutil.copytree(SHOP, tmp_path / "source"))
    (source / "shop" / "orders.py").write_text("import no_such_module\n")
    before = {service["name"]: service["pid"] for service in shop.status()["services"]}
    settings = {**SHOP_SETTINGS, "app_source": str(wheel_of(source, tmp_path / "dist"))}
    good = (shop.directory / "group_vars" / "all.yml").read_text()
    shop.settings(**settings)
    refused = shop.make("cluster-up", code=8)
    (shop.directory / "group_vars" / "all.yml").write_text(good)
    assert "no_such_module" in refused.stderr
    assert {service["name"]: service["pid"] for service in shop.status()["services"]} == before


def test_a_project_that_cannot_be_built_is_refused(shop: LocalCluster, tmp_path: Path) -> None:
    good = (shop.directory / "group_vars" / "all.yml").read_text()
    shop.settings(**SHOP_SETTINGS, app_source=str(tmp_path))
    refused = shop.make("cluster-up", code=8)
    (shop.directory / "group_vars" / "all.yml").write_text(good)
    assert "pyproject.toml" in refused.stderr
