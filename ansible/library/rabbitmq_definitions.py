#!/usr/bin/python
"""Ansible module: wait for a RabbitMQ node and make its users, policies and topology as wanted."""

from __future__ import annotations

import http.client
import json
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_rabbitmq import (
    CONNECTION,
    Api,
    BrokerError,
    answer_text,
    path_of,
    wait_for_node,
    with_node_log,
)

DOCUMENTATION = r"""
---
module: rabbitmq_definitions
short_description: Wait for a RabbitMQ node and apply definitions to it
description:
  - Waits until the node listens for clients, compares what it has with the definitions, and imports only what
    is missing or different, all through the management plugin's HTTP API.
  - Users, permissions and policies that are not in the definitions are removed, the user that asks excepted.
    Virtual hosts, exchanges, queues and bindings that are not in them stay.
  - A queue or exchange that exists with other properties is never deleted; the module fails and names it.
options:
  url:
    description: Address of the management plugin.
    type: str
    required: true
  username:
    description: A user with the tag C(administrator).
    type: str
    required: true
  password:
    description: Its password.
    type: str
    required: true
  ca:
    description: PEM text of the certificate authority of an C(https) address.
    type: str
    default: ""
  definitions_file:
    description: A file on the host, in the form that RabbitMQ exports (JSON).
    type: path
    required: true
  port:
    description: The port on which the node listens for clients; the node is up when it does.
    type: int
    required: true
  timeout:
    description: Seconds to wait for the node.
    type: int
    default: 120
  log_file:
    description: The broker's log on the host, of which the end is shown when the node does not come up. When
      there is no such file the journal's is.
    type: path
    default: ""
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Declare users, queues and policies
  rabbitmq_definitions:
    url: http://127.0.0.1:24674
    username: operator
    password: "{{ rabbitmq_operator_password }}"
    definitions_file: /srv/demo/.cluster/local/rabbitmq/definitions.json
    port: 24672
"""

RETURN = r"""
changes:
  description: What was, or would be, imported or removed.
  type: list
  elements: str
  returned: always
  sample: ["queue cpu in / is missing", "user guest is not wanted"]
version:
  description: The broker's version.
  type: str
  returned: always
waited:
  description: Seconds until the node was up.
  type: float
  returned: always
"""

# What identifies an object in each section of a definitions file. Bindings have no properties besides.
KEYS: dict[str, tuple[str, ...]] = {
    "vhosts": ("name",),
    "users": ("name",),
    "permissions": ("vhost", "user"),
    "topic_permissions": ("vhost", "user", "exchange"),
    "global_parameters": ("name",),
    "parameters": ("vhost", "component", "name"),
    "policies": ("vhost", "name"),
    "exchanges": ("vhost", "name"),
    "queues": ("vhost", "name"),
    "bindings": ("vhost", "source", "destination", "destination_type", "routing_key", "arguments"),
}

# Sections in which an object that is there and not wanted is removed.
EXCLUSIVE = ("policies", "topic_permissions", "permissions", "users")

# Sections whose objects cannot be changed once they are declared.
IMMUTABLE = ("exchanges", "queues")

Definitions = Mapping[str, list[dict[str, Any]]]


def identity(section: str, item: Mapping[str, Any]) -> str:
    """Return what identifies `item` among those of its section, as text that can be compared."""
    return json.dumps([item.get(key) for key in KEYS[section]], sort_keys=True)


def title(section: str, item: Mapping[str, Any]) -> str:
    """Return how `item` is called in messages."""
    kind = "policy" if section == "policies" else section[:-1].replace("_", " ")
    if section == "bindings":
        return f"{kind} {item['source']} -> {item['destination']} with key {item['routing_key']!r}"
    name = str(item.get("name") or item.get("user"))
    return f"{kind} {name}" + (f" in {item['vhost']}" if "vhost" in item else "")


def same(wanted: object, actual: object) -> bool:
    """Compare two values; RabbitMQ gives the tags of a user as a list, or (before 3.9) as text."""
    if isinstance(wanted, list) and isinstance(actual, str):
        return sorted(wanted) == sorted(part for part in actual.split(",") if part)
    if isinstance(wanted, list) and isinstance(actual, list):
        return sorted(map(str, wanted)) == sorted(map(str, actual))
    return wanted == actual


