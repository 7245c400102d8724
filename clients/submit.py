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

import difflib
import json
import sys
from typing import Any

from clusterkit.runtime import client
from clusterkit.runtime.errors import BadInputError, UnknownTaskError


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
    args, kwargs = read_arguments(options.args)
    app = client.connect(cluster=options.cluster)
    known = client.known_tasks(app)
    if options.list:
        print("\n".join(f"{name:40} {queue}" for name, queue in known.items()))
        return
    if options.task not in known:
        near = difflib.get_close_matches(options.task, known, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        message = f"the cluster's release has no task {options.task!r}"
        raise UnknownTaskError(message, next_step=f"{hint}submit.py --list lists them")
    countdown = options.countdown if options.countdown and options.countdown > 0 else None
    result = app.send_task(options.task, args, kwargs, queue=options.queue, countdown=countdown)
    print(result.id, file=sys.stderr if options.wait else sys.stdout)
    if options.wait:
        print(json.dumps(client.wait(result, timeout=options.timeout)))


def read_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Read ARGS: a JSON list becomes positional arguments, an object becomes keyword arguments."""
    try:
        value = json.loads(text)
    except ValueError as error:
        example = """such as '[30]' or '{"n": 30}'"""
        raise BadInputError(f"ARGS is not JSON: {error}", next_step=example) from error
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict):
        return [], value
    raise BadInputError(
        f"ARGS is neither a list nor an object: {text}", next_step=f"did you mean '[{text}]'?"
    )


if __name__ == "__main__":
    client.run(main)
