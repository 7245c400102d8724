"""A real lab: blank hosts in containers, made, used, stopped, added to and taken down by the real targets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clusterkit.ops import images, lab, labssh
from clusterkit.ops.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
#: Of this checkout alone, and the same each time, so that what an interrupted run left is found again.
NAME = f"test-{zlib.crc32(str(ROOT).encode()):08x}"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or (bool(images.engine_problem()) and not os.environ.get("CI")),
    reason="needs a Docker engine on Linux",
)


@dataclass(frozen=True)
class Bench:
    """The lab under test, driven by `make`."""

    lab: Lab

    def make(self, target: str, *variables: str, code: int = 0) -> str:
        """Run `make TARGET`; return what it printed."""
        done = subprocess.run(
            ["make", target, f"LAB={self.lab.name}", *variables],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def up(self, *variables: str) -> dict[str, Any]:
        return dict(json.loads(self.make("lab-up", "JSON=1", *variables)))

    def hosts(self, code: int = 0) -> dict[str, dict[str, Any]]:
        said = json.loads(self.make("lab-status", "JSON=1", code=code))
        return {host["host"]: host for host in said["hosts"]}

    def on(self, host: str, command: str) -> str:
        """Run a command on a host, as `make lab-ssh` does; return what it printed."""
        login = labssh.command(self.lab, lab.address(self.lab, host))
        done = subprocess.run([*login, command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def on_each(self, command: str) -> list[str]:
        return [self.on(host, command) for host in ("h1", "h2")]

    def docker(self, *arguments: str) -> str:
        return images.docker(*arguments).strip()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """A lab of two blank hosts; tests leave it with these two, running."""
    made = Bench(Lab(NAME, ROOT))
    if not images.engine_problem():
        made.make("lab-down")
    made.up("HOSTS=2")
    yield made
    made.make("lab-down")


def test_each_host_is_up_under_its_own_name_with_all_of_its_units(bench: Bench) -> None:
    hosts = bench.hosts()
    assert {host["systemd"] for host in hosts.values()} == {"running"}
    assert bench.on_each("cat /etc/hostname") == ["h1", "h2"] == list(hosts)
    assert bench.on_each("cat /proc/1/comm") == ["systemd", "systemd"]


def test_hosts_are_strangers_to_each_other(bench: Bench) -> None:
    for identity in ("cat /etc/machine-id", "cat /etc/ssh/ssh_host_ed25519_key.pub"):
        assert len(set(bench.on_each(identity))) == 2
    pinned = bench.lab.known_hosts.read_text()
    assert all(key.split()[1] in pinned for key in bench.on_each("cat /etc/ssh/ssh_host_ed25519_key.pub"))


def test_a_host_that_shows_another_key_is_refused(bench: Bench) -> None:
    pinned = bench.lab.known_hosts.read_text()
    first, second = (line.split() for line in pinned.splitlines())
    bench.lab.known_hosts.write_text(f"{first[0]} {second[1]} {second[2]}\n")
    bench.make("lab-ssh", "HOST=h1", "COMMAND=true", code=2)
    bench.lab.known_hosts.write_text(pinned)
    bench.on("h1", "true")


def test_lab_ssh_runs_a_command_there_with_its_quotes_and_ends_as_it_did(bench: Bench) -> None:
    said = bench.make("lab-ssh", "HOST=h2", """COMMAND=echo "it's $$(hostname)" | tr a-z A-Z""")
    assert said == "IT'S H2\n"
    bench.make("lab-ssh", "HOST=h2", "COMMAND=exit 3", code=2)
    bench.make("lab-ssh", "HOST=h9", code=2)


def test_hosts_are_blank(bench: Bench) -> None:
    packages = "rabbitmq-server valkey-server redis-server python3-pip nginx"
    assert bench.on("h1", f"dpkg-query --show {packages} 2>/dev/null || echo none") == "none"
    assert bench.on("h1", "ls -A /opt /usr/local/lib/python3*/dist-packages 2>/dev/null | grep -v :") == ""


def test_ansible_gets_in_by_the_inventory_and_becomes_root(bench: Bench) -> None:
    said = subprocess.run(
        [
            Path(sys.executable).parent / "ansible",
            *("--inventory", bench.lab.inventory, "all", "--become", "--module-name", "command"),
            *("--args", "id --user --name"),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible" / "ansible.cfg")},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.count("root") == 2


def test_hosts_reach_each_other_but_the_lab_gives_them_no_names(bench: Bench) -> None:
    other = bench.hosts()["h2"]["address"]
    assert bench.on("h1", f"exec 3<>/dev/tcp/{other}/22 && head -c 3 <&3") == "SSH"
    assert bench.on("h1", "getent hosts h2 || echo unknown") == "unknown"


def test_a_second_run_changes_nothing(bench: Bench) -> None:
    before = bench.docker("ps", "--quiet", "--no-trunc")
    written = (bench.lab.inventory / "hosts.yml").read_text()
    again = bench.up()
    assert (again["added"], again["started"], list(again["addresses"])) == ([], [], ["h1", "h2"])
    assert bench.docker("ps", "--quiet", "--no-trunc") == before
    assert (bench.lab.inventory / "hosts.yml").read_text() == written


@pytest.mark.parametrize(
    ("fault", "state"), [("stop", "exited"), ("kill", "exited"), ("pause", "paused"), ("off", "disconnected")]
)
def test_a_host_that_something_was_done_to_is_shown_and_brought_back_with_its_files(
    bench: Bench, fault: str, state: str
) -> None:
    bench.on("h2", f"echo '192.0.2.7 {fault}.test' | sudo tee --append /etc/hosts")
    container = bench.lab.container("h2")
    if fault == "off":
        bench.docker("network", "disconnect", bench.lab.network, container)
    else:
        bench.docker(fault, container)
    assert bench.hosts(code=2)["h2"]["state"] == state
    assert bench.up()["started"] == ["h2"]
    assert bench.on("h2", f"getent hosts {fault}.test").startswith("192.0.2.7")


def test_a_third_host_is_added_beside_the_others_and_given_up_again(bench: Bench) -> None:
    before = bench.hosts()
    grown = bench.up("HOSTS=3")
    assert grown["added"] == ["h3"]
    assert bench.on("h3", "hostname") == "h3"
    assert bench.up("HOSTS=2")["surplus"] == ["h3"]
    bench.make("lab-down", "HOST=h3")
    assert list(bench.up("HOSTS=2")["addresses"]) == ["h1", "h2"]
    after = bench.hosts()
    assert list(after) == ["h1", "h2"]
    assert all(after[host]["uptime"] > before[host]["uptime"] for host in before)


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_a_removed_host_is_replaced_by_a_blank_one_at_its_address(bench: Bench, host: str) -> None:
    bench.on(host, "touch mine")
    address = bench.hosts()[host]["address"]
    bench.make("lab-down", f"HOST={host}")
    assert bench.hosts(code=2)[host]["state"] == "missing"
    assert bench.up()["added"] == [host]
    assert bench.hosts()[host]["address"] == address
    assert bench.on(host, "ls") == ""


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_git_sees_nothing_of_the_lab(bench: Bench) -> None:
    paths = [bench.lab.inventory / "hosts.yml", bench.lab.inventory / "group_vars/all.yml", bench.lab.key]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, check=False)
    assert len(ignored.stdout.splitlines()) == 3


def test_a_second_lab_has_other_addresses_and_leaves_nothing_behind(bench: Bench) -> None:
    second = Bench(Lab(f"{NAME}-2", ROOT))
    up = second.up("HOSTS=1", "DEBIAN=bookworm")
    assert second.on("h1", "cat /etc/debian_version").startswith("12.")
    assert up["addresses"]["h1"].rpartition(".")[0] != bench.hosts()["h1"]["address"].rpartition(".")[0]
    assert (second.lab.key.stat().st_mode, second.lab.directory.stat().st_mode) == (0o100600, 0o40700)
    second.make("lab-down")
    label = f"label=clusterkit.lab={second.lab.name}"
    assert second.docker("ps", "--all", "--quiet", "--filter", label) == ""
    assert second.docker("network", "ls", "--quiet", "--filter", label) == ""
    assert not second.lab.inventory.exists()
    assert not second.lab.directory.parent.exists()
    assert len(bench.hosts()) == 2
