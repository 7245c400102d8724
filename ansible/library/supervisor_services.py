#!/usr/bin/python
"""Ansible module: bring a set of services under a cluster's private supervisord into the wanted state."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_files import DIRECTORIES, FILES, FileSet, FileSetError, read, replace
from ansible.module_utils.clusterkit_logs import last_lines, with_log
from ansible.module_utils.clusterkit_services import SERVICES, Outcome, check_services, environment_of
from ansible.module_utils.clusterkit_slots import (
    ACTIVE,
    NEW,
    RETIRED,
    Member,
    Plan,
    base,
    decide,
    in_slot,
    slot,
)
from ansible.module_utils.clusterkit_supervisor import (
    FAULT_CANNOT_REREAD,
    MARK,
    Layout,
    Program,
    ProgramFailedError,
    State,
    Supervisor,
    SupervisorError,
    check_private,
    clean_environment,
    main_configuration,
    marked,
    section,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOCUMENTATION = r"""
---
module: supervisor_services
short_description: Run a set of services under a private supervisord
description:
  - Writes the files that the services read and the set's own, starts the cluster's supervisord when none
    answers, and makes its programs equal to the files. Only programs that are new, other or gone are touched.
  - Every service of the set runs at the end and has stayed up for its O(services[].start_seconds), or the
    module fails with the last lines of its log.
  - Everything belongs to the user that runs the module; nothing needs root.
options:
  home:
    description: Absolute path of the cluster's home.
    type: path
    required: true
  set:
    description: Name of the set. Services that were in it and are no longer listed are stopped and removed.
    type: str
    required: true
  services:
    description: The services of the set.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the service, unique in the cluster.
        type: str
        required: true
      command:
        description: Command line with the absolute path of a program; not run by a shell.
        type: str
        required: true
      environment:
        description: Environment variables; those with secrets belong into O(services[].secret_environment).
        type: dict
        default: {}
      secret_environment:
        description: Environment variables whose values are never shown.
        type: dict
        default: {}
      working_directory:
        description: Where the command starts; the home when empty.
        type: str
        default: ""
      user:
        description: Not used here; a unit of systemd runs as this user.
        type: str
        default: ""
      stop_signal:
        description: Signal that asks the main process to end.
        type: str
        default: TERM
      stop_timeout:
        description: Seconds until all of its processes are killed.
        type: int
        default: 10
      start_seconds:
        description: Seconds the command has to stay up to count as started.
        type: int
        default: 1
      priority:
        description: Services start in ascending order and stop in descending order of this.
        type: int
        default: 500
      fingerprint:
        description: Any text that changes when a file the service reads has changed; it is then restarted.
        type: str
        default: ""
      after:
        description: Not used here; under systemd they start after these services when the host boots.
        type: list
        elements: str
        default: []
      writable:
        description: Not used here; under systemd the service may write these paths.
        type: list
        elements: path
        default: []
      capabilities:
        description: Not used here; under systemd the service has these capabilities.
        type: list
        elements: str
        default: []
      cpu_quota:
        description: Not used here; a limit of systemd.
        type: str
        default: ""
      cpu_affinity:
        description: Not used here; a limit of systemd.
        type: str
        default: ""
      memory_high:
        description: Not used here; a limit of systemd.
        type: str
        default: ""
      memory_max:
        description: Not used here; a limit of systemd.
        type: str
        default: ""
      handover:
        description:
          - Whether it is replaced by handing over instead of by a restart. What is new then runs in
            another slot, under a name
            such as V(worker-cpu.b), beside what is old, until it is promoted or discarded.
          - C({slot}) stands for the slot in the command and the environment.
        type: bool
        default: false
  directories:
    description: Directories to make first, parents before their children.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      mode:
        description: Mode, in octal digits.
        type: str
        default: "0700"
      owner:
        description: Not used here; everything belongs to the user that runs the module.
        type: str
        default: ""
  files:
    description: Files to write before services start. Contents are never shown. A service is restarted for a
      file that is a part of its O(services[].fingerprint).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path; its directory has to exist.
        type: path
        required: true
      content:
        description: What the file holds.
        type: str
        required: true
      mode:
        description: Mode, in octal digits.
        type: str
        default: "0600"
      owner:
        description: Not used here; everything belongs to the user that runs the module.
        type: str
        default: ""
      validate:
        description: A command that fails when the file cannot be used; C(%s) stands for the new file.
        type: str
        default: ""
  environment:
    description: Environment variables of all services; those of a service win.
    type: dict
    default: {}
  restart:
    description: Whether services that run and have changed are restarted. If not, they are returned as
      RV(pending), also by later runs, until something restarts them.
    type: bool
    default: true
  supervisor_bin:
    description: Directory that holds the C(supervisord) command.
    type: path
    required: true
  log_directory:
    description: Directory of the logs, one C(<service>.log) each.
    type: path
    required: true
  log_bytes:
    description: Size in bytes at which a log is rotated.
    type: int
    default: 20000000
  log_backups:
    description: How many rotated logs of a service are kept.
    type: int
    default: 3
  timeout:
    description: Seconds a service may need to come up, in addition to its O(services[].start_seconds).
    type: int
    default: 30
