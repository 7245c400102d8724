"""Writes the reference documents from what the kit itself reads: ``python -m clusterkit.ops.reference``.

A test fails while a document differs from what this writes, so they cannot drift.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_origin

from clusterkit.ops import inventory, network, result_acl, topology
from clusterkit.ops.model import PORT_OFFSETS, Ports, QueueSettings, Settings, WorkerNode

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path("docs") / "reference"


def documents() -> dict[Path, str]:
    """Return each reference document's path, relative to the checkout, and its text."""
    return {
        FOLDER / "inventory.md": _inventory(),
        FOLDER / "permissions.md": _permissions(),
        FOLDER / "ports.md": network.document(),
    }


_INVENTORY = """\
# Inventory

A cluster is an Ansible inventory directory: `deploy/clusters/<name>/` with `hosts.yml` (groups `brokers`,
`results`, `workers`, `schedulers`, `monitors`) and `group_vars/all.yml` with the keys below. A key that is
not listed is refused, with the one that was probably meant.

Generated from the model the kit reads inventories with: `make reference`.
"""
_PERMISSIONS = """\
# Permissions

Who may do what at the broker, and below at the result store. One RabbitMQ user per role, each with the
narrowest rights that work; here for the queues of the cluster `local`.
`tests/integration/test_permissions.py` tries both sides of each against a broker.

Generated from what is deployed: `make reference`.
"""


def _inventory() -> str:
    parts = [
        _INVENTORY,
        "## Keys of `group_vars/all.yml`\n",
        _table(Settings),
        "\n## Each of `worker_nodes`\n",
        _table(WorkerNode),
        "\n## Each of `queues`\n",
        _table(QueueSettings),
        "\n## Each of `ports`\n",
        _table(Ports),
        "\nWho may connect to which: [ports](ports.md).",
    ]
    return "\n".join(parts) + "\n"


def _table(model: type[BaseModel]) -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    rows += [
        f"| `{name}` | {_default(model, name)} | {_one_line(field.description)} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(rows)


def _default(model: type[BaseModel], name: str) -> str:
    if model is Ports:
        return f"`port_base` + {PORT_OFFSETS[name]}"
    field = model.model_fields[name]
    if field.is_required() or field.default in ((), {}):
        return "" if not field.is_required() or _filled_in(field) else "required"
    return "" if field.default is None else f"`{field.default}`"


def _filled_in(field: FieldInfo) -> bool:
    return field.annotation is Ports or Ports in get_args(get_origin(field.annotation) and field.annotation)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _permissions() -> str:
    cluster = inventory.load("local", ROOT)
    parts = [_PERMISSIONS.rstrip()]
    for rights in topology.matrix(cluster):
        rows = [
            f"## {rights.role}\n\n{rights.purpose}.\n",
            "| right | names |",
            "| --- | --- |",
            f"| tags | {', '.join(rights.tags) or 'none'} |",
        ]
        rows += [
            f"| {name} | {_expression(value)} |"
            for name, value in (
                ("configure", rights.configure),
                ("write", rights.write),
                ("read", rights.read),
            )
        ]
        rows += [
            f"| routing keys at `{exchange}` | {_expression(key)} |"
            for exchange, key in rights.routing_keys.items()
        ]
        parts.append("\n".join(rows))
    parts.append(_result_store())
    return "\n\n".join(parts) + "\n"


_RESULT_STORE = """\
# Who may do what at the result store

In the words of Valkey's and Redis's `ACL SETUSER`; a pair of parentheses has keys and commands of its own.
The user `default`, as whom every connection starts, is off.

| user | purpose | at the servers | at Sentinel |
| --- | --- | --- | --- |
"""


def _result_store() -> str:
    return _RESULT_STORE + "\n".join(
        f"| {one.role} | {one.purpose} | {_expression(one.rules)} | {_expression(one.sentinel or None)} |"
        for one in result_acl.RESULT_MATRIX
    )


def _expression(value: str | None) -> str:
    return "none" if value in {None, "^$"} else f"`{str(value).replace('|', chr(92) + '|')}`"


def main() -> None:
    """Write the documents."""
    for path, text in documents().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
