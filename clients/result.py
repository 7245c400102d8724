#!/usr/bin/env python3
"""Fetch the result of a task, or of a group of tasks, by its id; it is kept for a day by default.

Examples:
  result.py 0f5d0e6c-…              print it if it is there, say so (exit code 11) if not
  result.py 0f5d0e6c-… --wait       wait for it
  result.py 0f5d0e6c-… --wait --timeout 60
"""

from __future__ import annotations

import _venv  # noqa: F401  # isort: skip - runs this in the checkout's .venv

import json

from clusterkit.runtime import client
from clusterkit.runtime.errors import WaitTimeoutError


def main() -> None:
    """Print the result as JSON."""
    parser = client.argument_parser(__doc__)
    parser.add_argument("id", help="what submit.py printed")
    parser.add_argument("--wait", action="store_true", help="wait for it; the exit code follows the task")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer than this")
    options = parser.parse_args()
    app = client.connect(cluster=options.cluster)
    result = app.GroupResult.restore(options.id) or app.AsyncResult(options.id)
    if not (options.wait or result.ready()):
        message = f"{options.id} has no result: it waits or runs, or there never was one, or it expired"
        raise WaitTimeoutError(message, next_step=f"python3 clients/result.py {options.id} --wait")
    print(json.dumps(client.wait(result, timeout=options.timeout)))


if __name__ == "__main__":
    client.run(main)
