"""A host that shall work again."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from clusterkit.ops import deployment, drain, drained
from clusterkit.ops.errors import PreflightError
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from clusterkit.ops.inventory import Cluster

    from .conftest import Inventory

CONSOLE = Console(file=io.StringIO())


@pytest.fixture
def cluster(inventory: Inventory) -> Cluster:
    """A cluster with two worker hosts, both drained."""
    loaded = inventory.load()
    loaded.state_dir.mkdir(parents=True)
    for host in ("h1", "h2"):
        drained.mark(loaded, host, "new disk")
    return drained.without(loaded)


def hosts(cluster: Cluster) -> list[str]:
    return [mark.host for mark in drained.marks(cluster)]


def test_it_is_brought_up_with_the_release_of_the_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought_up: list[Any] = []

    def up(whole: Cluster, _: Console, *, keep_release: bool) -> None:
        brought_up.extend([{name for name, _ in whole.expected_nodes()}, keep_release, hosts(whole)])

    monkeypatch.setattr(deployment, "up", up)
    drain.undrain(cluster, "h2", CONSOLE)
    assert brought_up == [{"cpu@h2", "io@h2"}, True, ["h1", "h2"]]
    assert hosts(cluster) == ["h1"]


def test_it_stays_drained_when_the_cluster_does_not_come_up_with_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(*_: Any, **__: Any) -> None:
        raise PreflightError("the disk is full")

    monkeypatch.setattr(deployment, "up", up)
    with pytest.raises(PreflightError):
        drain.undrain(cluster, "h2", CONSOLE)
    assert hosts(cluster) == ["h1", "h2"]


def test_one_that_is_not_drained_is_a_mistake_with_a_way_out(cluster: Cluster) -> None:
    drained.unmark(cluster, "h2")
    with pytest.raises(BadInputError, match="'h2' of cluster 'test' is not drained") as refused:
        drain.undrain(cluster, "h2", CONSOLE)
    assert "make cluster-up" in refused.value.next_step
