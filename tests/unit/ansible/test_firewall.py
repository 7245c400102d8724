"""The cluster's own table of nftables rules."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Call = Callable[..., dict[str, Any]]

OPENINGS = [
    {"name": "amqp", "port": 5671, "sources": ["192.0.2.4", "198.51.100.0/24"], "control": True},
    {"name": "epmd", "port": 4369, "sources": [], "control": False},
]
# Keeps the last file it was given as its one table, and shows it with a note of its own, as nft does.
NFT = """\
#!/bin/sh
echo "nft $*" >> {log}
case "$*" in
  "-c -f "*) ! grep -q nonsense "$3" || {{ echo "Error: syntax error" >&2; exit 1; }} ;;
  "-f "*) cp "$2" {table} ;;
  "--stateless list table inet clusterkit_lab") [ -e {table} ] || exit 1; echo "# handle"; cat {table} ;;
  "delete table inet clusterkit_lab") rm {table} ;;
  *) echo "not expected: $*" >&2; exit 1 ;;
esac
"""
# Does of systemd what the module needs: enables, and runs the unit's command.
SYSTEMCTL = """\
#!/bin/sh
echo "systemctl $*" >> {log}
case "$1" in
  enable) mkdir -p {units}/multi-user.target.wants; ln -sf ../$2 {units}/multi-user.target.wants/$2 ;;
  reload-or-restart) $(sed -n s/^ExecReload=//p {units}/$2) ;;
  disable) rm -f {units}/multi-user.target.wants/$3; $(sed -n s/^ExecStop=-//p {units}/$3) ;;
esac
"""


class Host:
    """A host in a directory, with stand-ins for nft and systemctl."""

    def __init__(self, root: Path, call: Call) -> None:
        self.root = root
        self.log = root / "log"
        self.table = root / "table"
        self.units = root / "units"
        self.call = call
        (root / "hosts").touch()
        (root / "bin").mkdir()
        self.program("nft", NFT)
        self.program("systemctl", SYSTEMCTL)

    def program(self, name: str, text: str) -> None:
        file = self.root / "bin" / name
        file.write_text(text.format(log=self.log, table=self.table, units=self.units))
        file.chmod(0o755)

    def apply(self, openings: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        self.log.write_text("")
        return self.call(
            "host_network",
            cluster="lab",
            openings=openings,
            hosts_file=str(self.root / "hosts"),
            config_directory=str(self.root / "etc"),
            unit_directory=str(self.units),
            **more,
        )

    def files(self) -> list[str]:
        return [str(path) for path in self.root.rglob("*") if "lab" in path.name]


@pytest.fixture
def host(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path, call)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(importlib.import_module("host_network"), "kernel_problem", lambda: "")
    return made


@pytest.fixture
def firewall() -> ModuleType:
    return importlib.import_module("ansible.module_utils.clusterkit_firewall")


def test_a_port_is_open_to_its_sources_and_to_the_control_machine(firewall: ModuleType) -> None:
    rules = firewall.ruleset("lab", OPENINGS, "203.0.113.9")
    assert (
        'ip saddr { 192.0.2.4, 198.51.100.0/24, 203.0.113.9 } tcp dport 5671 accept comment "amqp"' in rules
    )


def test_a_port_without_sources_is_only_dropped(firewall: ModuleType) -> None:
    rules = firewall.ruleset("lab", OPENINGS, "203.0.113.9")
    assert [line.strip() for line in rules.splitlines() if "4369" in line] == [
        "tcp dport { 4369, 5671 } counter drop"
    ]


def test_another_control_machine_takes_the_place_of_the_last_one(firewall: ModuleType) -> None:
    assert "203.0.113.9" not in firewall.ruleset("lab", OPENINGS, "203.0.113.10")


def test_addresses_are_sorted_and_those_within_a_range_left_out(firewall: ModuleType) -> None:
    sources = ["198.51.100.7", "2001:db8::1", "198.51.100.0/24", "192.0.2.4", "192.0.2.4", "fe80::1%eth0"]
    found = [str(network) for network in firewall.networks(sources)]
    assert found == ["192.0.2.4/32", "198.51.100.0/24", "2001:db8::1/128", "fe80::1/128"]


def test_addresses_of_both_families_have_a_rule_each(firewall: ModuleType) -> None:
    opening = {"name": "amqp", "port": 5671, "sources": ["192.0.2.4", "2001:db8::/32"], "control": False}
    rules = firewall.ruleset("lab", [opening])
    assert "ip saddr { 192.0.2.4 } tcp dport 5671 accept" in rules
    assert "ip6 saddr { 2001:db8::/32 } tcp dport 5671 accept" in rules


@pytest.mark.skipif(not shutil.which("nft") or os.geteuid() != 0, reason="needs nft, and root")
def test_nft_understands_the_rules(firewall: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "rules.nft"
    file.write_text(firewall.ruleset("some-lab_1", OPENINGS, "2001:db8::9"))
    done = subprocess.run(["nft", "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_rules_are_loaded_once_and_then_left_alone(host: Host) -> None:
    assert host.apply(OPENINGS)["loaded"] is True
    assert "5671" in host.table.read_text()
    again = host.apply(OPENINGS)
    assert (again["changed"], again["changed_paths"]) == (False, [])
    assert host.log.read_text() == "nft --stateless list table inet clusterkit_lab\n"


def test_other_rules_are_loaded_in_the_place_of_the_old_ones(host: Host) -> None:
    host.apply(OPENINGS)
    assert host.apply(OPENINGS[:1], control_address="203.0.113.9")["loaded"] is True
    assert "203.0.113.9" in host.table.read_text()
    assert "4369" not in host.table.read_text()


@pytest.mark.parametrize("others", ["", "something else"])
def test_rules_that_somebody_took_away_or_changed_are_loaded_again(host: Host, others: str) -> None:
    host.apply(OPENINGS)
    host.table.unlink()
    if others:
        host.table.write_text(others)
    result = host.apply(OPENINGS)
    assert (result["changed"], result["loaded"], result["changed_paths"]) == (True, True, [])
    assert "5671" in host.table.read_text()


def test_a_unit_that_somebody_disabled_is_enabled_again(host: Host) -> None:
    host.apply(OPENINGS)
    enabled = host.units / "multi-user.target.wants" / "clusterkit-firewall-lab.service"
    enabled.unlink()
    assert host.apply(OPENINGS)["changed"] is True
    assert enabled.is_symlink()


def test_the_distribution_s_unit_loads_the_rules_again_after_its_flush(host: Host) -> None:
    host.apply(OPENINGS)
    lines = (host.units / "nftables.service.d" / "clusterkit-lab.conf").read_text().splitlines()
    rules = host.root / "etc" / "firewall-lab.nft"
    assert lines[2:] == [
        f"ExecStartPost=-{host.root}/bin/nft -f {rules}",
        f"ExecReload=-{host.root}/bin/nft -f {rules}",
    ]


def test_rules_that_a_run_wrote_and_could_not_load_are_loaded_by_the_next(host: Host) -> None:
    host.apply(OPENINGS[:1])
    host.program("systemctl", "#!/bin/sh\n[ $1 != reload-or-restart ] || {{ echo broken >&2; exit 1; }}\n")
    failed = host.apply(OPENINGS)
    assert failed["failed"]
    assert "reload-or-restart clusterkit-firewall-lab.service failed: broken" in failed["msg"]
    host.program("systemctl", SYSTEMCTL)
    assert host.apply(OPENINGS)["loaded"] is True
    assert "4369" in host.table.read_text()


def test_rules_that_nft_refuses_change_nothing(host: Host) -> None:
    host.apply(OPENINGS)
    before = host.table.read_text()
    result = host.apply([{**OPENINGS[0], "name": "nonsense"}])
    assert result["failed"]
    assert "nft refuses the firewall's rules: Error: syntax error" in result["msg"]
    assert host.table.read_text() == before
    assert "nonsense" not in (host.root / "etc" / "firewall-lab.nft").read_text()


def test_without_openings_nothing_of_it_is_left(host: Host) -> None:
    host.apply(OPENINGS)
    assert host.apply([])["changed"] is True
    assert host.files() == []
    assert not host.table.exists()
    assert host.apply([])["changed"] is False


def test_check_mode_writes_nothing(host: Host) -> None:
    assert host.apply(OPENINGS, check_mode=True)["changed"] is True
    assert host.files() == []
    assert "reload" not in host.log.read_text()


def test_a_kernel_that_cannot_filter_is_told_with_the_way_out(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("host_network"), "kernel_problem", lambda: "no nf_tables")
    result = host.apply(OPENINGS)
    assert result["failed"]
    assert "no firewall: no nf_tables. With `firewall: false` the cluster does without" in result["msg"]
    assert host.files() == []
