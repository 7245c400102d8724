"""Runs the kit's playbooks through ansible-runner, with live progress and errors a person can use."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from clusterkit.ops import lock
from clusterkit.ops.errors import DeployError, PreflightError, ReleaseError
from clusterkit.ops.times import Ran
from clusterkit.runtime.errors import InterruptedByUserError

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster
    from clusterkit.ops.progress import Progress

#: Runs whose events are kept for a look afterwards.
_RUNS_KEPT = 10
#: The task that fails when the release's app cannot be imported (role release).
IMPORT_TASK = "Import the app once"
#: Actions that only steer the playbook: nothing a person waits for.
_NO_WORK = {"include_role", "include_tasks", "set_fact", "assert", "validate_argument_spec"}
#: Marks the processes of one run in their environment.
_RUN = "CLUSTERKIT_RUN"
#: Seconds that steps which are under way get to end after Ctrl-C.
_ENDING = 60.0
_PAUSE = 0.2
#: Lines of a failed task's output that are shown.
_TAIL = 40


@dataclass
class Outcome:
    """What a playbook run left behind: results by task name and host, what failed, and what took how long."""

    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)

    def all(self) -> list[dict[str, Any]]:
        """Return every result of every task on every host."""
        return [result for by_host in self.results.values() for result in by_host.values()]

    def changed_hosts(self) -> tuple[str, ...]:
        """Return the hosts on which something was changed."""
        return tuple(
            sorted(
                {
                    host
                    for by_host in self.results.values()
                    for host, result in by_host.items()
                    if result.get("changed")
                }
            )
        )

    def of(self, task: str) -> dict[str, dict[str, Any]]:
        """Return the results of ``task``, host -> result."""
        return self.results.get(task, {})


@dataclass(frozen=True)
class Failure:
    """A task that failed on a host, or a host that could not be reached."""

    task: str
    host: str
    result: dict[str, Any]

    def __str__(self) -> str:
        lines = [f"{self.host}: {self.task}: {self.result.get('msg') or 'failed'}"]
        for stream in ("stderr", "stdout", "module_stderr", "module_stdout"):
            text = str(self.result.get(stream) or "").strip()
            lines += [f"    {line}" for line in text.splitlines()[-_TAIL:]]
        return "\n".join(lines)


def phases(cluster: Cluster, playbook: str) -> list[str]:
    """Return the names of a playbook's plays, those of imported ones too: they are its phases."""
    names: list[str] = []
    for play in yaml.safe_load(_path(cluster, playbook).read_text(encoding="utf-8")):
        imported = play.get("ansible.builtin.import_playbook")
        names += phases(cluster, imported.removesuffix(".yml")) if imported else [play["name"]]
    return names


