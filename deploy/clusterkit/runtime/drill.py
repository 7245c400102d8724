"""The task of drills: it notes down that it ran, apart from Celery's own result.

Two notes an execution, its begin and its end, in the list ``clusterkit:executions:<drill>`` of the result
store. A result that is lost is then no lost task, and the other way round; and a task that began twice and
ended once can be told from one that ended twice.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, Literal

from clusterkit.runtime import results

if TYPE_CHECKING:
    import celery
    import redis
    from celery import Celery

#: The drill task's name.
DRILL: Final = "clusterkit.drill"
#: What the task does besides waiting; `poison` kills its own pool process, so prefork nodes alone may get it.
Kind = Literal["ok", "memory_error", "poison"]
#: Seconds the notes of a drill are kept.
KEPT: Final = 86_400
#: Milliseconds a replica has to take over the note of an end.
_CONFIRM_TIMEOUT: Final = 2_000


def key(drill: str) -> str:
    """Return the key of the list that the executions of ``drill`` are noted in."""
    return f"clusterkit:executions:{drill}"


class Notes:
    """Writes the notes of one app's process."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._client: redis.Redis | None = None

    def write(self, drill: str, note: dict[str, Any], *, safely: bool) -> None:
        """Append ``note``, however long the store is away; ``safely``: until a replica has it, too.

        A note that is written twice, for an answer was lost, carries the same ``run`` and ``what``.
        """
        cluster = self._app.conf.clusterkit_cluster_file
        if self._client is None:
            self._client = results.client(cluster, patience=None)
        confirmed = safely and bool(cluster.result_master)
        results.Patience(None).call_with_retry(
            lambda: self._append(key(drill), json.dumps(note), confirmed=confirmed), lambda *_: None
        )

    def _append(self, name: str, note: str, *, confirmed: bool) -> None:
        assert self._client is not None  # noqa: S101 - made by write
        with self._client.pipeline(transaction=False) as commands:
            commands.rpush(name, note)
            commands.expire(name, KEPT)
            if confirmed:
                commands.wait(1, _CONFIRM_TIMEOUT)
            answers = commands.execute()
        if confirmed and not answers[-1]:
            raise results.NotConfirmedError("no replica of the result store has the note of an execution")


def register(app: Celery) -> None:
    """Add the drill task to ``app``."""
    notes = Notes(app)

    @app.task(name=DRILL, bind=True, ignore_result=False, shared=False)  # type: ignore[untyped-decorator]
    def drill(
        task: celery.Task, drill_id: str, number: int, milliseconds: int = 10, kind: Kind = "ok"
    ) -> int:
        """Work for ``milliseconds``, note down begin and end, and return ``number``."""
        note = {
            "task": task.request.id,
            "number": number,
            "run": uuid.uuid4().hex,
            "node": task.request.hostname,
            "pid": os.getpid(),
            "release": os.environ.get("CLUSTERKIT_RELEASE", ""),
            "redelivered": bool((task.request.delivery_info or {}).get("redelivered")),
        }
        notes.write(drill_id, {**note, "what": "begin", "at": time.time()}, safely=False)
        if kind == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(milliseconds / 1_000)
        notes.write(drill_id, {**note, "what": "end", "at": time.time()}, safely=True)
        if kind == "memory_error":
            raise MemoryError("a drill asked for it")
        return number
