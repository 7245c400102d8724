"""The way to the result store: one server, or the master among several that Sentinel knows.

Celery's own backends lose results and waits when a master dies: a command outside of their retries fails
the task, a chord whose last part went to the dead master never calls back, a client that waits does not
hear what was stored before it has subscribed again (all Celery 5.7). Here every command goes to whoever is
the master and is repeated until it is answered; what is stored counts when a replica has it too.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import redis.exceptions
from celery import states
from celery.backends import redis as celery_redis
from celery.backends.asynchronous import greenletDrainer
from celery.utils.log import get_logger
from kombu.utils.encoding import bytes_to_str
from redis.backoff import ConstantBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection
from redis.retry import Retry
from redis.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from clusterkit.runtime.clusterfile import ClusterFile

logger = get_logger(__name__)

#: Seconds for which a person or a web request waits for a store that does not answer. A fail-over takes
#: about ten; without Sentinel it is a restart. Workers and schedulers wait as long as it takes.
PATIENCE: Final = 30.0
#: Seconds between two tries.
_PAUSE = 0.5
#: Seconds between two lines in the log about a store that does not answer.
_LOG_INTERVAL = 10.0
#: Seconds until a server that is gone without a word counts as gone: to connect, and to answer.
_CONNECT_TIMEOUT, _ANSWER_TIMEOUT = 3.0, 5.0
#: Connections a client may have: the most that the store takes from all.
_MOST_CONNECTIONS = 10_000
#: The same for a Sentinel; there is another one to ask.
_SENTINEL_TIMEOUT = 1.5
#: Milliseconds within which a replica has to confirm what was stored.
_CONFIRM_TIMEOUT = 2_000
#: Seconds after which a client that waits looks for its results itself, should a message have been lost.
_LOOK_INTERVAL = 10.0

#: A connection on which nothing comes is tried after 5 s, and given up after 15: seconds, seconds, times, ms.
_KEEPALIVE: Final[dict[int, int]] = {
    getattr(socket, name): value
    for name, value in {
        "TCP_KEEPIDLE": 5,
        "TCP_KEEPINTVL": 3,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 15_000,
    }.items()
    if hasattr(socket, name)
}
#: What a server answers that cannot take a write now and will be able to, or whose successor is.
_NOT_NOW: Final = re.compile(r"\b(NOREPLICAS|READONLY|MASTERDOWN|OOM) ")
_NOT_NOW_ERRORS: Final = (redis.exceptions.ReadOnlyError, redis.exceptions.OutOfMemoryError)
_AWAY: Final = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)


class NotNowError(redis.exceptions.ConnectionError):
    """The server is there and cannot do it now: it has no replica, no memory, or is no longer the master."""


class NotConfirmedError(redis.exceptions.ConnectionError):
    """No replica has what was stored: it would be gone with the master."""


@dataclass(frozen=True)
class Place:
    """A server or a Sentinel, from its URL."""

    host: str
    port: int
    username: str
    password: str
    database: int

    @classmethod
    def parse(cls, url: str) -> Place:
        """Return the place that ``url`` names."""
        parts = urlsplit(url)
        return cls(
            host=parts.hostname or "localhost",
            port=parts.port or 6379,
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=int(parts.path.strip("/") or 0),
        )


def places(cluster: ClusterFile) -> list[Place]:
    """Return the servers, or the Sentinels, of the cluster's result store."""
    return [Place.parse(url) for url in cluster.result_url.split(";")]


def describe(cluster: ClusterFile) -> str:
    """Return where the result store is, for messages: no password in it."""
    return ", ".join(f"{place.host}:{place.port}" for place in places(cluster))


