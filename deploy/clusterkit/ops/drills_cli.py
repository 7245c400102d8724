"""The commands of drills."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clusterkit.ops.cli_options import ClusterName, Json, brought_up, load, print_json, stderr, stdout
from clusterkit.ops.errors import ClusterUnhealthyError
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER

commands = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Cause faults on purpose, and count what they cost."
)


@commands.command("run", short_help="Send numbered tasks, cause a fault, count its cost.")
def run(
    name: Annotated[str, typer.Argument(help="A drill, all, or random.")] = "all",
    cluster: ClusterName = DEFAULT_CLUSTER,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks to send in each drill, at least.")] = 10_000,
    rate: Annotated[float, typer.Option(min=1, help="Tasks a second.")] = 200.0,
    seed: Annotated[
        int | None, typer.Option(help="Decides about targets, and which drills are random.")
    ] = None,
    bulk: Annotated[bool, typer.Option("--bulk", help="Send as submit_many does.")] = False,
    as_json: Json = False,
) -> None:
    """Send numbered tasks, cause a fault, undo it, and count what became of every task.

    Only on a cluster with `drills: true`. Exit code 7: a task is lost, or the cluster stays unhealthy.

    \b
    Examples:
      clusterkit drill run worker-killed --cluster lab
      clusterkit drill run all --cluster lab --tasks 2000 --rate 50
      clusterkit drill run random --cluster lab --seed 42   # the same faults and targets each time
    """
    from clusterkit.ops.drills import runs, tables
    from clusterkit.ops.drills.drill import Plan

    loaded = load(cluster)
    runs.refuse_unless_marked(loaded)
    loaded = brought_up(cluster)
    plan = Plan(tasks, rate, secrets.randbelow(10_000) if seed is None else seed, bulk)
    found, directory = runs.run(loaded, name, plan, stderr)
    if as_json:
        print_json({**found.to_json(), "report": str(directory / "report.html")})
    else:
        tables.show(found, stdout)
        stdout.print(f"report: {directory / 'report.html'}", highlight=False, soft_wrap=True)
    if not found.well:
        lost = sum(len(outcome.ledger.lost) for outcome in found.outcomes)
        unwell = (outcome.fault for outcome in found.outcomes if not outcome.well)
        bad = [*unwell, *found.failed, *found.missing]
        raise ClusterUnhealthyError(
            f"{lost} tasks lost; not well: {', '.join(bad)}",
            next_step=f"{directory / 'report.html'} has what was done and seen",
        )


@commands.command("list", short_help="Show every drill, and whether it is possible.")
def show_list(cluster: ClusterName = DEFAULT_CLUSTER, as_json: Json = False) -> None:
    """Show every drill: what it does, what should be seen, and whether it is possible on a cluster.

    \b
    Examples:
      clusterkit drill list --cluster lab
    """
    from clusterkit.ops.drills import runs
    from clusterkit.ops.drills.faults import Fault

    loaded = load(cluster)
    impossible = runs.obstacles(loaded)
    if as_json:
        print_json(
            [
                {
                    "name": fault.title,
                    "does": fault.value.does,
                    "sees": fault.value.sees,
                    "obstacle": impossible.get(fault, ""),
                }
                for fault in Fault
            ]
        )
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("drill", "does", "should be seen"):
        table.add_column(name, no_wrap=name == "drill")
    for fault in Fault:
        why = impossible.get(fault)
        sees = f"[yellow]not possible here: {why}[/]" if why else fault.value.sees
        table.add_row(fault.title, fault.value.does, sees)
    stdout.print(table)
    if not loaded.drills:
        stdout.print(f"\ncluster {loaded.name} is not marked with drills: true, so none is run on it")


@commands.command("table", short_help="Print a run as a Markdown table, or two.")
def show_table(
    runs: Annotated[list[Path], typer.Argument(help="Directories of one run or two, below .cluster/.")],
) -> None:
    """Print a run as a Markdown table, or two of them side by side.

    \b
    Examples:
      clusterkit drill table .cluster/lab/drills/20260102-030405-all
      clusterkit drill table .cluster/stock/drills/* .cluster/lab/drills/20260102-030405-all
    """
    from clusterkit.ops.drills import outcome, tables

    typer.echo(tables.markdown([outcome.read(path) for path in runs]), nl=False)
