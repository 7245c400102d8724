"""Drills on hosts: a host without power, a killed broker, a partition; nothing is lost."""

from __future__ import annotations

import json

import pytest
from labcluster import FIGURES, LabCluster


@pytest.mark.parametrize("fault", ["worker-host-off", "broker-killed", "broker-partition"])
def test_a_drill_loses_nothing(cluster: LabCluster, fault: str) -> None:
    cluster.healthy()
    run = json.loads(
        cluster.make("drill", f"DRILL={fault}", "JSON=1", "TASKS=200", "RATE=20", "SEED=1").stdout
    )
    ledger = run["outcomes"][0]["ledger"]
    FIGURES.append(
        f"{fault}: {ledger['sent']} tasks, 0 lost, {ledger['completed_again']} done twice,"
        f" recovered after {ledger['recovery']} s"
    )
    assert not ledger["lost"]
    assert not ledger["results_missing"]
    assert ledger["sent"] >= 200
    if fault == "worker-host-off":  # half-open: the broker goes on giving it tasks until it is back
        assert ledger["delays"]["during"]["longest"] > 5
