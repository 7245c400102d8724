"""A host's cores and memory are what its control groups and its affinity leave of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

Call = Callable[..., dict[str, Any]]

MEMINFO = "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:   4194304 kB\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with 8 cores and 8 GiB, half of it available, without control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/loadavg", "0.50 0.25 0.10 1/200 4711\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_without_limits_all_of_the_host_counts(call: Call, root: Path) -> None:
    found = call("host_resources", root=str(root))
    assert (found["cores"], found["memory"], found["memory_available"]) == (8, 8192, 4096)
    assert found["load"] == [0.5, 0.25, 0.1]
    assert not found["changed"]


def test_affinity_counts(call: Call, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert call("host_resources", root=str(root))["cores"] == 1


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("400000 100000", 4), ("150000 100000", 1), ("50000 100000", 1)],
)
def test_a_quota_of_version_2_counts_in_whole_cores(call: Call, root: Path, quota: str, cores: int) -> None:
    write(root, "proc/self/cgroup", "0::/system.slice/x.service\n")
    write(root, "sys/fs/cgroup/system.slice/cpu.max", quota)  # of a group above
    assert call("host_resources", root=str(root))["cores"] == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("200000", 2)])
def test_a_quota_of_version_1_counts(call: Call, root: Path, quota: str, cores: int) -> None:
    write(root, "proc/self/cgroup", "4:cpu,cpuacct:/\n3:memory:/\n0::/\n")
    write(root, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota)
    write(root, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert call("host_resources", root=str(root))["cores"] == cores


def test_a_limit_of_memory_counts(call: Call, root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/memory.max", str(1024 * 1024 * 1024))
    write(root, "sys/fs/cgroup/memory.current", str(256 * 1024 * 1024))
    found = call("host_resources", root=str(root))
    assert (found["memory"], found["memory_available"]) == (1024, 768)


def test_no_limit_of_version_1_is_no_limit(call: Call, root: Path) -> None:
    write(root, "proc/self/cgroup", "3:memory:/\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert call("host_resources", root=str(root))["memory"] == 8192


def test_what_a_service_uses_is_that_of_all_its_processes(call: Call) -> None:
    work = "import os, time\nos.fork()\nend = time.time() + 20\nwhile time.time() < end: pass"
    begun = time.time()
    with subprocess.Popen([sys.executable, "-c", work]) as busy:
        found = call("host_resources", seconds=1.0, processes={"busy": busy.pid, "gone": 1 << 22})
        for process in psutil.Process(busy.pid).children():
            process.kill()
        busy.kill()
    assert list(found["used"]) == ["busy"]
    used = found["used"]["busy"]
    assert used["processes"] == 2
    assert used["cores"] > 0
    assert used["memory"] > 0
    assert found["busy"] > 0
    assert begun <= found["begin"] <= found["end"] - 1.0 <= time.time() - 1.0
