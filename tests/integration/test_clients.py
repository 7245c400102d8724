"""The scripts in clients/, run as a user runs them."""

from __future__ import annotations

import collections
import functools
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness import BIN, ENVIRONMENT, ROOT, LocalCluster
from PIL import Image

LICENCES = Path("/usr/share/common-licenses")


def test_submit_prints_the_result(cluster: LocalCluster) -> None:
    done = cluster.run_client("submit.py", "tasks.compute.fibonacci", "[30]", "--wait")
    assert (done.returncode, json.loads(done.stdout)) == (0, 832040)


def test_make_submit_does_the_same(cluster: LocalCluster) -> None:
    done = subprocess.run(
        ["make", "submit", f"CLUSTER={cluster.name}", "TASK=tasks.compute.fibonacci", "ARGS=[30]"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "832040" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("tasks.compute.fibonaci", "[30]"), 10, "tasks.compute.fibonacci"),
        (("tasks.compute.fibonacci", "[30"), 2, "not JSON"),
        (("tasks.compute.fibonacci", "[30]", "--queue", "cpuu"), 2, "cpuu"),
        (("tasks.probes.fail", '["on purpose"]', "--wait"), 9, "on purpose"),
        (("tasks.compute.fibonacci", "[-1]", "--wait"), 9, "greater than or equal to 0"),
        (("tasks.probes.sleep", "[3]", "--wait", "--timeout", "0.5"), 11, "result.py"),
    ],
    ids=["unknown task", "bad JSON", "unknown queue", "failing task", "argument out of range", "not in time"],
)
def test_each_mistake_has_its_message_and_exit_code(
    arguments: tuple[str, ...], code: int, said: str, cluster: LocalCluster
) -> None:
    done = cluster.run_client("submit.py", *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_cluster_is_told(cluster: LocalCluster) -> None:
    done = subprocess.run(
        [BIN / "python", ROOT / "clients/submit.py", "--cluster", "nowhere", "tasks.probes.echo"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 13
    assert "make cluster-up CLUSTER=nowhere" in done.stderr


def test_word_counts_equal_those_of_sort_and_uniq(cluster: LocalCluster) -> None:
    files = sorted(path for path in LICENCES.iterdir() if path.is_file() and not path.is_symlink())
    assert files
    done = cluster.run_client("wordcount.py", "--json", "--all", *map(str, files))
    assert done.returncode == 0, done.stderr
    pipeline = "cat \"$@\" | tr -cs 'A-Za-z' '\\n' | tr A-Z a-z | sed '/^$/d' | sort | uniq -c"
    counted = subprocess.run(
        ["bash", "-c", pipeline, "-", *map(str, files)],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    expected = {word: int(count) for count, word in (line.split() for line in counted.stdout.splitlines())}
    assert words_of(done.stdout) == expected


def words_of(output: str) -> dict[str, int]:
    return dict(json.loads(output))


def test_mandelbrot_writes_a_picture_that_looks_right(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    done = cluster.run_client(
        "mandelbrot.py", "--out", str(path), "--width", "320", "--height", "240", "--tile", "64"
    )
    assert done.returncode == 0, done.stderr
    with Image.open(path) as picture:
        assert picture.size == (320, 240)
        pixels = picture.convert("RGB")
        colours = collections.Counter(pixels.getdata())
        # The set itself is one colour, in the middle; symmetric about the real axis.
        assert pixels.getpixel((160, 120)) == colours.most_common(1)[0][0]
        upper, lower = pixels.getpixel((60, 20)), pixels.getpixel((60, 219))
        assert upper == lower
        assert len(colours) > 20


def test_fibonacci_prints_values(cluster: LocalCluster) -> None:
    done = cluster.run_client("fibonacci.py", "10", "20")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b55\b", done.stdout)
    assert re.search(r"\b6765\b", done.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "index.html").write_text(
        '<title>Home</title><a href="a.html">a</a> <a href="private/x.html">x</a>'
    )
    (tmp_path / "a.html").write_text('<title>A</title><a href="index.html">home</a>')
    (tmp_path / "robots.txt").write_text("User-agent: *\nDisallow: /private/\n")

    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_crawl_walks_a_site_and_keeps_to_its_rules(cluster: LocalCluster, site: str) -> None:
    refused = cluster.run_client("crawl.py", site, "--json")
    assert "private" in refused.stdout + refused.stderr or refused.returncode == 9
    done = cluster.run_client("crawl.py", site, "--json", "--allow-private")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert {page["title"] for page in summary["pages"]} == {"Home", "A"}
    assert "robots" in json.dumps(summary["skipped"])


def test_ctrl_c_says_how_to_get_the_result_later(cluster: LocalCluster) -> None:
    script = subprocess.Popen(
        [
            BIN / "python",
            ROOT / "clients/submit.py",
            "--cluster",
            cluster.name,
            "tasks.probes.sleep",
            "[4]",
            "--wait",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert script.stderr is not None
    task_id = script.stderr.readline().strip()  # printed once the task is submitted
    script.send_signal(signal.SIGINT)
    said = script.stderr.read()
    assert script.wait(timeout=20) == 130
    assert f"result.py {task_id}" in said
    later = cluster.run_client("result.py", task_id, "--wait")
    assert (later.returncode, later.stdout.strip()) == (0, "4.0")
