"""Benchmarks: what is refused before anything is measured, and what is said about where it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.benchmarks import machine
from tests.benchmarks.__main__ import WORKLOADS, read_options
from tests.benchmarks.processes import MeasureError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["publsh"], "no benchmark 'publsh'. Did you mean 'publish'"),
        (["drain", "nothing"], "no benchmark 'nothing'. There are"),
        (["--repeats", "0"], "REPEATS has to be at least 1, not 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        read_options(arguments)
    assert said in capsys.readouterr().err


def test_every_benchmark_can_be_named() -> None:
    assert read_options([*WORKLOADS, "--repeats", "1"]).bench == list(WORKLOADS)
    assert read_options([]).bench == []


def test_figures_are_written_only_of_a_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "docs").mkdir()
    for name in ("code", "docs/page"):
        (tmp_path / name).write_text("before")
    git("init")
    git("add", ".")
    git("commit", "--message", "first")
    (tmp_path / "docs/page").write_text("figures")
    machine.refuse_changed(tmp_path)
    assert not machine.hardware(tmp_path)["kit"].endswith("-dirty")
    (tmp_path / "code").write_text("after")
    with pytest.raises(MeasureError, match="commit first"):
        machine.refuse_changed(tmp_path)
    assert machine.hardware(tmp_path)["kit"].endswith("-dirty")


def test_a_table_says_when_and_on_what() -> None:
    there = {"date": "2026-01-02", "kit": "1a2b3c4", "memory": "8 GiB"}
    assert machine.measured(there) == "Measured: 2026-01-02; kit: 1a2b3c4; memory: 8 GiB."
