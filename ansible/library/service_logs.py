#!/usr/bin/python
"""Ansible module: read what the kit's services on a host have logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_logs import FileLog
from ansible.module_utils.clusterkit_slots import base
from ansible.module_utils.clusterkit_systemd import SystemdError, installed_units, journal_from

DOCUMENTATION = r"""
---
module: service_logs
short_description: Read what services have logged
description:
  - Returns the last lines of each service, and on request those that came after an earlier call, in order and
    without a gap.
  - Under systemd the lines are the journal's, with what systemd itself says of the service. Under a private
    supervisord they are the log file's.
options:
  backend:
    description: What runs the services.
    type: str
    choices: [supervisor, systemd]
    required: true
  services:
    description: Names of services; all when empty. Those that this host does not have are left out. One
      that runs in slots may be named without its slot; all of its slots are meant.
    type: list
    elements: str
    default: []
  lines:
    description: At most so many lines per service. The last ones, or, with a cursor, the first after it.
    type: int
    default: 50
  cursors:
    description: Service -> the RV(logs[].cursor) up to which its log was read already.
    type: dict
    default: {}
  log_directory:
    description: Directory of the log files, with supervisor.
    type: path
    default: ""
  unit_directory:
    description: Where the units are, with systemd.
    type: path
    default: /etc/systemd/system
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Read the last lines of one worker node
  service_logs:
    backend: systemd
    services: [worker-cpu]
    lines: 100

- name: Read what came since
  service_logs:
    backend: systemd
    services: [worker-cpu]
    cursors: {worker-cpu: "s=0b6a;i=8d2;b=11b3;m=1f00;t=62a1;x=7c9e"}
"""

RETURN = r"""
logs:
  description:
    - For each service its lines, and a cursor to go on from. As many lines as were asked for mean that there
      may be more already.
  type: list
  elements: dict
  returned: always
  sample:
    - service: worker-cpu
      lines: ["[2026-01-01 00:00:00,000: INFO/MainProcess] cpu@h4 ready."]
      cursor: s=0b6a;i=8d2;b=11b3;m=1f00;t=62a1;x=7c9e
services:
  description: Names of all services that have a log here, whatever was asked for.
  type: list
  elements: str
  returned: always
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "choices": ["supervisor", "systemd"], "required": True},
            "services": {"type": "list", "elements": "str", "default": []},
            "lines": {"type": "int", "default": 50},
            "cursors": {"type": "dict", "default": {}},
            "log_directory": {"type": "path", "default": ""},
            "unit_directory": {"type": "path", "default": "/etc/systemd/system"},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    systemd = options["backend"] == "systemd"
    files = {path.stem: FileLog(path) for path in Path(options["log_directory"]).glob("*.log")}
    known = sorted(installed_units(Path(options["unit_directory"])) if systemd else files)
    logs = []
    for service in known:
        if not options["services"] or {service, base(service)}.intersection(options["services"]):
            cursor = options["cursors"].get(service, "")
            try:
                if systemd:
                    lines, cursor = journal_from(service, cursor, options["lines"])
                else:
                    lines, cursor = files[service].read(cursor, options["lines"])
            except (SystemdError, OSError, ValueError) as error:
                module.fail_json(msg=f"the log of {service}: {error}")
            logs.append({"service": service, "lines": lines, "cursor": cursor})
    module.exit_json(changed=False, logs=logs, services=known)


if __name__ == "__main__":
    main()
