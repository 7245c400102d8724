"""The Celery app of the cluster `compare`, which runs the functions that `make compare` is about.

A function is called here only if a file in the cluster's own directory names it. `make compare` writes that
file for a cluster on this machine's loopback; anywhere else there is none, and nothing can be called. The
default app (tasks.app) does not have this task at all.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, Final

from celery import Celery

from clusterkit.runtime import configure
from tasks import comparison

#: The file, in the cluster's home: {"functions": [...], "paths": [where they are imported from]}.
ALLOWED_FILE: Final = "comparison.json"
#: The name of the task.
CALL: Final = "tasks.comparison_app.call"

app = Celery("comparison")


@app.task(name=CALL)
def call(function: str, arguments: list[Any]) -> Any:
    """Call ``function`` (``module:function``) if `make compare` has allowed it, and return what it returns.

    Raises:
        PermissionError: it is not allowed here.
    """
    _allow(function)
    return comparison.invoke(function, arguments)


@functools.cache
def _allow(function: str) -> None:
    """Refuse a function that is not allowed; see to it that an allowed one can be imported."""
    file = Path(os.environ.get("CLUSTERKIT_HOME", os.devnull)) / ALLOWED_FILE
    allowed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"functions": []}
    if function not in allowed["functions"]:
        message = f"{function} may not be called here: only make compare allows functions, on its own cluster"
        raise PermissionError(message)
    comparison.add_paths(allowed["paths"])


configure(app)
