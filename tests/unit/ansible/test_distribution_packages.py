"""The distribution's packages are installed once, together, and without their services."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

distribution_packages = importlib.import_module("distribution_packages")

Call = Callable[..., dict[str, Any]]

#: Stands in for apt-get, apt-cache, dpkg and systemctl: keeps what it is called with, and does as told.
_TOOL = """#!/bin/sh
cd {here}
tool=${{0##*/}}
echo "$tool $*" >> calls
case "$tool $1" in
    "apt-cache show") grep -qx "$2" known ;;
    "apt-get update")
        if [ -e no-network ]; then echo "E: Failed to fetch it"; exit 100; fi
        cp registry known ;;
    "apt-get install")
        if [ -x policy-rc.d ]; then ./policy-rc.d; echo "policy $?" >> calls; fi
        if [ -e locked ]; then rm locked; echo "E: Could not get lock /lock"; exit 100; fi
        if [ -e interrupted ]; then echo "E: run 'dpkg --configure -a'"; exit 100; fi
        echo "APT_CONFIG=$APT_CONFIG" >> calls
        touch bin/rabbitmq-server bin/redis-server units/rabbitmq-server.service units/epmd.socket ;;
    "dpkg --configure") rm interrupted ;;
    "dpkg --print-architecture") echo amd64 ;;
