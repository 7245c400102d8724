"""Names of worker nodes: what the inventory calls a node, and under which of its slots it runs.

A node is replaced by handing over: the new one runs as `cpu.b@h4` beside `cpu@h4`, the next one as `cpu@h4`
or `cpu.c@h4`. All of them are the inventory's `cpu@h4`, whose own name holds no dot.
"""

from __future__ import annotations

from typing import Final

#: What follows a node's own name in that of its slot, as a regular expression.
SLOT_PATTERN: Final = r"(\.[b-z])?"


def logical(name: str) -> str:
    """Return the inventory's name of the node that Celery knows as ``name``: cpu@h4 for cpu.b@h4."""
    node, at, host = name.partition("@")
    return f"{node.partition('.')[0]}{at}{host}"
