"""One Compose project for all tests here, with ports and a name of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clusterkit.ops import composeplan, images, inventory

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
NAME = "ctest"
#: Out of the way of the inventory's own (26000), which may be up from this checkout.
PORT_BASE = 29_000
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in {"CLUSTER", "YES"}}


@dataclass(frozen=True)
class ComposeProject:
    """The project under test and its inventory."""

    directory: Path

    @property
    def home(self) -> Path:
        return ROOT / ".cluster" / NAME

    def command(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `clusterkit compose`; fail with all it printed unless it ends with ``code``."""
        command = [str(BIN / "clusterkit"), "compose", *arguments, "--cluster", str(self.directory)]
        done = subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False
        )
        if done.returncode != code:
            pytest.fail(f"compose {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def up(self, *options: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.command("up", "--json", *options).stdout)
        return result

    def status(self, code: int = 0) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.command("status", "--json", code=code).stdout)
        return result

    def client(self, script: str, *arguments: str) -> str:
        """Run a script of clients/ as a user would, and return what it prints."""
        command = [str(BIN / "python"), str(ROOT / "clients" / script), "--cluster", NAME, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def container(self, service: str) -> dict[str, Any]:
        """What Docker knows of a service's container."""
        labels = [
            f"label=com.docker.compose.service={service}",
            f"label=com.docker.compose.project={self.name}",
        ]
        filters = [part for label in labels for part in ("--filter", label)]
        found = images.docker("ps", "--all", "--quiet", *filters).split()
        result: dict[str, Any] = json.loads(images.docker("inspect", *found))[0]
        return result

    @property
    def name(self) -> str:
        return composeplan.project(inventory.load(str(self.directory), ROOT), []).name


@pytest.fixture(scope="session")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeProject]:
    """The project, up; tests leave it as healthy as they found it."""
    if problem := images.engine_problem():
        if os.environ.get("CI"):
            pytest.fail(f"no Docker engine: {problem}")
        pytest.skip(f"no Docker engine: {problem}")
    directory = tmp_path_factory.mktemp("clusters") / NAME
    shutil.copytree(ROOT / "deploy" / "clusters" / "compose", directory)
    settings = directory / "group_vars" / "all.yml"
    settings.write_text(settings.read_text().replace("port_base: 26000", f"port_base: {PORT_BASE}"))
    project = ComposeProject(directory)
    if (project.home / "compose.env").exists():  # what an interrupted run may have left
        project.command("down", "--volumes")
    project.up()
    yield project
    project.command("down", "--volumes")
    shutil.rmtree(project.home)
