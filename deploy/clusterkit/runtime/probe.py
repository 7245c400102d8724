"""The task every worker node of every cluster answers, whatever app runs on it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import celery
    from celery import Celery

#: The probe task's name.
PROBE = "clusterkit.probe"


def register(app: Celery) -> None:
    """Add the probe to ``app``."""

    @app.task(name=PROBE, bind=True, ignore_result=False, shared=False)  # type: ignore[untyped-decorator]
    def probe(task: celery.Task, note: str = "") -> dict[str, str | int]:
        """Return who ran it: node name, process, release; and ``note`` as it came."""
        return {
            "node": task.request.hostname,
            "pid": os.getpid(),
            "release": os.environ.get("CLUSTERKIT_RELEASE", ""),
            "note": note,
        }
