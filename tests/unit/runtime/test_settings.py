"""``configure`` gives any app the settings under which no task is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.defaults import SETTING_KEYS

from clusterkit.runtime import configure
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.errors import BadInputError, NoClusterError
from clusterkit.runtime.publish import AMQP, Producer
from clusterkit.runtime.settings import NO_LOSS, PUBLISH_DEADLINE, join, weakened
from clusterkit.runtime.task import Task

FILE: dict[str, Any] = {
    "cluster": "unit",
    "role": "producer",
    "broker_url": "amqp://producer:secret@127.0.0.1:1//",
    "result_url": "redis://:secret@127.0.0.1:2/0",
    "queues": ["default", "cpu"],
    "default_queue": "default",
    "celery_app": "tasks.app:app",
    "tasks": {"shop.invoice": "cpu", "shop.ping": None},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "client.json"
    path.write_text(json.dumps(FILE))
    return path


def new_app(**settings: Any) -> Celery:
    app = Celery("unit", set_as_current=False)
    app.conf.update(settings)
    return app


def test_without_a_cluster_the_broker_stays_the_apps_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSTERKIT_CONFIG", raising=False)
    app = configure(new_app(broker_url="memory://"))
    assert app.conf.broker_url == "memory://"
    assert app.conf.task_acks_late


def test_with_a_cluster_file_the_app_is_pointed_at_the_cluster(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERKIT_CONFIG", str(file))
    app = configure(new_app(broker_url="memory://"))
    assert app.conf.broker_url == FILE["broker_url"]
    assert {queue.name: queue.exchange.type for queue in app.conf.task_queues} == {
        "default": "topic",
        "cpu": "topic",
    }
    assert all(queue.queue_arguments == {"x-queue-type": "quorum"} for queue in app.conf.task_queues)


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_apps_own_settings_object_does_not_undo_them(order: str) -> None:
    app = Celery("unit", set_as_current=False)
    own = {"task_acks_late": False, "timezone": "Europe/Berlin"}
    if order == "before":
        app.config_from_object(own)
    configure(app)
    if order == "after":
        app.config_from_object(own)
    assert app.conf.timezone == "Europe/Berlin"
    assert weakened(app) == {}


def test_what_an_app_weakens_afterwards_is_told() -> None:
    app = configure(new_app())
    app.conf.task_acks_late = False
    app.conf.broker_transport_options = {}
    assert set(weakened(app)) == {"task_acks_late", "broker_transport_options.confirm_publish"}


def test_tasks_and_messages_are_of_the_kits_classes() -> None:
    app = configure(new_app())

    @app.task
    def own() -> None:
        """Do nothing."""

    assert isinstance(app.tasks[own.name], Task)
    assert isinstance(app.amqp, AMQP)
    assert "clusterkit.probe" in app.tasks


def test_every_setting_exists_in_celery() -> None:
    assert NO_LOSS.keys() - SETTING_KEYS == set()


@pytest.mark.parametrize(
    ("role", "deadline"), [("producer", PUBLISH_DEADLINE), ("worker", None), ("scheduler", None)]
)
def test_who_may_wait_for_the_broker_has_no_deadline(role: str, deadline: float | None) -> None:
    file = ClusterFile(**{**FILE, "role": role, "queues": ("default", "cpu")})
    assert join(configure(new_app()), file).conf.clusterkit_publish_deadline == deadline


def test_every_producer_of_an_app_is_the_kits() -> None:
    app = configure(new_app(broker_url="memory://"))
    assert isinstance(app.amqp.Producer(app.connection_for_write()), Producer), "beat makes its own"
    with app.producer_pool.acquire() as pooled:
        assert isinstance(pooled, Producer)


def test_only_workers_declare_queues() -> None:
    for role, declares in (("producer", False), ("worker", True), ("scheduler", False)):
        file = ClusterFile(**{**FILE, "role": role, "queues": ("default",)})
        (queue,) = join(configure(new_app()), file).conf.task_queues
        assert queue.no_declare is not declares


def test_tasks_by_name_go_where_the_release_has_them_unless_the_app_says_otherwise(file: Path) -> None:
    app = join(configure(new_app()), ClusterFile.load(file))
    assert app.amqp.router.route({}, "shop.invoice")["queue"].name == "cpu"
    app = join(configure(new_app(task_routes={"shop.invoice": {"queue": "default"}})), ClusterFile.load(file))
    assert app.amqp.router.route({}, "shop.invoice")["queue"].name == "default"


def test_a_cluster_file_s_passwords_are_not_in_its_repr(file: Path) -> None:
    assert "secret" not in repr(ClusterFile.load(file))


def test_a_missing_or_broken_cluster_file_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(NoClusterError, match=r"client\.json"):
        ClusterFile.load(tmp_path / "client.json")
    (tmp_path / "client.json").write_text('{"cluster": "x", "colour": "red", "queues": []}')
    with pytest.raises(BadInputError, match="colour"):
        ClusterFile.load(tmp_path / "client.json")
