"""The order in which hosts change, what is gone back to, and what stays whatever the inventory says."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from clusterkit.ops import deployment, inventory, playbook, probing, releases, rollout
from clusterkit.ops.broker import Queue
from clusterkit.ops.errors import ClusterUnhealthyError
from clusterkit.ops.model import Cluster
from clusterkit.ops.probing import Probes
from clusterkit.ops.progress import Progress
from clusterkit.ops.releases import Entry, Record
from clusterkit.ops.rollout import batches, waiting
from clusterkit.runtime.errors import BadInputError

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = inventory.load("local", ROOT)
FIVE = ("h1", "h2", "h3", "h4", "h5")


@pytest.mark.parametrize(
    ("workers", "canary", "serial", "order"),
    [
        (("h1",), "", 0, (("h1",),)),
        (FIVE[:3], "", 0, (("h1",), ("h2",), ("h3",))),
        (FIVE[:3], "h2", 0, (("h2",), ("h1",), ("h3",))),
        (FIVE, "", 2, (("h1",), ("h2", "h3"), ("h4", "h5"))),
        (FIVE, "h5", 9, (("h5",), ("h1", "h2", "h3", "h4"))),
    ],
)
def test_a_canary_comes_first_and_then_a_share_at_a_time(
    workers: tuple[str, ...], canary: str, serial: int, order: tuple[tuple[str, ...], ...]
) -> None:
    assert batches(workers, (), canary, serial) == order


@pytest.mark.parametrize(
    ("idle", "order"),
    [
        (("h1",), (("h2",), ("h3",), ("h1",))),
        (("h1", "h3"), (("h2",), ("h1", "h3"))),
        (FIVE[:3], (FIVE[:3],)),
    ],
)
def test_hosts_without_worker_nodes_prove_nothing_and_come_last(
    idle: tuple[str, ...], order: tuple[tuple[str, ...], ...]
) -> None:
    assert batches(FIVE[:3], idle, "", 0) == order


@pytest.mark.parametrize(("canary", "said"), [("h9", "is no worker"), ("h5", "runs no worker node now")])
def test_a_canary_that_proves_nothing_is_refused_with_those_that_do(canary: str, said: str) -> None:
    with pytest.raises(BadInputError, match=f"CANARY={canary} {said}") as refused:
        batches(FIVE, ("h5",), canary, 0)
    assert "h1, h2, h3, h4" in refused.value.next_step


def test_messages_for_a_task_are_those_of_its_queue_and_the_delayed_ones() -> None:
    queues = {
        name: Queue(name, "quorum", ready, unacknowledged, 1)
        for name, ready, unacknowledged in (("cpu", 3, 2), ("io", 7, 0), ("celery_delayed_4", 1, 0))
    }
    assert waiting(queues, "cpu") == 6


Tasks = dict[str, str | None]
A: Tasks = {"tasks.a": None}
B: Tasks = {"tasks.b": None}
C: Tasks = {"tasks.c": None}


@pytest.mark.parametrize(
    ("old", "new", "first", "only"),
    [
        (A, A, False, False),
        (A, A | B, False, False),
        (A | B, A, True, True),
        (A | B, A | C, True, False),
    ],
    ids=["the same", "more", "fewer", "others"],
)
def test_names_that_go_away_are_told_first_and_schedulers_never_send_a_new_one(
    old: Tasks, new: Tasks, first: bool, only: bool
) -> None:
    names = rollout._Names(old, old, new)
    assert (names.gone, names.only_gone) == (first, only)
    assert names.staying().keys() == old.keys() & new.keys()


class Rolling:
    """Takes the place of playbooks and clients, and keeps what they were told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def run(self, _: Any, playbook: str, variables: dict[str, Any], __: Any) -> None:
        self.told.append(f"{playbook} {variables['cluster_release']['id']}")

    def write(self, _: Any, __: Any, tasks: dict[str, Any]) -> None:
        self.told.append(f"clients {' '.join(sorted(tasks))}")


@pytest.fixture
def rolling(monkeypatch: pytest.MonkeyPatch) -> Rolling:
    found = Rolling()
    monkeypatch.setattr(playbook, "run", found.run)
    monkeypatch.setattr(deployment, "write_cluster_files", found.write)
    return found


def test_a_release_that_lacks_a_task_is_told_before_and_taken_back_when_its_canary_fails(
    rolling: Rolling,
) -> None:
    ready: Any = SimpleNamespace(keys=None, variables={"cluster_release": {"id": "new"}})
    names = rollout._Names(A | B, A | B, A)
    progress = Progress("", [], Console(quiet=True))
    rollout._tell_first(CLUSTER, ready, names, progress)
    assert rolling.told == ["clients tasks.a", "switch new"]
    rollout._take_back(CLUSTER, ready, names, entry("old"), progress)
    assert rolling.told[2:] == ["clients tasks.a tasks.b", "switch old"]


