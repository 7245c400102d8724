"""Rules about several settings at once, checked on what was written, before there is a model.

Working on the written values lets every problem be told in one go: a misspelt key elsewhere does not
keep these rules from running. Each rule looks only at values of the right type; the others have been
complained about already.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from clusterkit.ops.model import (
    Backend,
    Settings,
    WorkerNode,
    app_source,
    default_ports,
    profile_defaults,
    profiles_of,
)
from clusterkit.ops.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clusterkit.ops.yamlsource import KeyPath

#: (where, what) of a problem or a warning.
Finding = tuple["KeyPath", str]

#: Which time limits a pool enforces; run with Celery 5.7: threads and eventlet let a 2 s limit pass,
#: gevent kept the hard one, and solo has nobody to keep it.
_KEEPS: Final[dict[str, tuple[str, ...]]] = {
    "prefork": ("time_limit", "soft_time_limit"),
    "gevent": ("time_limit",),
}
_PREFORK_ONLY: Final = ("max_tasks_per_child", "max_memory_per_child")


@dataclass(frozen=True)
class Written:
    """The settings as written, with the inventory they belong to."""

    raw: dict[str, Any]
    members: dict[str, tuple[str, ...]]
    hosts: tuple[str, ...]
    root: Path

    def get(self, key: str, kind: type) -> Any:
        """Return the value of ``key`` or its default; None when it is missing or not of ``kind``."""
        value = self.raw.get(key, Settings.model_fields[key].default)
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    @property
    def queues(self) -> dict[str, Any] | None:
        """The queues by name; None when there are none to compare with."""
        return self.get("queues", dict) or None

    def nodes(self) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
        """Yield each worker node that is a mapping, with its path."""
        for index, node in enumerate(self.get("worker_nodes", list) or []):
            if isinstance(node, dict):
                yield ("worker_nodes", index), node


def problems(written: Written) -> Iterator[Finding]:
    """Yield what is wrong with how the settings fit together."""
    for rule in _RULES:
        yield from rule(written)


def warnings(written: Written) -> Iterator[Finding]:
    """Yield the settings that somebody wrote and that have no effect, or that lose tasks."""
    if written.raw.get("celery_settings") == "stock":
        yield ("celery_settings",), "Celery's own defaults on classic queues: this cluster LOSES tasks"
    for path, node in written.nodes():
        pool = _pool(node)
        for key in ("time_limit", "soft_time_limit"):
            if node.get(key) is not None and key not in _KEEPS.get(pool, ()):
                yield (*path, key), _no_effect(pool, key)
        if node.get("soft_time_limit") is not None and profiles_of(written.raw, node) == ["throughput"]:
            yield (
                (*path, "soft_time_limit"),
                "with it each task goes to a process alone: most of what `throughput` gains is lost",
            )


def _no_effect(pool: str, key: str) -> str:
    if key == "soft_time_limit":
        return f"has no effect: the pool {pool} does not enforce it; only prefork does"
    return (
        f"the pool {pool} does not enforce it, a task that hangs keeps its slot; only prefork and gevent do."
        " The broker still counts with it"
    )


def _pool(node: dict[str, Any]) -> str:
    pool = node.get("pool", WorkerNode.model_fields["pool"].default)
    return pool if isinstance(pool, str) else ""


def _strings(node: dict[str, Any], key: str) -> Iterator[tuple[int, str]]:
    values = node.get(key)
    for index, value in enumerate(values if isinstance(values, list) else []):
        if isinstance(value, str):
            yield index, value


def _node_names_differ(written: Written) -> Iterator[Finding]:
    # Celery identifies a node by name@host; a second one of the same name fights over its control queue.
    first: dict[str, KeyPath] = {}
    for path, node in written.nodes():
        name = node.get("name")
        if not isinstance(name, str):
            continue
        if name in first:
            yield (*path, "name"), f"{name!r} is taken by worker_nodes[{first[name][1]}]; each needs its own"
        first.setdefault(name, path)


def _queues_are_known(written: Written) -> Iterator[Finding]:
    if written.queues is None:
        return
    for path, node in written.nodes():
        for index, queue in _strings(node, "queues"):
            if queue not in written.queues:
                hint = did_you_mean(queue, written.queues, otherwise="Queues")
                yield (*path, "queues", index), f"unknown queue {queue!r}. {hint}"


def _queues_are_consumed(written: Written) -> Iterator[Finding]:
    nodes = list(written.nodes())
    if not nodes:
        return
    queues = written.queues or {}
    consumed = {queue for _, node in nodes for _, queue in _strings(node, "queues")}
    if consumed - queues.keys():
        return  # a misspelt name: complained about where it stands
    for queue in queues:
        if queue not in consumed:
            yield (
                ("queues", queue),
                "no worker node takes tasks from this queue. Add it to the `queues` of one, or remove it",
            )


def _default_queue_is_known(written: Written) -> Iterator[Finding]:
    queue = written.get("default_queue", str)
    if queue is None or written.queues is None or queue in written.queues:
        return
    hint = did_you_mean(queue, written.queues, otherwise="Queues")
    if "default_queue" in written.raw:
        yield ("default_queue",), f"unknown queue {queue!r}. {hint}"
    else:
        yield ("queues",), f"default_queue is {queue!r} unless set, and there is no such queue. {hint}"


def _no_entry_twice(written: Written) -> Iterator[Finding]:
    for path, node in written.nodes():
        for key in ("queues", "hosts"):
            counts: Counter[str] = Counter()
            for index, value in _strings(node, key):
                counts[value] += 1
                if counts[value] > 1:
                    yield (*path, key, index), f"{value!r} is there twice"


def _hosts_are_workers(written: Written) -> Iterator[Finding]:
    workers = written.members.get("workers", ())
    for path, node in written.nodes():
        for index, host in _strings(node, "hosts"):
            if host in workers or not workers:
                continue
            if host in written.hosts:
                message = f"{host!r} is not in the group workers"
            else:
                hint = did_you_mean(host, workers, otherwise="Hosts in workers")
                message = f"unknown host {host!r}. {hint}"
            yield (*path, "hosts", index), message


def _soft_limit_is_sooner(written: Written) -> Iterator[Finding]:
    default = WorkerNode.model_fields["time_limit"].default
    for path, node in written.nodes():
        limits = {"time_limit": default} | profile_defaults(written.raw, node) | node
        soft, hard = node.get("soft_time_limit"), limits["time_limit"]
        if isinstance(soft, int) and isinstance(hard, int) and soft >= hard:
            origin = "" if "time_limit" in node else ", the default"
            yield (*path, "soft_time_limit"), f"{soft} s must be below time_limit ({hard} s{origin})"


def _profiles_agree(written: Written) -> Iterator[Finding]:
    for path, node in written.nodes():
        profiles = profiles_of(written.raw, node)
        if len(profiles) > 1:
            yield (
                (*path, "queues"),
                f"have different profiles ({', '.join(profiles)}): give each a node of its own",
            )
        multiplier = node.get("prefetch_multiplier")
        if profiles == ["long-tasks"] and isinstance(multiplier, int) and multiplier > 1:
            yield (
                (*path, "prefetch_multiplier"),
                f"{multiplier} lets tasks wait behind long ones; the profile long-tasks takes just 1",
            )


def _options_suit_the_pool(written: Written) -> Iterator[Finding]:
    for path, node in written.nodes():
        pool = _pool(node)
        for key in _PREFORK_ONLY:
            if pool != "prefork" and node.get(key) is not None:
                yield (*path, key), f"only works with the pool prefork, and this node's is {pool}"
        if pool == "solo" and node.get("concurrency", "auto") not in ("auto", 1):
            yield (*path, "concurrency"), "the pool solo runs one task at a time: 1 or auto"


def _ports_differ(written: Written) -> Iterator[Finding]:
    own = written.raw.get("ports")
    if not isinstance(own, dict):
        return
    ports = default_ports(written.raw) | own
    for name, port in own.items():
        others = [other for other, number in ports.items() if number == port and other != name]
        if others:
            yield ("ports", name), f"{port} is the port of {' and '.join(others)} too"


#: Settings that mean something with one of the backends only, and what holds with the others.
_ONLY_WITH: Final[dict[str, dict[str, str]]] = {
    "supervisor": {
        "home": "elsewhere everything has its usual place",
        "bind_address": "hosts listen on their own address (cluster_address in hosts.yml)",
    },
    "systemd": {
        "client_networks": "a private cluster has no firewall",
        "firewall": "a private cluster has none",
    },
}
_NODE_ONLY_WITH_SYSTEMD: Final = ("cpu_affinity", "cpu_quota", "memory_max")


def _settings_suit_the_backend(written: Written) -> Iterator[Finding]:
    backend = written.get("service_backend", str)
    for needed, settings in _ONLY_WITH.items():
        for key, instead in settings.items():
            if key in written.raw and backend in get_args(Backend) and backend != needed:
                yield (key,), f"only works with service_backend: {needed}; {instead}"
    for path, node in written.nodes():
        for key in _NODE_ONLY_WITH_SYSTEMD:
            if node.get(key) is not None and backend in {"supervisor", "compose"}:
                yield (*path, key), "only works with service_backend: systemd"


def _one_host_without_systemd(written: Written) -> Iterator[Finding]:
    if written.get("service_backend", str) == "supervisor" and len(written.hosts) > 1:
        yield (
            ("service_backend",),
            f"supervisor runs a private cluster on one host, not on {', '.join(written.hosts)}: use systemd",
        )


def _stock_settings_are_for_drills(written: Written) -> Iterator[Finding]:
    if written.raw.get("celery_settings") == "stock" and written.raw.get("drills") is not True:
        yield (
            ("celery_settings",),
            "stock loses tasks, and is only for clusters that may be hurt: drills: true, or no-loss",
        )


def _app_source_exists(written: Written) -> Iterator[Finding]:
    source = written.get("app_source", str)
    if not source or "://" in source:
        return
    location = Path(app_source(source, written.root).location)
    if not location.exists():
        yield ("app_source",), f"{source!r}: there is no {location}"
    elif location.is_file() and location.suffix != ".whl":
        yield ("app_source",), f"{source!r} is a file but no wheel (.whl)"


_RULES: Final[tuple[Callable[[Written], Iterator[Finding]], ...]] = (
    _node_names_differ,
    _queues_are_known,
    _queues_are_consumed,
    _default_queue_is_known,
    _no_entry_twice,
    _hosts_are_workers,
    _soft_limit_is_sooner,
    _profiles_agree,
    _options_suit_the_pool,
    _ports_differ,
    _settings_suit_the_backend,
    _one_host_without_systemd,
    _stock_settings_are_for_drills,
    _app_source_exists,
)
