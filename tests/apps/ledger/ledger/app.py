"""Numbered tasks that note in the result store when they begin and end, whatever becomes of their results."""

from __future__ import annotations

import json
import time

import celery
from celery import Celery

from clusterkit.runtime import configure, results

app = configure(Celery("ledger"))

#: Tests write another one, so that the release is another.
VERSION = "one"


@app.task(bind=True)
def work(task: celery.Task, run: str, number: int, seconds: float) -> str:
    """Take ``seconds``; note the beginning and the end under ``run``. Returns the version that ran it."""
    note(task, run, number, "begin")
    time.sleep(seconds)
    note(task, run, number, "end")
    return VERSION


@app.task(bind=True)
def again(task: celery.Task, run: str, number: int, countdown: float) -> str:
    """Fail the first time, to be tried again after ``countdown`` seconds."""
    note(task, run, number, "begin")
    if not task.request.retries:
        raise task.retry(countdown=countdown)
    note(task, run, number, "end")
    return VERSION


def note(task: celery.Task, run: str, number: int, what: str) -> None:
    """Append a line to the run's list."""
    with results.client(app.conf.clusterkit_cluster_file, patience=30) as store:
        line = [number, what, task.request.hostname, VERSION, time.time()]
        store.rpush(f"clusterkit:executions:{run}", json.dumps(line))


@app.task
def spare() -> str:
    """Return the version; a task that a release may lack."""
    return VERSION
