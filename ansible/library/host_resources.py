#!/usr/bin/python
"""Ansible module: find what a host has for worker nodes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: host_resources
short_description: Find the cores and the memory that worker nodes may use on a host
description:
  - Counts the processor cores this process may run on (affinity), and no more than a control group's quota
    allows, in whole cores. A container of 1.5 cores has one.
  - The memory is the host's, or a control group's limit where that is less. Both versions of control groups.
options:
  seconds:
    description: How long to look at what is used. Without it only what there is is told.
    type: float
    default: 0
  processes:
    description: Name -> process id, of services whose use is to be told, with that of their descendants.
    type: dict
    default: {}
  root:
    description: Where C(proc) and C(sys) are.
    type: path
    default: /
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Look at what the host has, and at what it uses for three seconds
  host_resources:
    seconds: 3
"""

RETURN = r"""
cores:
  description: Processor cores that worker nodes may use.
  type: int
  returned: always
host_cores:
  description: Processor cores that the host has.
  type: int
  returned: always
memory:
  description: MiB of memory that worker nodes may use, with what is in use already.
  type: int
  returned: always
memory_available:
  description: MiB of it that are free, or would be when needed.
  type: int
  returned: always
begin:
  description: When it began to look, in seconds since 1970 by the host's clock.
  type: float
  returned: when O(seconds) is given
end:
  description: When it had looked.
  type: float
  returned: when O(seconds) is given
busy:
  description: Cores that were in use while it looked, by whatever.
  type: float
  returned: when O(seconds) is given
used:
  description: Of each of O(processes) that runs, V(cores) in use meanwhile, V(memory) in MiB at the
    end, shared pages in equal parts, and the number of V(processes).
  type: dict
  returned: when O(seconds) is given
load:
  description: Processes that ran or waited to run, on average of the last 1, 5 and 15 minutes.
  type: list
  elements: float
  returned: always
"""

_MIB = 1024 * 1024
# Of a process's stat, counted from the field after its name: its parent, and its times with its children's.
_PARENT, _TIMES = 1, slice(11, 15)
# A limit of version 1 that is none is the largest number of pages.
_NO_LIMIT = 1 << 60


def cores_of(root: Path) -> int:
    """Return how many whole cores this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quotas = [quota for group in _groups(root, "cpu") if (quota := _quota(group))]
    return max(int(min([allowed, *quotas])), 1)


def memory_of(root: Path) -> tuple[int, int]:
    """Return MiB of memory in all, and available."""
    fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit and limit < _NO_LIMIT:
            used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
            total, available = min(total, limit), min(available, max(limit - used, 0))
    return total // _MIB, available // _MIB


def _groups(root: Path, controller: str) -> list[Path]:
    """Return the directories of this process's control group and all above it, of either version."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Mounted as `cpu`, `cpu,cpuacct`, or as a link from one to the other; version 2 has no name.
        top = root / "sys/fs/cgroup" / controllers
        inside = top / path.lstrip("/")
        found += [inside, *(above for above in inside.parents if above == top or top in above.parents)]
    return found


def _quota(group: Path) -> float | None:
    """Return how many cores' time a control group may use; None: as much as there is."""
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if not period:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except ValueError:  # "max", or no such file
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def tree_of(root: Path, process: int) -> list[int]:
    """Return a process and its descendants, none when it does not run."""
    children: dict[int, list[int]] = {}
    for path in (root / "proc").glob("[0-9]*/stat"):
        if fields := _fields(path):
            children.setdefault(int(fields[_PARENT]), []).append(int(path.parent.name))
    found = [process] if (root / f"proc/{process}").exists() else []
    for one in found:
        found += children.get(one, [])
    return found


def cpu_of(root: Path, processes: list[int]) -> float:
    """Return the seconds of processor time that processes have used, with those of children that ended."""
    stats = [_fields(root / f"proc/{process}/stat") for process in processes]
    ticks = sum(int(field) for fields in stats if fields for field in fields[_TIMES])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_of(root: Path) -> float:
    """Return the seconds of processor time that the host has used since it was started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, _text(root / "proc/stat").split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _pss(path: Path) -> int:
    """Return the KiB of memory a process has, shared pages in equal parts."""
    found = [line.split()[1] for line in _text(path).splitlines() if line.startswith("Pss:")]
    return int(found[0]) if found else 0


def _fields(path: Path) -> list[str]:
    """Return the fields of a process's stat after its name, which may hold spaces."""
    return _text(path).rpartition(")")[2].split()


def use(root: Path, seconds: float, processes: dict[str, int]) -> dict[str, Any]:
    """Return what was in use for `seconds`."""
    before = {name: cpu_of(root, tree_of(root, process)) for name, process in processes.items()}
    busy, begin, began = busy_of(root), time.time(), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    used = {}
    for name, process in processes.items():
        if tree := tree_of(root, process):
            used[name] = {
                "cores": round(max(cpu_of(root, tree) - before[name], 0) / took, 3),
                "memory": sum(_pss(root / f"proc/{one}/smaps_rollup") for one in tree) // 1024,
                "processes": len(tree),
            }
    return {
        "begin": begin,
        "end": begin + took,
        "busy": round((busy_of(root) - busy) / took, 2),
        "used": used,
    }


def resources(root: Path) -> dict[str, Any]:
    """Return what the module returns."""
    total, available = memory_of(root)
    return {
        "cores": cores_of(root),
        "host_cores": os.cpu_count() or 1,
        "memory": total,
        "memory_available": available,
        "load": [float(word) for word in (root / "proc/loadavg").read_text().split()[:3]],
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "seconds": {"type": "float", "default": 0},
            "processes": {"type": "dict", "default": {}},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    options, root = module.params, Path(module.params["root"])
    found = resources(root)
    if options["seconds"]:
        found |= use(root, options["seconds"], {name: int(pid) for name, pid in options["processes"].items()})
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
