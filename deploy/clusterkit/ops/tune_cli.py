"""``clusterkit cluster discover`` and ``tune``: what hosts have, and what worker nodes should have."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterkit.ops.cli_options import ClusterName, Json, brought_up, load, print_json, stderr, stdout
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER
from clusterkit.runtime.errors import BadInputError


def discover(
    cluster: ClusterName = DEFAULT_CLUSTER,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to look at what is used.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Show what the hosts have, what of it is used, and what the worker nodes leave; changes nothing.

    Cores and memory are what affinity and control groups leave of them. The cluster need not be up.

    \b
    Examples:
      clusterkit cluster discover --cluster lab
      clusterkit cluster discover --seconds 60 --json | jq '.hosts[] | {name, unused}'
    """
    from clusterkit.ops import discover as discovery

    loaded = load(cluster)
    found = discovery.discover(loaded, seconds)
    if as_json:
        print_json(found.to_json())
    else:
        discovery.show(loaded, found, stdout)


def tune(
    cluster: ClusterName = DEFAULT_CLUSTER,
    seconds: Annotated[float, typer.Option(min=1, help="How long to look at the tasks that run.")] = 30.0,
    task: Annotated[str, typer.Option(help="Send this task meanwhile, when there is no other work.")] = "",
    arguments: Annotated[
        str, typer.Option("--args", help="Its arguments: JSON, a list or an object.")
    ] = "[]",
    number: Annotated[int, typer.Option(min=1, help="How many of it are under way at a time.")] = 200,
    apply: Annotated[bool, typer.Option("--apply", help="Write the proposals into the inventory.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what the worker nodes' tasks do, and propose concurrency and prefetch, with the figures.

    It listens to the tasks' events, so nothing is seen of worker nodes that send none (profile throughput).
    With --task up to --number of it are still under way at the end, and run on.

    \b
    Examples:
      clusterkit cluster tune --cluster lab --seconds 300
      clusterkit cluster tune --task tasks.compute.monte_carlo_pi --args '[200000]'
      clusterkit cluster tune --apply && make cluster-up
    """
    from clusterkit.ops import tune as tuning
    from clusterkit.ops.deployment import operator_app

    loaded = brought_up(cluster)
    if arguments != "[]" and not task:
        raise BadInputError("ARGS= are a task's arguments: say which with TASK=")
    app = operator_app(loaded)
    sample = tuning.Sample.of(app, task, arguments, number) if task else None
    if not as_json:
        stderr.print(f"looking at cluster {loaded.name} for {seconds:g} s", highlight=False)
    found = tuning.tune(loaded, app, seconds=seconds, sample=sample)
    better = [one for one in found.proposals if one.better]
    if as_json:
        print_json(found.to_json())
    else:
        tuning.show(loaded, found, stdout)
    if apply and better:
        tuning.apply(loaded, found)
    if as_json or not better:
        return
    again = f"make cluster-up CLUSTER={loaded.name}"
    ends = f"written; {again} brings it to the hosts" if apply else f"APPLY=1 writes it; then {again}"
    stdout.print(f"[green]next[/]      {ends}", highlight=False, soft_wrap=True)