def run(
    cluster: Cluster,
    playbook: str,
    variables: dict[str, Any],
    progress: Progress | None = None,
    *,
    partial: bool = False,
) -> Outcome:
    """Run ``playbook`` (a name without ending) on the cluster's hosts with ``variables``.

    With ``partial``, hosts that fail or cannot be reached are in the outcome's ``failures`` and no error.

    Raises:
        InterruptedByUserError: Ctrl-C.
        PreflightError: a check before any change found problems.
        ReleaseError: the release's app cannot be imported.
        DeployError: another task failed; the message has its output.
    """
    import ansible_runner  # noqa: PLC0415 - a third of a second that other commands need not wait for

    outcome, mark = Outcome(), uuid.uuid4().hex
    work = cluster.state_dir / "ansible"
    work.mkdir(parents=True, exist_ok=True)
    # A file of its own for each run, mode 0600: a status may be asked for in the middle of an up.
    handle, secrets = tempfile.mkstemp(dir=work, prefix="variables-", suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(variables, file)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        runner = ansible_runner.run(
            private_data_dir=str(work),
            playbook=str(_path(cluster, playbook)),
            inventory=str(cluster.directory),
            cmdline=f"--extra-vars @{secrets}",
            envvars={**_environment(cluster), _RUN: mark},
            event_handler=lambda event: _handle(event, outcome, progress),
            rotate_artifacts=_RUNS_KEPT,
            suppress_env_files=True,
            quiet=True,
        )
    finally:
        Path(secrets).unlink()
        lock.note(outcome.changed_hosts())
        # ansible-runner puts its own in their place for good: Ctrl-C would do nothing any more.
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
    if runner.status == "canceled":  # Ctrl-C, which ansible-runner takes and ends the playbook for
        _await_end(mark, _ENDING)
        raise InterruptedByUserError(
            f"interrupted in the middle of {playbook}", next_step="running it again goes on where it stopped"
        )
    if runner.status != "successful" and not (partial and outcome.failures):
        raise _error(outcome, runner, playbook)
    return outcome


def _await_end(mark: str, timeout: float) -> None:
    """Wait until the steps of a run that was interrupted have ended.

    Each is a session of its own, which goes on on its host when the playbook is gone. Until then the cluster
    stays locked.
    """
    give_up_at = time.monotonic() + timeout
    while _under_way(mark) and time.monotonic() < give_up_at:
        time.sleep(_PAUSE)


def _under_way(mark: str) -> bool:
    """Tell whether a process of ansible-playbook is there; connections that ssh keeps are none."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            command = (process / "cmdline").read_bytes().split(b"\0")
            if any(Path(os.fsdecode(word)).name == "ansible-playbook" for word in command[:2]):
                environment = (process / "environ").read_bytes().split(b"\0")
                if f"{_RUN}={mark}".encode() in environment:
                    return True
    return False


def _path(cluster: Cluster, playbook: str) -> Path:
    return cluster.root / "ansible" / "playbooks" / f"{playbook}.yml"


def _environment(cluster: Cluster) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return {"ANSIBLE_CONFIG": str(cluster.root / "ansible" / "ansible.cfg"), "PATH": path}


def _handle(event: dict[str, Any], outcome: Outcome, progress: Progress | None) -> bool:
    data = event.get("event_data", {})
    kind, task, host = event["event"], data.get("task", ""), data.get("host", "")
    if kind == "playbook_on_play_start" and progress:
        progress.start(data["name"])
    elif kind == "runner_on_start" and progress:
        progress.doing(f"{host}: {task}")
    elif kind == "runner_on_ok":
        outcome.results.setdefault(task, {})[host] = data["res"]
        outcome.ran.append(Ran.of(data))
        if progress and data.get("task_action", "").rpartition(".")[2] not in _NO_WORK:
            progress.done(f"{host}: {task}", changed=bool(data["res"].get("changed")))
    elif kind in {"runner_on_failed", "runner_on_unreachable"} and not data.get("ignore_errors"):
        outcome.failures.append(Failure(task, host, data["res"]))
    return True  # ansible-runner keeps the event


def _error(outcome: Outcome, runner: Any, playbook: str) -> Exception:
    if not outcome.failures:
        output = runner.stdout.read().strip().splitlines()[-_TAIL:]
        return DeployError(f"playbook {playbook} did not run:\n" + "\n".join(output))
    problems = [
        f"{failure.host}: {problem['what']}\n    {problem['next']}"
        for failure in outcome.failures
        for problem in failure.result.get("problems", ())
    ]
    if problems:
        return PreflightError(
            "nothing was changed; to be mended first:",
            problems,
            next_step="mend them and run the command again",
        )
    if any(failure.task == IMPORT_TASK for failure in outcome.failures):
        return ReleaseError(
            f"the app cannot be imported, so nothing was switched to it:\n{outcome.failures[0]}",
            next_step="correct the app, celery_app or app_source, and run the command again",
        )
    return DeployError(
        "\n".join(map(str, outcome.failures)),
        next_step="running it again goes on where it stopped; make cluster-logs shows the services' logs",
    )