class Patience(Retry):
    """redis-py's repeating of commands, for a time instead of a number of times.

    ``seconds`` is how long a command is repeated; None: as long as it takes.
    """

    def __init__(self, seconds: float | None) -> None:
        super().__init__(ConstantBackoff(_PAUSE), -1, _AWAY)
        self.seconds = seconds

    def call_with_retry(
        self, do: Callable[[], Any], fail: Callable[..., Any], *args: Any, **more: Any
    ) -> Any:
        """Return what ``do`` returns, as soon as it does.

        Raises:
            redis.exceptions.ConnectionError, redis.exceptions.TimeoutError: it did not within ``seconds``.
        """
        begin = told = time.monotonic()

        def failed(error: Exception, *count: int) -> None:
            nonlocal told
            fail(error, *count)
            now = time.monotonic()
            if self.seconds is not None and (
                now - begin >= self.seconds or isinstance(error, redis.exceptions.AuthenticationError)
            ):
                raise error
            if now - told >= _LOG_INTERVAL:
                told = now
                logger.warning("The result store has not answered for %.0f s: %s", now - begin, _brief(error))

        return super().call_with_retry(lambda: _translated(do), failed, *args, **more)


def _brief(error: Exception) -> str:
    """Return what an error says, without the whole state of each Sentinel's client that redis-py adds."""
    return str(error).partition(" : <")[0]


def _translated(do: Callable[[], Any]) -> Any:
    """Do it; raise what will pass as a connection's error: the next try then asks who is the master."""
    try:
        return do()
    except redis.exceptions.ResponseError as error:
        if isinstance(error, _NOT_NOW_ERRORS) or _NOT_NOW.search(str(error)):
            raise NotNowError(str(error)) from error
        raise


class _ToMaster:
    """Part of a connection that asks Sentinel for the master whenever it connects.

    redis-py 8.1 asks when it takes a connection from its pool; a command that is repeated on one would go
    to the dead master for ever.
    """

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        """Send a command."""
        self.connect()  # type: ignore[attr-defined]
        super().send_packed_command(command, check_health)  # type: ignore[misc]


class MasterConnection(_ToMaster, SentinelManagedConnection):
    """A connection to the master."""


class MasterSSLConnection(_ToMaster, SentinelManagedSSLConnection):
    """An encrypted connection to the master."""


def client(
    cluster: ClusterFile,
    *,
    patience: float | None,
    decode_responses: bool = False,
    timeout: float | None = None,
) -> redis.Redis:
    """Return a client of the cluster's result store; it connects when it is used.

    ``patience`` is for how many seconds a command is repeated (None: as long as it takes; 0: not at all),
    ``timeout`` for how many seconds a server may be silent.
    """
    found = places(cluster)
    options: dict[str, Any] = {
        "username": found[0].username,
        "password": found[0].password,
        "socket_connect_timeout": min(timeout or _CONNECT_TIMEOUT, _CONNECT_TIMEOUT),
        "socket_timeout": timeout or _ANSWER_TIMEOUT,
        "socket_keepalive": True,
        "socket_keepalive_options": _KEEPALIVE,
        # Nothing of version 3 is needed, and with it redis-py asks for more than roles may.
        "protocol": 2,
        # Redis 7.0 knows no permission for the command that would tell it.
        "driver_info": None,
    }
    if hasattr(redis, "DriverInfo"):
        # Redis 7.0 does not know the command by which a client would tell its version.
        options["driver_info"] = None
    if cluster.ca_file:
        # Certificates name the servers' addresses too, and a Sentinel tells nothing else.
        options |= {"ssl_ca_certs": cluster.ca_file, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
    own: dict[str, Any] = {
        # Greenlets share a client, and each of them may be storing a result; redis-py's limit is 100.
        "max_connections": _MOST_CONNECTIONS,
        "db": found[0].database,
        "decode_responses": decode_responses,
        "retry": Patience(patience),
    }
    if cluster.result_master:
        return redis.Redis(connection_pool=_pool_of_master(cluster, found, options, own))
    return redis.Redis(
        connection_pool=ConnectionPool(
            connection_class=SSLConnection if cluster.ca_file else Connection,
            host=found[0].host,
            port=found[0].port,
            **options,
            **own,
        )
    )


def _pool_of_master(
    cluster: ClusterFile, found: list[Place], options: dict[str, Any], own: dict[str, Any]
) -> ConnectionPool:
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        [(place.host, place.port) for place in found],
        sentinel_kwargs={
            **options,
            "ssl": bool(cluster.ca_file),
            "socket_connect_timeout": min(options["socket_connect_timeout"], _SENTINEL_TIMEOUT),
            "socket_timeout": min(options["socket_timeout"], _SENTINEL_TIMEOUT),
            "retry": Patience(0),
        },
    )
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        cluster.result_master,
        sentinels,
        connection_class=MasterSSLConnection if cluster.ca_file else MasterConnection,
        **options,
        **own,
    )


