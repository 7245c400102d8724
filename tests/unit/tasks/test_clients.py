"""The clients explain themselves and refuse bad input before they need a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[3] / "clients"
NAMES = sorted(path.name for path in CLIENTS.glob("[!_]*.py"))


def run(name: str, *args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CLUSTER": "no-such-cluster"}
    return subprocess.run(
        [sys.executable, str(CLIENTS / name), *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples(name: str, tmp_path: Path) -> None:
    done = run(name, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert "--cluster NAME" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_started_by_its_name(name: str) -> None:
    assert os.access(CLIENTS / name, os.X_OK)
    assert (CLIENTS / name).read_text().startswith("#!/usr/bin/env python3\n")


def test_any_python_will_do_to_start_one(tmp_path: Path) -> None:
    """The bare interpreter has none of the packages; the script goes on in the checkout's environment."""
    bare = Path(sys.base_prefix) / "bin" / "python3"
    done = subprocess.run(
        [bare, CLIENTS / "submit.py", "--help"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        ["submit.py", "tasks.probes.echo", '["x"]'],
        ["submit.py", "--list"],
        ["result.py", "some-id"],
        ["fibonacci.py", "3"],
        ["crawl.py", "http://example.org"],
        ["mandelbrot.py", "--out", "picture.png"],
        ["wordcount.py", __file__],
    ],
)
def test_without_a_cluster_it_says_so(line: list[str], tmp_path: Path) -> None:
    done = run(*line, folder=tmp_path)
    assert (done.returncode, done.stdout) == (13, "")
    assert "no-such-cluster" in done.stderr
    assert "next:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["submit.py", "tasks.probes.echo", "[1"], "ARGS is not JSON"),
        (["submit.py", "tasks.probes.echo", "7"], "did you mean '[7]'?"),
        (["submit.py"], "name a task, or --list"),
        (["fibonacci.py", "many"], "invalid int value"),
        (["mandelbrot.py", "--out", "picture.txt"], "not the name of a picture"),
        (["mandelbrot.py", "--out", "no/such/folder/x.png"], "in a folder that exists"),
        (["mandelbrot.py", "--out", "x.png", "--tile", "0"], "a tile is 1 to 512"),
        (["mandelbrot.py", "--out", "x.png", "--width", "100000", "--tile", "1"], "choose larger ones"),
        (["wordcount.py"], "name a file or a folder"),
        (["wordcount.py", "no-such-file"], "no-such-file"),
    ],
)
def test_bad_input_is_refused_with_the_reason(line: list[str], said: str, tmp_path: Path) -> None:
    done = run(*line, folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
