"""Pydantic's validation errors in the words of somebody who writes an inventory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from clusterkit.ops.model import Ports, QueueSettings, Settings, WorkerNode
from clusterkit.ops.suggest import did_you_mean, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    from clusterkit.ops.yamlsource import KeyPath

_KINDS: dict[str, str] = {
    "int": "a whole number",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "path": "a path",
}


def describe(error: ErrorDetails) -> tuple[KeyPath, str]:
    """Return where ``error`` is in the settings, and what it says to a person."""
    path: KeyPath = tuple(part for part in error["loc"] if part != "[key]")
    kind = error["type"]
    if kind == "extra_forbidden":
        return path, f"unknown key. {did_you_mean(str(path[-1]), _fields(path[:-1]), otherwise='Keys')}"
    if kind == "missing":
        return path, "is required and missing"
    if kind.endswith("_type"):
        return path, _wrong_type(kind.removesuffix("_type"), error["input"])
    return path, _MESSAGES.get(kind, _as_it_is)(error)


def is_consequence(error: ErrorDetails) -> bool:
    """Return whether ``error`` only follows from others: a list counts as empty when each entry is wrong."""
    return error["type"] == "too_short" and bool(error["input"])


def _fields(path: KeyPath) -> list[str]:
    """Return the keys that the mapping at ``path`` can have."""
    model: type[BaseModel] = Settings
    match path:
        case ("worker_nodes", *_):
            model = WorkerNode
        case ("queues", _):
            model = QueueSettings
        case ("ports",):
            model = Ports
    return list(model.model_fields)


def _wrong_type(wanted: str, value: Any) -> str:
    message = f"must be {_KINDS.get(wanted, wanted)}, not {say(value)}"
    if wanted == "int" and isinstance(value, str) and value.strip("-").isdigit():
        return f"{message}: remove the quotes"
    return message


def _bound(words: str, key: str) -> Callable[[ErrorDetails], str]:
    return lambda error: f"must be at {words} {error.get('ctx', {})[key]}, is {error['input']}"


def _choice(error: ErrorDetails) -> str:
    value, field = error["input"], error["loc"][-1]
    model = WorkerNode if error["loc"][0] == "worker_nodes" else Settings
    choices = get_args(model.model_fields[str(field)].annotation)
    message = (
        f"must be one of {', '.join(choices)}; is {repr(value) if isinstance(value, str) else say(value)}"
    )
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"{message}. {hint}" if hint.startswith("Did") else message


def _own(error: ErrorDetails) -> str:
    return str(error["ctx"]["error"])


def _as_it_is(error: ErrorDetails) -> str:
    return error["msg"]


_MESSAGES: dict[str, Callable[[ErrorDetails], str]] = {
    "greater_than_equal": _bound("least", "ge"),
    "less_than_equal": _bound("most", "le"),
    "literal_error": _choice,
    "too_short": lambda _: "is empty; it needs at least one entry",
    "value_error": _own,
}
