"""On what it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

from clusterkit.ops import deployment
from clusterkit.ops.model import Cluster
from tests.benchmarks.processes import MeasureError

_PACKAGES = ("celery", "kombu", "amqp", "dramatiq", "pika", "taskiq", "taskiq-aio-pika", "aio-pika", "ppft")


def hardware(root: Path) -> dict[str, str]:
    """Return processor, memory, the kit's commit and the date."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kit": _commit(root),
        "processor": f"{len(os.sched_getaffinity(0))} cores, {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}",
    }


def describe(cluster: Cluster, root: Path) -> dict[str, str]:
    """Return hardware, versions and what else the machine does."""
    with deployment.monitor(cluster) as broker:
        rabbitmq = broker.version()
    return {
        **hardware(root),
        "broker": f"RabbitMQ {rabbitmq}, one node, on the same cores",
        "load before": f"{os.getloadavg()[1]:.1f} (mean of 5 minutes, before the first measurement)",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measured(there: dict[str, str]) -> str:
    """Return the line below a table: when, and on what, it was measured."""
    others = (f"{name}: {value}" for name, value in there.items() if name != "date")
    return f"Measured: {'; '.join([there['date'], *others])}."


def refuse_changed(root: Path) -> None:
    """Refuse to measure for a page what nobody could measure again.

    Raises:
        MeasureError: the checkout differs from its commit, other than in its documents.
    """
    if _changed(root):
        raise MeasureError(
            f"WRITE=1 writes figures of a commit, and {root} differs from its own: commit first (git status)"
        )


def _commit(root: Path) -> str:
    commit = _git(root, "describe", "--always").strip() or "no git checkout"
    return f"{commit}-dirty" if _changed(root) else commit


def _changed(root: Path) -> bool:
    # The documents hold the figures: those of a benchmark before change nothing of the next one's.
    return bool(_git(root, "diff", "--name-only", "HEAD", "--", ".", ":(exclude)docs"))


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout
