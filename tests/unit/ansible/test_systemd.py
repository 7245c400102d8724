"""The systemd back end: its units, rendered as Ansible renders them, and what is read back from systemctl.

No systemd runs here; the role's tasks are run against real hosts in tests/cluster.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[3] / "ansible" / "roles" / "service"


def render(name: str, **variables: Any) -> str:
    """Return a template of the role, with the role's defaults."""
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    defaults.update(service_set="workers", service_home="/srv/demo", service_user="celery", **variables)
    text = trust_as_template((ROLE / "templates" / name).read_text(encoding="utf-8"))
    # As the template module does; in a playbook backslashes count twice.
    rendered: str = Templar(loader=DataLoader(), variables=defaults).template(text, escape_backslashes=False)
    return rendered


def unit(**service: Any) -> str:
    item = [{"name": "cpu", "command": "/bin/sleep 1000", **service}, {}]
    return render("unit.service.j2", item=item, __service_environment_hash="abc")


def values(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and line[0] != "#")
    return {name: value for name, _, value in pairs}


def test_a_unit_asks_the_main_process_alone_to_stop_and_comes_back_for_ever() -> None:
    options = values(unit(stop_timeout=90, stop_signal="QUIT"))
    assert options["KillMode"] == "mixed"
    assert (options["KillSignal"], options["TimeoutStopSec"]) == ("SIGQUIT", "90")
    assert (options["Restart"], options["RestartSec"], options["StartLimitIntervalSec"]) == (
        "always",
        "5",
        "0",
    )
    assert options["User"] == "celery"
    assert options["EnvironmentFile"] == "/etc/clusterkit/cpu.env"


def test_a_unit_changes_with_the_fingerprint_and_with_the_environment() -> None:
    assert values(unit(fingerprint="1"))["X-ClusterkitFingerprint"] == "1"
    assert values(unit())["X-ClusterkitEnvironment"] == "abc"


def test_what_systemd_would_expand_in_a_command_is_doubled() -> None:
    assert values(unit(command="/bin/echo 100% $HOME"))["ExecStart"] == "/bin/echo 100%% $$HOME"


def test_an_environment_file_holds_the_values_as_they_are() -> None:
    item = {
        "name": "cpu",
        "environment": {"PLAIN": 1, "ODD": 'a "b" $c `d` \\e'},
        "secret_environment": {"TOKEN": "xyzzy"},
    }
    lines = render("environment.j2", item=item, service_environment={"PLAIN": "of all"}).splitlines()
    assert lines[1:] == [
        'CLUSTERKIT_HOME="/srv/demo"',
        r'ODD="a \"b\" \$c \`d\` \\e"',
        'PLAIN="1"',
        'TOKEN="xyzzy"',
    ]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs the command systemd-analyze")
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path) -> None:
    directory = tmp_path / "home"
    directory.mkdir()
    file = tmp_path / "clusterkit-cpu.service"
    file.write_text(unit(user="root", working_directory=str(directory)), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_systemctl_shows_becomes_the_form_of_the_supervisor() -> None:
    path = ROLE.parents[1] / "plugins" / "filter" / "clusterkit_units.py"
    spec = importlib.util.spec_from_file_location("clusterkit_units", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    service_units = module.FilterModule().filters()["service_units"]
    text = (
        "Id=clusterkit-cpu.service\nDescription=clusterkit workers: cpu\nActiveState=active\n"
        "MainPID=47\nActiveEnterTimestamp=@1700000000\n\n"
        "Id=clusterkit-flower.service\nDescription=clusterkit flower: flower\nActiveState=failed\n"
        "MainPID=0\nActiveEnterTimestamp=\n\n"
        "Id=cron.service\nDescription=not ours\nActiveState=active\n"
    )
    assert service_units(text, 1700000086) == [
        {
            "name": "cpu",
            "set": "workers",
            "state": "RUNNING",
            "pid": 47,
            "uptime": 86,
            "log": "journalctl --unit=clusterkit-cpu.service",
        },
        {
            "name": "flower",
            "set": "flower",
            "state": "FATAL",
            "pid": 0,
            "uptime": 0,
            "log": "journalctl --unit=clusterkit-flower.service",
        },
    ]
