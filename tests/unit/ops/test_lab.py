"""Labs: who does what, which network, what is written; and how a Docker engine and images come about."""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from clusterkit.ops import images, lab, lab_cli, labhosts, labplan, labssh
from clusterkit.ops.errors import DeployError, PreflightError
from clusterkit.ops.inventory import load
from clusterkit.ops.labhosts import Lab
from clusterkit.runtime.errors import BadInputError

NETWORK = ipaddress.IPv4Network("198.18.4.0/24")


def quiet(said: str) -> None:
    pass


def addresses(count: int) -> dict[str, str]:
    return {host: labplan.address(NETWORK, host) for host in labplan.host_names(count)}


# Layout


def test_a_lab_of_one_host_has_everything_on_it() -> None:
    assert set(map(tuple, labplan.layout(1).values())) == {("h1",)}


def test_seven_hosts_are_three_for_data_three_workers_and_a_monitor() -> None:
    assert labplan.layout(7) == {
        "brokers": ["h1", "h2", "h3"],
        "results": ["h1", "h2", "h3"],
        "workers": ["h4", "h5", "h6"],
        "schedulers": ["h4", "h7"],
        "monitors": ["h7"],
    }


def test_three_hosts_all_work_besides() -> None:
    assert labplan.layout(3)["workers"] == labplan.layout(3)["brokers"] == ["h1", "h2", "h3"]


@pytest.mark.parametrize("count", range(7, 12))
def test_an_eighth_host_and_each_after_it_is_a_worker_and_moves_nothing(count: int) -> None:
    now, then = labplan.layout(count), labplan.layout(count + 1)
    assert then.pop("workers") == [*now.pop("workers"), f"h{count + 1}"]
    assert now == then


@pytest.mark.parametrize("count", range(2, 9))
def test_two_hosts_have_schedulers(count: int) -> None:
    assert len(labplan.layout(count)["schedulers"]) == 2


# Network


def test_a_host_keeps_its_address_whatever_the_number_of_hosts() -> None:
    assert addresses(7)["h7"] == addresses(99)["h7"] == "198.18.4.17"


def test_a_lab_takes_the_first_network_that_nothing_overlaps() -> None:
    taken = [ipaddress.IPv4Network(net) for net in ("198.18.0.0/24", "198.18.1.128/25", "172.17.0.0/16")]
    assert str(labplan.free_networks(taken)[0]) == "198.18.2.0/24"


def test_a_machine_that_routes_the_whole_range_elsewhere_is_told_so() -> None:
    with pytest.raises(PreflightError, match=r"taken by 198\.18\.0\.0/15"):
        labplan.free_networks([ipaddress.IPv4Network("198.18.0.0/15")])


def test_routes_of_the_machine_count_as_taken_but_not_the_default_route() -> None:
    table = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "tun0\t0003 12C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n".replace(" ", "")
    )
    assert labplan.routed_networks(table) == [ipaddress.IPv4Network("198.18.3.0/24")]


def test_hosts_ask_the_machines_name_servers_unless_only_the_machine_can() -> None:
    assert labplan.nameservers("search x\nnameserver 192.0.2.53\nnameserver 127.0.0.53\n") == ["192.0.2.53"]
    assert labplan.nameservers("nameserver 127.0.0.53\nnameserver ::1\nnameserver\n") == []


# Inventory


@pytest.fixture
def written(tmp_path: Path) -> Lab:
    """A lab in a scratch checkout, with its inventory for seven hosts."""
    made = Lab("lab", tmp_path)
    lab._write_inventory(made, addresses(7))
    return made


@pytest.mark.parametrize("count", range(1, 10))
def test_the_inventory_of_every_size_of_lab_is_accepted(tmp_path: Path, count: int) -> None:
    lab._write_inventory(Lab("lab", tmp_path), addresses(count))
    cluster = load("lab", tmp_path)
    assert not cluster.warnings
    assert {host: cluster.hosts[host].address for host in cluster.hosts} == addresses(count)
    assert {group: list(hosts) for group, hosts in cluster.members.items()} == labplan.layout(count)


def test_the_inventory_leads_ansible_to_the_key_and_the_pinned_host_keys(written: Lab) -> None:
    variables = yaml.safe_load((written.inventory / "hosts.yml").read_text())["all"]["vars"]
    at = {"{{ inventory_dir }}": str(written.inventory)}
    key = variables["ansible_ssh_private_key_file"].replace(*at.popitem())
    assert Path(key).resolve() == written.key
    assert "StrictHostKeyChecking=yes" in variables["ansible_ssh_common_args"]
    assert "/.cluster/lab/lab/known_hosts" in variables["ansible_ssh_common_args"]


