"""Tasks to try a cluster with: answer, wait, fail, crash, use memory."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import signal
import time
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue

from tasks.app import app
from tasks.checks import checked

MAX_ECHO_BYTES = 64 * 1024
MAX_SECONDS = 3600
MAX_MEBIBYTES = 4096
MEBIBYTE = 1024 * 1024


def _short(value: Any) -> Any:
    size = len(json.dumps(value))
    if size > MAX_ECHO_BYTES:
        message = f"should be at most {MAX_ECHO_BYTES} bytes of JSON (it is {size})"
        raise ValueError(message)
    return value


Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
ShortJson = Annotated[JsonValue, AfterValidator(_short)]


@app.task
@checked
def echo(value: ShortJson = None) -> JsonValue:
    """Return ``value``: any JSON of at most 64 KiB."""
    return value


@app.task
@checked
def sleep(seconds: Seconds) -> float:
    """Wait ``seconds`` (at most 3600), using no processor time; return them."""
    time.sleep(seconds)
    return seconds


@app.task
@checked
def fail(message: Annotated[str, Field(max_length=1000)] = "failed on request") -> None:
    """Fail with a ``RuntimeError`` that says ``message``; it is not retried."""
    raise RuntimeError(message)


@app.task
@checked
def crash(*, again: bool = False, force: bool = False) -> str:
    """Kill the process that runs this with SIGKILL, as the kernel does when memory runs out.

    The broker delivers the task again; then it completes and says so. With ``again`` it kills
    every time, until the queue's delivery limit moves it to the dead letters.

    Only a prefork pool's child dies alone. In any other pool the process is the whole worker
    node: that is refused with a ``RuntimeError`` unless ``force`` is true.
    """
    if crash.request.delivery_info and crash.request.delivery_info.get("redelivered") and not again:
        return "delivered again, so not killed again"
    if not (force or _in_pool_child()):
        message = (
            "crash refused: this process is a whole worker node, not a prefork pool's child; "
            "force=true kills it all the same"
        )
        raise RuntimeError(message)
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


@app.task
@checked
def allocate(
    mebibytes: Annotated[int, Field(ge=1, le=MAX_MEBIBYTES)],
    seconds: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 1.0,
) -> int:
    """Hold ``mebibytes`` (at most 4096) of resident memory for ``seconds`` (at most 600); return them."""
    block = bytearray(mebibytes * MEBIBYTE)
    # Untouched pages are promised, not used: write to each.
    pages = range(0, len(block), mmap.PAGESIZE)
    block[:: mmap.PAGESIZE] = b"\x01" * len(pages)
    time.sleep(seconds)
    return mebibytes


def _in_pool_child() -> bool:
    """Tell a prefork child from a worker node's main process."""
    return multiprocessing.current_process().name != "MainProcess"
