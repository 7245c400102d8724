"""A worker's app that calls what CPython's own tests of concurrent.futures call."""

from __future__ import annotations

import cpython_tests
from celery import Celery

from clusterkit.runtime import configure

cpython_tests.find()
app = Celery("calls")
app.conf.clusterkit_callables = ["builtins", "time", "test"]
configure(app)
