"""The inventory in the documents is one that works: the lab deploys the same layout and settings."""

from __future__ import annotations

from pathlib import Path

from clusterkit.ops import inventory, labplan

ROOT = Path(__file__).resolve().parents[3]


def test_the_example_is_a_valid_inventory_without_a_warning() -> None:
    example = inventory.load("example", ROOT)
    assert example.warnings == ()
    assert (example.tls, example.sentinel) == (True, True)
    assert example.listen_address("h6") == "192.0.2.6"


def test_the_lab_deploys_the_examples_layout() -> None:
    example = inventory.load("example", ROOT)
    layout = labplan.layout(len(example.hosts))
    assert {group: tuple(hosts) for group, hosts in layout.items()} == example.members