def ping(cluster: ClusterFile, timeout: float) -> None:
    """Ask the result store whether it is there; ``timeout`` is in seconds, and longer for a fail-over.

    Raises:
        redis.exceptions.RedisError: it did not answer, or refused the credentials.
    """
    patience = max(timeout, PATIENCE) if cluster.result_master else 0
    store = client(cluster, patience=patience, timeout=timeout)
    try:
        store.ping()
    finally:
        store.close()


def master(cluster: ClusterFile) -> tuple[str, int]:
    """Return address and port of the master of a replicated result store, as Sentinel knows it.

    Raises:
        redis.exceptions.RedisError: no Sentinel answers, or none knows a master.
    """
    pool: Any = client(cluster, patience=PATIENCE).connection_pool
    address, port = pool.sentinel_manager.discover_master(cluster.result_master)
    return str(address), int(port)


def store_settings(cluster: ClusterFile) -> dict[str, Any]:
    """Return Celery's settings for the cluster's result store."""
    # Settings are printed and asked for: the password is in the cluster file alone.
    addresses = ";".join(f"redis://{place.host}:{place.port}/{place.database}" for place in places(cluster))
    return {
        "result_backend": f"{__name__}:Backend+{addresses}",
        "redbeat_redis_url": addresses,
        "clusterkit_cluster_file": cluster,
    }


def attach(app: Celery, cluster: ClusterFile) -> None:
    """Point ``app`` at the cluster's result store, and its schedule as well."""
    app.conf.update(store_settings(cluster))
    # RedBeat 2.4 keeps its client in this attribute. One that it makes for Sentinel itself would connect
    # anew, with a handshake, for every entry of the schedule, and give up when a master dies.
    app.redbeat_redis = client(cluster, patience=_patience(cluster), decode_responses=True)


def _patience(cluster: ClusterFile) -> float | None:
    return None if cluster.may_wait_for_broker else PATIENCE


