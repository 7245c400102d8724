"""What the modules of the command ``clusterkit`` share: options, ways to load a cluster, where they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from clusterkit.ops import drained, inventory
from clusterkit.runtime.errors import BadInputError, NoClusterError

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster

#: The checkout. The command belongs to one: clusters, roles and clients are its files.
ROOT = Path(__file__).resolve().parents[3]

stdout = Console()
stderr = Console(stderr=True)


def _complete(incomplete: str) -> list[str]:
    return [name for name in inventory.clusters(ROOT) if name.startswith(incomplete)]


ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster",
        "-c",
        envvar="CLUSTER",
        metavar="NAME|DIRECTORY",
        autocompletion=_complete,
        help="Inventory below deploy/clusters/, or the path of one.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", envvar="YES", help="Do not ask.")]


def load(name: str, *, containers: bool = False) -> Cluster:
    """Load a cluster without the worker nodes of drained hosts; ``containers``: one of Compose's will do."""
    cluster = drained.without(inventory.load(name, ROOT))
    if cluster.service_backend == "compose" and not containers:
        raise BadInputError(
            f"cluster {cluster.name!r} is a Compose project",
            next_step="make compose-up, compose-status, compose-down",
        )
    for warning in cluster.warnings:
        stderr.print(f"[yellow]warning[/] {warning}", highlight=False, soft_wrap=True)
    return cluster


def print_json(value: Any) -> None:
    """Print ``value`` for programs."""
    typer.echo(json.dumps(value, indent=2))


def brought_up(name: str, *, containers: bool = False) -> Cluster:
    """Load a cluster that must have been brought up from this checkout."""
    cluster = load(name, containers=containers)
    if not (cluster.state_dir / "secrets.yml").exists():
        raise NoClusterError(
            f"cluster {cluster.name!r} was never brought up from this checkout",
            next_step=f"make cluster-up CLUSTER={name}",
        )
    return cluster