def differing(wanted: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Return the names of the properties of `wanted` that are others in `actual`, which may have more."""
    return [name for name, value in wanted.items() if not same(value, actual.get(name))]


class Difference:
    """What has to be done to make `actual` hold `wanted`."""

    def __init__(self, wanted: Definitions, actual: Definitions, own_name: str) -> None:
        self.missing: dict[str, list[dict[str, Any]]] = {}
        self.surplus: list[tuple[str, dict[str, Any]]] = []
        self.changes: list[str] = []
        self.conflicts: list[str] = []
        for section in KEYS:
            there = {identity(section, item): item for item in actual.get(section, [])}
            for item in wanted.get(section, []):
                self._compare(section, item, there.get(identity(section, item)))
        for section in EXCLUSIVE:
            self._find_surplus(section, wanted, actual, own_name)

    def _compare(self, section: str, item: dict[str, Any], there: Mapping[str, Any] | None) -> None:
        if there is None:
            self.changes.append(f"{title(section, item)} is missing")
        elif names := differing(item, there):
            if section in IMMUTABLE:
                self.conflicts.extend(conflict(section, item, there, name) for name in names)
                return
            self.changes.append(f"{title(section, item)} has another {', '.join(names)}")
        else:
            return
        self.missing.setdefault(section, []).append(item)

    def _find_surplus(self, section: str, wanted: Definitions, actual: Definitions, own_name: str) -> None:
        names = {identity(section, item) for item in wanted.get(section, [])}
        users = {user["name"] for user in wanted.get("users", [])}
        for item in actual.get(section, []):
            owner = item.get("user") or (item["name"] if section == "users" else "")
            # The permissions of a user that goes go with it; the one that asks must not lock itself out.
            gone = section.endswith("permissions") and owner not in users
            if identity(section, item) not in names and owner != own_name and not gone:
                self.surplus.append((section, item))
                self.changes.append(f"{title(section, item)} is not wanted")


def conflict(section: str, wanted: Mapping[str, Any], actual: Mapping[str, Any], name: str) -> str:
    """Say in what an exchange or queue that exists is not the wanted one."""
    want, have = wanted[name], actual.get(name)
    if isinstance(want, dict) and isinstance(have, dict):
        parts = sorted(key for key in {*want, *have} if want.get(key) != have.get(key))
        pairs = [f"{key} is {have.get(key, 'absent')}, wanted {want.get(key, 'absent')}" for key in parts]
    else:
        pairs = [f"{name} is {have}, wanted {want}"]
    return f"{title(section, wanted)}: {'; '.join(pairs)}"


def remove(api: Api, section: str, item: Mapping[str, Any]) -> None:
    """Delete a user, permission or policy; that it is gone already is no error."""
    paths = {
        "users": ("users", item.get("name")),
        "permissions": ("permissions", item.get("vhost"), item.get("user")),
        "topic_permissions": ("topic-permissions", item.get("vhost"), item.get("user")),
        "policies": ("policies", item.get("vhost"), item.get("name")),
    }
    try:
        api.request("DELETE", path_of(*(str(part) for part in paths[section])))
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.NOT_FOUND:
            raise


def reconcile(api: Api, wanted: Definitions, own_name: str, *, check_mode: bool) -> list[str]:
    """Make the broker hold `wanted` and return what was (or in check mode would be) changed.

    Raises:
        BrokerError: a queue or exchange exists with other properties, or the import did not take.
    """
    difference = Difference(wanted, api.request("GET", "definitions"), own_name)
    if difference.conflicts:
        lines = "\n".join(f"  - {line}" for line in difference.conflicts)
        advice = (
            "Change the inventory back, or drain and delete them (with all they hold) and run this again."
        )
        raise BrokerError(
            f"these exist on the broker with other properties, which cannot be changed:\n{lines}\n{advice}"
        )
    if check_mode or not difference.changes:
        return difference.changes
    for section, item in difference.surplus:
        remove(api, section, item)
    # Looked at again: topic permissions can only be removed all at once, those of a user that are wanted too.
    missing = Difference(wanted, api.request("GET", "definitions"), own_name).missing
    if missing:
        api.request("POST", "definitions", missing)
    left = Difference(wanted, api.request("GET", "definitions"), own_name).changes
    if left:
        raise BrokerError(f"the broker accepted the definitions, but still: {'; '.join(left)}")
    return difference.changes


def read_definitions(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the content of a definitions file.

    Raises:
        BrokerError: it cannot be read, or has a section that this module does not know.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokerError(f"the definitions file {path}: {error}") from None
    unknown = sorted(set(content) - set(KEYS))
    if unknown:
        raise BrokerError(f"the definitions file {path} has unknown sections: {', '.join(unknown)}")
    return dict(content)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **CONNECTION,
            "definitions_file": {"type": "path", "required": True},
            "port": {"type": "int", "required": True},
            "timeout": {"type": "int", "default": 120},
            "log_file": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    options = module.params
    api = Api(options["url"], options["username"], options["password"], options["ca"])
    try:
        wanted = read_definitions(options["definitions_file"])
        waited = wait_for_node(api, options["port"], options["timeout"])
    except BrokerError as error:
        module.fail_json(msg=with_node_log(str(error), options["log_file"]))
    try:
        changes = reconcile(api, wanted, options["username"], check_mode=module.check_mode)
        version = api.request("GET", "overview")["rabbitmq_version"]
    except BrokerError as error:
        module.fail_json(msg=str(error))
    except urllib.error.HTTPError as error:
        module.fail_json(msg=f"the broker refuses the definitions: {answer_text(error)}")
    except (OSError, http.client.HTTPException) as error:
        module.fail_json(msg=with_node_log(f"the broker stopped answering: {error}", options["log_file"]))
    module.exit_json(changed=bool(changes), changes=changes, version=version, waited=waited)


if __name__ == "__main__":
    main()
