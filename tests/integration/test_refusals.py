"""What is wrong in an inventory is said with file, line and the likely meaning, before any change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from harness import new_cluster

CPU = {"name": "cpu", "queues": ["cpu", "io", "default"]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"celery_ap": "tasks.app:app"}, ["celery_ap", "Did you mean 'celery_app'?"]),
        (
            {"worker_nodes": [{**CPU, "concurrncy": 2}]},
            ["worker_nodes[0].concurrncy", "Did you mean 'concurrency'?"],
        ),
        ({"worker_nodes": [{**CPU, "concurrency": -1}]}, ["worker_nodes[0].concurrency", "-1"]),
        (
            {"worker_nodes": [{**CPU, "queues": ["cpu", "io", "defualt"]}]},
            ["defualt", "Did you mean 'default'?"],
        ),
        ({"worker_nodes": [{**CPU, "pool": "geventt"}]}, ["geventt", "gevent"]),
    ],
    ids=["misspelt key", "misspelt nested key", "negative concurrency", "unknown queue", "unknown pool"],
)
def test_a_mistake_is_refused_with_its_place(
    settings: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    cluster = new_cluster("itest-wrong", tmp_path, **settings)
    refused = cluster.make("cluster-up", code=3)
    text = (cluster.directory / "group_vars" / "all.yml").read_text().splitlines()
    mistake = re.compile(rf"\b{re.escape(said[0].rpartition('.')[2])}\b")
    line = next(number for number, content in enumerate(text, 1) if mistake.search(content))
    assert f"all.yml:{line}" in refused.stderr
    for words in said:
        assert words in refused.stderr
    assert not cluster.home.exists()


def test_an_unknown_cluster_is_told_with_those_there_are(tmp_path: Path) -> None:
    cluster = new_cluster("locl", tmp_path)
    cluster.directory = Path("locl")
    assert "Did you mean 'local'?" in cluster.make("cluster-up", code=13).stderr
