"""What the modules that run a set of services have in common, whatever runs them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible.module_utils.clusterkit_processes import MARKER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The option `services`.
SERVICES: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "required": True,
    "options": {
        "name": {"type": "str", "required": True},
        "command": {"type": "str", "required": True},
        "environment": {"type": "dict", "default": {}},
        "secret_environment": {"type": "dict", "default": {}, "no_log": True},
        "working_directory": {"type": "str", "default": ""},
        "user": {"type": "str", "default": ""},
        "stop_signal": {"type": "str", "default": "TERM"},
        "stop_timeout": {"type": "int", "default": 10},
        "start_seconds": {"type": "int", "default": 1},
        "priority": {"type": "int", "default": 500},
        "fingerprint": {"type": "str", "default": ""},
        "after": {"type": "list", "elements": "str", "default": []},
        "writable": {"type": "list", "elements": "path", "default": []},
        "capabilities": {"type": "list", "elements": "str", "default": []},
        "cpu_quota": {"type": "str", "default": ""},
        "cpu_affinity": {"type": "str", "default": ""},
        "memory_high": {"type": "str", "default": ""},
        "memory_max": {"type": "str", "default": ""},
        "handover": {"type": "bool", "default": False},
    },
}

# Names that need no quoting in any file, and that supervisor does not take for a group.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

# The priority of a service that nothing is known of.
_LAST = 999


@dataclass
class Outcome:
    """What was, or would be, done; names of services, but for `paths` and `other`."""

    started: set[str] = field(default_factory=set)
    restarted: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    # These run on as they were started, although they changed since.
    pending: set[str] = field(default_factory=set)
    # These run beside the one that they shall replace: new name -> old name.
    joining: dict[str, str] = field(default_factory=dict)
    # These were asked to end, and are not waited for.
    retired: set[str] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    # Whether anything else is other than before, such as a user.
    other: bool = False

    def result(self) -> dict[str, Any]:
        """Return what the module returns of it."""
        return {
            "changed": bool(
                self.started
                or self.restarted
                or self.removed
                or self.joining
                or self.retired
                or self.paths
                or self.other
            ),
            "changed_paths": self.paths,
            "started": sorted(self.started),
            "restarted": sorted(self.restarted),
            "removed": sorted(self.removed),
            "pending": sorted(self.pending),
            "joining": [{"name": new, "replaces": old} for new, old in sorted(self.joining.items())],
            "retired": sorted(self.retired),
        }


def environment_of(service: Mapping[str, Any], common: Mapping[str, Any], home: str) -> dict[str, str]:
    """Return the variables of a service: those of all, its own, and the mark of the cluster it belongs to."""
    variables = {**common, **service["environment"], **service["secret_environment"], MARKER: home}
    return {name: str(value) for name, value in variables.items()}


def check_services(set_name: str, services: Iterable[Mapping[str, Any]], set_of: Mapping[str, str]) -> None:
    """Refuse a service that cannot be run, and a name that is there twice.

    `set_of` tells the set of every service that there is already.

    Raises:
        ValueError: naming the service, what is wrong with it, and the other set.
    """
    seen: set[str] = set()
    for service in services:
        name = service["name"]
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name {name!r} is not a letter and then letters, digits, - and _")
        if not service["command"].startswith("/"):
            raise ValueError(f"the command of {name} does not begin with an absolute path")
        if name in seen:
            raise ValueError(f"the service {name} is listed twice in the set {set_name}")
        if set_of.get(name, set_name) != set_name:
            raise ValueError(f"the service {name} of the set {set_name} is in {set_of[name]} too")
        seen.add(name)


def waves(names: Iterable[str], priorities: Mapping[str, int]) -> list[list[str]]:
    """Return `names` grouped by priority, the lowest number first; a name that is unknown comes last."""
    groups: dict[int, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(priorities.get(name, _LAST), []).append(name)
    return [groups[priority] for priority in sorted(groups)]