esac
"""


class Host:
    """A host in a directory: its tools say what they would do."""

    def __init__(self, here: Path, call: Call) -> None:
        self.here = here
        self.call = call

    def install(self, **more: Any) -> dict[str, Any]:
        programs = self.here / "bin"
        packages = [
            {"names": ["rabbitmq-server"], "provides": [str(programs / "rabbitmq-server")]},
            {
                "names": ["valkey-server", "redis-server"],
                "provides": [str(programs / name) for name in ("valkey-server", "redis-server")],
            },
        ]
        services = ["rabbitmq-server.service", "epmd.socket", "nginx.service"]
        return self.call("distribution_packages", packages=packages, services=services, **more)

    def has(self, *names: str) -> None:
        for name in names:
            (self.here / name).parent.mkdir(exist_ok=True)
            (self.here / name).touch()

    def has_lists_of(self, *packages: str) -> None:
        self.has("lists/registry_Packages")
        (self.here / "known").write_text("".join(f"{name}\n" for name in packages))

    @property
    def calls(self) -> list[str]:
        path = self.here / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def called(self, command: str) -> int:
        return sum(call.startswith(command) for call in self.calls)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Host:
    tools = tmp_path / "tools"
    for folder in (tools, tmp_path / "bin", tmp_path / "units", tmp_path / "lists"):
        folder.mkdir()
    for name in ("apt-get", "apt-cache", "dpkg", "systemctl", "update-rc.d"):
        (tools / name).write_text(_TOOL.format(here=tmp_path))
        (tools / name).chmod(0o755)
    (tmp_path / "registry").write_text("rabbitmq-server\nredis-server\n")
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setattr(distribution_packages, "_LISTS", tmp_path / "lists")
    monkeypatch.setattr(distribution_packages, "_UNITS", [tmp_path / "units"])
    monkeypatch.setattr(distribution_packages, "_INIT_SCRIPTS", tmp_path / "init.d")
    monkeypatch.setattr(distribution_packages, "_POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(distribution_packages, "_POLICY_BEFORE", tmp_path / "policy-rc.d.before")
    monkeypatch.setattr(distribution_packages, "_POLL", 0)
    return Host(tmp_path, call)


def test_where_all_is_there_nothing_is_asked(host: Host) -> None:
    host.has("bin/rabbitmq-server", "bin/valkey-server")
    result = host.install()
    assert not result["changed"]
    assert result["programs"]["valkey-server"] == str(host.here / "bin" / "valkey-server")
    assert host.calls == []


def test_all_that_is_missing_is_installed_at_once_each_by_the_name_it_has_there(host: Host) -> None:
    result = host.install()
    assert result["installed"] == ["rabbitmq-server", "redis-server"]
    assert result["programs"]["valkey-server"] == str(host.here / "bin" / "redis-server")
    assert host.called("apt-get update") == 1
    assert host.called("apt-get install") == 1


def test_only_what_is_missing_is_installed(host: Host) -> None:
    host.has("bin/redis-server")
    assert host.install()["installed"] == ["rabbitmq-server"]


def test_check_mode_only_tells(host: Host) -> None:
    result = host.install(check_mode=True)
    assert result["changed"]
    assert result["missing"] == ["rabbitmq-server", "valkey-server"]
    assert host.calls == []


def test_fresh_lists_are_not_fetched_again(host: Host) -> None:
    host.has_lists_of("rabbitmq-server", "redis-server")
    host.install()
    assert host.called("apt-get update") == 0


def test_lists_that_lack_a_package_are_fetched_again(host: Host) -> None:
    host.has_lists_of("rabbitmq-server")
    host.install()
    assert host.called("apt-get update") == 1


def test_a_source_that_cannot_be_reached_does_no_harm_when_it_is_not_needed(host: Host) -> None:
    host.has("no-network")
    (host.here / "known").write_text("rabbitmq-server\nredis-server\n")
    assert host.install()["changed"]


def test_a_host_without_a_registry_is_told_of_the_bundle(host: Host) -> None:
    host.has("no-network")
    result = host.install()
    assert result["failed"]
    assert "make bundle" in result["msg"]
    assert "Failed to fetch it" in result["stderr"]


def test_nothing_starts_meanwhile_and_the_hosts_own_policy_comes_back(host: Host) -> None:
    policy = host.here / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 7\n")
    policy.chmod(0o755)
    host.install()
    assert "policy 101" in host.calls
    assert subprocess.run([policy], check=False).returncode == 7


def test_a_policy_that_was_left_behind_does_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(distribution_packages.os, "getpid", lambda: ended.pid)
    with distribution_packages.nothing_started():
        assert subprocess.run([host.here / "policy-rc.d"], check=False).returncode == 0
    assert not (host.here / "policy-rc.d").exists()


def test_services_that_came_along_do_not_start_with_the_machine(host: Host) -> None:
    host.has("units/nginx.service", "units/rabbitmq-server.service")
    host.install()
    # The others were there before, and are somebody's.
    assert "systemctl --quiet disable epmd.socket" in host.calls


def test_another_program_that_installs_is_waited_for(host: Host) -> None:
    host.has("locked")
    assert host.install()["changed"]
    assert host.called("apt-get install") == 2


def test_an_interrupted_installation_is_ended_first(host: Host) -> None:
    host.has("interrupted")
    assert host.install()["changed"]
    assert host.called("dpkg --configure -a") == 1


@pytest.fixture
def bundle(host: Host, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = host.here / "bundle"
    folder.mkdir()
    (folder / "bundle.json").write_text(json.dumps({"release": "trixie", "architecture": "amd64"}))
    monkeypatch.setattr(distribution_packages, "release_name", lambda: "trixie")
    return folder


def test_a_bundle_is_the_only_source(host: Host, bundle: Path) -> None:
    host.install(bundle=str(bundle))
    assert f"APT_CONFIG={bundle}/apt.conf" in host.calls
    assert 'Dir::Etc::SourceParts "/dev/null";' in (bundle / "apt.conf").read_text()
    assert (bundle / "sources.list").read_text() == f"deb [trusted=yes] file:{bundle} ./\n"


def test_a_bundle_for_another_release_is_refused(
    host: Host, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution_packages, "release_name", lambda: "bookworm")
    result = host.install(bundle=str(bundle))
    assert "for Debian trixie (amd64), and this host is bookworm (amd64)" in result["msg"]
    assert "make bundle DEBIAN=bookworm" in result["msg"]
    assert host.called("apt-get") == 0
