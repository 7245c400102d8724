#!/usr/bin/env python3
"""Submit any task of the deployed release by its name.

Examples:
  submit.py --list
  submit.py tasks.compute.fibonacci '[30]' --wait
  submit.py tasks.probes.echo '{"value": "hello"}' --wait --timeout 10
  submit.py tasks.probes.sleep '[5]' --countdown 60
"""

from __future__ import annotations

import _venv  # noqa: F401  # isort: skip - runs this in the checkout's .venv

import json
import sys

from clusterkit.runtime import client


def main() -> None:
    """Submit the task; print its id, or with --wait its result as JSON (the id goes to stderr)."""
    parser = client.argument_parser(__doc__)
    parser.add_argument("task", nargs="?", help="the task's name")
    parser.add_argument("args", nargs="?", default="[]", help="JSON: a list, or an object of keywords")
    parser.add_argument("--list", action="store_true", help="list the tasks and their queues")
    parser.add_argument("--wait", action="store_true", help="wait for the result; the exit code follows it")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer than this")
    parser.add_argument("--queue", help="another queue than the task's own")
    parser.add_argument("--countdown", type=int, metavar="SECONDS", help="run no earlier than in this time")
    options = parser.parse_args()
    if not (options.task or options.list):
        parser.error("name a task, or --list")
    args, kwargs = client.read_arguments(options.args)
    app = client.connect(cluster=options.cluster)
    if options.list:
        print("\n".join(f"{name:40} {queue}" for name, queue in client.known_tasks(app).items()))
        return
    queue = client.queue_of(app, options.task)
    countdown = options.countdown
    result = app.send_task(options.task, args, kwargs, queue=options.queue or queue, countdown=countdown)
    print(result.id, file=sys.stderr if options.wait else sys.stdout)
    if options.wait:
        print(json.dumps(client.wait(result, timeout=options.timeout)))


if __name__ == "__main__":
    client.run(main)
