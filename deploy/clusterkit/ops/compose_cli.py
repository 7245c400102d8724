"""The command ``clusterkit compose``: parses, calls, prints. ``clusterkit.ops.compose`` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clusterkit.ops.cli_options import ROOT, Json, print_json, stderr, stdout
from clusterkit.ops.errors import ClusterUnhealthyError
from clusterkit.runtime.errors import BadInputError, ClusterUnreachableError

if TYPE_CHECKING:
    from clusterkit.ops.compose import Up
    from clusterkit.ops.model import Cluster

#: The inventory that is meant when none is named.
DEFAULT_CLUSTER = "compose"

compose_commands = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The cluster as containers on this machine."
)


# Not from $CLUSTER, which names the cluster of the other commands.
ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster",
        "-c",
        metavar="NAME|DIRECTORY",
        help="Inventory below deploy/clusters/, or the path of one.",
    ),
]


@compose_commands.command(short_help="Start the containers, and prove that they work.")
def up(
    variant: Annotated[
        str, typer.Option(help="Another pool for the node io: gevent, eventlet or threads.")
    ] = "",
    brokers: Annotated[int, typer.Option(help="Brokers: 1, or 3 that survive the loss of one.")] = 1,
    cluster: ClusterName = DEFAULT_CLUSTER,
    as_json: Json = False,
) -> None:
    """Build the images, start the containers, and prove that every worker node works.

    Running it again replaces only the containers that changed, and starts what is down.

    \b
    Examples:
      clusterkit compose up
      clusterkit compose up --brokers 3
      clusterkit compose up --variant gevent
    """
    from clusterkit.ops import compose, composeplan

    loaded = _load(cluster)
    if brokers not in composeplan.BROKER_VARIANTS:
        raise BadInputError(f"{brokers} brokers: there can be 1 or 3")
    variants = [name for name in (composeplan.BROKER_VARIANTS[brokers], variant) if name]
    project = composeplan.project(loaded, variants)
    done = compose.up(project, stderr)
    if as_json:
        print_json(
            {
                "cluster": loaded.name,
                "project": project.name,
                "changes": done.changes,
                "seconds": round(done.seconds, 1),
                "release": done.release,
                "probes_ms": done.probes.answers,
            }
        )
    else:
        _show(project.cluster, done)


@compose_commands.command(short_help="Show containers, worker nodes and queues.")
def status(cluster: ClusterName = DEFAULT_CLUSTER, as_json: Json = False) -> None:
    """Show containers, worker nodes and queues, and what is not as it should be.

    The exit code is then 7, or 6 when the broker does not answer.

    \b
    Examples:
      clusterkit compose status
      clusterkit compose status --json | jq '.services[] | {name, state}'
    """
    from clusterkit.ops import compose
    from clusterkit.ops import status as states

    found = compose.status_of(_load(cluster))
    if as_json:
        print_json(found.to_json())
    else:
        states.show(found, stdout)
    if found.problems:
        kind = ClusterUnhealthyError if found.broker_version else ClusterUnreachableError
        raise kind(
            f"{len(found.problems)} problem(s) with cluster {found.cluster!r}: {found.problems[0]}",
            next_step="make compose-up starts what is down",
        )


@compose_commands.command(short_help="Stop and remove the containers.")
def down(
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Remove messages, results and the schedule too.")
    ] = False,
    cluster: ClusterName = DEFAULT_CLUSTER,
) -> None:
    """Stop and remove the containers; running tasks finish first, as long as stop_timeout allows.

    Messages, results and the schedule stay for the next up, unless --volumes is given.

    \b
    Examples:
      clusterkit compose down
      clusterkit compose down --volumes
    """
    from clusterkit.ops import compose

    loaded = _load(cluster)
    compose.down(loaded, stderr, volumes=volumes)
    data = "with all its data" if volumes else "its data stays; again: make compose-up"
    stdout.print(f"the Compose project of cluster {loaded.name} is down, {data}", highlight=False)


def _load(name: str) -> Cluster:
    from clusterkit.ops import inventory

    cluster = inventory.load(name, ROOT)
    if cluster.service_backend != "compose":
        raise BadInputError(
            f"cluster {cluster.name!r} is no Compose project: its service_backend is"
            f" {cluster.service_backend}",
            next_step=f"make cluster-up CLUSTER={name}",
        )
    for warning in cluster.warnings:
        stderr.print(f"[yellow]warning[/] {warning}", highlight=False, soft_wrap=True)
    return cluster


def _show(cluster: Cluster, done: Up) -> None:
    """Print what runs now, where to look, and what to type next."""
    from clusterkit.ops import status as states

    states.show_probes(done.probes, stdout)
    changes = f"{done.changes} containers started" if done.changes else "no change"
    lines = [
        *(f"[bold]{name:9}[/] {url}" for name, url in states.urls(cluster).items()),
        f"[green]up[/]        {changes}, {done.seconds:.0f} s, release {done.release}",
        f"next      make submit CLUSTER={cluster.name} TASK=tasks.compute.fibonacci ARGS='[30]'",
        f"          make flower CLUSTER={cluster.name}; make compose-status",
    ]
    for line in lines:
        stdout.print(line, highlight=False, soft_wrap=True)
