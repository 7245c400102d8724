"""Flower as a person sees it: in a real browser, logged in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import httpx
import pytest
import yaml
from celery import Celery
from harness import LocalCluster, eventually
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, sync_playwright

#: Without these Chromium calls home at every start, into a network that may be closed.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SECONDS = 1000.0  # playwright counts milliseconds


@pytest.fixture(scope="module")
def login(cluster: LocalCluster) -> tuple[str, str, str]:
    password = yaml.safe_load((cluster.home / "secrets.yml").read_text())["flower"]["admin"]
    return f"http://127.0.0.1:{cluster.model.ports.flower}", "admin", password


@pytest.fixture(scope="module")
def page(login: tuple[str, str, str]) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if not chromium:
        reason = "chromium is not installed: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    url, user, password = login
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        context = browser.new_context(
            base_url=url,
            http_credentials={"username": user, "password": password},
            viewport={"width": 1280, "height": 800},
        )
        yield context.new_page()
        browser.close()


def test_nobody_gets_in_without_the_password(login: tuple[str, str, str]) -> None:
    url, user, _ = login
    for path in ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks"):
        assert httpx.get(url + path, trust_env=False).status_code == 401
        assert httpx.get(url + path, auth=(user, "wrong"), trust_env=False).status_code == 401


def test_its_options_file_is_private(cluster: LocalCluster) -> None:
    options = cluster.home / "flower" / "flower.py"
    assert options.stat().st_mode & 0o777 == 0o600


def test_the_workers_page_lists_every_node_as_online(page: Page) -> None:
    page.goto("/workers")
    for name in ("cpu@localhost", "io@localhost", "default@localhost"):
        row = page.locator("tr", has_text=name)
        row.wait_for(timeout=20 * SECONDS)
        assert "Online" in row.inner_text()


def test_a_worker_s_page_shows_its_pool(page: Page) -> None:
    page.goto("/workers")
    page.get_by_role("link", name="cpu@localhost").click()
    page.get_by_role("heading", name="Worker pool options").wait_for(timeout=20 * SECONDS)
    assert "prefork" in page.content()


def test_a_task_can_be_found_and_its_page_tells_all(page: Page, cluster: LocalCluster, app: Celery) -> None:
    result = app.send_task("tasks.probes.echo", ["seen in Flower"])
    result.get(timeout=20)

    def listed() -> bool:
        page.goto("/tasks")
        page.wait_for_load_state("networkidle")
        return result.id in page.content()

    eventually(listed, within=20, what="the task is on the tasks page", cluster=cluster, every=0.5)
    page.locator(f"a[href*='{result.id}']").first.click()
    page.get_by_text("SUCCESS").first.wait_for(timeout=20 * SECONDS)
    told = page.content()
    assert "tasks.probes.echo" in told
    assert "default@localhost" in told
    assert "seen in Flower" in told


def test_the_broker_page_has_the_queues_figures(page: Page, cluster: LocalCluster) -> None:
    page.goto("/broker")
    for name in ("default", "cpu", "io"):
        row = page.locator("tr").filter(has=page.get_by_role("cell", name=name, exact=True))
        row.wait_for(timeout=20 * SECONDS)
        # All but the name and "idle since".
        figures = [cell.strip() for cell in row.locator("td").all_inner_texts()][1:-1]
        assert figures, f"no figures for {name}"
        assert all(figure.isdigit() for figure in figures), figures


def opens(page: Page, path: str) -> bool:
    """Whether a page can be opened; while Flower restarts it cannot."""
    try:
        answer = page.goto(path)
    except PlaywrightError:
        return False
    return answer is not None and answer.ok


def test_flower_remembers_tasks_over_a_restart(page: Page, cluster: LocalCluster, app: Celery) -> None:
    result = app.send_task("tasks.probes.echo", ["remembered"])
    result.get(timeout=20)
    path = f"/task/{result.id}"
    eventually(lambda: opens(page, path), within=20, what="Flower knows the task", cluster=cluster)
    cluster.make("cluster-restart", "SERVICE=flower")
    eventually(lambda: opens(page, path), within=30, what="it knows it still", cluster=cluster, every=0.5)
    assert "remembered" in page.content()
