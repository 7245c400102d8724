#!/usr/bin/python
"""Ansible module: bring a set of services under systemd into the wanted state."""

from __future__ import annotations

import grp
import pwd
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_files import DIRECTORIES, FILES, FileSet, FileSetError, read
from ansible.module_utils.clusterkit_logs import with_lines
from ansible.module_utils.clusterkit_services import SERVICES, Outcome, check_services, environment_of, waves
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
from ansible.module_utils.clusterkit_systemd import (
    Installed,
    ServiceFailedError,
    State,
    SystemdError,
    Unit,
    discard,
    enable,
    forget,
    installed_units,
    logged_since,
    restart,
    retire,
    running_version,
    states,
    stop,
    systemctl,
    unit_name,
    verify,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOCUMENTATION = r"""
---
module: systemd_services
short_description: Run a set of services under systemd
description:
  - Makes the services' users, writes their files, environments and units, and makes systemd run exactly the
    set. Only services that are new, other or gone are touched.
  - Every service of the set runs at the end and has stayed up for its O(services[].start_seconds), or the
    module fails with what it logged.
  - Units are held in tightly. A service writes its own directories alone, gains no rights, and sees no
    devices and no people's homes.
  - A run that changes nothing costs one call of C(systemctl).
options:
  home:
    description: Absolute path of the cluster's home, which belongs to root.
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
        description: User it runs as; O(user) when empty. Made when there is none.
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
        description: Services, also of other sets, that it is started after when the host boots.
        type: list
        elements: str
        default: []
      writable:
        description: Paths it may write besides the O(directories) that are its user's. They have to exist.
        type: list
        elements: path
        default: []
      capabilities:
        description: Capabilities it has, such as C(CAP_NET_BIND_SERVICE).
        type: list
        elements: str
        default: []
      cpu_quota:
        description: Share of processor time it may use; V(200%) are two cores.
        type: str
        default: ""
      cpu_affinity:
        description: Processor cores it may use, such as V(0-3).
        type: str
        default: ""
      memory_high:
        description: Memory above which it is slowed down and its memory reclaimed, such as V(1G).
        type: str
        default: ""
      memory_max:
        description: Memory above which the kernel ends one of its processes, such as V(2G).
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
        description: Who owns it, and its group; O(user) when empty.
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
        description: Who owns it, and its group; O(user) when empty.
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
  user:
    description: User who runs the services that name none, and who owns the directories and files that name
      no owner. Made when there is none.
    type: str
    default: ""
  restart:
    description: Whether services that run and have changed are restarted. If not, they are returned as
      RV(pending), also by later runs, until something restarts them.
    type: bool
    default: true
  unit_directory:
    description: Where units are written.
    type: path
    default: /etc/systemd/system
  environment_directory:
    description: Where the units' environments are written, a C(<service>.env) each.
    type: path
    default: /etc/clusterkit
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
  systemd_services:
    home: /opt/clusterkit
    set: valkey
    user: clusterkit-results
    directories:
      - path: /opt/clusterkit/valkey
    services:
      - name: valkey
        command: /usr/bin/valkey-server /opt/clusterkit/valkey/valkey.conf
        stop_timeout: 30
        fingerprint: 5e884898da28047151d0e56f8dc62927
"""

RETURN = r"""
changed_paths:
  description: Directories and files that were made, written or given another mode or owner.
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
services:
  description: The services of the set as they are at the end.
  type: list
  elements: dict
  returned: always
  sample: [{"name": "valkey", "state": "RUNNING", "pid": 4711, "uptime": 86}]
"""


def writable_paths(
    service: Mapping[str, Any], user: str, directories: Iterable[Mapping[str, Any]], default_user: str
) -> tuple[str, ...]:
    """Return what a service may write: the directories that its user owns, and what it asks for."""
    own = [item["path"] for item in directories if (item["owner"] or default_user) == user]
    wanted = sorted({*own, *service["writable"]})
    # Those inside of another one are its already.
    return tuple(p for p in wanted if not any(p != q and Path(p).is_relative_to(q) for q in wanted))


def unit_of(service: Mapping[str, Any], options: Mapping[str, Any]) -> Unit:
    """Turn one of the module's `services` into a unit.

    Raises:
        ValueError: nobody is named to run it.
    """
    user = service["user"] or options["user"]
    if not user:
        raise ValueError(f"the service {service['name']} names no user, and neither does the set")
    return Unit(
        name=service["name"],
        set_name=options["set"],
        command=service["command"],
        user=user,
        working_directory=service["working_directory"] or options["home"],
        environment_file=str(Path(options["environment_directory"], f"{service['name']}.env")),
        environment=environment_of(service, options["environment"], options["home"]),
        stop_signal=service["stop_signal"],
        stop_timeout=service["stop_timeout"],
        start_seconds=service["start_seconds"],
        start_timeout=options["timeout"],
        priority=service["priority"],
        fingerprint=service["fingerprint"],
        after=tuple(service["after"]),
        writable=writable_paths(service, user, options["directories"], options["user"]),
        capabilities=tuple(service["capabilities"]),
        limits={
            "CPUQuota": service["cpu_quota"],
            "CPUAffinity": service["cpu_affinity"],
            "MemoryHigh": service["memory_high"],
            "MemoryMax": service["memory_max"],
        },
        handover=service["handover"],
    )


def exists(user: str) -> bool:
    """Tell whether there is a user of that name."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


class Run:
    """One run of the module over one set."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.options = module.params
        self.directory = Path(self.options["unit_directory"])
        self.environment_directory = Path(self.options["environment_directory"])
        self.installed = installed_units(self.directory)
        set_of = {name: unit.set_name for name, unit in self.installed.items()}
        check_services(self.options["set"], self.options["services"], set_of)
        own = [name for name, unit in self.installed.items() if unit.set_name == self.options["set"]]
        self.states: dict[str, State] = states(sorted({*own, *(s["name"] for s in self.options["services"])}))
        self.plans = self._plans()
        services = [
            in_slot(s, slot(self.plans[s["name"]].name)) if s["handover"] else s
            for s in self.options["services"]
        ]
        self.units = {s["name"]: unit_of(s, self.options) for s in services}
        joining = {plan.name for plan in self.plans.values() if plan.replaces}
        self.texts = {
            unit_name(name): unit.text(NEW if name in joining else ACTIVE)
            for name, unit in self.units.items()
        }
        self.versions = {name: unit.version() for name, unit in self.units.items()}
        self.environments = {name: unit.environment_text() for name, unit in self.units.items()}
        unknown = sorted(self.units.keys() - self.states.keys())
        self.states |= states(unknown)
        self.files = FileSet(module, self.options["user"])
        self.outcome = self._plan()

    def _plans(self) -> dict[str, Plan]:
        """Return, for each service that is replaced by handing over, what becomes of its slots."""
        plans = {}
        for service in self.options["services"]:
            if service["handover"]:
                found = [
                    self._member(unit, service)
                    for name, unit in self.installed.items()
                    if unit.set_name == self.options["set"] and base(name) == service["name"]
                ]
                plans[service["name"]] = decide(service["name"], found)
        return plans

    def _member(self, unit: Installed, service: Mapping[str, Any]) -> Member:
        state = self.states[unit.service]
        wanted = unit_of(in_slot(service, slot(unit.service)), self.options).version()
        return Member(
            name=unit.service,
            # One that ends serves no more, whoever asked it to. The kit knew no slots once.
            mark=RETIRED if state.ends else unit.mark or ACTIVE,
            runs=state.runs,
            there=state.there,
            current=running_version(unit.service) == wanted,
        )

    def _plan(self) -> Outcome:
        """Return what has to be done."""
        outcome = Outcome(paths=self.files.changed)
        for name, unit in self.installed.items():
            if (
                unit.set_name == self.options["set"]
                and name not in self.units
                and base(name) not in self.plans
            ):
                self._leave(unit, outcome)
        for plan in self.plans.values():
            outcome.retired.update(plan.retire)
            outcome.removed.update(set(plan.sweep))
            if plan.replaces:
                outcome.joining[plan.name] = plan.replaces
        for name, version in self.versions.items():
            if name in outcome.joining:
                continue
            if not self.states[name].runs:
                outcome.started.add(name)
            elif running_version(name) != version:
                (outcome.restarted if self.options["restart"] else outcome.pending).add(name)
        return outcome

    def _leave(self, unit: Installed, outcome: Outcome) -> None:
        """Plan the end of a service that left the set: one with slots may take its time."""
        state = self.states[unit.service]
        if not unit.mark or not state.there:
            outcome.removed.add(unit.service)
        elif unit.mark != RETIRED or state.runs:
            outcome.retired.add(unit.service)

    def apply(self) -> None:
        """Bring the set into the wanted state; in check mode only note what would change."""
        self._make_users()
        self._write_files()
        self._remove()
        self._write_units()
        if not self.module.check_mode:
            try:
                self._start()
            except ServiceFailedError:
                self._discard_new()
                raise

    def _make_users(self) -> None:
        wanted = {unit.user for unit in self.units.values()} | {self.options["user"]} - {""}
        for user in sorted(user for user in wanted if not exists(user)):
            self.outcome.other = True
            if not self.module.check_mode:
                self._make_user(user)

    def _make_user(self, user: str) -> None:
        """Make a user of the system that nobody logs in as."""
        try:
            grp.getgrnam(user)
            group = ["--gid", user]
        except KeyError:
            group = ["--user-group"]
        command = ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent"]
        command += ["--shell", "/usr/sbin/nologin", "--comment", "clusterkit", *group, user]
        code, out, err = self.module.run_command(command)
        if code:
            raise SystemdError(f"the user {user} cannot be made: {(err or out).strip()}")

    def _write_files(self) -> None:
        kit = [
            {"path": self.options["home"], "mode": "0755", "owner": "root"},
            {"path": self.environment_directory, "mode": "0700", "owner": "root"},
        ]
        self.files.write_all(kit + self.options["directories"], self.options["files"])

    def _remove(self) -> None:
        """Remove what left the set; first, because its ports may be wanted by what is new."""
        if self.outcome.removed and not self.module.check_mode:
            priorities = {name: unit.priority for name, unit in self.installed.items()}
            stop(self.outcome.removed, priorities)
            forget((self.installed[name] for name in self.outcome.removed), self.environment_directory)
        if self.outcome.retired and not self.module.check_mode:
            retire(self.installed[name] for name in self.outcome.retired)

    def _write_units(self) -> None:
        """Write the units and then their environment, which says what version the next start is of."""
        changed = {
            name: text for name, text in self.texts.items() if read(self.directory / name) != text.encode()
        }
        if changed and not self.module.check_mode:
            with tempfile.TemporaryDirectory() as place:
                verify(changed, Path(place))
        self.files.write_all(
            [],
            [
                {"path": self.directory / name, "content": text, "mode": "0644", "owner": "root"}
                for name, text in self.texts.items()
            ],
        )
        # Those that are new have to prove themselves first.
        lasting = self.units.keys() - self.outcome.joining.keys()
        disabled = [name for name in sorted(lasting) if not self.states[name].enabled]
        self.outcome.other |= bool(disabled)
        if not self.module.check_mode:
            enable(disabled)
            if changed or disabled or any(self.states[n].needs_reload for n in self.units):
                systemctl("daemon-reload")
        self.files.write_all(
            [],
            [
                {
                    "path": self.environment_directory / f"{name}.env",
                    "content": text,
                    "mode": "0600",
                    "owner": "root",
                }
                for name, text in self.environments.items()
            ],
        )

    def _start(self) -> None:
        new = {name for name in self.outcome.joining if not self.states[name].runs}
        wanted = self.outcome.started | self.outcome.restarted | new
        for wave in waves(self.units, {name: unit.priority for name, unit in self.units.items()}):
            seconds = {name: self.units[name].start_seconds for name in wave}
            if not wanted.isdisjoint(wave) or any(not self.states[n].up_for(seconds[n]) for n in wave):
                self.states.update(restart(wanted.intersection(wave), seconds, self.options["timeout"]))

    def _discard_new(self) -> None:
        """Remove what runs beside the old ones, which go on."""
        there = installed_units(self.directory)
        discard((there[name] for name in self.outcome.joining if name in there), self.environment_directory)


ARGUMENTS: dict[str, Any] = {
    "home": {"type": "path", "required": True},
    "set": {"type": "str", "required": True},
    "services": SERVICES,
    "directories": DIRECTORIES,
    "files": FILES,
    "environment": {"type": "dict", "default": {}},
    "user": {"type": "str", "default": ""},
    "restart": {"type": "bool", "default": True},
    "unit_directory": {"type": "path", "default": "/etc/systemd/system"},
    "environment_directory": {"type": "path", "default": "/etc/clusterkit"},
    "timeout": {"type": "int", "default": 30},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        run = Run(module)
        run.apply()
    except ServiceFailedError as error:
        lines = logged_since(error.service, error.since)
        module.fail_json(msg=with_lines(str(error), "the journal", lines), service=error.service)
    except (SystemdError, FileSetError, ValueError, OSError) as error:
        module.fail_json(msg=f"the services of the set {module.params['set']}: {error}")
    services = [
        {"name": name, "state": state.word, "pid": state.pid, "uptime": int(state.uptime)}
        for name, state in run.states.items()
        if name in run.units
    ]
    module.exit_json(**run.outcome.result(), services=services)


if __name__ == "__main__":
    main()
