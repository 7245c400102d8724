"""What is proposed for a worker node follows from what its tasks did."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from clusterkit.ops import tune
from clusterkit.ops.discover import HostResources, NodeUse

SECONDS = 10.0


def host(*nodes: NodeUse, cores: int = 4, available: int = 8_000) -> HostResources:
    return HostResources("h1", cores, cores, 16_000, available, 0.0, 0.0, nodes)


def use(pool: Any = "prefork", slots: int = 2, cores: float = 2.0, memory: int = 150) -> NodeUse:
    return NodeUse("cpu", pool, slots, cores, memory, slots + 1 if pool == "prefork" else 1)


def ran(count: int, seconds: float) -> tune.Durations:
    durations = tune.Durations()
    for _ in range(count):
        durations.add(seconds)
    return durations


def proposed(durations: tune.Durations, of: HostResources, pool: str = "prefork") -> tune.Proposal:
    node: Any = SimpleNamespace(name="cpu", pool=pool, prefetch_multiplier=1)
    return tune.propose(node, [(durations, of.nodes[0], of)], SECONDS)


def test_tasks_that_compute_get_a_process_for_each_core() -> None:
    found = proposed(ran(200, 0.1), host(use(cores=2.0)))
    assert (found.share, found.better_concurrency, found.better_prefetch) == (1.0, 4, 1)


def test_tasks_that_half_wait_get_twice_as_many() -> None:
    assert proposed(ran(200, 0.1), host(use(cores=1.0))).better_concurrency == 8


def test_tasks_that_only_wait_get_no_more_than_a_few_a_core_and_a_word() -> None:
    found = proposed(ran(20, 1.0), host(use(cores=0.02)))
    assert found.better_concurrency == 4 * tune.MOST_PER_CORE
    assert "gevent or threads" in found.why


def test_what_others_use_on_the_host_is_theirs() -> None:
    other = NodeUse("other", "prefork", 2, 2.1, 100, 3)
    assert proposed(ran(200, 0.1), host(use(cores=2.0), other)).better_concurrency == 2


def test_memory_ends_it() -> None:
    found = proposed(ran(20, 1.0), host(use(cores=0.1), available=125))
    assert found.better_concurrency == 4  # room for two more at 50 MiB each
    assert "memory for no more" in found.why


@pytest.mark.parametrize(
    ("seconds", "ahead"), [(0.0005, 64), (0.002, 50), (0.01, 10), (0.05, 2), (0.1, 1), (60.0, 1)]
)
def test_short_tasks_are_taken_in_advance(seconds: float, ahead: int) -> None:
    assert tune.ahead(seconds) == ahead


@pytest.mark.parametrize(("in_use", "cores", "slots"), [(95, 0.3, 200), (95, 0.95, 100), (30, 0.3, 100)])
def test_greenlets_become_more_when_all_are_in_use_and_their_core_is_not(
    in_use: int, cores: float, slots: int
) -> None:
    greenlets = use("gevent", slots=100, cores=cores)
    assert proposed(ran(in_use * 10, 1.0), host(greenlets), "gevent").better_concurrency == slots
