"""The default Celery app: what a cluster runs until it is given another one."""
