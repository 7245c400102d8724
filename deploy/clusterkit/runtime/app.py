"""A bare Celery app of the cluster, for Flower and the operator's command.

Neither needs the user's code: a release that cannot be imported must not take the monitoring with it.
"""

from __future__ import annotations

from celery import Celery

from clusterkit.runtime import configure

app = configure(Celery("clusterkit"))
