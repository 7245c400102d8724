"""One value of an inventory changes, and nothing else of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clusterkit.ops import drained
from clusterkit.ops.errors import InventoryError
from clusterkit.ops.inventoryedit import set_of_node

if TYPE_CHECKING:
    from tests.unit.ops.conftest import Inventory

HEAD = """\
# Of the shop.
celery_app: tasks.app:app
queues: {default: {}, cpu:   {}}   # two
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "- {name: cpu, queues: [cpu, default], concurrency: 2}  # few",
            "- {name: cpu, queues: [cpu, default], concurrency: 12}  # few",
        ),
        (
            '- {name: "cpu", concurrency: auto, queues: [cpu, default]}',
            '- {name: "cpu", concurrency: 12, queues: [cpu, default]}',
        ),
        ("- {queues: [cpu, default], name: cpu}", "- {queues: [cpu, default], concurrency: 12, name: cpu}"),
        (
            "-   # one\n    name: cpu  # short\n    queues:\n    - cpu\n    - default",
            "-   # one\n    concurrency: 12\n    name: cpu  # short\n    queues:\n    - cpu\n    - default",
        ),
        (
            "- name: cpu\n    queues: [cpu, default]\n    concurrency: 2 # few",
            "- name: cpu\n    queues: [cpu, default]\n    concurrency: 12 # few",
        ),
    ],
)
def test_a_size_is_written_where_it_belongs(before: str, after: str, inventory: Inventory) -> None:
    inventory.write(f"{HEAD}worker_nodes:\n  {before}\n")
    changed = set_of_node(inventory.load(), "cpu", "concurrency", 12)
    assert changed.worker_nodes[0].concurrency == 12
    file = inventory.directory / "group_vars" / "all.yml"
    assert file.read_text() == f"{HEAD}worker_nodes:\n  {after}\n"


def test_a_drained_host_stays_without_worker_nodes(inventory: Inventory) -> None:
    cluster = inventory.load()
    cluster.state_dir.mkdir(parents=True)
    drained.mark(cluster, "h2", "new disk")
    changed = set_of_node(cluster, "cpu", "concurrency", 12)
    assert {name for name, _ in changed.expected_nodes()} == {"cpu@h1", "io@h1"}, "nobody waits for h2"


def test_the_file_that_counts_is_the_one_that_is_edited(inventory: Inventory) -> None:
    (inventory.directory / "group_vars" / "all.yml").unlink()
    node = "worker_nodes:\n  - {name: cpu, queues: [cpu, default], concurrency: 2}\n"
    inventory.write(HEAD + node, "group_vars/all/10-base.yml")
    inventory.write(node, "group_vars/all/20-nodes.yml")
    set_of_node(inventory.load(), "cpu", "concurrency", 3)
    folder = inventory.directory / "group_vars" / "all"
    assert "concurrency: 2" in (folder / "10-base.yml").read_text()
    assert "concurrency: 3" in (folder / "20-nodes.yml").read_text()


def test_what_would_not_be_right_afterwards_is_left_as_it_was(inventory: Inventory) -> None:
    text = f"{HEAD}worker_nodes:\n  - {{name: cpu, queues: [cpu, default], pool: solo}}\n"
    inventory.write(text)
    with pytest.raises(InventoryError, match="solo"):
        set_of_node(inventory.load(), "cpu", "concurrency", 12)
    assert (inventory.directory / "group_vars" / "all.yml").read_text() == text
