#!/usr/bin/python
"""Ansible module: end the processes that a cluster left behind."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_processes import Process, belongs_to, cluster_processes, describe

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCUMENTATION = r"""
---
module: leftover_processes
short_description: End the processes that a cluster left behind
description:
  - Finds the processes that were started with C(CLUSTERKIT_HOME) set to O(home), whatever became of their
    supervisor, and ends them by their ids. SIGTERM goes to those whose parent is not one of them, and
    SIGKILL to all that are left after O(timeout).
  - Meant for after an orderly stop, which leaves nothing to do.
options:
  home:
    description: Absolute path of the cluster's home.
    type: path
    required: true
  state:
    description: V(listed) only tells; V(absent) ends them.
    type: str
    choices: [listed, absent]
    default: absent
  timeout:
    description: Seconds between SIGTERM and SIGKILL.
    type: int
    default: 10
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: End what the stop has left
  leftover_processes:
    home: /srv/demo/.cluster/local
"""

RETURN = r"""
processes:
  description: The processes that were found.
  type: list
  elements: dict
  returned: always
  sample: [{"pid": 4711, "command": "/usr/lib/erlang/erts-13.1.5/bin/beam.smp"}]
"""

# Long command lines (Erlang's) are cut to this many characters.
_COMMAND = 200

# Seconds the kernel may need after SIGKILL.
_KILL_TIMEOUT = 5.0


def send(processes: Iterable[Process], home: str, number: signal.Signals) -> None:
    """Send a signal to those of `processes` that still are the cluster's: an id may be another's by now."""
    for process in processes:
        if belongs_to(process.pid, home):
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue


def wait_gone(processes: Iterable[Process], timeout: float) -> list[Process]:
    """Wait at most `timeout` seconds for the processes to end and return those that did not."""
    deadline = time.monotonic() + timeout
    left = list(processes)
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if describe(process.pid)]
    return left


def end(home: str, timeout: float) -> tuple[list[Process], list[Process]]:
    """End the processes of the cluster in `home`; return those that were there and those that still are."""
    found = cluster_processes(home)
    pids = {process.pid for process in found}
    # Those without a parent among them: a worker ends its children itself, in good order.
    send((process for process in found if process.parent not in pids), home, signal.SIGTERM)
    if wait_gone(found, timeout):
        # Looked up again: one that was ending may have started another.
        send(cluster_processes(home), home, signal.SIGKILL)
        wait_gone(cluster_processes(home), _KILL_TIMEOUT)
    return found, cluster_processes(home)


def shown(processes: Iterable[Process]) -> list[dict[str, Any]]:
    """Return the processes as the module reports them."""
    return [{"pid": process.pid, "command": process.command[:_COMMAND]} for process in processes]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["listed", "absent"], "default": "absent"},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    home = os.path.realpath(module.params["home"])
    if module.params["state"] == "listed" or module.check_mode:
        found = cluster_processes(home)
        module.exit_json(changed=module.params["state"] == "absent" and bool(found), processes=shown(found))
    found, left = end(home, module.params["timeout"])
    if left:
        names = ", ".join(f"{process.pid} ({process.command[:60]})" for process in left)
        module.fail_json(msg=f"these processes of {home} do not end, not even when killed: {names}")
    module.exit_json(changed=bool(found), processes=shown(found))


if __name__ == "__main__":
    main()
