"""A cluster is backed up, destroyed to the last file, and restored: who had access has it again."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

from celery.schedules import schedule
from harness import LocalCluster
from redbeat import RedBeatSchedulerEntry

from clusterkit.ops import deployment
from clusterkit.runtime import client

QUEUE = {
    "name": "audit",
    "vhost": "/",
    "durable": True,
    "auto_delete": False,
    "arguments": {"x-queue-type": "quorum"},
}


def test_a_destroyed_cluster_comes_back_from_its_backup(cluster: LocalCluster, tmp_path: Path) -> None:
    old_client, file, password = tmp_path / "client.json", tmp_path / "it.backup", tmp_path / "password"
    password.write_text("of the backup\n")
    shutil.copy(cluster.home / "client.json", old_client)
    secrets = (cluster.home / "secrets.yml").read_bytes()
    operator = deployment.operator_app(cluster.model)
    entry = RedBeatSchedulerEntry(
        "nightly", "tasks.probes.echo", schedule(timedelta(hours=9)), args=["mine"], app=operator
    )
    entry.save()
    with deployment.administrator(cluster.model) as broker:
        broker.add_definitions({"queues": [QUEUE]})

    cluster.make("cluster-backup", f"FILE={file}", f"PASSWORD_FILE={password}")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes().startswith(b"$ANSIBLE_VAULT;")
    cluster.make("cluster-destroy", "YES=1")
    shutil.rmtree(cluster.directory)

    wrong = tmp_path / "wrong"
    wrong.write_text("another\n")
    said = cluster.make("cluster-restore", f"FILE={file}", f"PASSWORD_FILE={wrong}", code=4).stderr
    assert "cannot be decrypted" in said
    assert not cluster.directory.exists(), "nothing was changed"
    done = json.loads(
        cluster.make("cluster-restore", f"FILE={file}", f"PASSWORD_FILE={password}", "JSON=1").stdout
    )
    assert done["definitions"] == ["queue audit"]
    assert (cluster.home / "secrets.yml").read_bytes() == secrets
    app = client.connect(path=old_client)
    assert app.send_task("tasks.probes.echo", ["as before"]).get(timeout=30) == "as before"
    restored = RedBeatSchedulerEntry.from_key(
        "clusterkit:redbeat:nightly", app=deployment.operator_app(cluster.model)
    )
    assert restored.args == ["mine"]
    restored.delete()
    with deployment.administrator(cluster.model) as broker:
        assert "audit" in broker.queues()

    (cluster.home / "secrets.yml").write_bytes(secrets + b"# another\n")
    said = cluster.make("cluster-restore", f"FILE={file}", f"PASSWORD_FILE={password}", code=2).stderr
    assert f"{cluster.home / 'secrets.yml'}" in said
    assert "--force" in said
    (cluster.home / "secrets.yml").write_bytes(secrets)
