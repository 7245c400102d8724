"""Everything that keeps a cluster from coming up is found at once, with its way out."""

from __future__ import annotations

import ast
import importlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

preflight_host = importlib.import_module("preflight_host")

Call = Callable[..., dict[str, Any]]
Look = Callable[..., dict[str, Any]]

_LISTEN = """
import socket, sys, time
server = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
server.bind((sys.argv[1], int(sys.argv[2])))
server.listen()
print(server.getsockname()[1], flush=True)
time.sleep(1000)
"""


class Listener:
    """A process that listens on a port of its own choice."""

    def __init__(self, address: str = "127.0.0.1", home: Path | None = None) -> None:
        environment = {"PATH": os.environ["PATH"], **({"CLUSTERKIT_HOME": str(home)} if home else {})}
        command = [sys.executable, "-c", _LISTEN, address, "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Return a function that makes a listening process."""
    made: list[Listener] = []

    def make(*arguments: Any, **more: Any) -> Listener:
        made.append(Listener(*arguments, **more))
        return made[-1]

    yield make
    for listener in made:
        listener.end()


@pytest.fixture
def look(call: Call, home: Path) -> Look:
    """Return a function that looks at this host for the cluster in `home`."""

    def run(**arguments: Any) -> dict[str, Any]:
        defaults = {"disk_free_mb": 1, "memory_free_mb": 1, "processes_free": 1, "python_version": "3.11"}
        return call("preflight_host", **{"home": str(home), **defaults, **arguments})

    return run


def port(number: int, name: str = "amqp", address: str = "127.0.0.1") -> dict[str, Any]:
    return {"port": number, "address": address, "service": f"the {name} service", "variable": f"ports.{name}"}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_a_host_that_has_everything_has_no_problem(look: Look) -> None:
    result = look(
        ports=[port(free_port())], packages=[{"names": ["dash"], "provides": ["/nowhere", "/bin/sh"]}]
    )
    assert result["failed"] is False
    assert (result["problems"], result["running"], result["packages"]) == ([], False, [])
    assert result["programs"] == {"dash": "/bin/sh"}


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])  # noqa: S104 - this is what is looked for
def test_a_taken_port_is_named_with_its_owner_and_its_variable(
    look: Look, listen: Callable[..., Listener], address: str
) -> None:
    other = listen(address)
    result = look(ports=[port(other.port)], variables_file="group_vars/all.yml")
    assert result["failed"] is True
    (problem,) = result["problems"]
    assert f"port {other.port} on 127.0.0.1, for the amqp service, is taken by process" in problem["what"]
    assert f"{other.process.pid} ({sys.executable}" in problem["what"]
    assert problem["variable"] == "ports.amqp"
    assert problem["next"] == "end that, or set `ports.amqp` in group_vars/all.yml to a free port"


def test_a_port_that_this_cluster_holds_is_no_problem(
    look: Look, listen: Callable[..., Listener], home: Path
) -> None:
    (home / "supervisor").mkdir(parents=True)
    mine = listen(home=home)
    (home / "supervisor" / "supervisord.pid").write_text(f"{mine.process.pid}\n")
    result = look(ports=[port(mine.port)])
    assert result["failed"] is False
    assert result["running"] is True


def test_ports_of_another_cluster_are_one_problem_that_names_it(
    look: Look, listen: Callable[..., Listener], tmp_path: Path
) -> None:
    one, two = listen(home=tmp_path / "other"), listen(home=tmp_path / "other")
    (problem,) = look(ports=[port(one.port), port(two.port, "results")])["problems"]
    assert problem["what"].startswith(f"these ports are taken by the cluster in {tmp_path / 'other'}: ")
    assert problem["next"] == "set `port_base` to another, or stop that cluster"


def test_two_services_on_one_port_are_found(look: Look) -> None:
    number = free_port()
    (problem,) = look(ports=[port(number), port(number, "flower")])["problems"]
    assert f"port {number} on 127.0.0.1 is wanted by both `ports.amqp` and `ports.flower`" in problem["what"]


def test_an_address_that_is_not_of_this_host_is_found(look: Look) -> None:
    (problem,) = look(ports=[port(free_port(), address="192.0.2.1")])["problems"]
    assert "the address 192.0.2.1" in problem["what"]
    assert problem["variable"] == "bind_address"


def test_processes_without_their_supervisor_are_found_with_the_command_that_ends_them(
    look: Look, listen: Callable[..., Listener], home: Path
) -> None:
    left = listen(home=home)
    (problem,) = look(ports=[port(left.port)])["problems"]
    assert "the cluster's supervisor is dead, but processes of it still run" in problem["what"]
    assert str(left.process.pid) in problem["what"]
    assert problem["next"] == "run `make cluster-down`, which ends them"


def test_services_under_systemd_are_no_left_overs(
    look: Look, listen: Callable[..., Listener], home: Path
) -> None:
    mine = listen(home=home)
    result = look(ports=[port(mine.port)], service_backend="systemd")
    assert result["running"]
    assert "still run" not in str(result["problems"])


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="this machine runs systemd")
def test_a_host_whose_services_are_to_run_under_systemd_must_run_it(look: Look) -> None:
    problems = look(service_backend="systemd")["problems"]
    assert any("does not run systemd" in problem["what"] for problem in problems)


