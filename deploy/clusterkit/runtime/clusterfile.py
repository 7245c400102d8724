"""The file that tells a process which cluster it belongs to and who it is there.

``make cluster-up`` writes one per role (worker, scheduler, flower, producer), mode 0600, each with
that role's own credentials. Every process of the kit finds its file through ``$CLUSTERKIT_CONFIG``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clusterkit.runtime.errors import BadInputError, NoClusterError

#: Names the cluster file of a process, as an absolute path.
CONFIG_VARIABLE = "CLUSTERKIT_CONFIG"
#: The cluster that is meant when none is named.
DEFAULT_CLUSTER = "local"
#: Where the clusters' files are on the control machine, below the checkout.
STATE_DIRECTORY = ".cluster"


@dataclass(frozen=True)
class ClusterFile:
    """One role's view of a cluster.

    ``broker_url`` has an URL per broker address, with ``;`` between them; so has ``result_url``, whose
    scheme is ``sentinel`` where the result store is replicated: then ``result_master`` is what Sentinel
    calls it. ``ca_file`` is the absolute path of the certificate authority; without one nothing is
    encrypted. ``broker_name`` is the name in the brokers' certificates; the result store's are checked
    against its addresses.
    ``tasks`` maps the task names of the deployed release to their queues (None: the default queue).
    ``result_expires`` is in seconds. ``stock`` is for comparison alone: Celery's own defaults, which
    lose tasks.
    """

    cluster: str
    role: str
    broker_url: str = field(repr=False)
    result_url: str = field(repr=False)
    queues: tuple[str, ...]
    default_queue: str
    celery_app: str
    ca_file: str = ""
    broker_name: str = ""
    result_master: str = ""
    result_expires: int = 86_400
    stock: bool = False
    tasks: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> ClusterFile:
        """Read the file at ``path``.

        Raises:
            NoClusterError: there is no such file.
            BadInputError: the file is not what ``make cluster-up`` writes.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{**content, "queues": tuple(content["queues"])})
        except FileNotFoundError as error:
            raise NoClusterError(
                f"{path}: there is no such cluster file", next_step="make cluster-up writes it"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise BadInputError(
                f"{path}: not a cluster file of this version: {error}",
                next_step="make cluster-up writes it anew",
            ) from error

    @property
    def may_wait_for_broker(self) -> bool:
        """Whether a publish of this role waits as long as it takes.

        What a worker or a scheduler has to say (a chord's callback, a retry, a due task) would be
        lost if it gave up, so these wait; their own time limits bound them. A person or a web
        request behind a producer wants an answer instead.
        """
        return self.role in {"worker", "scheduler"}