attributes:
  check_mode:
    support: full
    description: Tells which services would be started, restarted and removed.
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Run the result store
  supervisor_services:
    home: /srv/demo/.cluster/local
    set: valkey
    supervisor_bin: /srv/demo/.venv/bin
    log_directory: /srv/demo/.cluster/local/log
    services:
      - name: valkey
        command: /usr/bin/valkey-server /srv/demo/.cluster/local/valkey/valkey.conf
        stop_timeout: 30
        fingerprint: 5e884898da28047151d0e56f8dc62927
"""

RETURN = r"""
changed_paths:
  description: Directories and files that were made, written or given another mode.
  type: list
  elements: str
  returned: always
started:
  description: Names of the services that were not running, or are new, and were started.
  type: list
  elements: str
  returned: always
restarted:
  description: Names of the services that were restarted because they changed.
  type: list
  elements: str
  returned: always
removed:
  description: Names of the services that were stopped and removed.
  type: list
  elements: str
  returned: always
pending:
  description: Names of the services that run on as they were started, although they have changed since.
  type: list
  elements: str
  returned: always
joining:
  description: The services that run beside the one that they shall replace, as C(name) and C(replaces).
    They have to be promoted or discarded.
  type: list
  elements: dict
  returned: always
retired:
  description: Names of the services that were asked to end, and are not waited for.
  type: list
  elements: str
  returned: always
supervisord:
  description: supervisord's process id, its socket, and whether this run started it.
  type: dict
  returned: always
  sample: {"pid": 4711, "socket": "/srv/demo/.cluster/local/supervisor/supervisor.sock", "started": false}
"""

# Files a process may have open, as far as the hard limit allows: brokers count each connection.
_OPEN_FILES = 65536

# Seconds supervisord may need until it answers.
_ANSWER = 15


def programs_of(
    services: Iterable[Mapping[str, Any]], home: str, options: Mapping[str, Any]
) -> list[Program]:
    """Turn the module's `services` into programs."""
    return [
        Program(
            name=service["name"],
            command=service["command"],
            directory=service["working_directory"] or home,
            log_file=str(Path(options["log_directory"], service["name"] + ".log")),
            environment={
                **environment_of(service, options["environment"], home),
                # A part of the configuration that supervisord compares: another text means a restart.
                "CLUSTERKIT_FINGERPRINT": service["fingerprint"],
            },
            stop_signal=service["stop_signal"],
            stop_timeout=service["stop_timeout"],
            start_seconds=service["start_seconds"],
            priority=service["priority"],
            log_bytes=options["log_bytes"],
            log_backups=options["log_backups"],
            mark=ACTIVE if service["handover"] else "",
        )
        for service in services
    ]


