"""Shows what the services of every host logged, wherever their host keeps it: the journal or a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from clusterkit.ops import deployment
from clusterkit.ops.suggest import did_you_mean
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rich.console import Console

    from clusterkit.ops.model import Cluster

#: Seconds between two looks at the hosts.
_INTERVAL: Final = 1.0
#: Most lines of a service that one look fetches while following.
_BURST: Final = 1_000
_COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "red")
#: The task of role service whose result has the lines.
_TASK: Final = "Read the logs"


def show(cluster: Cluster, service: str, *, lines: int, follow: bool, console: Console) -> None:
    """Print the last ``lines`` of each service's log (of ``service`` alone, if given); then go on, if asked.

    Raises:
        BadInputError: no host has a service of that name.
    """
    found = _read(cluster, service, lines, {})
    slots = {name for result in found.values() for name in result["services"]}
    # What runs as worker-cpu.b now and then is the service worker-cpu.
    known = sorted({name.partition(".")[0] for name in slots})
    if service and service not in slots.union(known):
        raise BadInputError(
            f"no service {service!r} has a log. {did_you_mean(service, known)}",
            next_step=f"services: {', '.join(known) or 'none; the cluster was never up'}",
        )
    printer = _Printer(console, several_hosts=len(cluster.hosts) > 1)
    printer.show(found)
    cursors = _cursors(found)
    while follow:
        time.sleep(_INTERVAL)
        found = _read(cluster, service, _BURST, cursors)
        printer.show(found)
        cursors = {host: cursors.get(host, {}) | new for host, new in _cursors(found).items()}


def _read(
    cluster: Cluster, service: str, lines: int, cursors: dict[str, dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """Return host -> what its logs have; a host that cannot be reached is left out."""
    variables = {
        "service_names": [service] if service else [],
        "service_log_lines": lines,
        "service_log_cursors": cursors,
    }
    return deployment.ask(cluster, "logs", variables).of(_TASK)


def _cursors(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    return {
        host: {log["service"]: log["cursor"] for log in result["logs"] if log["cursor"]}
        for host, result in found.items()
    }


class _Printer:
    """Prints lines behind their service's name, in a colour of its own."""

    def __init__(self, console: Console, *, several_hosts: bool) -> None:
        self._console = console
        self._several_hosts = several_hosts
        self._colours: dict[str, str] = {}

    def show(self, found: dict[str, dict[str, Any]]) -> None:
        """Print all lines of one look."""
        logs = [
            (f"{log['service']}@{host}" if self._several_hosts else log["service"], log["lines"])
            for host, result in sorted(found.items())
            for log in result["logs"]
        ]
        for name, _ in logs:
            self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        width = max(map(len, self._colours), default=0)
        for name, lines in logs:
            for line in lines:
                prefix = Text(f"{name:{width}} | ", style=self._colours[name])
                self._console.print(prefix + Text(line), soft_wrap=True)
