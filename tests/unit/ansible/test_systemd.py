"""The systemd back end's units: what they say, and that systemd understands it.

The role is run against real hosts in tests/cluster.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.clusterkit_systemd import SystemdError, Unit, installed_units, verify


def unit(**more: Any) -> Unit:
    values: dict[str, Any] = {
        "name": "cpu",
        "set_name": "workers",
        "command": "/bin/sleep 1000",
        "user": "celery",
        "working_directory": "/opt/demo",
        "environment_file": "/etc/clusterkit/cpu.env",
        "environment": {"CLUSTERKIT_HOME": "/opt/demo"},
    }
    return Unit(**values | more)


def options(**more: Any) -> dict[str, str]:
    lines = unit(**more).text().splitlines()
    return dict(line.partition("=")[::2] for line in lines if "=" in line and line[0] != "#")


def test_a_unit_asks_the_main_process_alone_to_stop_and_comes_back_for_ever() -> None:
    said = options(stop_timeout=90, stop_signal="QUIT")
    assert said["KillMode"] == "mixed"
    assert (said["KillSignal"], said["TimeoutStopSec"]) == ("SIGQUIT", "90")
    assert (said["Restart"], said["RestartSec"], said["StartLimitIntervalSec"]) == ("always", "5", "0")


def test_a_service_writes_its_own_paths_alone() -> None:
    said = options(writable=("/opt/demo/cpu", "/data/a b"))
    assert said["User"] == "celery"
    assert said["ProtectSystem"] == "strict"
    assert said["ReadWritePaths"] == '"/opt/demo/cpu" "/data/a b"'


def test_a_service_gains_nothing_unless_it_is_named() -> None:
    plain = options()
    assert plain["NoNewPrivileges"] == "true"
    assert (plain["CapabilityBoundingSet"], plain["AmbientCapabilities"]) == ("", "")
    named = options(capabilities=("CAP_NET_BIND_SERVICE",))
    assert named["CapabilityBoundingSet"] == named["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"


def test_people_s_homes_are_hidden_unless_the_cluster_is_in_one() -> None:
    assert options()["ProtectHome"] == "true"
    assert options(working_directory="/home/ann/cluster")["ProtectHome"] == "read-only"


def test_only_limits_that_are_given_are_written() -> None:
    said = options(limits={"CPUQuota": "150%", "MemoryMax": ""})
    assert said["CPUQuota"] == "150%"
    assert "MemoryMax" not in said


def test_a_unit_comes_after_the_kit_s_units_that_it_names() -> None:
    assert options(after=("epmd",))["After"] == "network-online.target clusterkit-epmd.service"


def test_what_systemd_would_expand_in_a_command_is_doubled() -> None:
    assert options(command="/bin/echo 100% $HOME")["ExecStart"] == "/bin/echo 100%% $$HOME"


@pytest.mark.parametrize(
    "more",
    [
        {"command": "/bin/true\nUser=root"},
        {"limits": {"MemoryMax": "1G\nUser=root"}},
        {"writable": ("/a\nUser=root",)},
    ],
)
def test_a_line_break_cannot_bring_in_another_option(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cpu: .* holds a line break"):
        unit(**more).text()


def test_an_environment_file_holds_the_values_as_they_are() -> None:
    values = {"PLAIN": "1", "ODD": 'a "b" $c `d` \\e'}
    lines = unit(environment=values).environment_text().splitlines()
    assert lines[1].startswith('CLUSTERKIT_FINGERPRINT="')
    assert lines[2:] == [r'ODD="a \"b\" \$c \`d\` \\e"', 'PLAIN="1"']


def test_an_environment_file_holds_no_name_that_is_none() -> None:
    with pytest.raises(ValueError, match="'A B' is not the name"):
        unit(environment={"A B": "1"}).environment_text()


@pytest.mark.parametrize(
    "more", [{"fingerprint": "2"}, {"environment": {"A": "1"}}, {"stop_timeout": 11}, {"user": "other"}]
)
def test_another_service_is_another_version(more: dict[str, Any]) -> None:
    assert unit(**more).version() != unit().version()


def test_a_secret_leaves_no_trace_in_the_unit_that_everybody_can_read() -> None:
    assert unit(environment={"TOKEN": "xyzzy"}).text() == unit(environment={"TOKEN": "other"}).text()


def test_what_is_installed_is_told_from_the_units_alone(tmp_path: Path) -> None:
    path = tmp_path / "clusterkit-cpu.service"
    path.write_text(unit(priority=300, start_seconds=3).text(), encoding="utf-8")
    (tmp_path / "clusterkit-own.service").write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    found = installed_units(tmp_path)
    assert list(found) == ["cpu"]
    cpu = found["cpu"]
    assert (cpu.set_name, cpu.priority, cpu.start_seconds, cpu.path) == ("workers", 300, 3, path)


needs_systemd_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="needs the command systemd-analyze"
)


@needs_systemd_analyze
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path) -> None:
    everything = unit(
        user="root",
        after=("epmd",),
        writable=("/var/tmp",),  # noqa: S108 - any directory
        capabilities=("CAP_NET_BIND_SERVICE",),
        limits={"CPUQuota": "150%", "CPUAffinity": "0-1", "MemoryHigh": "1G", "MemoryMax": "2G"},
    )
    verify({"clusterkit-cpu.service": everything.text()}, tmp_path)


@needs_systemd_analyze
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"command": "/nowhere/program"}, "/nowhere/program is not executable"),
        ({"limits": {"CPUQuota": "lots"}}, "CPU quota"),
    ],
)
def test_systemd_names_the_unit_that_is_wrong(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemdError, match=f"clusterkit-cpu.service.*{message}"):
        verify({"clusterkit-cpu.service": unit(user="root", **more).text()}, tmp_path)
