"""The command that compares systems for running Python side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterkit.ops.cli_options import ClusterName, Json, load, print_json, stderr, stdout
from clusterkit.ops.compare.works import Selection  # noqa: TC001 - typer reads it
from clusterkit.ops.errors import ComparisonError


def compare(
    function: Annotated[
        str,
        typer.Argument(metavar="[MODULE:FUNCTION]", help="A function of your own instead of the kit's work."),
    ] = "",
    arguments: Annotated[
        str,
        typer.Option(
            "--args", metavar="JSON", help="Its arguments: a list for every call, or a list of lists."
        ),
    ] = "[]",
    work: Annotated[Selection, typer.Option(help="Which of the kit's work.")] = "all",
    only: Annotated[
        list[str] | None, typer.Option(help="Only these systems (several: again, or with commas).")
    ] = None,
    calls: Annotated[int | None, typer.Option("-n", "--calls", min=1, help="Calls of each work.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Calls at once; default: what `auto` is for each pool.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster running.")] = False,
    cluster: ClusterName = "compare",
    as_json: Json = False,
) -> None:
    """Run the same work under each system, and show how fast each is and what it takes.

    The systems: plain (a loop), threading, multiprocessing, ppft, and Celery's pools prefork, threads,
    gevent, eventlet and solo, on a cluster of this machine's own that is stopped at the end. Writes a report
    below .cluster/compare/compare/. Exit code 15: one could not run, or its results are not the plain loop's.

    \b
    Examples:
      clusterkit compare
      clusterkit compare --work cpu --only multiprocessing,prefork --repeats 5
      clusterkit compare mymodule:resize --args '["picture.png", 200]'      # the same arguments in every call
      clusterkit compare mymodule:resize --args '[["a.png", 200], ["b.png", 200]]' -n 40   # in turn, 40 calls
    """
    from clusterkit.ops.compare import report, runs, tables

    names = tuple(name for given in only or () for name in given.replace(",", " ").split())
    wanted = runs.Wanted(work, names, repeats, calls, concurrency, function, arguments, keep)
    found, directory = runs.run(load(cluster), wanted, stderr)
    if as_json:
        print_json({**found.to_json(), "directory": str(directory)})
    else:
        tables.show(found, stdout)
        for file in (report.PAGE, report.PICTURE, report.TABLE):
            stdout.print(directory / file, highlight=False, soft_wrap=True)
    if found.problems:
        raise ComparisonError(
            "\n  ".join([f"{len(found.problems)} did not do what the plain loop did:", *found.problems]),
            next_step=f"{directory / report.PAGE} has what was seen; make cluster-logs CLUSTER={cluster}",
        )