class ResultConsumer(celery_redis.ResultConsumer):
    """Waits for results, through a fail-over too.

    Whatever happens to the connection, the wait goes on until its own timeout: all results waited for are
    looked up when the store is back, and every few seconds besides.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._lost_since: float | None = None
        self._looked = time.monotonic()

    def start(self, initial_task_id: str, **_: Any) -> None:
        """Subscribe to the first result."""
        with self._locked():
            self._pubsub = self._new_pubsub()
            self._consume_from(initial_task_id)

    def consume_from(self, task_id: str) -> None:
        """Subscribe to a result; without the store, when it is back: nobody who submits waits for that."""
        with self._locked():
            if self._lost_since is None:
                super().consume_from(task_id)
                return
            key = self._get_key_for_task(task_id)
            self._pending_unsubscribe.discard(key)
            self.subscribed_to.add(key)

    def on_wait_for_pending(self, result: Any, **more: Any) -> None:
        """Look up what is there already; without the store, when it is back."""
        if self._lost_since is None:
            try:
                super().on_wait_for_pending(result, **more)
            except self._connection_errors as error:
                self._lose(error)

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for messages, for ``timeout`` seconds; while the store is away, for it.

        Raises:
            redis.exceptions.ConnectionError: it has been away for longer than this role waits.
        """
        if self._lost_since is not None and not self._recovered():
            time.sleep(min(timeout or 1.0, 1.0))
            return
        super().drain_events(timeout)
        if time.monotonic() - self._looked >= _LOOK_INTERVAL:
            with self._locked(), self.reconnect_on_error():
                self._look()

    def _reconnect(self) -> None:
        """Note that the connection is lost: called by Celery, with the error at hand."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        with self._locked():
            if self._lost_since is None:
                self._lost_since = time.monotonic()
                logger.info(
                    "The connection to the result store is lost: %s",
                    _brief(error) if error else "it was closed",
                )
            if self._pubsub is not None:
                with contextlib.suppress(*_AWAY, redis.exceptions.RedisError):
                    self._pubsub.close()
            self._pubsub = None

    def _recovered(self) -> bool:
        """Try once to subscribe again, and look up what came in between; tell whether it worked.

        Raises:
            redis.exceptions.ConnectionError: the store has been away for longer than this role waits.
        """
        with self._locked():
            if self._lost_since is None:  # another thread was first
                return True
            try:
                self.subscribed_to -= self._pending_unsubscribe
                self._pending_unsubscribe.clear()
                pubsub = self._new_pubsub()
                if self.subscribed_to:
                    pubsub.subscribe(*self.subscribed_to)
                self._pubsub = pubsub
                # After subscribing: what is stored from now on is told, what was before is found.
                self._look()
            except self._connection_errors as error:
                away = time.monotonic() - self._lost_since
                self._lose(error)
                patience = self.backend.patience
                # In gevent and eventlet one drainer serves all waits, and an error ends it for good.
                alone = not isinstance(self.drainer, greenletDrainer)
                if alone and patience is not None and away >= patience:
                    self._lost_since = time.monotonic()  # whoever waits again has patience again
                    raise redis.exceptions.ConnectionError(
                        f"the result store has not answered for {away:.0f} s: {_brief(error)}"
                    ) from error
                return False
            self._lost_since = None
            return True

    def _new_pubsub(self) -> Any:
        return self.backend.hasty_client.pubsub(ignore_subscribe_messages=True)

    def _look(self) -> None:
        """Look up every result that is waited for."""
        self._looked = time.monotonic()
        if self.subscribed_to:
            for meta in self.backend.hasty_client.mget(list(self.subscribed_to)):
                if meta:
                    self.on_state_change(self._decode_result(meta), None)


class Backend(celery_redis.SentinelBackend):
    """Celery's result backend on the cluster's result store.

    ``client`` repeats a command for as long as the role waits; ``hasty_client`` never does, for those who
    have to know at once that a connection was lost.
    """

    ResultConsumer = ResultConsumer

    @cached_property
    def _cluster(self) -> ClusterFile:
        cluster: ClusterFile = self.app.conf.clusterkit_cluster_file
        return cluster

    @cached_property
    def patience(self) -> float | None:
        """For how many seconds this role waits for the store; None: as long as it takes."""
        return _patience(self._cluster)

    @cached_property
    def hasty_client(self) -> redis.Redis:
        """A client whose commands fail at once when they fail."""
        return client(self._cluster, patience=0)

    def _create_client(self, **_: Any) -> redis.Redis:
        return client(self._cluster, patience=self.patience)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to the result of a task that is about to be sent, unless there are too many of them."""
        if getattr(producer, "subscribes", True):
            super().on_task_call(producer, task_id)

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Whether Celery shall repeat what failed: no, the client has."""
        del exc
        return False

    def ensure(self, fun: Callable[..., Any], args: tuple[Any, ...], **_: Any) -> Any:
        """Call ``fun`` until it does what it should, for as long as this role waits."""
        return Patience(self.patience).call_with_retry(lambda: fun(*args), lambda *_: None)

    def mget(self, keys: list[Any]) -> Any:
        """Return the values of ``keys``; only those who wait for results ask, and they go on without."""
        return self.hasty_client.mget(keys)

    def _store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **more: Any
    ) -> Any:
        """Store a result. Celery looks first whether a success is there, which nothing must replace.

        Another success may, so it needs no look: one answer of the store less for each task.
        """
        if state != states.SUCCESS:
            return super()._store_result(task_id, result, state, traceback, request, **more)
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = bytes_to_str(task_id)
        self._set_with_state(self.get_key_for_task(task_id), self.encode(meta), state)
        return result

    def _set(self, key: Any, value: Any, expires: int | None = None, channel: Any = None) -> None:
        with self.client.pipeline(transaction=False) as commands:
            commands.set(key, value, ex=(self.expires if expires is None else expires) or None)
            self._confirm(commands)
            # Told when it is safe: what a client has seen, it will find again.
            commands.publish(channel or key, value)
            self._confirmed(commands.execute()[1:])

    def tell(self, task_id: str, result: str, channel: str) -> None:
        """Store the result of a task, JSON already, and tell it on ``channel`` instead of its own."""
        meta = f'{{"status": "SUCCESS", "task_id": "{task_id}", "result": {result}}}'
        self.ensure(self._set, (self.get_key_for_task(task_id), meta, None, channel))

    def claim(self, key: str, as_what: bytes, task_id: str, channel: str) -> bool:
        """Have a task be ``as_what`` unless it is something else already; tell ``channel`` that it begins."""
        return bool(self.ensure(self._claim, (key, as_what, task_id, channel)))

    def _claim(self, key: str, as_what: bytes, task_id: str, channel: str) -> bool:
        with self.client.pipeline(transaction=False) as commands:
            commands.set(key, as_what, nx=True, ex=self.expires or None)
            commands.get(key)
            if channel:
                commands.publish(channel, f'{{"status": "STARTED", "task_id": "{task_id}"}}')
            return bool(commands.execute()[1] == as_what)

    def _set_chord_key(self, key: Any, value: Any) -> None:
        self.ensure(self._store, (key, value))

    def _store(self, key: Any, value: Any) -> None:
        with self.client.pipeline(transaction=False) as commands:
            commands.set(key, value, ex=self.chord_expires or None)
            self._confirm(commands)
            self._confirmed(commands.execute()[1:])

    def _confirm(self, commands: Any) -> None:
        """Let the server wait until a replica has what was stored on this connection."""
        if self._cluster.result_master:
            commands.wait(1, _CONFIRM_TIMEOUT)

    def _confirmed(self, answers: list[Any]) -> None:
        if self._cluster.result_master and not answers[0]:
            raise NotConfirmedError("no replica of the result store has confirmed a write")

    @cached_property
    def _chord_part_return_script(self) -> Callable[..., Any]:
        return self._count_chord_part

    def _count_chord_part(self, keys: list[Any], args: list[Any], **_: Any) -> list[Any]:
        """Count a part of a chord; the last of what is returned is 1 for the part that calls back.

        When the master dies after the script and before its answer, the script runs again and finds the
        callback claimed, by itself: nobody would call back.
        """
        answer: list[Any] = self.ensure(self._run_chord_script, (keys, args))
        ready, more, size, claimed = answer
        complete = size and ready == int(size) + int(more or 0)
        if complete and not claimed and self.client.get(keys[5]) == str(args[7]).encode():
            claimed = 1
        return [ready, more, size, claimed]

    def _run_chord_script(self, keys: list[Any], args: list[Any]) -> Any:
        with self.client.pipeline(transaction=False) as commands:
            # As a text, not by its hash: a new master has not seen it yet.
            commands.eval(celery_redis.CHORD_PART_RETURN_LUA, len(keys), *keys, *args)
            self._confirm(commands)
            answer, *confirmed = commands.execute()
        self._confirmed(confirmed)
        return answer