class Broker:
    """Counts messages in queues, as the monitor does."""

    def queues(self) -> dict[str, Queue]:
        counts = {"default": (0, 0), "cpu": (0, 0), "io": (0, 1)}
        return {name: Queue(name, "quorum", *of, 1) for name, of in counts.items()}


def test_at_the_end_all_nodes_are_probed_but_behind_messages_and_a_silent_one_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left_out: set[str] = set()

    def probe(*_: Any, but: set[str], **__: Any) -> Probes:
        left_out.update(but)
        return Probes({}, {"cpu": ["cpu@h1"]})

    monkeypatch.setattr(probing, "probe", probe)
    monkeypatch.setattr(deployment, "operator_app", lambda _: None)
    monkeypatch.setattr(deployment, "monitor", lambda _: contextlib.nullcontext(Broker()))
    with pytest.raises(ClusterUnhealthyError, match="cpu@h1 did not answer on queue cpu"):
        rollout._prove(CLUSTER, Progress("", [], Console(quiet=True)))
    assert left_out == {"io"}


def entry(
    release_id: str, how: releases.How = "release", source: str = ".", *, pinned: bool = False
) -> Entry:
    return releases.new_entry(release_id, how, source, {"tasks.a": None}, pinned=pinned)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "releases.json", [])


def roll(record: Record, one: Entry) -> None:
    record.begin(one)
    record.complete()


def test_a_rollback_goes_to_the_release_before(record: Record) -> None:
    roll(record, entry("one"))
    assert record.before() is None
    roll(record, entry("two"))
    before = record.before()
    assert before
    assert before.id == "one"


def test_a_release_that_got_stuck_is_gone_back_from_to_what_most_hosts_run(record: Record) -> None:
    roll(record, entry("one"))
    roll(record, entry("two"))
    record.begin(entry("three"))
    assert record.unfinished
    assert record.current
    before = record.before()
    assert before
    assert (record.current.id, before.id) == ("two", "two")


def test_tasks_of_a_release_that_got_stuck_may_have_been_sent_too(record: Record) -> None:
    roll(record, entry("one"))
    record.begin(replace(entry("two"), tasks={"tasks.b": "cpu"}))
    assert record.tasks() == {"tasks.a": None, "tasks.b": "cpu"}


def test_one_that_failed_on_its_canary_is_forgotten(record: Record) -> None:
    roll(record, entry("one"))
    record.begin(entry("two"))
    record.give_up()
    assert [one.id for one in record.entries] == ["one"]


def test_one_that_failed_on_its_canary_leaves_the_one_that_got_stuck_before_it(record: Record) -> None:
    roll(record, entry("one"))
    roll(record, entry("two"))
    record.begin(entry("three"))
    record.begin(entry("four"))
    record.give_up()
    before = record.before()
    assert record.unfinished
    assert before
    assert (record.unfinished.id, before.id) == ("three", "two"), "not back to one, which no host runs"


def test_an_up_that_deploys_the_same_again_is_no_new_entry(record: Record) -> None:
    record.deployed("one", "up", ".", {})
    record.deployed("one", "up", ".", {})
    record.deployed("two", "up", ".", {})
    assert [one.id for one in record.entries] == ["one", "two"]


def test_an_up_that_keeps_the_release_ends_one_that_got_stuck(record: Record) -> None:
    roll(record, entry("one"))
    record.begin(entry("two"))
    record.stayed()
    assert [one.id for one in record.entries] == ["one"]


def test_what_was_gone_back_to_stays_until_a_release_says_otherwise(record: Record) -> None:
    roll(record, entry("one", "rollback", CLUSTER.app_source, pinned=True))
    assert record.pinned(CLUSTER)
    roll(record, entry("two", source=CLUSTER.app_source))
    assert record.pinned(CLUSTER) is None


def test_another_source_stays_until_the_inventory_names_it(record: Record) -> None:
    roll(record, entry("one", source="dist/app.whl", pinned=True))
    kept = record.pinned(CLUSTER)
    assert kept
    assert "dist/app.whl" in kept.why_pinned()
    assert record.pinned(CLUSTER.model_copy(update={"app_source": "dist/app.whl"})) is None


def test_the_record_is_read_back(tmp_path: Path) -> None:
    cluster: Cluster = CLUSTER.model_copy(update={"root": tmp_path})
    cluster.state_dir.mkdir(parents=True)
    roll(Record.load(cluster), entry("one"))
    assert [one.id for one in Record.load(cluster).entries] == ["one"]
