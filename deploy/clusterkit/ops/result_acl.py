"""Who may do what at the result store: data for the role ``valkey`` and for the reference document.

The rules are those of Valkey's and Redis's ACL (``ACL SETUSER``). A pair of parentheses is a selector: its
commands are allowed on its own keys and channels alone, whatever else the user may do elsewhere.
``tests/unit/runtime/test_results.py`` tries both sides of each against a server, with Celery's own client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ResultRole = Literal["operator", "worker", "producer", "scheduler", "replication", "sentinel"]

#: What a task returned, its state, and the channel on which that is told.
_RESULTS: Final = "celery-task-meta-*"
#: A saved group, and what a chord has counted so far.
_GROUPS: Final = "celery-taskset-meta-*"
_SCHEDULE: Final = "clusterkit:redbeat:*"
#: Reserved for what workers note down of the tasks they ran.
_EXECUTIONS: Final = "clusterkit:executions:*"

_CONNECTION: Final = "+ping +client|setname"
_TRANSACTION: Final = "+multi +exec +discard"
_WAITING: Final = "+subscribe +unsubscribe"
#: What redis-py asks Sentinel to find the master, and what people ask for.
_FIND_MASTER: Final = f"{_CONNECTION} +sentinel|masters +sentinel|get-master-addr-by-name"

#: Waits for results, forgets them, sends groups and chords; stores no result itself.
_CLIENT: Final = (
    f"{_CONNECTION} {_TRANSACTION} +wait"
    f" ~{_RESULTS} &{_RESULTS} +get +mget +exists +del {_WAITING}"
    f" (~{_GROUPS} &{_GROUPS} +get +mget +exists +set +setex +del +expire +publish)"
)


@dataclass(frozen=True)
class ResultRights:
    """The rights of one user, at the servers and at the Sentinels ("": not known there)."""

    role: ResultRole
    purpose: str
    rules: str
    sentinel: str = ""

    def to_ansible(self) -> dict[str, str]:
        """Return an item of the role's variable ``valkey_users``."""
        return {"name": self.role, "rules": self.rules, "sentinel_rules": self.sentinel}


#: The user `default`, as whom a connection starts, is switched off besides: nobody can be it. It keeps all
#: rights, for as `default` a server reads its own file when it starts; without rights it skips every
#: transaction and script in it, without a word (Redis 7.0, Valkey 8.1): chords and schedule would be gone.
RESULT_MATRIX: Final[tuple[ResultRights, ...]] = (
    ResultRights(
        "operator",
        "The person who runs the cluster, and the deployment itself",
        "~* &* +@all",
        "~* &* +@all",
    ),
    ResultRights(
        "worker",
        "Stores what tasks returned, counts chords, waits for results; keeps a note of executions",
        f"{_CONNECTION} {_TRANSACTION} +wait {_WAITING} +publish"
        f" ~{_RESULTS} ~{_GROUPS} ~{_EXECUTIONS} &{_RESULTS} &{_GROUPS}"
        " +get +mget +exists +set +setex +del +expire +incrby"
        " +sadd +sismember +zadd +zcount +zrange +rpush +llen +lrange"
        " +eval +evalsha +script|load +script|exists",
        _FIND_MASTER,
    ),
    ResultRights(
        "producer",
        "Waits for results and forgets them, sends groups and chords; cannot store a result",
        _CLIENT,
        _FIND_MASTER,
    ),
    ResultRights(
        "scheduler",
        "What a producer may, and the schedule with its lock",
        f"{_CLIENT} +script|load +script|exists"
        f" (~{_SCHEDULE} +get +set +del +exists +pttl +pexpire +hget +hset +hsetnx +sadd +srem +smembers"
        " +zadd +zrem +zrank +zscore +zrangebyscore +eval +evalsha)",
        _FIND_MASTER,
    ),
    ResultRights(
        "replication",
        "A replica, at its master",
        "+ping +psync +replconf",
    ),
    ResultRights(
        "sentinel",
        "A Sentinel, at the servers and at the other Sentinels",
        "&__sentinel__:hello +ping +info +role +multi +exec +publish +subscribe +slaveof +replicaof"
        " +config|rewrite +client|setname +client|kill +script|kill",
        "&__sentinel__:hello +ping +publish +client|setname +sentinel|is-master-down-by-addr",
    ),
)
