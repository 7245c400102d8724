#!/usr/bin/env python3
"""Submit a task for each of many numbers, confirmed by the broker, and say how fast it went.

Examples:
  bulk.py --count 100000
  bulk.py tasks.compute.is_prime --count 1000000 --window 3000
  bulk.py --count 1000 --wait
"""

from __future__ import annotations

import _venv  # noqa: F401  # isort: skip - runs this in the checkout's .venv

import time

from rich.console import Console
from rich.progress import Progress

from clusterkit.runtime import client
from clusterkit.runtime.bulk import submit_many
from clusterkit.runtime.pipeline import WINDOW


def main() -> None:
    """Submit them; with --wait get every result, too."""
    parser = client.argument_parser(__doc__)
    parser.add_argument("task", nargs="?", default="tasks.probes.echo", help="a task of one number")
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="numbers 0 to N-1")
    parser.add_argument("--window", type=int, default=WINDOW, help=f"unconfirmed at once (default {WINDOW})")
    parser.add_argument("--queue", help="another queue than the task's own")
    parser.add_argument("--wait", action="store_true", help="wait for all results")
    options = parser.parse_args()
    app = client.connect(cluster=options.cluster)
    queue = options.queue or client.queue_of(app, options.task)
    with Progress(console=Console(stderr=True)) as bar:
        shown = bar.add_task("submitting", total=options.count)
        began = time.monotonic()
        submission = submit_many(
            options.task,
            range(options.count),
            app=app,
            queue=queue,
            window=options.window,
            ignore_result=not options.wait,
            progress=lambda confirmed, _: bar.update(shown, completed=confirmed),
        )
    seconds = time.monotonic() - began
    print(
        f"{submission.confirmed} confirmed in {seconds:.2f} s: {submission.confirmed / seconds:,.0f} a second"
    )
    if options.wait:
        for result in submission:
            client.wait(result)
        print(f"all done after {time.monotonic() - began:.2f} s")


if __name__ == "__main__":
    client.run(main)
