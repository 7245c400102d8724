#!/usr/bin/python
"""Ansible module: stop, restart or list the services of a cluster's private supervisord."""

from __future__ import annotations

import shutil
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_logs import with_log
from ansible.module_utils.clusterkit_slots import ACTIVE, NEW, RETIRED, base, named
from ansible.module_utils.clusterkit_supervisor import (
    MARK,
    Layout,
    ProgramFailedError,
    Supervisor,
    SupervisorError,
    marked,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENTATION = r"""
---
module: supervisor_control
short_description: Stop, restart or list services under a private supervisord
description:
  - Stops services politely, those of the highest priority number first, or restarts or lists them.
  - Stopping everything ends supervisord too.
options:
  home:
    description: Absolute path of the cluster's home.
    type: path
    required: true
  state:
    description:
      - V(listed) changes nothing.
      - V(stopped) stops the services; without O(services) and O(set) supervisord is ended too.
      - V(restarted) stops and starts the services of O(services) or O(set), or all, one after the other, each
        as its set's file says by now.
      - V(promoted) makes services that run beside others take over from them. The others are asked to end,
        which is not waited for, and never come back.
      - V(discarded) ends services that run beside others, which go on.
      - V(promoted) makes services that run beside others take over from them. The others are asked to end,
        which is not waited for, and never come back.
      - V(discarded) ends services that run beside others, which go on.
    type: str
    choices: [listed, stopped, restarted, promoted, discarded]
    default: listed
  services:
    description: Names of services; one that runs in slots may be named without its slot.
    type: list
    elements: str
    default: []
  set:
    description: Name of a set; all of its services.
    type: str
    default: ""
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
- name: Stop the cluster
  supervisor_control:
    home: /srv/demo/.cluster/local
    state: stopped

- name: Restart one worker node
  supervisor_control:
    home: /srv/demo/.cluster/local
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
      log: /srv/demo/.cluster/local/log/worker-cpu.log
supervisord:
  description: supervisord's process id; 0 when it does not run.
  type: int
  returned: always
affected:
  description: Names of the services that were stopped or restarted.
  type: list
  elements: str
  returned: always
"""

# Seconds supervisord may need to end once its programs are stopped.
_SHUTDOWN = 20


def listed(layout: Layout, supervisor: Supervisor) -> list[dict[str, Any]]:
    """Return every service of every set, with what supervisord says of it if it runs."""
    states = supervisor.states() if supervisor.pid() else {}
    services = []
    for set_name in layout.set_names():
        for name, options in layout.programs(set_name).items():
            state = states.get(name)
            retired = options.get(MARK) == RETIRED
            if retired and not (state and state.needs_stop):
                continue  # it has ended: only its section is left, until the next run of its set
            services.append(
                {
                    "name": name,
                    "service": base(name),
                    "set": set_name,
                    "state": "RETIRING" if retired else state.state if state else "STOPPED",
                    "pid": state.pid if state else 0,
                    "uptime": state.uptime if state else 0,
                    "exit_status": state.exit_status if state else 0,
                    "error": state.error if state else "",
                    "log": options.get("stdout_logfile", "").replace("%%", "%"),
                }
            )
    return services


def selected(layout: Layout, services: list[str], set_name: str, *, exact: bool) -> list[str]:
    """Return the names that are meant, all of them when nothing is said.

    Raises:
        ValueError: a name that does not exist, with those that do.
    """
    known = layout.set_of()
    # Who names none means those that are ending, too.
    names = named(services, layout.marks(), exact=exact) if services else list(known)
    return [name for name in names if set_name in {"", known[name]}]


def promote(layout: Layout, supervisor: Supervisor, names: list[str]) -> list[str]:
    """Let services take over, and ask those to end that they take over from; return these."""
    sets, marks = layout.set_of(), layout.marks()
    old = [
        name
        for name, mark in marks.items()
        if name not in names and mark not in {"", RETIRED} and base(name) in map(base, names)
    ]
    changed = {**dict.fromkeys(names, ACTIVE), **dict.fromkeys(old, RETIRED)}
    # In one step for each set: interrupted before it ends, the next run asks the old ones again.
    for set_name in {sets[name] for name in changed}:
        layout.write(set_name, marked(layout.programs(set_name), changed))
    supervisor.retire(old)
    return old


def discard(layout: Layout, supervisor: Supervisor, names: list[str]) -> list[str]:
    """End services that have not taken over; return their names."""
    sets, marks = layout.set_of(), layout.marks()
    new = [name for name in names if marks[name] == NEW]
    for set_name in {sets[name] for name in new}:
        supervisor.discard(set_name, [name for name in new if sets[name] == set_name])
    return new


def stop(layout: Layout, supervisor: Supervisor, names: list[str], *, everything: bool) -> list[str]:
    """Stop services, and supervisord if `everything`; return the names of those that ran."""
    states = supervisor.states() if supervisor.pid() else {}
    if everything:
        # Those too whose files are gone already.
        names = list(states)
    running = [name for name in names if name in states and states[name].needs_stop]
    if running:
        supervisor.stop(running)
    if everything:
        supervisor.shut_down(_SHUTDOWN)
        directory = layout.socket.parent
        if directory != layout.directory:
            shutil.rmtree(directory, ignore_errors=True)
    return running


def run(options: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Do what `options` say and return the module's result."""
    layout = Layout(Path(options["home"]).resolve())
    supervisor = Supervisor(layout)
    result: dict[str, Any] = {"changed": False, "affected": []}
    if options["state"] != "listed":
        everything = not options["services"] and not options["set"]
        # Who promotes one slot must not promote those that it takes over from.
        exact = options["state"] in {"promoted", "discarded"}
        names = [] if everything else selected(layout, options["services"], options["set"], exact=exact)
        alive = supervisor.pid() != 0
        if check_mode:
            known = [service["name"] for service in listed(layout, supervisor)]
            result["affected"] = [name for name in known if everything or name in names]
            result["changed"] = alive
        elif options["state"] == "stopped":
            result["affected"] = stop(layout, supervisor, names, everything=everything)
            result["changed"] = bool(result["affected"]) or (everything and alive)
        elif options["state"] in {"promoted", "discarded"}:
            settle = promote if options["state"] == "promoted" else discard
            result.update(affected=settle(layout, supervisor, names), changed=True)
        else:
            if not alive:
                raise SupervisorError("supervisord does not run; bring the cluster up first")
            names = [name for name in names or named([], layout.marks()) if layout.marks()[name] != RETIRED]
            priorities = supervisor.priorities()
            changed = supervisor.reread()[1]
            # One after the other, so that the worker nodes that are left go on meanwhile.
            for name in sorted(names, key=lambda name: (priorities.get(name, 0), name)):
                stop(layout, supervisor, [name], everything=False)
                if name in changed:
                    supervisor.remove(name)
                    supervisor.add(name)
                supervisor.start([name], options["timeout"])
            result.update(affected=names, changed=True)
    result["affected"] = sorted(result["affected"])
    return {**result, "services": listed(layout, supervisor), "supervisord": supervisor.pid()}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "state": {
                "type": "str",
                "choices": ["listed", "stopped", "restarted", "promoted", "discarded"],
                "default": "listed",
            },
            "services": {"type": "list", "elements": "str", "default": []},
            "set": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    home = Path(module.params["home"]).resolve()
    try:
        result = run(module.params, check_mode=module.check_mode)
    except ProgramFailedError as error:
        logs = {s["name"]: s["log"] for s in listed(Layout(home), Supervisor(Layout(home)))}
        module.fail_json(
            msg=with_log(str(error), logs.get(error.program, ""), error.log_start), service=error.program
        )
    except (SupervisorError, ValueError, OSError, xmlrpc.client.Error) as error:
        module.fail_json(msg=f"the services in {home}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
