"""Drives a real cluster through `make`, on ports and in a directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from clusterkit.ops import deployment
from clusterkit.ops.broker import Broker
from clusterkit.ops.inventory import Cluster, load

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
#: What `make test` leaves in the environment must not steer the makes that the tests start.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "CLUSTER", "YES"}
}
#: Out of the way of a `local` cluster (24000) that may be running from this checkout.
PORT_BASE = 21_000


@dataclass
class LocalCluster:
    """A cluster under test and its inventory directory."""

    name: str
    directory: Path

    @property
    def model(self) -> Cluster:
        return load(str(self.directory), ROOT)

    @property
    def home(self) -> Path:
        return ROOT / ".cluster" / self.name

    def make(self, target: str, *variables: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a make target on this cluster; fail with all it printed unless it ends with ``code``.

        make itself ends with 2 whatever failed, and names the command's code in its last line.
        """
        command = ["make", target, f"CLUSTER={self.directory}", *variables]
        done = subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False
        )
        said = f"Error {code}" if code else ""
        if bool(done.returncode) != bool(code) or said not in done.stderr:
            pytest.fail(
                f"{' '.join(command)} ended with {done.returncode}\n"
                f"{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return done

    def up(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.make("cluster-up", "JSON=1").stdout)
        return result

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            [BIN / "clusterkit", "cluster", "status", "--json", "--cluster", self.directory],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        result: dict[str, Any] = (
            json.loads(done.stdout)
            if done.stdout
            else {"healthy": False, "problems": [done.stderr], "nodes": [], "services": []}
        )
        return result

    def pids(self) -> dict[str, int]:
        """The processes that serve, by service; a worker node's by its name without the slot."""
        services = self.status()["services"]
        return {
            service["name"].partition(".")[0]: service["pid"]
            for service in services
            if service["state"] == "running"
        }

    def pid_of(self, service: str) -> int:
        """The process of a service, asked of the supervisor itself: a status of the kit takes seconds.

        Of a worker node, that of the slot that serves.
        """
        supervisorctl = str(self.home / "bin" / "supervisorctl")
        # It ends with 3 when one of the services does not run.
        listed = subprocess.run([supervisorctl, "status"], capture_output=True, text=True, check=False).stdout
        found = re.search(rf"^({service}(\.[b-z])?) +(RUNNING|STARTING)", listed, re.MULTILINE)
        assert found, f"{service} does not run:\n{listed}"
        command = [supervisorctl, "pid", found[1]]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def broker(self) -> Broker:
        """RabbitMQ's HTTP API as the user monitor."""
        return deployment.monitor(self.model)

    def logs(self, lines: int = 15) -> str:
        """The last lines of every service's log, for a failing test's message."""
        parts = []
        for path in sorted((self.home / "log").glob("*.log")):
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(parts)

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this cluster, by the mark in its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("CLUSTERKIT_HOME") == str(self.home):
                    found.append(process)
        return found

    def settings(self, **changes: Any) -> None:
        """Write the inventory's group_vars: what the `local` cluster has, with ``changes``."""
        base = yaml.safe_load((ROOT / "deploy/clusters/local/group_vars/all.yml").read_text())
        merged = {
            **base,
            "home": f".cluster/{self.name}",
            "port_base": PORT_BASE,
            "stop_timeout": 20,
            # A worker notices a dead process every 5 s: 20 deliveries would take two minutes.
            "queues": {"default": {}, "cpu": {}, "io": {"delivery_limit": 3}},
            **changes,
        }
        (self.directory / "group_vars").mkdir(parents=True, exist_ok=True)
        (self.directory / "group_vars" / "all.yml").write_text(yaml.safe_dump(merged, sort_keys=False))

    def run_client(
        self, script: str, *arguments: str, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of clients/ as a user would."""
        return subprocess.run(
            [BIN / "python", ROOT / "clients" / script, "--cluster", self.name, *arguments],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def new_cluster(name: str, directory: Path, **settings: Any) -> LocalCluster:
    """Write an inventory directory for a cluster of one host."""
    cluster = LocalCluster(name, directory / name)
    cluster.directory.mkdir(parents=True)
    shutil.copy(ROOT / "deploy/clusters/local/hosts.yml", cluster.directory)
    cluster.settings(**settings)
    return cluster


def needs_servers() -> None:
    """Skip on a machine that cannot have RabbitMQ; in CI that is a failure."""
    if Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists() or os.geteuid() == 0 or os.environ.get("CI"):
        return
    pytest.skip("rabbitmq-server is not installed, and this user may not install it")


def eventually(
    condition: Callable[[], Any],
    *,
    within: float,
    what: str,
    cluster: LocalCluster | None = None,
    every: float = 0.1,
) -> Any:
    """Return ``condition()`` as soon as it is true; fail with the services' logs when it is not in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every)
    logs = cluster.logs() if cluster else ""
    pytest.fail(f"not within {within:g} s: {what}\n{logs}")
