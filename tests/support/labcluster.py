"""A cluster on real hosts: the lab's containers, each with its own systemd, sshd and network address."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from harness import BIN, ENVIRONMENT, ROOT, LocalCluster, eventually

#: The lab of these tests; a lab of somebody who works here has another name.
LAB = "labtest"
#: Names a lab with a cluster on it that is there already: the tests then run on that one, and leave it.
KEPT_LAB = os.environ.get("TEST_LAB", "")
#: 3 brokers and result stores, 3 workers, 1 monitor; 2 of them schedulers.
HOSTS = 7


#: What the tests measured, one line each, for the end of the run: times are shown, never asserted.
FIGURES: list[str] = []


@dataclass
class LabCluster(LocalCluster):
    """The cluster of a lab."""

    def lab(self, target: str, *variables: str) -> str:
        """Run a lab target of make; return what it printed."""
        done = subprocess.run(
            ["make", target, f"LAB={self.name}", *variables],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"make {target} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def on(self, host: str, command: str, *, code: int | None = 0) -> str:
        """Run a shell command on a host as root; fail unless it ends with ``code`` (None: whatever)."""
        done = subprocess.run(
            ["docker", "exec", self.container(host), "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if code is not None and done.returncode != code:
            pytest.fail(f"{host}: {command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def container(self, host: str) -> str:
        """The container of a host."""
        found = subprocess.run(
            [
                *("docker", "ps", "--all", "--format", "{{.Names}}"),
                *("--filter", f"label=clusterkit.lab={self.name}"),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        return next(name for name in found if name == host or name.endswith(f"-{host}"))

    def logs(self, lines: int = 15) -> str:
        done = subprocess.run(
            [
                *(str(BIN / "clusterkit"), "cluster", "logs"),
                *("--cluster", str(self.directory), "--lines", str(lines)),
            ],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr

    def healthy(self) -> dict[str, Any]:
        """Wait until nothing is wrong, and return the status."""

        def status() -> dict[str, Any] | None:
            found = self.status()
            return found if found["healthy"] else None

        found: dict[str, Any] = eventually(
            status, within=150, every=2, what=f"healthy: {self.status()['problems']}", cluster=self
        )
        return found

    @contextlib.contextmanager
    def stopped(self, host: str) -> Iterator[None]:
        """Take a host away without a goodbye, and give it back."""
        name = self.container(host)
        subprocess.run(["docker", "kill", name], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["docker", "start", name], check=True, capture_output=True)


def needs_docker() -> None:
    """Skip on a machine without a Docker engine; in CI that is a failure."""
    if (
        not os.environ.get("CI")
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no Docker engine here")


def up_result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `make cluster-up JSON=1` printed."""
    result: dict[str, Any] = json.loads(done.stdout)
    return result
