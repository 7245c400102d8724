"""The commands ``clusterkit dlq ...``: parse, call, print; the work is in ``clusterkit.ops.deadletters``."""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from clusterkit.ops.cli_options import ClusterName, Json, Yes, brought_up, print_json, stderr, stdout
from clusterkit.ops.letters import HIDDEN, Letter, Reason, Selection, readable
from clusterkit.ops.progress import Progress
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER
from clusterkit.runtime.errors import BadInputError, InterruptedByUserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clusterkit.ops.deadletters import Replayed, Survey
    from clusterkit.ops.model import Cluster

#: Letters listed unless told otherwise, and characters of a task's arguments shown in the list.
_LIMIT, _SHORT = 50, 40

commands = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Dead letters: the messages that no worker could run, and what becomes of them.",
)

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Names of letters, or their beginnings.")
]
Task = Annotated[str, typer.Option("--task", help="Only letters of this task.")]
Queue = Annotated[str, typer.Option("--queue", help="Only letters from this queue.")]
Why = Annotated[Reason | None, typer.Option("--reason", help="Only letters that died of this.")]
All = Annotated[bool, typer.Option("--all", help="All letters.")]
Redact = Annotated[
    bool, typer.Option("--redact", help="Hide arguments, results and whatever else quotes the message.")
]


@commands.command("list", short_help="List dead letters: when, where, why, which task.")
def list_letters(
    cluster: ClusterName = DEFAULT_CLUSTER,
    task: Task = "",
    queue: Queue = "",
    reason: Why = None,
    limit: Annotated[int, typer.Option(min=0, help="The oldest so many; 0: all.")] = _LIMIT,
    redact: Redact = False,
    as_json: Json = False,
) -> None:
    """List dead letters, the oldest first: when, from which queue, why, which task.

    Looking changes nothing; ended by force, what is being looked at goes back.

    \b
    Examples:
      clusterkit dlq list
      clusterkit dlq list --task shop.orders.confirm --reason rejected
      clusterkit dlq list --limit 0 --json | jq -r '.letters[] | [.task, .reason] | @tsv' | sort | uniq -c
    """
    from clusterkit.ops import deadletters

    found = deadletters.letters(brought_up(cluster), Selection((), task, queue, reason), _warn)
    shown = islice(found, limit or None)
    if as_json:
        _print_list(shown, redact=redact)
        return
    table, number, total = _table(), 0, 0
    for total, letter in shown:  # noqa: B007 - told below
        number += 1
        table.add_row(*_row(letter, redact=redact))
    if not number:
        stdout.print("no dead letters" + (" like these" if task or queue or reason else ""), highlight=False)
        return
    stdout.print(table)
    stdout.print(
        f"{number} of {total} dead letters. Next: make dlq-show ID=..., dlq-replay, dlq-drop",
        highlight=False,
        soft_wrap=True,
    )


def _table() -> Table:
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0))
    for column in ("letter", "died", "queue"):
        table.add_column(column, no_wrap=True)
    for column in ("why", "task", "times", "arguments"):
        table.add_column(column, justify="right" if column == "times" else "left", overflow="fold")
    return table


def _row(letter: Letter, *, redact: bool) -> list[Text]:
    arguments = HIDDEN if redact else letter.arguments
    cells = (
        letter.name[: len("01234567-89ab")],
        f"{letter.died:%m-%d %H:%M:%S}" if letter.died else "?",
        letter.queue or "?",
        letter.why(redact=redact),
        letter.task or "none",
        str(letter.times),
        arguments if len(arguments) <= _SHORT else arguments[: _SHORT - 3] + "...",
    )
    return [Text(readable(cell)) for cell in cells]


def _print_list(found: Iterable[tuple[int, Letter]], *, redact: bool) -> None:
    """Print the letters as they come: there may be more than fit into memory."""
    typer.echo('{"letters": [', nl=False)
    number, total = 0, 0
    for total, letter in found:  # noqa: B007 - told at the end
        typer.echo(",\n" if number else "\n", nl=False)
        typer.echo(json.dumps(letter.to_json(redact=redact)), nl=False)
        number += 1
    typer.echo(f'\n], "shown": {number}, "total": {total}}}')


@commands.command(short_help="Show all of a dead letter.")
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="Name of a letter, or its beginning.")],
    cluster: ClusterName = DEFAULT_CLUSTER,
    redact: Redact = False,
    as_json: Json = False,
) -> None:
    """Show all of a dead letter: headers, properties and body, which is escaped where it is no text.

    \b
    Examples:
      clusterkit dlq show 1adc7e9e
      clusterkit dlq show 1adc7e9e --redact
    """
    from clusterkit.ops import deadletters

    found = deadletters.show(brought_up(cluster), name, _warn)
    if as_json:
        print_json({"letters": [letter.to_json(redact=redact, whole=True) for letter in found]})
        return
    for letter in found:
        _show(letter, redact=redact)


