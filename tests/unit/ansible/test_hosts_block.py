"""The cluster's names in /etc/hosts: a marked block among other people's lines."""

from __future__ import annotations

import shlex
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., dict[str, Any]]

NAMES = [
    {"address": "192.0.2.1", "name": "h1.lab.internal"},
    {"address": "192.0.2.1", "name": "brokers.lab.internal"},
    {"address": "192.0.2.2", "name": "brokers.lab.internal"},
]
BLOCK = """\
# BEGIN clusterkit lab
192.0.2.1 h1.lab.internal
192.0.2.1 brokers.lab.internal
192.0.2.2 brokers.lab.internal
# END clusterkit lab
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    file = tmp_path / "hosts"
    file.write_text("127.0.0.1 localhost\n")
    file.chmod(0o644)
    return file


@pytest.fixture
def apply(call: Call, hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that applies names in the scratch file; systemctl does nothing and finds no fault."""
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text("#!/bin/sh\nexit 0\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(systemctl.parent), prepend=":")
    # This machine's own names are not to change: what it would find is taken as right.
    monkeypatch.setattr(
        "socket.getaddrinfo",
        lambda name, *_, **__: [
            (0, 0, 0, "", (entry["address"], 0)) for entry in NAMES if entry["name"] == name
        ],
    )

    def run(names: list[dict[str, str]], **more: Any) -> dict[str, Any]:
        return call(
            "host_network",
            cluster="lab",
            names=names,
            hosts_file=str(hosts),
            config_directory=str(tmp_path / "etc"),
            unit_directory=str(tmp_path / "units"),
            **more,
        )

    return run


def test_the_block_comes_after_what_was_there_and_the_mode_stays(apply: Call, hosts: Path) -> None:
    assert str(hosts) in apply(NAMES)["changed_paths"]
    assert hosts.read_text() == "127.0.0.1 localhost\n" + BLOCK
    assert stat.S_IMODE(hosts.stat().st_mode) == 0o644


def test_a_last_line_without_an_end_is_not_glued_to_the_block(apply: Call, hosts: Path) -> None:
    hosts.write_text("127.0.0.1 localhost")
    apply(NAMES)
    assert hosts.read_text() == "127.0.0.1 localhost\n" + BLOCK


def test_another_block_is_put_in_the_place_of_the_old_one(apply: Call, hosts: Path) -> None:
    apply(NAMES)
    hosts.write_text(hosts.read_text() + "192.0.2.99 somebody.else\n")
    apply(NAMES[:1])
    lines = hosts.read_text().splitlines()
    assert lines[0] == "127.0.0.1 localhost"
    assert lines[1:4] == ["# BEGIN clusterkit lab", "192.0.2.1 h1.lab.internal", "# END clusterkit lab"]
    assert lines[4] == "192.0.2.99 somebody.else"


def test_the_block_of_another_cluster_stays(apply: Call, hosts: Path) -> None:
    other = "# BEGIN clusterkit other\n192.0.2.50 x.other.internal\n# END clusterkit other\n"
    hosts.write_text(other)
    apply(NAMES)
    apply([])
    assert hosts.read_text() == other


def test_without_names_nothing_of_the_cluster_is_left(apply: Call, hosts: Path, tmp_path: Path) -> None:
    apply(NAMES)
    apply([])
    assert hosts.read_text() == "127.0.0.1 localhost\n"
    assert not list((tmp_path / "units").glob("*.service"))
    assert not list((tmp_path / "etc").iterdir())
    assert apply([])["changed"] is False


def test_the_same_names_again_are_no_change(apply: Call, tmp_path: Path) -> None:
    apply(NAMES)
    enabled = tmp_path / "units" / "multi-user.target.wants"
    enabled.mkdir()
    (enabled / "clusterkit-names-lab.service").symlink_to("../clusterkit-names-lab.service")
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    assert apply(NAMES)["changed"] is False
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == before


def test_check_mode_writes_nothing(apply: Call, hosts: Path, tmp_path: Path) -> None:
    assert apply(NAMES, check_mode=True)["changed"] is True
    assert hosts.read_text() == "127.0.0.1 localhost\n"
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        "# BEGIN clusterkit lab\n192.0.2.1 h1.lab.internal\n",
        "192.0.2.1 h1.lab.internal\n# END clusterkit lab\n",
        "# END clusterkit lab\n# BEGIN clusterkit lab\n",
        BLOCK + BLOCK,
    ],
)
def test_a_damaged_block_is_refused_and_stays(apply: Call, hosts: Path, damaged: str) -> None:
    hosts.write_text(damaged)
    result = apply(NAMES)
    assert result["failed"]
    assert f"{hosts}: it must have the lines '# BEGIN clusterkit lab'" in result["msg"]
    assert hosts.read_text() == damaged


def test_a_name_that_the_host_does_not_find_is_told(apply: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("203.0.113.7", 0))])
    result = apply(NAMES)
    assert result["failed"]
    assert "h1.lab.internal is at 192.0.2.1, but the host finds: 203.0.113.7" in result["msg"]
    assert "/etc/nsswitch.conf" in result["msg"]


def test_the_unit_puts_back_a_block_that_is_gone_and_only_then(
    apply: Call, hosts: Path, tmp_path: Path
) -> None:
    apply(NAMES)
    unit = (tmp_path / "units" / "clusterkit-names-lab.service").read_text()
    (command,) = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart=")]
    for begins, times in (("127.0.0.1 rewritten\n", 1), ("127.0.0.1 rewritten\n" + BLOCK, 2)):
        hosts.write_text(begins)
        for _ in range(times):
            subprocess.run(shlex.split(command), check=True)
        assert hosts.read_text() == "127.0.0.1 rewritten\n" + BLOCK
