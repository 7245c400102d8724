"""The default Celery app. Copy it: the last line is all that makes an app a cluster's app."""

from __future__ import annotations

from celery import Celery

from clusterkit.runtime import configure

app = Celery("tasks", include=["tasks.compute", "tasks.crawl", "tasks.probes", "tasks.text"])

# The cluster's inventory declares these queues and says which worker nodes read them. Whatever is not
# named here goes to its default queue.
app.conf.task_routes = {
    "tasks.compute.*": {"queue": "cpu"},
    "tasks.text.count_words": {"queue": "cpu"},
    "tasks.crawl.*": {"queue": "io"},
}

# Read by the scheduler. Nothing here expires: what expires in its queue ends in the dead letters.
app.conf.beat_schedule = {
    "echo-every-minute": {
        "task": "tasks.probes.echo",
        "schedule": 60.0,
        "args": ["from the schedule"],
    },
}

configure(app)
