"""``clusterkit cluster scale``: more or fewer tasks at once."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterkit.ops.cli_options import ClusterName, Json, brought_up, print_json, stderr, stdout
from clusterkit.ops.errors import ClusterUnhealthyError
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER


def scale(
    node: Annotated[str, typer.Argument(help="The worker node, as the inventory names it.")],
    size: Annotated[int, typer.Argument(min=1, metavar="N", help="Tasks at once on each of its hosts.")],
    cluster: ClusterName = DEFAULT_CLUSTER,
    timeout: Annotated[
        int, typer.Option(min=1, help="Seconds to wait; running tasks go on in any case.")
    ] = 300,
    as_json: Json = False,
) -> None:
    """Let a worker node run N tasks at once, from now on and in the inventory; nothing is restarted.

    Fewer: idle processes end at once, a busy one after its task. The exit code is 7 when that was not all
    within the timeout; it goes on by itself.

    \b
    Examples:
      clusterkit cluster scale cpu 8
      clusterkit cluster scale cpu 1 --cluster lab --timeout 3600
    """
    from clusterkit.ops import scale as scaling

    loaded = brought_up(cluster)
    done = scaling.scale(loaded, node, size, stderr, timeout=timeout)
    if as_json:
        print_json(done.to_json())
    else:
        scaling.show(loaded, done, stdout)
    if not done.complete:
        late = ", ".join(one.node for one in done.nodes if not one.done)
        raise ClusterUnhealthyError(
            f"not yet at {size} after {timeout} s: {late}",
            next_step="a busy process goes when its task has ended, by itself; make cluster-status shows it",
        )
