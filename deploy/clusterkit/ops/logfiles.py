"""Shows the services' logs of a cluster that runs on this machine."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from rich.text import Text

from clusterkit.ops.suggest import did_you_mean
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

    from rich.console import Console

    from clusterkit.ops.model import Cluster

#: Seconds between two looks at the files.
_INTERVAL = 0.3
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def show(cluster: Cluster, service: str, *, lines: int, follow: bool, console: Console) -> None:
    """Print the last ``lines`` of each service's log (of ``service`` alone, if given); then go on, if asked.

    Raises:
        BadInputError: there is no log of that service.
    """
    files = {path.stem: path for path in sorted((cluster.home / "log").glob("*.log"))}
    if service:
        if service not in files:
            raise BadInputError(
                f"no service {service!r} has a log.{did_you_mean(service, files)}",
                next_step=f"services: {', '.join(files) or 'none; the cluster was never up'}",
            )
        files = {service: files[service]}
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(files)}
    width = max(map(len, files), default=0)

    def say(name: str, line: str) -> None:
        prefix = Text(f"{name:{width}} | ", style=colours[name])
        console.print(prefix + Text(line.rstrip("\n")), soft_wrap=True)

    ends: dict[str, TextIO] = {}
    for name, path in files.items():
        file = path.open(encoding="utf-8", errors="replace")
        for line in deque(file, maxlen=lines):
            say(name, line)
        ends[name] = file
    while follow:
        for name, path in files.items():
            ends[name] = _after_rotation(ends[name], path)
            for line in ends[name]:
                say(name, line)
        time.sleep(_INTERVAL)


def _after_rotation(file: TextIO, path: Path) -> TextIO:
    """Return ``file``, or the new one at ``path`` when the old was rotated away."""
    if path.exists() and path.stat().st_size >= file.tell():
        return file
    file.close()
    return path.open(encoding="utf-8", errors="replace")
