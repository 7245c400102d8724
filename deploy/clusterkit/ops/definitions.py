"""What a broker holds beyond the kit's own: what of it can be given back to a new one, and what cannot."""

from __future__ import annotations

import json
import re
from typing import Any, Final

Definitions = dict[str, list[dict[str, Any]]]

#: What identifies an object in each section of a definitions document.
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "vhosts": ("name",),
    "exchanges": ("vhost", "name"),
    "queues": ("vhost", "name"),
    "bindings": ("vhost", "source", "destination", "destination_type", "routing_key", "arguments"),
    "users": ("name",),
    "permissions": ("vhost", "user"),
    "topic_permissions": ("vhost", "user", "exchange"),
    "policies": ("vhost", "name"),
    "parameters": ("vhost", "component", "name"),
}
#: Sections that `up` leaves alone, so what was added there stays. Users, rights and policies that the
#: inventory does not have it removes; parameters are those of plugins that the kit does not enable.
_STAY: Final = ("vhosts", "exchanges", "queues", "bindings")
#: What RabbitMQ and Celery's workers make themselves.
_THEIR_OWN: Final = re.compile(r"|amq\..*|celeryev.*|.*celery\.pidbox")


def additions(found: Definitions, own: Definitions) -> tuple[Definitions, list[str]]:
    """Return, of what was ``found`` on a broker and is not the kit's ``own``, what to declare again.

    Besides, the names of what is not: a line each.
    """
    again: Definitions = {}
    not_again = []
    for section, keys in _KEYS.items():
        mine = {_identity(item, keys) for item in own.get(section, [])}
        for item in found.get(section, []):
            if _identity(item, keys) in mine or _is_theirs(item):
                continue
            if section in _STAY:
                again.setdefault(section, []).append(item)
            else:
                not_again.append(title(section, item))
    return again, not_again


def title(section: str, item: dict[str, Any]) -> str:
    """Return how an object is called in messages."""
    kind = "policy" if section == "policies" else section[:-1].replace("_", " ")
    if section == "bindings":
        return f"{kind} {item['source']} -> {item['destination']} with key {item['routing_key']!r}"
    name = item["user"] if section.endswith("permissions") else item["name"]
    place = f" in {item['vhost']}" if item.get("vhost", "/") != "/" else ""
    return f"{kind} {name}{place}"


def _identity(item: dict[str, Any], keys: tuple[str, ...]) -> str:
    return json.dumps([item.get(key) for key in keys], sort_keys=True)


def _is_theirs(item: dict[str, Any]) -> bool:
    names = [item[key] for key in ("source", "destination") if key in item] or [item.get("name")]
    return bool(item.get("auto_delete")) or any(
        name is not None and _THEIR_OWN.fullmatch(name) for name in names
    )
