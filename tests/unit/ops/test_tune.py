"""What is proposed for a worker node follows from what its tasks did."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from clusterkit.ops import discover, tune
from clusterkit.ops.discover import Found, HostResources, NodeUse
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.errors import BadInputError, UnknownTaskError

if TYPE_CHECKING:
    from tests.unit.ops.conftest import Inventory

BEGIN, SECONDS = 1_000.0, 10.0


def host(*nodes: NodeUse, cores: int = 4, available: int = 8_000) -> HostResources:
    return HostResources("h1", cores, cores, 16_000, available, 0.0, 0.0, nodes, BEGIN, BEGIN + SECONDS)


def use(pool: Any = "prefork", slots: int = 2, cores: float = 2.0, memory: int = 150) -> NodeUse:
    return NodeUse("cpu", pool, slots, cores, memory, slots + 1 if pool == "prefork" else 1)


def ran(count: int, seconds: float) -> tune.Durations:
    durations = tune.Durations()
    for _ in range(count):
        durations.add(seconds)
    return durations


def proposed(
    durations: tune.Durations, of: HostResources, pool: str = "prefork", most_cores: int | None = None
) -> tune.Proposal:
    node: Any = SimpleNamespace(name="cpu", pool=pool, prefetch_multiplier=1, most_cores=most_cores)
    return tune.propose(node, [(durations, of.nodes[0], of)])


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


def test_tasks_that_wait_for_a_core_are_not_taken_for_waiting_ones() -> None:
    found = proposed(ran(200, 0.4), host(use(slots=8, cores=3.9)))
    assert (found.share, found.better_concurrency) == (0.49, 8)
    assert "all busy" in found.why


def test_cores_that_the_node_may_not_use_get_no_process() -> None:
    assert proposed(ran(200, 0.1), host(use(cores=2.0)), most_cores=2).better_concurrency == 2


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


def test_tasks_that_compute_are_seen_to_whenever_their_events_came(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen(_: Any, watch: tune.Watch) -> None:  # two processes, before the host was looked at and after
        for number in range(1, 1_001):
            when = BEGIN - 20 + number * 0.05
            watch.succeeded({"hostname": "cpu.b@h1", "timestamp": when, "runtime": 0.1, "uuid": "1"})

    monkeypatch.setattr(tune, "listen", listen)
    monkeypatch.setattr(discover, "discover", lambda *_: Found((host(use(cores=2.0)),), {}))
    tuned = tune.tune(inventory.load(), SimpleNamespace(), seconds=SECONDS)
    (found,) = tuned.proposals
    assert 199 <= found.tasks <= 201
    assert found.share > 0.98
    assert found.better_concurrency == 4
    assert (tuned.unknown, tuned.seconds) == ({"io": 0}, SECONDS)


def test_a_sample_is_kept_under_way_until_it_is_over() -> None:
    watch, sent = tune.Watch(), []

    def send(*_: Any, task_id: str, **__: Any) -> None:
        sent.append(task_id)
        assert len(watch.under_way) <= 5
        if len(sent) % 5 == 0:  # all five end, but for one that fails
            for one in sent[-4:]:
                watch.succeeded({"hostname": "cpu@h1", "timestamp": 1.0, "runtime": 0.1, "uuid": one})
        if len(watch.under_way) == 5:
            watch.over.set()

    watch.begun.set()
    app: Any = SimpleNamespace(send_task=send)
    give_up = threading.Timer(20, watch.over.set)
    give_up.start()
    tune.feed(app, tune.Sample("work", "cpu", [], {}, 5), watch)
    give_up.cancel()
    assert len(sent) > 5
    assert len(watch.under_way) == 5


def test_a_sample_is_a_task_of_the_release_with_arguments_by_place_or_name() -> None:
    tasks: dict[str, str | None] = {"tasks.work": "cpu"}
    file = ClusterFile("c", "operator", "", "", ("cpu",), "cpu", "tasks:app", tasks=tasks)
    app: Any = SimpleNamespace(conf=SimpleNamespace(clusterkit_cluster_file=file))
    sample = tune.Sample.of(app, "tasks.work", '{"n": 3}', 7)
    assert sample == tune.Sample("tasks.work", "cpu", [], {"n": 3}, 7)
    with pytest.raises(UnknownTaskError) as refused:
        tune.Sample.of(app, "tasks.wrok", "[]", 7)
    assert "did you mean tasks.work" in str(refused.value.next_step)
    with pytest.raises(BadInputError, match="neither a list nor an object"):
        tune.Sample.of(app, "tasks.work", "30", 7)


def changed(node: str, pool: Any, *, slots: int = 2, prefetch: int = 1) -> tune.Proposal:
    return tune.Proposal(node, pool, 100, 0.1, 0.1, 1.0, 2, slots, 1, prefetch, "")


def test_what_a_proposal_replaces_and_restarts_is_said(inventory: Inventory) -> None:
    cluster = inventory.load()
    assert not list(tune.effects(cluster, [changed("cpu", "prefork", slots=4)]))
    (threads,) = tune.effects(cluster, [changed("io", "threads", slots=4)])
    assert threads.startswith("io is replaced")
    node, brokers = tune.effects(cluster, [changed("cpu", "prefork", prefetch=64)])
    assert node.startswith("cpu is replaced")
    assert "the brokers restart one after the other" in brokers
    assert "64 x 3600 s" in brokers
    short = cluster.model_copy(
        update={"worker_nodes": tuple(n.model_copy(update={"time_limit": 20}) for n in cluster.worker_nodes)}
    )
    assert len(list(tune.effects(short, [changed("cpu", "prefork", prefetch=64)]))) == 1


def test_of_a_node_without_task_events_it_is_said_that_nothing_can_be_measured(inventory: Inventory) -> None:
    inventory.profiled("name: cpu, queues: [cpu]", "name: long, queues: [io]", "name: io, queues: [default]")
    said = io.StringIO()
    tuning = tune.Tuning((), {"cpu": 0, "long": 3}, 30.0)
    tune.show(inventory.load(), tuning, Console(file=said, width=200))
    cpu, other = said.getvalue().splitlines()
    assert cpu == "cpu: its profile `throughput` sends no task events: nothing can be measured"
    assert "3 tasks in 30 s say too little" in other
