"""``clusterkit broker restart`` and ``upgrade``: the brokers, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clusterkit.ops.cli_options import ClusterName, Json, brought_up, print_json, stderr, stdout
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER

Timeout = Annotated[
    int,
    typer.Option(
        "--timeout", min=1, help="Seconds to wait, before each, until the cluster can do without it."
    ),
]


def restart(
    host: Annotated[str, typer.Option(help="Only this host's broker.")] = "",
    cluster: ClusterName = DEFAULT_CLUSTER,
    timeout: Timeout = 120,
    as_json: Json = False,
) -> None:
    """Restart the brokers one after the other; clients go to the others meanwhile.

    Before each all brokers have to run, without an alarm, a partition, or a queue whose members are not in
    step; otherwise it ends, says what is in the way, and leaves that node and those after it alone.

    \b
    Examples:
      clusterkit broker restart --cluster lab
      clusterkit broker restart --cluster lab --host h2
    """
    from clusterkit.ops import brokers

    loaded = brought_up(cluster)
    done = brokers.restart(loaded, host, stderr, gate_timeout=timeout)
    if as_json:
        print_json(done.to_json())
    else:
        brokers.show(loaded, done, stdout)


def upgrade(
    cluster: ClusterName = DEFAULT_CLUSTER,
    bundle: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Where to take the package from."),
    ] = None,
    timeout: Timeout = 120,
    as_json: Json = False,
) -> None:
    """Bring the distribution's newer RabbitMQ, or a bundle's, to the brokers one after the other.

    Refused, before anything is changed: versions that may not follow each other, downgrades, a feature flag
    that the newer version takes for granted, an Erlang that does not fit.

    \b
    Examples:
      clusterkit broker upgrade --cluster lab
      clusterkit broker upgrade --cluster lab --bundle .cluster/bundles/trixie.tar
    """
    from clusterkit.ops import brokers

    loaded = brought_up(cluster)
    done = brokers.upgrade(loaded, bundle, stderr, gate_timeout=timeout)
    if as_json:
        print_json(done.to_json())
    else:
        brokers.show(loaded, done, stdout)
