"""Ansible action: run a command on the control machine, as who runs the playbook.

Unlike a task delegated to localhost it becomes nobody else there: who deploys to hosts as root need not be
root at home. A command that fails fails the task, with what it said as the message.
"""

from __future__ import annotations

import subprocess
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Runs the command `argv`, a list; it changes nothing on the host."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run it and return what it printed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        done = subprocess.run(
            [str(word) for word in self._task.args["argv"]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        result.update(changed=False, rc=done.returncode, stdout=done.stdout)
        if done.returncode:
            result.update(failed=True, msg=done.stderr.strip() or f"exit status {done.returncode}")
        return result