def _show(letter: Letter, *, redact: bool) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    said = letter.to_json(redact=redact, whole=True)
    lines = {
        "letter": letter.name,
        "task": letter.task or "none",
        "died": f"{letter.died:%Y-%m-%d %H:%M:%S} UTC, {letter.times} x" if letter.died else "?",
        "queue": letter.queue or "?",
        "why": letter.why(redact=redact),
        **({"expires": f"{letter.expires:%Y-%m-%d %H:%M:%S %Z}"} if letter.expires else {}),
        "arguments": said["arguments"],
        **{f"property {key}": str(value) for key, value in said["properties"].items()},
        **{f"header {key}": json.dumps(value, ensure_ascii=False) for key, value in said["headers"].items()},
        "body": f"{len(letter.message.body)} bytes: {said['body']}",
    }
    for key, value in lines.items():
        grid.add_row(Text(key), Text(readable(value)))
    stdout.print(grid)


@commands.command(short_help="Put dead letters back into their queues.")
def replay(
    names: Names = None,
    cluster: ClusterName = DEFAULT_CLUSTER,
    task: Task = "",
    queue: Queue = "",
    reason: Why = None,
    every: All = False,
    to: Annotated[str, typer.Option("--to", help="Put them into this queue, not where they came from.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also tasks that the release does not have, and expired ones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put dead letters back into their queues, as they were before they died.

    A letter is removed when the broker has confirmed its message. When this command is ended by force, the
    letter it was at may be in both places: the task then runs twice.

    Letters that cannot be replayed stay and are named. The exit code is 10 when there are only such ones, 0
    when at least one was replayed, or none is meant.

    \b
    Examples:
      clusterkit dlq replay 1adc7e9e
      clusterkit dlq replay --task shop.orders.confirm
      clusterkit dlq replay --all --to default
    """
    from clusterkit.ops import deadletters
    from clusterkit.ops.lock import recorded

    selection = _selected(names, task, queue, reason, every=every)
    loaded = brought_up(cluster)
    title = f"cluster {loaded.name}: replay dead letters"
    with recorded(loaded), Progress(title, ["Replay"], stderr) as progress:
        progress.start("Replay")
        done = deadletters.replay(loaded, selection, to=to, force=force, report=progress.doing)
    if as_json:
        print_json({"replayed": done.number, "queues": dict(done.queues), "left": dict(done.left)})
    else:
        _show_replayed(done)


def _show_replayed(done: Replayed) -> None:
    for queue, number in sorted(done.queues.items()):
        stdout.print(f"{number} put into queue {queue}", highlight=False, markup=False)
    for why, number in done.left.items():
        stdout.print(f"{number} left: {why}", highlight=False, markup=False, soft_wrap=True)
    if not done.queues and not done.left:
        stdout.print("no dead letters like these", highlight=False)


@commands.command(short_help="Take dead letters out of the cluster, into a file.")
def drop(
    names: Names = None,
    cluster: ClusterName = DEFAULT_CLUSTER,
    task: Task = "",
    queue: Queue = "",
    reason: Why = None,
    every: All = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take dead letters out of the cluster, into a file from which they can be had back.

    \b
    Examples:
      clusterkit dlq drop 1adc7e9e
      clusterkit dlq drop --reason expired --yes
      clusterkit queue load .cluster/local/dropped/20260102-030405.jsonl   # back among the dead letters
    """
    from clusterkit.ops import deadletters
    from clusterkit.ops.lock import recorded

    selection = _selected(names, task, queue, reason, every=every)
    loaded = brought_up(cluster)
    found = deadletters.survey(loaded, selection, lambda _: None)
    if found.meant:
        _confirm_drop(loaded, found, yes=yes)
    path = loaded.state_dir / "dropped" / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.jsonl"
    dropped = 0
    if found.meant:
        title = f"cluster {loaded.name}: drop dead letters"
        with recorded(loaded), Progress(title, ["Drop"], stderr) as progress:
            progress.start("Drop")
            dropped = deadletters.drop(loaded, selection, found, path, progress.doing)
    if as_json:
        print_json({"dropped": dropped, "file": str(path) if dropped else None})
    elif dropped:
        stdout.print(
            f"{dropped} dropped. They are in {path}; back with: clusterkit queue load {path}",
            highlight=False,
            soft_wrap=True,
        )
    else:
        stdout.print("no dead letters like these", highlight=False)


def _confirm_drop(cluster: Cluster, found: Survey, *, yes: bool) -> None:
    if yes:
        return
    question = f"Drop {found.meant} of {found.total} dead letters of cluster {cluster.name!r}?"
    if not sys.stdin.isatty():
        raise BadInputError(question, next_step="YES=1 make dlq-drop, or --yes")
    if not typer.confirm(question, err=True):
        raise InterruptedByUserError("nothing was dropped")


def _selected(
    names: list[str] | None, task: str, queue: str, reason: Reason | None, *, every: bool
) -> Selection:
    if not (names or task or queue or reason or every):
        raise BadInputError(
            "which dead letters?", next_step="IDs, --task, --queue or --reason; --all means all of them"
        )
    return Selection(tuple(names or ()), task, queue, reason)


def _warn(text: str) -> None:
    stderr.print(Text(f"warning: {text}"), soft_wrap=True)
