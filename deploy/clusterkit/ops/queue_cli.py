"""The commands ``clusterkit queue ...``: parse, call, print; the work is in ``clusterkit.ops.queuedump``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clusterkit.ops.cli_options import ClusterName, Json, brought_up, print_json, stderr, stdout
from clusterkit.ops.progress import Progress
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER

commands = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Queues: their messages into a file, and back."
)


@commands.command(short_help="Drain a queue into a file.")
def dump(
    queue: Annotated[str, typer.Argument(help="The queue to empty.")],
    file: Annotated[Path, typer.Argument(dir_okay=False, help="A new file; it will hold every message.")],
    cluster: ClusterName = DEFAULT_CLUSTER,
    as_json: Json = False,
) -> None:
    """Drain a queue into a file: complete messages, on the disk before the broker forgets them.

    Workers that consume from the queue take their share. Ended by force, the last 500 messages may be in
    the file and in the queue.

    \b
    Examples:
      clusterkit queue dump cpu cpu.jsonl
      clusterkit queue dump celery.dead dead.jsonl
    """
    from clusterkit.ops import queuedump
    from clusterkit.ops.lock import recorded

    loaded = brought_up(cluster)
    title = f"cluster {loaded.name}: dump queue {queue}"
    with recorded(loaded), Progress(title, ["Dump"], stderr) as progress:
        progress.start("Dump")
        taken = queuedump.dump(loaded, queue, file, progress.doing)
    if as_json:
        print_json({"queue": queue, "file": str(file), "messages": taken})
    else:
        stdout.print(
            f"{taken} messages of queue {queue} are in {file}. Back with: clusterkit queue load {file}",
            highlight=False,
            soft_wrap=True,
        )


@commands.command("load", short_help="Put the messages of a file into a queue.")
def load_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file that dump or drop made.")],
    queue: Annotated[str, typer.Option("--queue", help="Default: where the messages came from.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also a file that breaks off.")] = False,
    cluster: ClusterName = DEFAULT_CLUSTER,
    as_json: Json = False,
) -> None:
    """Put the messages of a file into a queue, each confirmed by the broker; the file is checked first.

    How far it came is kept in FILE.loaded: the same command, run again, goes on there. The message that was
    under way when it was ended by force may be sent twice. A file that breaks off is refused: what wrote it
    was ended by force, and its last messages may have stayed in their queue.

    \b
    Examples:
      clusterkit queue load cpu.jsonl
      clusterkit queue load cpu.jsonl --queue io
    """
    from clusterkit.ops import queuedump
    from clusterkit.ops.lock import recorded

    loaded = brought_up(cluster)
    title = f"cluster {loaded.name}: load {file}"
    with recorded(loaded), Progress(title, ["Load"], stderr) as progress:
        progress.start("Load")
        done = queuedump.load(loaded, file, queue, progress.doing, force=force)
    if as_json:
        print_json(
            {"queue": done.queue, "file": str(file), "messages": done.now, "before": done.before}
            | {"complete": done.complete}
        )
        return
    earlier = f", {done.before} had been before" if done.before else ""
    stdout.print(f"{done.now} messages put into queue {done.queue}{earlier}", highlight=False, soft_wrap=True)
