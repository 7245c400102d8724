"""One changing command at a time, each leaves a line, and one that died leaves nothing to clean up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from clusterkit.ops import audit, lock
from clusterkit.ops.errors import DeployError, PreflightError
from clusterkit.runtime.errors import InterruptedByUserError

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.inventory import Cluster

    from .conftest import Inventory

#: Takes the lock, says so, and keeps it until it is killed.
_HOLDER = """
import sys, time
from pathlib import Path
from clusterkit.ops import inventory, lock
sys.argv = ["clusterkit", "cluster", "up", "--cluster", "test"]
with lock.alone(inventory.load("test", Path({root!r}))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cluster(inventory: Inventory) -> Cluster:
    """A cluster that nothing was done to."""
    return inventory.load()


@pytest.fixture(autouse=True)
def _command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["clusterkit", "cluster", "restart", "flower"])


def holder(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER.format(root=str(root))], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_who_comes_second_is_told_who_is_at_it_since_when_and_with_what(
    cluster: Cluster, inventory: Inventory
) -> None:
    process = holder(inventory.root)
    try:
        with pytest.raises(PreflightError) as refused, lock.alone(cluster):
            pass
        running = lock.holder(cluster)
    finally:
        process.kill()
        process.wait()
    message = str(refused.value)
    assert f"{audit.person()} since 20" in message
    assert f"process {process.pid}: clusterkit cluster up --cluster test" in message
    assert running
    assert (running.pid, running.outcome) == (process.pid, "running")
    assert audit.entries(cluster, 10) == [], "who was refused has changed nothing"


def test_a_killed_command_leaves_no_lock_and_the_next_one_records_it(
    cluster: Cluster, inventory: Inventory
) -> None:
    process = holder(inventory.root)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock.holder(cluster) is None
    with lock.alone(cluster):
        pass
    assert [(entry.command, entry.outcome) for entry in audit.entries(cluster, 10)] == [
        ("cluster up --cluster test", "killed"),
        ("cluster restart flower", "ok"),
    ]


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (DeployError("h1: no\nmore of it"), "failed", 5),
        (InterruptedByUserError("interrupted"), "interrupted", 130),
        (KeyboardInterrupt(), "interrupted", 130),
        (ZeroDivisionError("a bug"), "failed", 1),
    ],
)
def test_how_a_command_ended_is_recorded(
    cluster: Cluster, error: BaseException, outcome: str, code: int
) -> None:
    with pytest.raises(type(error)), lock.alone(cluster):
        raise error
    (entry,) = audit.entries(cluster, 10)
    assert (entry.outcome, entry.code, entry.pid) == (outcome, code, os.getpid())
    assert "more of it" not in entry.error


def test_hosts_and_release_are_recorded_where_they_are_known(cluster: Cluster) -> None:
    with lock.alone(cluster):
        lock.note(hosts=["h2"])
        lock.note(hosts=["h1", "h2"], release="abc")
    (entry,) = audit.entries(cluster, 10)
    assert (entry.hosts, entry.release) == (["h1", "h2"], "abc")
    lock.note(hosts=["h3"])  # without a lock nobody takes it


def test_a_command_made_of_others_is_one_line(cluster: Cluster) -> None:
    with lock.alone(cluster), lock.alone(cluster):
        pass
    assert len(audit.entries(cluster, 10)) == 1


def test_moving_messages_is_recorded_while_another_command_has_the_lock(
    cluster: Cluster, inventory: Inventory
) -> None:
    process = holder(inventory.root)
    try:
        with pytest.raises(InterruptedByUserError), lock.recorded(cluster):
            raise InterruptedByUserError("interrupted")
        with lock.recorded(cluster), pytest.raises(PreflightError), lock.alone(cluster):
            pass  # a line of the record is no lock
    finally:
        process.kill()
        process.wait()
    assert [entry.outcome for entry in audit.entries(cluster, 10)] == ["interrupted", "ok"]


def test_the_record_outlives_the_clusters_state(cluster: Cluster) -> None:
    assert cluster.state_dir not in audit.path(cluster).parents


def test_only_the_last_lines_are_shown_and_one_that_was_cut_off_is_left_out(cluster: Cluster) -> None:
    for _ in range(3):
        with lock.alone(cluster):
            pass
    with audit.path(cluster).open("a") as file:
        file.write('{"since": "20')
    assert len(audit.entries(cluster, 3)) == 2
    assert audit.path(cluster).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["cluster", "up", "--bundle", "x.tar"], "cluster up --bundle x.tar"),
        (["--password", "open-sesame", "up"], "--password *** up"),
        (["--vault-token=open-sesame"], "--vault-token=***"),
        (
            ["--app-source", "git+https://me:open-sesame@example.org/app"],
            "--app-source git+https://***@example.org/app",
        ),
    ],
)
def test_a_secret_in_the_arguments_is_not_recorded(arguments: list[str], shown: str) -> None:
    assert audit.without_secrets(arguments) == shown


def test_a_line_is_plain_json(cluster: Cluster) -> None:
    with lock.alone(cluster):
        pass
    line = json.loads(audit.path(cluster).read_text())
    assert line["who"] == audit.person()
    assert line["seconds"] >= 0
