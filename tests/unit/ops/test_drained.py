"""A drained host is remembered, and the model goes on without its worker nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clusterkit.ops import drained
from clusterkit.ops.errors import PreflightError

if TYPE_CHECKING:
    from clusterkit.ops.inventory import Cluster

    from .conftest import Inventory


@pytest.fixture
def cluster(inventory: Inventory) -> Cluster:
    """A cluster with two worker hosts that was brought up."""
    loaded = inventory.load()
    loaded.state_dir.mkdir(parents=True)
    return loaded


def test_nothing_is_drained_at_first(cluster: Cluster) -> None:
    assert drained.without(cluster) is cluster


def test_a_drained_host_runs_no_worker_node_and_stays_in_every_group(cluster: Cluster) -> None:
    drained.mark(cluster, "h2", "new disk")
    rest = drained.without(cluster)
    assert {name for name, _ in rest.expected_nodes()} == {"cpu@h1", "io@h1"}
    assert rest.group("workers") == cluster.group("workers")
    assert {name for name, _ in cluster.expected_nodes()} == {"cpu@h1", "io@h1", "cpu@h2", "io@h2"}


def test_a_mark_says_who_since_when_and_why_and_a_second_one_changes_nothing(cluster: Cluster) -> None:
    first = drained.mark(cluster, "h2", "new disk")
    assert drained.mark(cluster, "h2", "another reason") == first
    assert drained.marks(cluster) == (first,)
    assert str(first).startswith("h2 is drained since 20")
    assert str(first).endswith(f"by {first.who}: new disk")


def test_an_unmarked_host_works_again(cluster: Cluster) -> None:
    drained.mark(cluster, "h1", "")
    drained.mark(cluster, "h2", "")
    drained.unmark(cluster, "h1")
    assert [mark.host for mark in drained.marks(cluster)] == ["h2"]


def test_a_file_that_cannot_be_read_is_an_error_and_no_host_begins_to_work(cluster: Cluster) -> None:
    (cluster.state_dir / "drained.json").write_text("{")
    with pytest.raises(PreflightError, match="which hosts are drained"):
        drained.without(cluster)