def test_a_clock_that_differs_is_told(look: Look) -> None:
    assert not look(control_time=time.time())["failed"]
    (problem,) = look(control_time=time.time() - 120, clock_tolerance=60)["problems"]
    assert re.fullmatch(r"the clock is 12\d s ahead", problem["what"])


def test_a_host_of_another_cluster_is_refused(look: Look, home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / "cluster").write_text("other\n")
    problems = look(service_backend="systemd", cluster="mine")["problems"]
    assert any("belongs to the cluster 'other'" in problem["what"] for problem in problems)
    problems = look(service_backend="systemd", cluster="other")["problems"]
    assert not any("belongs to the cluster" in problem["what"] for problem in problems)


def test_all_problems_are_told_at_once_and_numbered(look: Look, listen: Callable[..., Listener]) -> None:
    result = look(ports=[port(listen().port)], python_version="9.9", disk_free_mb=10**9, memory_free_mb=10**9)
    lines = result["msg"].splitlines()
    assert lines[0] == "4 problems found, nothing was changed:"
    assert [line[:2] for line in lines[1::2]] == ["1.", "2.", "3.", "4."]
    assert all(line.startswith("   next: ") for line in lines[2::2])
    what = " ".join(problem["what"] for problem in result["problems"])
    for part in (
        "is older than 9.9",
        "MB are free in the file system",
        "MB of memory are available",
        "is taken",
    ):
        assert part in what


@pytest.mark.parametrize(("letters", "name"), [(" ", "my cluster"), (":", "a:b"), ("%;", "100%;")])
def test_a_path_that_scripts_stumble_over_is_refused(
    look: Look, tmp_path: Path, letters: str, name: str
) -> None:
    (problem,) = look(home=str(tmp_path / name))["problems"]
    assert repr(letters) in problem["what"]
    assert problem["variable"] == "home"


def test_letters_of_other_languages_are_no_problem(look: Look, tmp_path: Path) -> None:
    assert look(home=str(tmp_path / "jürgen" / "céleri+a@b"))["failed"] is False


def test_a_home_that_cannot_be_made_is_refused(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_host.os, "access", lambda *_: False)
    (problem,) = look(home=str(tmp_path / "a" / "home"))["problems"]
    assert f"{tmp_path} cannot be written to" in problem["what"]
    assert problem["variable"] == "home"


def test_a_home_of_another_user_is_refused(look: Look, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    monkeypatch.setattr(preflight_host.os, "geteuid", lambda: home.stat().st_uid + 1)
    (problem,) = look()["problems"]
    assert f"{home} belongs to the user with id {home.stat().st_uid}" in problem["what"]


def test_looking_leaves_nothing_behind(look: Look, tmp_path: Path) -> None:
    look()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return two packages that are missing, of a distribution that has the second name of the first one."""
    monkeypatch.setattr(preflight_host, "is_known", lambda name: name in {"redis-server", "rabbitmq-server"})
    return [
        {"names": ["valkey-server", "redis-server"], "provides": ["/nowhere/valkey"]},
        {"names": ["rabbitmq-server"], "provides": ["/nowhere/rabbitmq"]},
    ]


def test_missing_packages_are_left_to_the_roles_where_they_can_be_installed(
    look: Look, packages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_host, "can_become_root", lambda: True)
    monkeypatch.setattr(preflight_host, "os_release", lambda: {"ID": "debian"})
    result = look(packages=packages)
    assert result["failed"] is False
    assert result["packages"] == ["redis-server", "rabbitmq-server"]
    assert result["programs"] == {"valkey-server": "", "rabbitmq-server": ""}


def test_missing_packages_without_root_are_one_message_with_the_command(
    look: Look, packages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_host, "can_become_root", lambda: False)
    monkeypatch.setattr(preflight_host, "os_release", lambda: {"ID": "linuxmint", "ID_LIKE": "ubuntu debian"})
    (problem,) = look(packages=packages)["problems"]
    command = "apt-get update && apt-get install --no-install-recommends redis-server rabbitmq-server"
    assert problem["next"] == f"as root: {command}"


def test_missing_packages_on_another_distribution_name_it(
    look: Look, packages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fedora = {"ID": "fedora", "NAME": "Fedora Linux", "VERSION_ID": "42"}
    monkeypatch.setattr(preflight_host, "os_release", lambda: fedora)
    (problem,) = look(packages=packages)["problems"]
    assert "the kit installs on Debian and Ubuntu, not on Fedora Linux 42" in problem["what"]


def test_the_module_can_be_read_by_the_oldest_python_that_ansible_reaches() -> None:
    module = Path(str(preflight_host.__file__))
    shared = module.parents[1] / "plugins" / "module_utils" / "clusterkit_processes.py"
    for path in (module, shared):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