class Run:
    """One run of the module over one set."""

    def __init__(self, module: AnsibleModule) -> None:
        self.options = module.params
        self.layout = Layout(Path(self.options["home"]).resolve())
        self.supervisor = Supervisor(self.layout)
        self.set_name: str = self.options["set"]
        check_services(self.set_name, self.options["services"], self.layout.set_of())
        self.set_file = self.layout.set_file(self.set_name)
        self.files = FileSet(module)
        self.installed = self.layout.programs(self.set_name)
        self.running = self.supervisor.pid() != 0
        self.states: dict[str, State] = self.supervisor.states() if self.running else {}
        # Changed by an earlier run, and running as they were before it.
        self.waiting = self.supervisor.reread()[1] if self.running else set()
        self.plans = {s["name"]: self._slots(s) for s in self.options["services"] if s["handover"]}
        self.programs = self._programs(
            in_slot(s, slot(self.plans[s["name"]].name)) if s["handover"] else s
            for s in self.options["services"]
        )
        self.kept = self._kept()

    def _programs(self, services: Iterable[Mapping[str, Any]]) -> list[Program]:
        joining = {plan.name for plan in self.plans.values() if plan.replaces}
        programs = programs_of(services, str(self.layout.home), self.options)
        return [dataclasses.replace(one, mark=NEW) if one.name in joining else one for one in programs]

    def _slots(self, service: Mapping[str, Any]) -> Plan:
        """Return what becomes of the slots of a service that is replaced by handing over."""
        found = []
        for name, options in self.installed.items():
            if base(name) == service["name"]:
                state = self.states.get(name)
                (wanted,) = programs_of([in_slot(service, slot(name))], str(self.layout.home), self.options)
                same = {**options, MARK: ACTIVE} == parsed(wanted)
                ends = state is not None and state.state == "STOPPING"
                found.append(
                    Member(
                        name=name,
                        # One that ends serves no more, whoever asked it to. The kit knew no slots once.
                        mark=RETIRED if ends else options.get(MARK, ACTIVE),
                        runs=state is not None and state.alive,
                        there=state is not None and state.needs_stop,
                        current=same and name not in self.waiting,
                    )
                )
        return decide(service["name"], found)

    def _kept(self) -> dict[str, dict[str, str]]:
        """Return the programs besides the wanted that stay, with their options: those that end, and the old.

        The old ones serve until what joins them has proved itself.
        """
        wanted = {program.name for program in self.programs}
        swept = {name for plan in self.plans.values() for name in plan.sweep}
        old = {plan.replaces for plan in self.plans.values()}
        there = {name for name, state in self.states.items() if state.needs_stop}
        kept = {
            name: options
            for name, options in self.installed.items()
            if name in there - wanted - swept and (MARK in options or name in old)
        }
        marks = {name: ACTIVE if name in old else RETIRED for name in kept}
        return dict(marked(kept, marks))

    def write_files(self) -> None:
        """Write every file but the set's own; in check mode only note them."""
        log_directory = self.options["log_directory"]
        supervisorctl = Path(self.options["supervisor_bin"], "supervisorctl")
        bin_directory = self.layout.home / "bin"
        directories = [
            self.layout.home,
            self.layout.directory,
            self.layout.sets,
            log_directory,
        ]
        configuration = main_configuration(self.layout, log_directory)
        # Finds the socket by itself.
        command = f'#!/bin/sh\nexec "{supervisorctl}" -c "{self.layout.configuration}" "$@"\n'
        self.files.write_all(
            [{"path": path, "mode": "0700"} for path in directories]
            # Roles put commands there, too; whoever may not enter the home does not come here either.
            + [{"path": bin_directory, "mode": "0755"}]
            + without_owner(self.options["directories"]),
            [
                {"path": self.layout.configuration, "content": configuration, "mode": "0600"},
                {"path": bin_directory / "supervisorctl", "content": command, "mode": "0700"},
                *without_owner(self.options["files"]),
            ],
        )

    def write_set(self) -> None:
        """Write the set's own file, or remove it when there is no service in the set any more."""
        kept = [section(name, options) for name, options in self.kept.items()]
        text = "\n".join([*(program.section() for program in self.programs), *kept]).encode()
        if (read(self.set_file) or b"") == text:
            return
        self.files.changed.append(str(self.set_file))
        if text:
            replace(self.set_file, text)
        else:
            self.set_file.unlink()

    def plan(self) -> Outcome:
        """Return what a run would do, without doing it."""
        self.write_files()
        outcome = Outcome(paths=self.files.changed, other=not self.running)
        outcome.removed = set(self.installed) - {program.name for program in self.programs} - set(self.kept)
        self._note_slots(outcome)
        for program in self.programs:
            state = self.states.get(program.name)
            if program.name in outcome.joining:
                continue
            if state is None or not state.alive:
                outcome.started.add(program.name)
            elif program.name in self.waiting or self.installed.get(program.name) != parsed(program):
                (outcome.restarted if self.options["restart"] else outcome.pending).add(program.name)
        return outcome

    def _note_slots(self, outcome: Outcome) -> None:
        outcome.joining = {plan.name: plan.replaces for plan in self.plans.values() if plan.replaces}
        outcome.retired = {
            name
            for name, options in self.kept.items()
            if options[MARK] == RETIRED and self.states[name].state != "STOPPING"
        }

    def apply(self) -> Outcome:
        """Bring the set into the wanted state and return what was done."""
        outcome = Outcome(paths=self.files.changed)
        self._note_slots(outcome)
        self.write_files()
        previous = read(self.set_file)
        self.write_set()
        if not self.supervisor.pid():
            self._start_supervisord()
            outcome.other = True
        try:
            added, changed, removed = self.supervisor.reread()
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == FAULT_CANNOT_REREAD:
                # supervisord would not come up with it either.
                if previous is None:
                    self.set_file.unlink(missing_ok=True)
                else:
                    replace(self.set_file, previous)
            raise SupervisorError(f"supervisord cannot use {self.set_file}: {fault.faultString}") from None
        self._replace(added, changed, removed, outcome)
        return outcome

    def _replace(self, added: set[str], changed: set[str], removed: set[str], outcome: Outcome) -> None:
        self.supervisor.retire(outcome.retired)
        before = self.supervisor.states()
        alive = {name for name, state in before.items() if state.alive}
        wanted = {program.name for program in self.programs}
        # What changed in another set is that set's affair: it may be restarted later on purpose.
        changed &= wanted
        if not self.options["restart"]:
            outcome.pending = changed & alive
        changed -= outcome.pending
        self.supervisor.stop((changed | removed) & {name for name in before if before[name].needs_stop})
        for name in changed | removed:
            self.supervisor.remove(name)
        for name in added | changed:
            self.supervisor.add(name)
        outcome.started = wanted - alive - outcome.joining.keys()
        outcome.restarted = changed & alive
        outcome.removed = removed
        try:
            self.supervisor.start(wanted, self.options["timeout"])
        except ProgramFailedError:
            self._discard_new()
            raise

    def _discard_new(self) -> None:
        """Remove what runs beside the old ones, which go on."""
        joining = [plan.name for plan in self.plans.values() if plan.replaces]
        if joining:
            self.supervisor.discard(self.set_name, joining)

    def _start_supervisord(self) -> None:
        """Start supervisord as a daemon and wait until it answers.

        Raises:
            SupervisorError: it did not; with what it said.
        """
        check_private(self.layout.socket.parent)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        home = str(self.layout.home)
        done = subprocess.run(
            [str(Path(self.options["supervisor_bin"], "supervisord")), "-c", str(self.layout.configuration)],
            env=clean_environment(home),
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode or not wait_until(lambda: self.supervisor.pid() != 0, _ANSWER):
            log = "\n".join(last_lines(Path(self.options["log_directory"], "supervisord.log"), 15))
            said = f"{done.stderr or done.stdout}\n{log}".strip()
            raise SupervisorError(f"supervisord does not start (exit status {done.returncode}): {said}")


def without_owner(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return directories or files as the user's who runs the module: only root could give them away."""
    return [{**item, "owner": ""} for item in items]


def parsed(program: Program) -> dict[str, str]:
    """Return the program's options as they are read back from a file."""
    lines = program.section().splitlines()[1:]
    return {name: value for name, _, value in (line.partition(" = ") for line in lines)}


ARGUMENTS: dict[str, Any] = {
    "home": {"type": "path", "required": True},
    "set": {"type": "str", "required": True},
    "services": SERVICES,
    "directories": DIRECTORIES,
    "files": FILES,
    "environment": {"type": "dict", "default": {}},
    "restart": {"type": "bool", "default": True},
    "supervisor_bin": {"type": "path", "required": True},
    "log_directory": {"type": "path", "required": True},
    "log_bytes": {"type": "int", "default": 20_000_000},
    "log_backups": {"type": "int", "default": 3},
    "timeout": {"type": "int", "default": 30},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        run = Run(module)
        outcome = run.plan() if module.check_mode else run.apply()
    except ProgramFailedError as error:
        log = Path(module.params["log_directory"], f"{error.program}.log")
        module.fail_json(msg=with_log(str(error), log, error.log_start), service=error.program)
    except (SupervisorError, FileSetError, ValueError, OSError) as error:
        module.fail_json(msg=f"the services of the set {module.params['set']}: {error}")
    except (xmlrpc.client.Error, subprocess.SubprocessError) as error:
        module.fail_json(msg=f"supervisord, for the set {module.params['set']}: {error}")
    module.exit_json(
        **outcome.result(),
        supervisord={
            "pid": run.supervisor.pid(),
            "socket": str(run.layout.socket),
            "started": outcome.other,
        },
    )


if __name__ == "__main__":
    main()
