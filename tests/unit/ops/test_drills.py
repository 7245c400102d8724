"""Drills: every fault says what it is, the same seed does the same, and a report needs nothing but itself."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from typer.testing import CliRunner

from clusterkit.ops.drills import outcome, report, runs, tables
from clusterkit.ops.drills.faults import Fault
from clusterkit.ops.drills.journal import Journal, Sent, task_id, unanswered
from clusterkit.ops.drills.ledger import Window, make
from clusterkit.ops.drills.load import LONG, Options, milliseconds
from clusterkit.ops.drills.onhosts import Hosts
from clusterkit.ops.drills.outcome import Outcome, Run
from clusterkit.ops.drills.producer import Producer
from clusterkit.ops.errors import PreflightError
from clusterkit.ops.topology import definitions
from clusterkit.runtime.errors import BadInputError
from tests.unit.ops.test_topology import SECRETS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.ops.conftest import Inventory


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.title)
def test_every_fault_says_what_it_does_and_what_should_be_seen(fault: Fault) -> None:
    assert re.fullmatch("[a-z]+(-[a-z]+)*", fault.title)
    assert fault.value.does
    assert fault.value.sees
    assert fault.value.lasts >= 0
    assert Fault.of(fault.title) is fault


def test_no_two_faults_have_one_name() -> None:
    assert len({fault.title for fault in Fault}) == len(Fault)


def test_a_misspelt_drill_is_told_what_was_meant() -> None:
    with pytest.raises(BadInputError, match="Did you mean 'poison'"):
        Fault.of("poisson")


def test_the_same_seed_chooses_the_same_faults_in_the_same_order() -> None:
    first, again, other = (runs.chosen("random", seed, {}) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_what_is_not_possible_is_left_out_or_refused_with_the_reason() -> None:
    impossible = {Fault.POISON: "needs pool processes"}
    assert Fault.POISON not in runs.chosen("all", 1, impossible)
    with pytest.raises(PreflightError, match="needs pool processes"):
        runs.chosen("poison", 1, impossible)


def test_a_cluster_that_is_not_marked_is_not_hurt(inventory: Inventory) -> None:
    with pytest.raises(PreflightError, match="not marked"):
        runs.refuse_unless_marked(inventory.load())
    inventory.settings(drills="drills: true")
    runs.refuse_unless_marked(inventory.load())


def test_one_broker_cannot_be_cut_off_from_the_others(inventory: Inventory) -> None:
    why = runs.obstacles(inventory.load())
    assert "three brokers" in why[Fault.BROKER_PARTITION]
    assert "lab" in why[Fault.WORKER_HOST_OFF]


def test_long_tasks_go_to_every_queue() -> None:
    for rate in (9, 30, 40, 200):
        options = Options("d", "", "", queues=("a", "b", "c"), tasks=1, rate=rate)
        queues = {number % 3 for number in range(900) if milliseconds(options, number) == LONG}
        assert queues == {0, 1, 2}, rate


def test_a_host_is_cut_off_from_what_it_should_not_reach_alone(inventory: Inventory) -> None:
    script = Hosts(inventory.load()).cut_off(["192.0.2.1", "2001:db8::1"])
    assert "ip saddr 192.0.2.1 drop" in script
    assert "ip6 daddr 2001:db8::1 drop" in script


def test_no_script_is_a_template_to_ansible(inventory: Inventory) -> None:
    hosts = Hosts(inventory.load())
    scripts = [
        hosts.kill("rabbitmq"),
        hosts.kill_children("worker-cpu", 3),
        hosts.restart("rabbitmq"),
        hosts.cut_off(["192.0.2.1"]),
        hosts.alarm("memory", on=True),
        hosts.alarm("disk", on=False),
    ]
    assert not any(mark in script for script in scripts for mark in ("{{", "{%", "{#"))


def test_stock_settings_are_refused_where_nothing_may_be_hurt(inventory: Inventory) -> None:
    inventory.settings(celery_settings="celery_settings: stock")
    assert any("drills: true" in problem for problem in inventory.problems)


def test_stock_settings_have_classic_queues_without_dead_letters_and_a_warning(inventory: Inventory) -> None:
    inventory.settings(celery_settings="celery_settings: stock\ndrills: true")
    cluster = inventory.load()
    document = definitions(cluster, SECRETS)
    assert [queue["arguments"] for queue in document["queues"] if queue["name"] in cluster.queues] == [{}] * 3
    assert [policy["name"] for policy in document["policies"]] == ["celery.dead"]
    assert any("LOSES" in warning for warning in cluster.warnings)


@pytest.fixture
def run() -> Run:
    began = time.time()
    sent = {number: Sent(number, "cpu", began + number, began + number + 0.1) for number in range(4)}
    sent[3] = Sent(3, "cpu", began + 3, began + 4, "Angry<Error>", "no")
    window = Window(began + 1, began + 2)
    book = make("d", sent, [], dead_letters=[task_id("d", 2)], results=[], window=window)
    made = Outcome(
        fault="poison",
        does="a & b",
        sees="seen",
        done=("killed <1>",),
        window=window,
        ledger=book,
        timeline=outcome.timeline(sent, []),
        healthy=3.0,
        problems=(),
    )
    return Run("all", "lab", "no-loss", 4, 1.0, 7, began, "7 hosts", (made,), {"other": "not here"})


def test_the_report_needs_nothing_but_itself(run: Run) -> None:
    page = report.page(run)
    assert "<svg" in page
    assert not re.search(r"""(src|href)=["'](?!#)|@import|url\(""", page)
    assert "killed &lt;1&gt;" in page
    assert "Angry&lt;Error&gt;" in page
    assert "prefers-color-scheme: dark" in page


