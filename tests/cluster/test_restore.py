"""All hosts are lost; blank ones become the same cluster again, and clients notice nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from labcluster import FIGURES, KEPT_LAB, LabCluster, up_result

from clusterkit.runtime import client


@pytest.mark.skipif(bool(KEPT_LAB), reason="a lab that is to stay is not thrown away")
def test_a_blank_lab_becomes_the_cluster_of_a_backup(cluster: LabCluster, tmp_path: Path) -> None:
    old_client, file, password = tmp_path / "client.json", tmp_path / "lab.backup", tmp_path / "password"
    password.write_text("of the backup\n")
    state = cluster.model.state_dir
    shutil.copy(state / "client.json", old_client)
    cluster.healthy()
    cluster.make("cluster-backup", f"FILE={file}", f"PASSWORD_FILE={password}")
    hosts = len(cluster.model.hosts)
    cluster.lab("lab-down")
    shutil.rmtree(state, ignore_errors=True)
    cluster.lab("lab-up", f"HOSTS={hosts}")
    # The hosts are others, with other SSH keys: the inventory of the new lab counts.
    restore = ("cluster-restore", f"FILE={file}", f"PASSWORD_FILE={password}", "KEEP=1", "JSON=1")
    result = up_result(cluster.make(*restore))
    FIGURES.append(f"{hosts} blank hosts restored from a backup: {result['seconds']} s")
    cluster.healthy()
    app = client.connect(path=old_client)
    assert app.send_task("tasks.probes.echo", ["as before"]).get(timeout=30) == "as before"
