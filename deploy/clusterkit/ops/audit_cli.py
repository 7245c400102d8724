"""``clusterkit cluster audit``: who changed the cluster, when and how."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterkit.ops.cli_options import ClusterName, Json, load, print_json, stdout
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER


def audit(
    cluster: ClusterName = DEFAULT_CLUSTER,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Last changes to show.")] = 20,
    as_json: Json = False,
) -> None:
    """Show who changed the cluster, when, with what command and how it ended; the oldest first.

    The record is of the commands of this checkout, and outlives cluster destroy.

    \b
    Examples:
      clusterkit cluster audit --cluster lab
      clusterkit cluster audit --lines 500 --json | jq '.[] | select(.outcome != "ok")'
    """
    from clusterkit.ops import audit as record
    from clusterkit.ops import lock

    loaded = load(cluster, containers=True)
    found = record.entries(loaded, lines)
    running = lock.holder(loaded)
    if running:
        found.append(running)
    if as_json:
        print_json([entry.to_json() for entry in found])
    elif found:
        record.show(loaded, found, stdout)
    else:
        stdout.print(f"nothing was changed on cluster {loaded.name} from this checkout", highlight=False)
