"""An inventory in a scratch checkout, correct until a test changes a line of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from clusterkit.ops.errors import InventoryError
from clusterkit.ops.inventory import load

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.inventory import Cluster

HOSTS = """\
brokers: {hosts: {h1: }}
results: {hosts: {h1: }}
workers: {hosts: {h1: , h2: {ansible_host: 192.0.2.2}}}
schedulers: {hosts: {h1: }}
monitors: {hosts: {h1: }}
"""
SETTINGS = """\
celery_app: tasks.app:app
service_backend: systemd
queues: {default: {}, cpu: {}, io: {}}
worker_nodes:
  - {name: cpu, queues: [cpu]}
  - {name: io, pool: threads, queues: [io, default]}
"""


@dataclass(frozen=True)
class Inventory:
    """The inventory `test` of a checkout; ``problems`` are what loading it complains about."""

    root: Path

    @property
    def directory(self) -> Path:
        """The inventory directory."""
        return self.root / "deploy" / "clusters" / "test"

    def write(self, text: str, name: str = "group_vars/all.yml") -> None:
        """Replace a file of the inventory."""
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def hosts(self, text: str) -> None:
        """Replace hosts.yml."""
        self.write(text, "hosts.yml")

    def settings(self, **replaced: str) -> None:
        """Write the settings with each line that begins with a key of ``replaced`` put in its place."""
        lines = SETTINGS.splitlines()
        for key, text in replaced.items():
            found = [index for index, line in enumerate(lines) if line.startswith(f"{key}:")]
            lines[found[0] if found else len(lines) :] = [
                *text.splitlines(),
                *(lines[found[0] + 1 :] if found else []),
            ]
        self.write("\n".join(lines) + "\n")

    def nodes(self, *nodes: str) -> None:
        """Write the settings with these worker nodes, the first on line 5."""
        head = SETTINGS.partition("worker_nodes:")[0]
        self.write(head + "worker_nodes:\n" + "".join(f"  - {{{node}}}\n" for node in nodes))

    def profiled(self, *nodes: str) -> None:
        """Write the settings with these worker nodes, and a profile for the queues cpu and io."""
        self.nodes(*nodes)
        file = self.directory / "group_vars" / "all.yml"
        profiles = "queues: {default: {}, cpu: {profile: throughput}, io: {profile: long-tasks}}"
        file.write_text(file.read_text().replace("queues: {default: {}, cpu: {}, io: {}}", profiles))

    def load(self) -> Cluster:
        """Load the inventory."""
        return load("test", self.root)

    @property
    def problems(self) -> list[str]:
        """What loading complains about, without the path of the inventory."""
        with pytest.raises(InventoryError) as caught:
            self.load()
        return [str(line).removeprefix("deploy/clusters/test/") for line in caught.value.problems]


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inventory:
    inventory = Inventory(tmp_path)
    inventory.hosts(HOSTS)
    inventory.write(SETTINGS)
    monkeypatch.chdir(tmp_path)
    return inventory