def test_git_ignores_the_inventory_of_a_lab(written: Lab) -> None:
    assert (written.inventory / ".gitignore").read_text() == "*\n"


def test_a_changed_setting_outlives_the_next_lab_up(written: Lab) -> None:
    settings = written.inventory / "group_vars" / "all.yml"
    settings.write_text(settings.read_text() + "log_level: DEBUG\n")
    lab._write_inventory(written, addresses(8))
    assert load("lab", written.root).log_level == "DEBUG"
    assert "h8" in load("lab", written.root).group("workers")


def test_lab_down_leaves_a_file_of_the_users_in_the_inventory(written: Lab) -> None:
    notes = written.inventory / "notes.md"
    notes.touch()
    lab._remove_inventory(written)
    assert [*written.inventory.iterdir()] == [notes]


@pytest.mark.parametrize("work", [lambda own: lab.up(own, 1, None, None), lab.down])  # type: ignore[arg-type]
def test_a_cluster_of_ones_own_is_never_taken_for_a_lab(
    tmp_path: Path, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "engine_problem", lambda: "")
    own = Lab("production", tmp_path)
    own.inventory.mkdir(parents=True)
    (own.inventory / "hosts.yml").write_text("all: {}\n")
    with pytest.raises(PreflightError, match="a cluster of your own"):
        work(own)
    assert (own.inventory / "hosts.yml").read_text() == "all: {}\n"


@pytest.mark.parametrize("name", ["", "Lab", "a_b", "-a", "a/b", "a" * 21])
def test_a_labs_name_is_part_of_host_names(name: str) -> None:
    with pytest.raises(BadInputError, match="no name for a lab"):
        Lab(name, Path("/"))


# Containers


def described(host: str, checkout: Path, **state: str) -> dict[str, Any]:
    """What `docker inspect` says of a host of the lab `lab`, as far as it is read."""
    return {
        "Name": f"/clusterkit-lab-{host}",
        "Config": {
            "Labels": {
                "clusterkit.lab": "lab",
                "clusterkit.host": host,
                "clusterkit.debian": "trixie",
                "clusterkit.checkout": str(checkout),
            }
        },
        "State": {"Status": "running", "StartedAt": "2026-01-01T00:00:00.123456789Z"} | state,
        "NetworkSettings": {"Networks": {"clusterkit-lab": {}}},
    }


