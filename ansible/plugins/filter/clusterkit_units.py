"""Filter plugin: what ``systemctl show`` says of the kit's units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENTATION = r"""
name: service_units
short_description: Read the output of systemctl show
description: Turns the properties of the kit's units into what is listed of the supervisor's services.
positional: now
options:
  _input:
    description: What C(systemctl show --timestamp=unix) printed, for any number of units.
    type: str
    required: true
  now:
    description: The present time on the host, in seconds since the epoch.
    type: int
    required: true
"""

EXAMPLES = r"""
services: "{{ shown.stdout | service_units(1700000000) }}"
"""

RETURN = r"""
_value:
  description: One mapping per unit with its C(name), C(set), C(state), C(pid) and C(uptime).
  type: list
  elements: dict
"""

# ActiveState of systemd -> the word that supervisor has for it.
_STATES = {
    "active": "RUNNING",
    "activating": "STARTING",
    "reloading": "RUNNING",
    "deactivating": "STOPPING",
    "inactive": "STOPPED",
    "failed": "FATAL",
}


def service_units(text: str, now: int) -> list[dict[str, Any]]:
    """Return one mapping per unit; `now` is in seconds since the epoch, on the clock of the host."""
    units = []
    for block in text.split("\n\n"):
        properties = dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        if not properties.get("Id", "").startswith("clusterkit-"):
            continue
        # "clusterkit <set>: <name>", as the unit's template writes it.
        words, _, name = properties.get("Description", "").partition(": ")
        since = properties.get("ActiveEnterTimestamp", "").lstrip("@")
        state = _STATES.get(properties.get("ActiveState", ""), "UNKNOWN")
        units.append(
            {
                "name": name,
                "set": words.partition(" ")[2],
                "state": state,
                "pid": int(properties.get("MainPID") or 0),
                "uptime": max(0, now - int(since)) if state == "RUNNING" and since.isdigit() else 0,
                "log": f"journalctl --unit={properties['Id']}",
            }
        )
    return units


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by their names."""
        return {"service_units": service_units}
