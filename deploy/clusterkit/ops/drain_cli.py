"""``clusterkit cluster drain`` and ``undrain``: a host that shall run no tasks for a while."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterkit.ops.cli_options import ClusterName, Json, brought_up, print_json, stderr, stdout
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER

WorkerHost = Annotated[str, typer.Argument(help="The host, as the inventory names it.")]


def drain(
    host: WorkerHost,
    cluster: ClusterName = DEFAULT_CLUSTER,
    reason: Annotated[str, typer.Option(help="Why; cluster status shows it.")] = "",
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds running tasks get; default: as long as they take.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also when a queue is left without a consumer.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have a host take no new tasks, wait until those that run have ended, and stop its worker nodes.

    Nothing is killed, and what was prefetched goes back to its queue. The host stays drained, whatever
    cluster up does, until cluster undrain. Other services of the host stay.

    \b
    Examples:
      clusterkit cluster drain h4 --cluster lab --reason 'new disk'
      clusterkit cluster drain h4 --cluster lab --timeout 600   # says what still runs then
    """
    from clusterkit.ops import drain as draining

    loaded = brought_up(cluster)
    done = draining.drain(loaded, host, draining.Wish(reason, timeout, force), stderr)
    if as_json:
        print_json(done.to_json())
    else:
        draining.show(loaded, done, stdout)


def undrain(host: WorkerHost, cluster: ClusterName = DEFAULT_CLUSTER, as_json: Json = False) -> None:
    """Have a drained host work again: cluster up, with its worker nodes and the release of the others.

    \b
    Examples:
      clusterkit cluster undrain h4 --cluster lab
    """
    from clusterkit.ops import drain as draining
    from clusterkit.ops import status

    loaded = brought_up(cluster)
    done = draining.undrain(loaded, host, stderr)
    if as_json:
        print_json(done.to_json(loaded))
    else:
        status.show_deployed(loaded, done, stdout)