@pytest.fixture
def docker_says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A way to say which containers there are."""

    def say(*found: dict[str, Any]) -> None:
        answers = {"ps": " ".join("x" for _ in found), "inspect": json.dumps(found)}
        monkeypatch.setattr(labhosts, "docker", lambda command, *_: answers[command])

    return say


def test_hosts_come_in_the_order_of_their_numbers(docker_says: Any, tmp_path: Path) -> None:
    docker_says(*(described(host, tmp_path) for host in ("h10", "h2", "h1")))
    assert list(labhosts.containers(Lab("lab", tmp_path))) == ["h1", "h2", "h10"]


def test_the_lab_of_another_checkout_is_left_alone(docker_says: Any, tmp_path: Path) -> None:
    docker_says(described("h1", tmp_path))
    with pytest.raises(PreflightError, match=f"belongs to the checkout {tmp_path}"):
        labhosts.containers(Lab("lab", tmp_path / "mine"))


def test_the_lab_of_a_checkout_that_is_gone_can_be_taken_down(docker_says: Any, tmp_path: Path) -> None:
    docker_says(described("h1", tmp_path / "gone"))
    assert list(labhosts.containers(Lab("lab", tmp_path))) == ["h1"]


def test_a_host_off_the_network_is_called_disconnected(docker_says: Any, tmp_path: Path) -> None:
    alone = described("h1", tmp_path)
    alone["NetworkSettings"]["Networks"] = {}
    docker_says(alone)
    assert lab._state(labhosts.containers(Lab("lab", tmp_path))["h1"]) == "disconnected"


def test_a_lab_has_one_release(docker_says: Any, tmp_path: Path) -> None:
    docker_says(described("h1", tmp_path))
    made = Lab("lab", tmp_path)
    there = labhosts.containers(made)
    assert lab._release(made, there, None) == "trixie"
    assert lab._release(made, {}, "bookworm") == "bookworm"
    with pytest.raises(PreflightError, match="have trixie, not bookworm"):
        lab._release(made, there, "bookworm")


def test_hosts_whose_key_is_gone_are_not_waited_for(docker_says: Any, tmp_path: Path) -> None:
    docker_says(described("h1", tmp_path))
    made = Lab("lab", tmp_path)
    with pytest.raises(PreflightError, match="is gone"):
        lab._check_key_is_there(made, labhosts.containers(made))


def test_growing_from_six_to_seven_hosts_moves_the_monitor() -> None:
    assert labplan.moved(6, 7) == ["h6"]
    assert labplan.moved(7, 9) == labplan.moved(9, 7) == []


@pytest.mark.parametrize("case", [(9, "h9", False), (9, "h8", True), (7, "h7", True), (2, "h2", True)])
def test_a_removed_host_is_made_anew_unless_it_was_a_worker_added_last(
    docker_says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[int, str, bool]
) -> None:
    size, removed, stays = case
    monkeypatch.setattr(images, "engine_problem", lambda: "")
    monkeypatch.setattr(labhosts, "subnet", lambda _: NETWORK)
    gone: list[labhosts.Container] = []
    monkeypatch.setattr(labhosts, "remove", gone.extend)
    docker_says(*(described(host, tmp_path) for host in labplan.host_names(size)))
    made = Lab("lab", tmp_path)
    lab._write_inventory(made, addresses(size))
    assert lab.remove(made, removed) == stays
    assert [each.host for each in gone] == [removed]
    assert (removed in load("lab", tmp_path).hosts) == stays


def test_ssh_uses_the_labs_own_files_and_nobodys_configuration(tmp_path: Path) -> None:
    command = " ".join(labssh.command(Lab("lab", tmp_path), "198.18.4.11"))
    assert command.startswith(f"ssh -F none -i {tmp_path}/.cluster/lab/lab/key ")
    assert f'UserKnownHostsFile="{tmp_path}/.cluster/lab/lab/known_hosts"' in command
    assert command.endswith("-l admin 198.18.4.11")


# Engine and images


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of root's with no command but those a test puts in this folder, and without systemd."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(images, "SYSTEMD", tmp_path / "no-systemd")
    monkeypatch.setattr(images, "ENGINE_DEADLINE", 5)
    return folder


def command(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\nexport PATH=/usr/bin:/bin\ncd {folder}\n{script}\n")
    file.chmod(0o755)


def test_an_engine_that_answers_is_used_as_it_is(machine: Path, tmp_path: Path) -> None:
    command(machine, "docker", "echo 27.0")
    images.ensure_engine(tmp_path / "docker.log", quiet)
    assert not (tmp_path / "docker.log").exists()


def test_an_engine_that_stands_still_is_started(machine: Path, tmp_path: Path) -> None:
    command(machine, "docker", "[ -f up ] || { echo 'Cannot connect' >&2; exit 1; }")
    command(machine, "dockerd", "touch up")
    images.ensure_engine(tmp_path / "docker.log", quiet)
    assert images.engine_problem() == ""


def test_a_missing_engine_is_installed_and_started(machine: Path, tmp_path: Path) -> None:
    install = """
    case "$*" in
      *DPkg::Lock::Timeout=*install*docker.io) printf '#!/bin/sh\\n[ -f %s/up ]' $PWD >docker
        printf '#!/bin/sh\\n: >%s/up' $PWD >dockerd; chmod +x docker dockerd;;
    esac"""
    command(machine, "apt-get", install)
    said: list[str] = []
    images.ensure_engine(tmp_path / "docker.log", said.append)
    assert said == ["installing docker.io", "starting the Docker engine"]


def test_an_engine_that_ends_at_once_shows_its_log(machine: Path, tmp_path: Path) -> None:
    command(machine, "docker", "exit 1")
    command(machine, "dockerd", "echo 'no cgroups here'; exit 1")
    with pytest.raises(PreflightError, match="no cgroups here"):
        images.ensure_engine(tmp_path / "docker.log", quiet)


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        ("permission denied while trying to connect", "usermod -aG docker"),
        ("Cannot connect to the Docker daemon", "systemctl start docker"),
    ],
)
def test_without_root_the_error_says_what_to_do(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str, advice: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command(machine, "docker", f"echo '{problem}' >&2; exit 1")
    command(machine, "dockerd", "touch started")
    with pytest.raises(PreflightError, match=problem) as caught:
        images.ensure_engine(tmp_path / "docker.log", quiet)
    assert advice in caught.value.next_step
    assert not (machine / "started").exists()


def test_a_failed_installation_shows_what_the_package_manager_said(machine: Path) -> None:
    command(machine, "apt-get", "echo 'E: Could not get lock' >&2; exit 100")
    with pytest.raises(PreflightError, match="E: Could not get lock"):
        images.install("docker.io", tell=quiet)


def test_a_base_image_without_a_registry_needs_root(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command(machine, "docker", "echo 'no such host' >&2; exit 1")
    with pytest.raises(PreflightError, match="no such host"):
        images.ensure_base("trixie", quiet)


def test_a_base_image_without_a_registry_is_made_with_debootstrap(machine: Path) -> None:
    command(machine, "docker", 'if [ "$1" = import ]; then tar -t >packed; else exit 1; fi')
    command(machine, "debootstrap", 'mkdir -p "$3/etc" "$3/dev"; touch "$3/etc/hosts" "$3/dev/null"')
    command(machine, "tar", 'exec /usr/bin/tar "$@"')
    assert images.ensure_base("bookworm", quiet) == "debian:bookworm-slim"
    packed = (machine / "packed").read_text().split()
    assert "./etc/hosts" in packed
    assert "./dev/null" not in packed


def test_an_images_tag_changes_with_its_files_their_modes_and_its_base(tmp_path: Path) -> None:
    file = tmp_path / "labinit"
    file.write_text("1")
    first = images._digest(tmp_path, "base")
    assert images._digest(tmp_path, "base") == first
    assert images._digest(tmp_path, "another base") != first
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    executable = images._digest(tmp_path, "base")
    file.write_text("2")
    assert len({first, executable, images._digest(tmp_path, "base")}) == 3


def test_a_docker_command_that_fails_says_why(machine: Path) -> None:
    command(machine, "docker", "echo 'no such container' >&2; exit 1")
    with pytest.raises(DeployError, match="docker rm failed: no such container"):
        images.docker("rm", "x")


def test_a_command_that_hangs_has_failed(machine: Path) -> None:
    command(machine, "docker", "exec sleep 60")
    with pytest.raises(DeployError, match="did not end within 0 s"):
        images.docker("pull", deadline=0.1)


# Command line


def call(*arguments: str) -> Result:
    return CliRunner().invoke(lab_cli.commands, arguments)


@pytest.mark.parametrize("name", ["up", "status", "ssh", "down"])
def test_every_lab_command_has_help_with_examples(name: str) -> None:
    assert f"\n    clusterkit lab {name}" in call(name, "--help").stdout


@pytest.mark.parametrize("arguments", [("up", "--hosts", "0"), ("up", "--debian", "sarge"), ("ssh",)])
def test_a_lab_command_with_a_mistake_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert call(*arguments).exit_code == 2


def test_lab_status_names_the_hosts_that_are_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    well = lab.HostStatus("h1", "198.18.4.11", ["brokers"], "trixie", "running", "running", 3_700.0)
    hosts = [well, replace(well, host="h2", state="paused", systemd="", uptime=42.0)]
    monkeypatch.setattr(lab, "status", lambda _: hosts)
    done = call("status")
    assert str(done.exception) == "1 of 2 hosts not well: h2 (paused)"
    first, second = (" ".join(line.split()) for line in done.stdout.splitlines()[1:3])
    assert first == "h1 198.18.4.11 trixie running running 1 h 1 min brokers"
    assert second == "h2 198.18.4.11 trixie paused - 42 s brokers"


def test_lab_up_says_how_to_remove_the_hosts_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    done = lab.Up(addresses(8), ["h8"], [], surplus=["h7", "h8"], moved=["h6"], seconds=2.34)
    monkeypatch.setattr(lab, "up", lambda *_: done)
    said = call("up", "--lab", "x").stdout
    assert "lab x: 8 hosts answer by SSH after 2.3 s (1 new)" in said
    assert said.index("make lab-down LAB=x HOST=h8") < said.index("make lab-down LAB=x HOST=h7")
    assert "in other groups than before: h6" in said
    assert json.loads(call("up", "--json").stdout)["added"] == ["h8"]
