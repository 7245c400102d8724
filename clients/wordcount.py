#!/usr/bin/env python3
"""Count the words of text files on the cluster: chords that count pieces and add the counts up.

A word is a run of A to Z, in lower case. Folders are searched for files, links to files included.

Examples:
  wordcount.py README.md --top 20
  wordcount.py /usr/share/common-licenses --all      like sort | uniq -c
  wordcount.py letters/ notes.txt --json
"""

from __future__ import annotations

import _venv  # noqa: F401  # isort: skip - runs this in the checkout's .venv

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from celery import chord, uuid
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clusterkit.runtime import client
from tasks.app import app
from tasks.pieces import bundles, find_files
from tasks.text import count_words, merge_counts

if TYPE_CHECKING:
    import argparse

    from celery.result import GroupResult


def main() -> None:
    """Submit one chord per MiB of text, wait, add their counts up, print them."""
    parser = client.argument_parser(__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH", type=Path, help="files, folders: at most 256 MiB")
    parser.add_argument("--top", type=int, default=15, metavar="N", help="print this many words (default 15)")
    parser.add_argument("--all", action="store_true", help="print every word as 'count word', by alphabet")
    parser.add_argument("--json", action="store_true", help="print every word as JSON, most frequent first")
    parser.add_argument("--resume", metavar="GROUP_ID", help="fetch the counts of an interrupted run")
    options = parser.parse_args()
    if not (options.paths or options.resume):
        parser.error("name a file or a folder")
    files = find_files(options.paths)
    client.connect(app, options.cluster)
    result = client.restore(app, options.resume) if options.resume else submit(files)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("counting", total=len(result))
        counts = client.wait(
            result,
            on_progress=lambda done, _: bar.update(task, completed=done),
            resume=shlex.join(["python3", *sys.argv, "--resume", result.id]),
        )
    show(merge_counts(counts), options)


def submit(files: list[Path]) -> GroupResult:
    """Submit one chord per bundle of pieces, and keep them together as a group that can be resumed."""
    sums = [chord([count_words.s(piece) for piece in bundle])(merge_counts.s()) for bundle in bundles(files)]
    result: GroupResult = app.GroupResult(uuid(), sums)
    result.save()
    return result


def show(counts: dict[str, int], options: argparse.Namespace) -> None:
    """Print the counts in the form asked for."""
    if options.json:
        print(json.dumps(counts))
    elif options.all:
        print("\n".join(f"{counts[word]:7d} {word}" for word in sorted(counts)))
    else:
        table = Table("word", "count")
        for word in list(counts)[: max(options.top, 0)]:
            table.add_row(word, str(counts[word]))
        Console().print(table)
        print(f"{sum(counts.values())} words, {len(counts)} different")


if __name__ == "__main__":
    client.run(main)
