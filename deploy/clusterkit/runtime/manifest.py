"""What a release has to offer: its task names and where they go.

``python -m clusterkit.runtime.manifest mycompany.worker:app`` imports the app as a worker would and
prints JSON. The deployment runs it in a new release before anything is switched to it, so an app that
cannot be imported never reaches a worker; clients and the release gate read the names.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from celery.app.utils import find_app

if TYPE_CHECKING:
    from celery import Celery

ARGUMENTS = 2


def manifest(app: Celery) -> dict[str, Any]:
    """Return ``{"tasks": {name: queue or None}}`` of an app with all its task modules imported."""
    app.loader.import_default_modules()
    app.finalize()
    tasks = {name: _queue(app, name) for name in sorted(app.tasks) if not name.startswith("celery.")}
    return {"tasks": tasks}


def _queue(app: Celery, name: str) -> str | None:
    """Return where the app's routes send ``name``, else the queue its task names, else None."""
    route = app.amqp.router.lookup_route(name, (), {}, {}, app.tasks[name]) or {}
    queue = route.get("queue") or getattr(app.tasks[name], "queue", None)
    return getattr(queue, "name", queue)


def main() -> None:
    """Print the manifest of the app named on the command line."""
    if len(sys.argv) != ARGUMENTS:
        sys.exit("usage: python -m clusterkit.runtime.manifest MODULE:APP")
    json.dump(manifest(find_app(sys.argv[1])), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
