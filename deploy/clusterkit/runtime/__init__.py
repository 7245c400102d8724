"""What every worker and producer of a cluster imports, in any Celery app.

    from celery import Celery
    from clusterkit.runtime import configure

    app = configure(Celery("mycompany"))

is the whole change an app needs.
"""

from clusterkit.runtime.settings import configure

__all__ = ["configure"]
