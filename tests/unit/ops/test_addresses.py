"""Where hosts are as numbers, and what their certificates vouch for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clusterkit.ops import addresses, inventory
from clusterkit.ops.errors import PreflightError

if TYPE_CHECKING:
    from tests.unit.ops.conftest import Inventory

ROOT = Path(__file__).resolve().parents[3]


def test_names_become_addresses(inventory: Inventory) -> None:
    inventory.hosts(
        "all: {hosts: {h1: {ansible_host: localhost}}, children: {brokers: {hosts: {h1: }},"
        " results: {hosts: {h1: }}, workers: {hosts: {h1: }}, schedulers: {hosts: {h1: }},"
        " monitors: {hosts: {h1: }}}}\n"
    )
    found = addresses.resolved(inventory.load()).hosts["h1"].address
    assert found in {"127.0.0.1", "::1"}


def test_a_name_nobody_knows_and_an_address_of_two_hosts_are_told_at_once(inventory: Inventory) -> None:
    inventory.hosts(
        "brokers: {hosts: {h1: {ansible_host: nowhere.invalid}}}\n"
        "results: {hosts: {h1: }}\n"
        "workers: {hosts: {h2: {ansible_host: 192.0.2.2}, h3: {ansible_host: 192.0.2.2}}}\n"
        "schedulers: {hosts: {h2: }}\nmonitors: {hosts: {h2: }}\n"
    )
    with pytest.raises(PreflightError) as caught:
        addresses.resolved(inventory.load())
    problems = [str(problem) for problem in caught.value.problems]
    assert problems[0].startswith("h1: nowhere.invalid: ")
    assert problems[1:] == ["h3: 192.0.2.2 is the address of h2 too"]
    assert "cluster_address" in caught.value.next_step


def test_a_certificate_is_for_the_hosts_own_names_its_groups_and_its_address() -> None:
    found = addresses.identities(inventory.load("example", ROOT))["h1"]
    assert found.names == (
        "h1.example.internal",
        "h1",
        "brokers.example.internal",
        "results.example.internal",
    )
    assert found.addresses == ("192.0.2.1",)
