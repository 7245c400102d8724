#!/usr/bin/python
"""Ansible module: stop, restart, list or remove the kit's services under systemd."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_logs import with_lines
from ansible.module_utils.clusterkit_slots import ACTIVE, NEW, RETIRED, base, named
from ansible.module_utils.clusterkit_systemd import (
    RECORDS,
    Installed,
    ServiceFailedError,
    SystemdError,
    disable,
    discard,
    enable,
    forget,
    installed_units,
    logged_since,
    mark,
    restart,
    retire,
    states,
    stop,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENTATION = r"""
---
module: systemd_control
short_description: Stop, restart, list or remove the kit's services under systemd
description:
  - Knows the kit's services by their units, and from these their sets and priorities.
  - Does for systemd what M(supervisor_control) does for a private supervisord.
options:
  state:
    description:
      - V(listed) changes nothing.
      - V(stopped) stops services, those of the highest priority number first. When everything is stopped, it
        does not come back when the host boots either, until the services are run again.
      - V(restarted) restarts services one after the other in the order of their priorities, and waits until
        each is up.
      - V(removed) stops services and removes their units and environments.
      - V(promoted) makes services that run beside others take over from them. The others are asked to end,
        which is not waited for, and never come back.
      - V(discarded) ends services that run beside others, which go on.
    type: str
    choices: [listed, stopped, restarted, removed, promoted, discarded]
    default: listed
  services:
    description: Names of services; one that runs in slots may be named without its slot. With an empty
      O(set) too, all are meant.
    type: list
    elements: str
    default: []
  set:
    description: Name of a set; all of its services.
    type: str
    default: ""
  unit_directory:
    description: Where the units are.
    type: path
    default: /etc/systemd/system
  environment_directory:
    description: Where the units' environments are. Removed with the last of them.
    type: path
    default: /etc/clusterkit
  timeout:
    description: Seconds a restarted service may need to come up, in addition to the time it has to stay up.
    type: int
    default: 30
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Stop the cluster's services on this host
  systemd_control:
    state: stopped

- name: Restart one worker node
  systemd_control:
    state: restarted
    services: [worker-cpu]
"""

RETURN = r"""
services:
  description: Every service there is, as it is at the end.
  type: list
  elements: dict
  returned: always
  sample:
    - name: worker-cpu
      service: worker-cpu
      set: workers
      state: RUNNING
      pid: 4711
      uptime: 86
      exit_status: 0
      error: ""
      log: journalctl --unit=clusterkit-worker-cpu.service
affected:
  description: Names of the services that were stopped, restarted or removed.
  type: list
  elements: str
  returned: always