def test_a_run_can_be_read_again(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    assert outcome.read(tmp_path) == run
    assert not run.well, "two of its tasks are lost"


def test_a_run_that_was_ended_before_all_drills_is_not_well(run: Run) -> None:
    ended = replace(run, outcomes=(), planned=("poison", "malformed"))
    assert ended.missing == ("poison", "malformed")
    assert not ended.well
    assert "not all is well" in report.page(ended)


def test_an_error_with_brackets_is_printed_as_it_is(run: Run) -> None:
    console = Console(file=io.StringIO(), width=200)
    tables.show(replace(run, failed={"poison": "no such file [/usr/sbin/nft]"}), console)
    assert "no such file [/usr/sbin/nft]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_drill_that_is_told_to_end_undoes_its_fault() -> None:
    with pytest.raises(KeyboardInterrupt), runs._ends_as_by_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is not signal.default_int_handler


def test_a_producer_is_killed_as_soon_as_a_publish_begins(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with Journal(journal) as notes:
        notes.intent(1, "cpu")
    options = Options("d", "", str(journal), queues=("cpu",), tasks=1, rate=1)

    class Stuck(Producer):
        def _start(self, options: Options) -> subprocess.Popen[str]:
            sends = (
                "import sys, time; from pathlib import Path\n"
                "from clusterkit.ops.drills.journal import Journal\n"
                "with Journal(Path(sys.argv[1])) as notes:\n"
                "    time.sleep(0.3); notes.intent(2, 'cpu'); time.sleep(60)"
            )
            return subprocess.Popen([sys.executable, "-c", sends, options.journal], text=True)

    with Stuck(options, tmp_path / "log") as producer:
        assert producer.kill_while_sending()
    assert unanswered(journal) == {1, 2}


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no run of drills"):
        outcome.read(tmp_path)


def test_two_runs_are_put_side_by_side(run: Run) -> None:
    text = tables.markdown([replace(run, settings="stock"), run])
    assert "| lost: stock | lost: no-loss |" in text
    assert "| poison | 2 | 2 |" in text


def test_one_run_is_a_table_of_its_own(run: Run) -> None:
    assert "| poison | 4 | 3 | 0 | 2 |" in tables.markdown([run])


def test_the_command_lists_every_drill() -> None:
    from clusterkit.ops.cli import app  # noqa: PLC0415

    printed = CliRunner().invoke(app, ["drill", "list", "--json"]).stdout
    assert all(f'"{fault.title}"' in printed for fault in Fault)
