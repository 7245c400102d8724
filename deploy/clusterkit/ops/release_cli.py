"""The commands that roll a release out and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from clusterkit.ops.cli_options import ClusterName, Json, brought_up, print_json, stderr, stdout
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER

if TYPE_CHECKING:
    from clusterkit.ops.rollout import Rolled

Source = Annotated[
    str,
    typer.Option("--source", help="A path, a wheel or a git URL instead of the inventory's app_source."),
]
Canary = Annotated[
    str, typer.Option("--canary", help="The host that gets it first; default: the first with nodes.")
]
Serial = Annotated[
    int, typer.Option("--serial", min=0, help="Hosts at a time after the canary; default: a third.")
]
AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="Go on without task names that the release before knew."),
]


def register(commands: typer.Typer) -> None:
    """Add the commands to ``clusterkit cluster``."""
    commands.command("release", short_help="Build the app and roll it out, a canary host first.")(release)
    commands.command("rollback", short_help="Go back to the release before, or a certain one.")(rollback)
    commands.command("releases", short_help="List the releases, and where they run.")(list_releases)


def release(
    cluster: ClusterName = DEFAULT_CLUSTER,
    source: Source = "",
    canary: Canary = "",
    serial: Serial = 0,
    allow_missing: AllowMissing = False,
    as_json: Json = False,
) -> None:
    """Build the app and roll it out: a canary host first, then a share of the hosts at a time.

    New worker nodes run beside the old ones until they serve; running tasks end on the release they began on.

    \b
    Examples:
      clusterkit cluster release --cluster lab
      clusterkit cluster release --cluster lab --canary h5 --serial 2
      clusterkit cluster release --cluster lab --source git+https://example.org/app@v2
    """
    from clusterkit.ops import rollout

    loaded = brought_up(cluster)
    way = rollout.Way(canary, serial, allow_missing)
    rolled = rollout.release(loaded, stderr, source=source, way=way)
    _show(rolled, as_json=as_json)


def rollback(
    release_id: Annotated[str, typer.Argument(metavar="[RELEASE]", help="Default: the one before.")] = "",
    cluster: ClusterName = DEFAULT_CLUSTER,
    canary: Canary = "",
    serial: Serial = 0,
    allow_missing: AllowMissing = False,
    as_json: Json = False,
) -> None:
    """Go back to the release before, or to a certain one, in the same way; nothing is built.

    \b
    Examples:
      clusterkit cluster rollback --cluster lab
      clusterkit cluster rollback 1f0c2a9b7d3e --cluster lab
    """
    from clusterkit.ops import rollout

    loaded = brought_up(cluster)
    way = rollout.Way(canary, serial, allow_missing)
    rolled = rollout.rollback(loaded, stderr, release_id=release_id, way=way)
    _show(rolled, as_json=as_json)


def list_releases(cluster: ClusterName = DEFAULT_CLUSTER, as_json: Json = False) -> None:
    """List the releases: when, by whom, how many tasks, and which hosts run them.

    \b
    Examples:
      clusterkit cluster releases --cluster lab
      clusterkit cluster releases --json | jq '.[] | select(.current) | .entry.id'
    """
    from clusterkit.ops import rollout, status

    loaded = brought_up(cluster)
    found = rollout.known(loaded)
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        status.show_releases(loaded, found, stdout)


def _show(rolled: Rolled, *, as_json: bool) -> None:
    from clusterkit.ops import rollout

    if as_json:
        print_json(asdict(rolled))
    else:
        rollout.show(rolled, stdout)
