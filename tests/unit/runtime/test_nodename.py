"""What the inventory calls a node, whatever slot it runs in."""

from __future__ import annotations

import pytest

from clusterkit.runtime.nodename import logical


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("cpu@h4", "cpu@h4"),
        ("cpu.b@h4", "cpu@h4"),
        ("cpu.b@h4.example.org", "cpu@h4.example.org"),
        ("cpu@h4.example.org", "cpu@h4.example.org"),
    ],
)
def test_a_slot_is_no_part_of_the_nodes_name(name: str, node: str) -> None:
    assert logical(name) == node
