"""Which hosts of a cluster are drained: remembered on the control machine, by whom, since when and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from clusterkit.ops import audit
from clusterkit.ops.errors import PreflightError

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.model import Cluster


@dataclass(frozen=True)
class Mark:
    """That a host is to run no worker nodes; ``since`` is ISO 8601 with the offset from UTC."""

    host: str
    since: str
    who: str
    reason: str = ""

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.host} is drained since {self.since[:19].replace('T', ' ')} by {self.who}{reason}"


def _path(cluster: Cluster) -> Path:
    return cluster.state_dir / "drained.json"


def marks(cluster: Cluster) -> tuple[Mark, ...]:
    """Return the marks of hosts that are in the inventory.

    Raises:
        PreflightError: the file is not as this wrote it; without it drained hosts would begin to work.
    """
    try:
        content: dict[str, Any] = json.loads(_path(cluster).read_text(encoding="utf-8"))
        found = [Mark(host, **values) for host, values in content.items()]
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError, AttributeError) as error:
        raise PreflightError(
            f"{_path(cluster)} does not say which hosts are drained: {error}",
            next_step="correct it, or remove it when no host is",
        ) from error
    return tuple(mark for mark in found if mark.host in cluster.hosts)


def mark(cluster: Cluster, host: str, reason: str) -> Mark:
    """Remember that ``host`` is drained; called with the lock held. An earlier mark stays as it is."""
    found = {one.host: one for one in marks(cluster)}
    new = Mark(host, datetime.now().astimezone().isoformat(timespec="seconds"), audit.person(), reason)
    _write(cluster, {**found, host: found.get(host, new)})
    return found.get(host, new)


def unmark(cluster: Cluster, host: str) -> None:
    """Forget that ``host`` is drained; called with the lock held."""
    _write(cluster, {one.host: one for one in marks(cluster) if one.host != host})


def _write(cluster: Cluster, found: dict[str, Mark]) -> None:
    content = {
        host: {name: value for name, value in asdict(one).items() if name != "host"}
        for host, one in found.items()
    }
    unfinished = _path(cluster).with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.rename(_path(cluster))


def without(cluster: Cluster, but: str = "") -> Cluster:
    """Return ``cluster`` as it is while hosts are drained: no worker node runs on those.

    So nothing that goes by the model starts them, waits for them, or misses them. The host ``but`` is taken
    for one that is not drained.
    """
    hosts = {one.host for one in marks(cluster)} - {but}
    if not hosts:
        return cluster
    nodes = tuple(
        node.model_copy(update={"hosts": tuple(host for host in node.hosts if host not in hosts)})
        for node in cluster.worker_nodes
    )
    return cluster.model_copy(update={"worker_nodes": nodes})
