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
    "apt-cache policy") echo "  Candidate: $(cat candidate)" ;;
    "apt-cache madison") echo "$2 | $(cat candidate) | file:/bundle ./ Packages" ;;
    "dpkg --compare-versions") [ "$(printf '%s\n%s\n' "$4" "$2" | sort -V | tail -n 1)" = "$2" ] ;;
    "dpkg-query --show") [ -e "installed-$3" ] && echo "installed $(cat "installed-$3")" ;;
    "apt-get update")
        if [ -e no-network ]; then echo "E: Failed to fetch it"; exit 100; fi
        cp registry known ;;
    "apt-get install")
        if [ -x policy-rc.d ]; then ./policy-rc.d; echo "policy $?" >> calls; fi
        if [ -e locked ]; then rm locked; echo "E: Could not get lock /lock"; exit 100; fi
        if [ -e interrupted ]; then echo "E: run 'dpkg --configure -a'"; exit 100; fi
        case "$*" in *--simulate*)
            echo "Inst erlang-base [1:25] (1:27 Debian:13/stable [amd64]) []"
            echo "Inst rabbitmq-server [3.13.7-1] ($(cat candidate) Debian:13/stable [all])"
            exit ;;
        esac
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

    def replace(self, state: str, **more: Any) -> dict[str, Any]:
        return self.call("distribution_packages", state=state, upgrade="rabbitmq-server", **more)

    def runs(self, installed: str, candidate: str) -> None:
        (self.here / "installed-rabbitmq-server").write_text(installed)
        (self.here / "installed-erlang-base").write_text("1:25")
        (self.here / "candidate").write_text(candidate)

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
    for name in ("apt-get", "apt-cache", "dpkg", "dpkg-query", "systemctl", "update-rc.d"):
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


def test_what_an_upgrade_would_bring_is_told_and_nothing_installed(host: Host) -> None:
    host.runs("3.13.7-1", "4.0.5-6")
    result = host.replace("inspected")
    assert (result["changed"], result["order"]) == (False, "newer")
    assert (result["version"], result["candidate"]) == ("3.13.7-1", "4.0.5-6")
    assert result["versions"] == {"rabbitmq-server": "3.13.7-1", "erlang-base": "1:25"}
    assert result["changes"] == {"rabbitmq-server": "4.0.5-6", "erlang-base": "1:27"}
    assert all("--simulate" in call for call in host.calls if call.startswith("apt-get install"))


@pytest.mark.parametrize(("candidate", "order"), [("4.0.5-6", "same"), ("3.9.0-1", "older")])
def test_where_nothing_newer_is_nothing_is_tried(host: Host, candidate: str, order: str) -> None:
    host.runs("4.0.5-6", candidate)
    assert host.replace("inspected")["order"] == order
    assert host.called("apt-get install") == 0


def test_the_version_of_a_bundle_counts_also_when_it_is_older(host: Host, bundle: Path) -> None:
    host.runs("4.0.5-6", "3.9.0-1")
    assert host.replace("inspected", bundle=str(bundle))["candidate"] == "3.9.0-1"


def test_lists_that_cannot_be_fetched_are_an_error_and_not_nothing_newer(host: Host) -> None:
    host.runs("4.0.5-6", "4.0.5-6")
    host.has("no-network")
    assert "make bundle" in host.replace("inspected")["msg"]


def test_exactly_the_version_that_was_looked_at_is_installed_and_not_started(host: Host) -> None:
    host.runs("3.13.7-1", "4.0.5-6")
    assert host.replace("upgraded", version="4.0.5-6")["changed"]
    installs = [call for call in host.calls if call.startswith("apt-get install")]
    assert [call.split()[-1] for call in installs] == ["rabbitmq-server=4.0.5-6"]
    assert "policy 101" in host.calls


def test_what_is_fetched_is_not_installed(host: Host) -> None:
    host.runs("3.13.7-1", "4.0.5-6")
    assert not host.replace("fetched", version="4.0.5-6")["changed"]
    installs = [call for call in host.calls if call.startswith("apt-get install")]
    assert len(installs) == 1
    assert installs[0].endswith("--download-only rabbitmq-server=4.0.5-6")


def test_a_version_that_is_there_is_left_alone(host: Host) -> None:
    host.runs("4.0.5-6", "4.0.5-6")
    assert not host.replace("upgraded", version="4.0.5-6")["changed"]
    assert host.called("apt-get") == 0