"""


def listed(installed: Mapping[str, Installed]) -> list[dict[str, Any]]:
    """Return the services as the module reports them."""
    found = states(installed)
    return [
        {
            "name": name,
            "service": base(name),
            "set": unit.set_name,
            "state": "RETIRING" if unit.mark == RETIRED else found[name].word,
            "pid": found[name].pid,
            "uptime": int(found[name].uptime),
            "exit_status": 0 if found[name].runs else found[name].exit_status,
            "error": found[name].error,
            "log": f"journalctl --unit={unit.unit}",
        }
        for name, unit in sorted(installed.items(), key=lambda pair: (pair[1].set_name, pair[0]))
        # Of one that was retired and has ended only files are left, until the next run of its set.
        if unit.mark != RETIRED or found[name].there
    ]


def selected(
    installed: Mapping[str, Installed], services: list[str], set_name: str, *, exact: bool
) -> list[str]:
    """Return the services that are meant, in the order in which they start; all when nothing is said.

    Raises:
        ValueError: a name that does not exist, with those that do.
    """
    # Who names none means those that are ending, too.
    names = (
        named(services, {name: unit.mark for name, unit in installed.items()}, exact=exact)
        if services
        else list(installed)
    )
    if set_name:
        names = [name for name in names if installed[name].set_name == set_name]
    return sorted(names, key=lambda name: (installed[name].priority, name))


class Run:
    """One run of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.options = module.params
        self.check_mode = module.check_mode
        self.installed = installed_units(Path(self.options["unit_directory"]))
        # Who promotes one slot must not promote those that it takes over from.
        exact = self.options["state"] in {"promoted", "discarded"}
        self.names = selected(self.installed, self.options["services"], self.options["set"], exact=exact)
        self.everything = not self.options["services"] and not self.options["set"]

    def stop(self) -> tuple[list[str], bool]:
        """Stop the services; return those that ran, and whether anything is other than before."""
        found = states(self.names)
        running = [name for name in self.names if found[name].word != "STOPPED"]
        # Otherwise a boot would start again what somebody stopped.
        enabled = [name for name in self.names if self.everything and found[name].enabled]
        if not self.check_mode:
            stop(running, {name: unit.priority for name, unit in self.installed.items()})
            disable(enabled)
        return running, bool(running or enabled)

    def restart(self) -> tuple[list[str], bool]:
        """Restart the services, one after the other: the worker nodes that are left go on meanwhile."""
        names = [name for name in self.names if self.installed[name].mark != RETIRED]
        if not self.check_mode:
            # Those that somebody stopped with everything else.
            enable(name for name, state in states(names).items() if not state.enabled)
            for name in names:
                restart([name], {name: self.installed[name].start_seconds}, self.options["timeout"])
        return names, bool(names)

    def promote(self) -> tuple[list[str], bool]:
        """Let the services take over, and ask those to end that they take over from."""
        old = [
            unit
            for name, unit in self.installed.items()
            if name not in self.names and unit.mark != RETIRED and base(name) in map(base, self.names)
        ]
        if not self.check_mode:
            # In this order: interrupted in between, both serve, and the next run retires the old one.
            for name in self.names:
                mark(self.installed[name], ACTIVE)
            enable(self.names)
            retire(old)
            self.installed = installed_units(Path(self.options["unit_directory"]))
        return [unit.service for unit in old], True

    def discard(self) -> tuple[list[str], bool]:
        """End the services, which have not taken over."""
        new = [self.installed[name] for name in self.names if self.installed[name].mark == NEW]
        if not self.check_mode:
            discard(new, Path(self.options["environment_directory"]))
            self.installed = installed_units(Path(self.options["unit_directory"]))
        return [unit.service for unit in new], bool(new)

    def remove(self) -> tuple[list[str], bool]:
        """Stop the services and remove what systemd knows them by."""
        self.stop()
        directory = Path(self.options["environment_directory"])
        there = directory.is_dir()
        if not self.check_mode:
            forget((self.installed[name] for name in self.names), directory)
            if self.everything:
                shutil.rmtree(directory, ignore_errors=True)
                shutil.rmtree(RECORDS, ignore_errors=True)
            self.installed = {n: u for n, u in self.installed.items() if n not in self.names}
        return self.names, bool(self.names) or (self.everything and there)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["listed", "stopped", "restarted", "removed", "promoted", "discarded"],
                "default": "listed",
            },
            "services": {"type": "list", "elements": "str", "default": []},
            "set": {"type": "str", "default": ""},
            "unit_directory": {"type": "path", "default": "/etc/systemd/system"},
            "environment_directory": {"type": "path", "default": "/etc/clusterkit"},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    try:
        run = Run(module)
        actions = {
            "stopped": run.stop,
            "restarted": run.restart,
            "removed": run.remove,
            "promoted": run.promote,
            "discarded": run.discard,
        }
        action = actions.get(module.params["state"])
        affected, changed = action() if action else ([], False)
        services = listed(run.installed)
    except ServiceFailedError as error:
        lines = logged_since(error.service, error.since)
        module.fail_json(msg=with_lines(str(error), "the journal", lines), service=error.service)
    except (SystemdError, ValueError, OSError) as error:
        module.fail_json(msg=f"the services of this host: {error}")
    module.exit_json(changed=changed, affected=sorted(affected), services=services)


if __name__ == "__main__":
    main()
