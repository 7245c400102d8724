"""Drills on a cluster of one host: what they count, and what they leave behind."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import BIN, ENVIRONMENT, PORT_BASE, ROOT, LocalCluster, eventually, new_cluster

#: Enough for a fault to meet some of them, on a busy machine too.
LOAD = ("TASKS=120", "RATE=20", "SEED=1")


@pytest.fixture(scope="module")
def marked(cluster: LocalCluster) -> LocalCluster:
    """The cluster, marked as one that may be hurt."""
    cluster.settings(drills=True)
    return cluster


def drill(cluster: LocalCluster, name: str, *options: str) -> dict[str, Any]:
    """Run a drill; return what it found."""
    run = json.loads(cluster.make("drill", f"DRILL={name}", "JSON=1", *LOAD, *options).stdout)
    (outcome,) = run["outcomes"]
    found: dict[str, Any] = outcome
    return found


def test_a_cluster_that_is_not_marked_is_not_hurt(cluster: LocalCluster) -> None:
    cluster.settings()
    refused = cluster.make("drill", "DRILL=worker-killed", code=4)
    assert "not marked" in refused.stderr


def test_killed_pool_processes_lose_nothing(marked: LocalCluster) -> None:
    ledger = drill(marked, "child-killed")["ledger"]
    assert ledger["confirmed"] == ledger["sent"] >= 120
    assert not ledger["lost"]
    assert not ledger["results_missing"]


def test_a_killed_broker_loses_nothing_of_a_load_sent_in_bulk(marked: LocalCluster) -> None:
    outcome = drill(marked, "broker-killed", "BULK=1")
    ledger = outcome["ledger"]
    assert ledger["sent"] >= 120
    assert ledger["sent"] == ledger["confirmed"] + ledger["refused"]
    assert not ledger["lost"]


def test_messages_that_cannot_be_decoded_are_found_in_the_dead_letters_and_taken_out(
    marked: LocalCluster,
) -> None:
    with marked.broker() as broker:
        before = broker.queues()["celery.dead"].ready
    ledger = drill(marked, "undecodable")["ledger"]
    assert len(ledger["dead"]) == 3
    assert not ledger["lost"]

    def dead_letters() -> int:
        with marked.broker() as broker:
            return broker.queues()["celery.dead"].ready

    eventually(lambda: dead_letters() == before, within=15, what="the dead letters are as before")


def test_of_what_a_killed_producer_was_sending_nobody_knows(marked: LocalCluster) -> None:
    outcome = drill(marked, "producer-killed")
    ledger = outcome["ledger"]
    assert ledger["sent"] == ledger["confirmed"] + ledger["unknown"]
    assert ledger["unknown"] >= 1
    assert not ledger["lost"]
    report = max((marked.home / "drills").glob("*-producer-killed")) / "report.html"
    assert "<svg" in report.read_text()


def test_an_interrupted_drill_undoes_its_fault(marked: LocalCluster, tmp_path: Path) -> None:
    def alarmed() -> bool:
        with marked.broker() as broker:
            return any(node.memory_alarm for node in broker.nodes())

    with (tmp_path / "said").open("w") as said:
        command = [str(BIN / "clusterkit"), "drill", "run", "memory-alarm", "--tasks", "100", "--rate", "20"]
        running = subprocess.Popen(
            [*command, "--cluster", str(marked.directory)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=said,
            stderr=said,
        )
    eventually(alarmed, within=60, what="there is an alarm", cluster=marked, every=0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130, (tmp_path / "said").read_text()
    eventually(lambda: not alarmed(), within=20, what="the alarm is over", cluster=marked, every=0.5)
    eventually(lambda: marked.status()["healthy"], within=60, what="it is healthy", cluster=marked, every=1)


def test_a_drill_sees_what_celerys_own_settings_lose(tmp_path: Path) -> None:
    stock = new_cluster(
        "stocktest", tmp_path, port_base=PORT_BASE + 1000, celery_settings="stock", drills=True
    )
    try:
        stock.up()
        run = json.loads(stock.make("drill", "DRILL=undecodable", "JSON=1", *LOAD, code=7).stdout)
        (outcome,) = run["outcomes"]
        assert len(outcome["ledger"]["lost"]) == 3
        assert outcome["ledger"]["confirmed"] > 3
    finally:
        stock.make("cluster-destroy", "YES=1")
