"""The schedule as redbeat keeps it in the result store: out of it, and back into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import redis

#: What the scheduler's keys begin with (`redbeat_key_prefix` of `clusterkit.runtime.settings`).
PREFIX: Final = "clusterkit:redbeat:"
#: Redbeat's own: when each entry is due; names of the entries that the app itself has; who is the active one.
_DUE: Final = f"{PREFIX}:schedule"


@dataclass(frozen=True)
class Entry:
    """One entry of the schedule."""

    name: str
    fields: dict[str, str]
    """What redbeat keeps of it: `definition`, and `meta` with when it last ran; both JSON."""
    due: float | None
    """When it is next due, in seconds since 1970."""


def read(store: redis.Redis) -> list[Entry]:
    """Return every entry; ``store`` decodes its answers.

    Raises:
        redis.exceptions.RedisError: the store does not answer.
    """
    due: dict[str, float] = dict(store.zrange(_DUE, 0, -1, withscores=True))  # type: ignore[arg-type]
    keys = sorted(key for key in store.scan_iter(f"{PREFIX}*") if not key.startswith(f"{PREFIX}:"))
    entries = []
    for key in keys:
        fields: Any = store.hgetall(key)
        entries.append(Entry(key.removeprefix(PREFIX), dict(fields), due.get(key)))
    return entries


def write(store: redis.Redis, entries: list[Entry], *, replace: bool = False) -> list[str]:
    """Put entries into the schedule; return the names of those that are there already and stay as they are.

    With ``replace`` they do not. An entry that has become due meanwhile runs at once.

    Raises:
        redis.exceptions.RedisError: the store does not answer.
    """
    kept = []
    for entry in entries:
        key = PREFIX + entry.name
        if not replace and store.exists(key):
            kept.append(entry.name)
            continue
        with store.pipeline() as commands:
            commands.hset(key, mapping=dict(entry.fields.items()))
            if entry.due is not None:
                commands.zadd(_DUE, {key: entry.due})
            commands.execute()
    return kept
