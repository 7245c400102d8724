"""Two hosts that change together: what becomes of the new nodes of one when those of the other fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ANSIBLE = Path(__file__).parents[3] / "ansible"
#: What joins; what did not start does not.
JOINING = (
    "{{ [] if failing == 'started' and inventory_hostname == 'h2'"
    " else [{'name': 'worker-cpu.b', 'replaces': 'worker-cpu'}] }}"
)
LOGGED = {"logs": [{"service": "worker-cpu.b", "lines": ["boom"]}]}
PLAY = {
    "hosts": "all",
    "gather_facts": False,
    "any_errors_fatal": True,
    "tasks": [
        {
            "ansible.builtin.include_role": {"name": "worker", "tasks_from": "service"},
            "vars": {
                "worker_home": "/nowhere",
                "worker_user": "",
                "worker_nodes": [{"name": "cpu", "queues": ["cpu"]}],
                "worker_cluster_file": {},
                "worker_handover_command": ["sh", "-c", "test $0-{{ failing }} != h2-waited"],
                "__worker_services": [],
                "__worker_size_files": [],
            },
        }
    ],
}


def noting(what: str) -> dict[str, str]:
    """Return a task that fails on h2 when it is what shall fail, and otherwise leaves a file."""
    failing = f"failing == '{what}' and inventory_hostname == 'h2'"
    file = f"{{{{ playbook_dir }}}}/{what}-{{{{ inventory_hostname }}}}"
    return {"ansible.builtin.command": f"{{{{ 'false' if {failing} else 'touch' }}}} {file}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the play, the real role worker, and a role service that notes what it is asked for."""
    tasks = tmp_path / "roles" / "service" / "tasks"
    tasks.mkdir(parents=True)
    (tmp_path / "roles" / "worker").symlink_to(ANSIBLE / "roles" / "worker")
    files = {
        "main": [
            {"ansible.builtin.set_fact": {"service_result": {"joining": JOINING}}},
            noting("started"),
        ],
        "logs": [{"ansible.builtin.set_fact": {"service_read_logs": LOGGED}}],
        "discard": [noting("discarded")],
        "promote": [noting("promoted")],
    }
    for name, content in files.items():
        (tasks / f"{name}.yml").write_text(json.dumps(content))
    (tmp_path / "play.yml").write_text(json.dumps([PLAY]))
    return tmp_path


def run(folder: Path, failing: str) -> tuple[set[str], str]:
    """Run the play; return what was noted, and what was said."""
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            *("--inventory", "h1,h2,", "--connection", "local", "--extra-vars", f"failing={failing}"),
            str(folder / "play.yml"),
        ],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(folder / "roles"),
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert bool(done.returncode) == (failing != "nothing"), done.stdout
    return {path.name for path in folder.glob("*-h?")}, done.stdout


def test_new_nodes_take_over_on_both(folder: Path) -> None:
    noted, _ = run(folder, "nothing")
    assert noted == {"started-h1", "started-h2", "promoted-h1", "promoted-h2"}


def test_when_those_of_one_do_not_start_those_of_the_other_are_taken_back(folder: Path) -> None:
    noted, said = run(folder, "started")
    assert noted == {"started-h1", "discarded-h1"}
    assert "another host failed" in said


def test_when_those_of_one_do_not_serve_both_are_taken_back(folder: Path) -> None:
    noted, said = run(folder, "waited")
    assert noted == {"started-h1", "started-h2", "discarded-h1", "discarded-h2"}
    assert "boom" in said


def test_what_took_over_is_never_taken_back(folder: Path) -> None:
    noted, _ = run(folder, "promoted")
    assert noted == {"started-h1", "started-h2", "promoted-h1"}
