"""Results through the kit's backend, against real servers: each role's rights, and the death of a master."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis.exceptions
from celery import Celery, chord, group
from celery.contrib.testing.worker import start_worker
from celery.result import AsyncResult
from redbeat import RedBeatScheduler
from redbeat.schedulers import acquire_distributed_beat_lock, get_redis

from clusterkit.ops.result_acl import RESULT_MATRIX
from clusterkit.runtime import results
from clusterkit.runtime.clusterfile import ClusterFile

ROOT = Path(__file__).parents[3]
PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")
PASSWORD = "a-password-for-all"
#: As the role writes it.
DEFAULT_USER = (ROOT / "ansible/roles/valkey/templates/users.acl.j2").read_text().splitlines()[0]
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")

needs_server = pytest.mark.skipif(not PROGRAM, reason="no valkey-server or redis-server is installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(redis.exceptions.RedisError, OSError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


@dataclass
class Store:
    """Servers, and their Sentinels when there are several, with the kit's users and one password for all."""

    home: Path
    replicated: bool
    port: int = field(default_factory=free_port)
    sentinel_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[str, ...]:
        return ADDRESSES if self.replicated else ADDRESSES[:1]

    def start(self) -> None:
        for address in self.addresses:
            self.start_server(address)
        for address in self.addresses if self.replicated else ():
            self.run(f"sentinel-{address}", address, self.sentinel_port, self.sentinel_settings(address))
        if self.replicated:
            wait_until("the master has replicas", lambda: self.replicas() == 2)
            wait_until("the Sentinels know each other", self.sentinels_complete)
        else:
            wait_until("the server answers", lambda: self.admin(self.addresses[0]).ping())

    def start_server(self, address: str) -> None:
        settings = ["save ''", f"appendonly {'no' if self.replicated else 'yes'}"]
        if self.replicated:
            settings += [
                f"replica-announce-ip {address}",
                "masteruser replication",
                f"masterauth {PASSWORD}",
                "min-replicas-to-write 1",
                "min-replicas-max-lag 2",
                "repl-diskless-sync-delay 0",
            ]
            if address != ADDRESSES[0]:
                settings.append(f"replicaof {ADDRESSES[0]} {self.port}")
        self.run(address, address, self.port, settings)

    def sentinel_settings(self, address: str) -> list[str]:
        return [
            f"sentinel announce-ip {address}",
            f"sentinel monitor results {ADDRESSES[0]} {self.port} 2",
            *(f"sentinel known-replica results {other} {self.port}" for other in ADDRESSES[1:]),
            "sentinel auth-user results sentinel",
            f"sentinel auth-pass results {PASSWORD}",
            "sentinel sentinel-user sentinel",
            f"sentinel sentinel-pass {PASSWORD}",
            "sentinel down-after-milliseconds results 1000",
            "sentinel failover-timeout results 4000",
        ]

    def run(self, name: str, address: str, port: int, settings: list[str]) -> None:
        directory = self.home / name
        directory.mkdir(exist_ok=True)
        sentinel = name.startswith("sentinel")
        rules = [(one.role, one.sentinel if sentinel else one.rules) for one in RESULT_MATRIX]
        users = [f"user {role} on >{PASSWORD} resetchannels -@all {rule}" for role, rule in rules if rule]
        (directory / "users.acl").write_text("\n".join([DEFAULT_USER, *users, ""]))
        configuration = directory / "server.conf"
        common = [f"bind {address}", f"port {port}", f"dir {directory}", f"aclfile {directory}/users.acl"]
        configuration.write_text("\n".join([*common, *settings, ""]))
        command = [str(PROGRAM), str(configuration), *(["--sentinel"] if sentinel else [])]
        with (directory / "log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()

    def admin(self, address: str, port: int = 0, user: str = "operator", **more: Any) -> Any:
        options: dict[str, Any] = {"username": user, "password": PASSWORD, "socket_timeout": 2, **more}
        return redis.Redis(address, port or self.port, decode_responses=True, **options)

    def sentinels_complete(self) -> bool:
        found = [
            self.admin(address, self.sentinel_port).sentinel_sentinels("results") for address in ADDRESSES
        ]
        return all(len(others) == 2 for others in found)

    def master(self) -> str:
        sentinel: Any = self.admin(ADDRESSES[2], self.sentinel_port)
        return str(sentinel.sentinel_get_master_addr_by_name("results")[0])

    def replicas(self) -> int:
        info: Any = self.admin(self.master()).info("replication")
        return int(info["connected_slaves"])

    def file(self, role: str, password: str = PASSWORD) -> ClusterFile:
        scheme, port = ("sentinel", self.sentinel_port) if self.replicated else ("redis", self.port)
        return cluster_file(
            role,
            result_url=";".join(f"{scheme}://{role}:{password}@{a}:{port}/0" for a in self.addresses),
            result_master="results" if self.replicated else "",
        )

    def app(self, role: str) -> Celery:
        """A Celery app of ``role``; those of one test share a broker in memory."""
        app = Celery("unit", broker="memory://", set_as_current=False)
        app.conf.update(
            result_extended=True,
            result_backend_always_retry=True,
            redbeat_key_prefix="clusterkit:redbeat:",
            redbeat_lock_timeout=30,
            beat_schedule={"sum": {"task": "add", "schedule": 1.0, "args": (1, 2)}},
        )
        results.attach(app, self.file(role))
        app.task(name="add")(add)
        app.task(name="total")(total)
        return app


def add(first: int, second: int) -> int:
    return first + second


def total(numbers: list[int]) -> int:
    return sum(numbers)


def cluster_file(role: str = "producer", **more: Any) -> ClusterFile:
    given: dict[str, Any] = {
        "cluster": "unit",
        "role": role,
        "broker_url": "memory://",
        "result_url": f"redis://{role}:{PASSWORD}@127.0.0.1:1/0",
        "queues": ("default",),
        "default_queue": "default",
        "celery_app": "unit:app",
        **more,
    }
    return ClusterFile(**given)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return one server."""
    running = Store(tmp_path_factory.mktemp("store"), replicated=False)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Store]:
    """Return three servers with three Sentinels."""
    running = Store(tmp_path, replicated=True)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for long."""
    monkeypatch.setattr(results, "PATIENCE", 1.0)


# What needs no server.


def test_no_setting_has_the_password() -> None:
    settings = results.store_settings(
        cluster_file(result_url="sentinel://u:secret@a:1/0;sentinel://u:secret@b:1/0")
    )
    assert settings["result_backend"] == "clusterkit.runtime.results:Backend+redis://a:1/0;redis://b:1/0"
    assert "secret" not in repr(settings)


def test_a_password_with_signs_is_read_from_its_url() -> None:
    place = results.Place.parse("rediss://worker:a%2Fb%40c@10.0.0.1:6379/2")
    assert (place.username, place.password, place.port, place.database) == ("worker", "a/b@c", 6379, 2)


def test_patience_ends_after_its_time_with_the_last_error() -> None:
    begin = time.monotonic()
    with pytest.raises(redis.exceptions.ConnectionError, match="away"):
        results.Patience(0.7).call_with_retry(raising(redis.exceptions.ConnectionError("away")), ignore)
    assert 0.5 <= time.monotonic() - begin < 3


def test_without_an_end_patience_goes_on_until_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redis.retry.sleep", ignore)
    errors = [redis.exceptions.ResponseError("NOREPLICAS Not enough good replicas to write.")] * 2_000

    def do() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert results.Patience(None).call_with_retry(do, ignore) == "done"


@pytest.mark.parametrize(
    "error",
    [redis.exceptions.AuthenticationError("WRONGPASS"), redis.exceptions.NoPermissionError("no permission")],
)
def test_what_waiting_does_not_help_fails_at_once(error: Exception) -> None:
    begin = time.monotonic()
    with pytest.raises(type(error)):
        results.Patience(20).call_with_retry(raising(error), ignore)
    assert time.monotonic() - begin < 1


def test_submitting_does_not_wait_for_the_store_and_waiting_ends_with_a_reason(impatient: None) -> None:
    app = Celery("unit", broker="memory://", set_as_current=False)
    results.attach(app, cluster_file(result_url=f"redis://producer:x@127.0.0.1:{free_port()}/0"))
    begin = time.monotonic()
    result = app.send_task("add", (1, 2))
    assert time.monotonic() - begin < 1
    with pytest.raises(redis.exceptions.ConnectionError, match="has not answered"):
        result.get(timeout=30)
    assert time.monotonic() - begin < 10


def run(client: Any, *words: Any) -> Any:
    return client.execute_command(*words)


def raising(error: Exception) -> Callable[[], Any]:
    def do() -> Any:
        raise error

    return do


def ignore(*_: Any) -> None:
    return None


# Rights.


@needs_server
def test_worker_and_producer_can_do_their_work(store: Store) -> None:
    worker, producer = store.app("worker"), store.app("producer")
    adding, totalling = producer.signature("add"), producer.signature("total")
    with start_worker(worker, pool="solo", perform_ping_check=False):
        assert producer.send_task("add", (1, 2)).get(timeout=10) == 3
        grouped = group(adding.clone((i, i)) for i in range(5)).apply_async()
        assert grouped.get(timeout=10) == [0, 2, 4, 6, 8]
        assert (
            chord([adding.clone((i, 1)) for i in range(3)], totalling.clone(), app=producer)
            .apply_async()
            .get(timeout=10)
            == 6
        )
        complex_header = chord(
            [group(adding.clone((1, 1)), adding.clone((2, 2)))], totalling.clone(), app=producer
        )
        complex_header.apply_async()
        grouped.save()
        restored = producer.GroupResult.restore(grouped.id)
        assert restored.join_native(timeout=10) == [0, 2, 4, 6, 8]
        restored.forget()
        restored.delete()
        assert producer.GroupResult.restore(grouped.id) is None
        assert AsyncResult(grouped.results[0].id, app=producer).state == "PENDING"


@needs_server
def test_a_scheduler_keeps_its_schedule_and_its_lock(store: Store) -> None:
    app = store.app("scheduler")
    assert get_redis(app) is app.redbeat_redis
    scheduler = RedBeatScheduler(app=app, lazy=True)
    scheduler.setup_schedule()
    acquire_distributed_beat_lock(sender=SimpleNamespace(scheduler=scheduler))
    assert scheduler.lock.owned()
    assert scheduler.tick() > 0
    assert set(scheduler.schedule) <= {"sum"}
    app.conf.beat_schedule = {}
    app.redbeat_conf.schedule = {}
    scheduler.setup_schedule()  # removes what is no longer there
    scheduler.close()


#: What each role is refused, besides all that is not listed for it.
REFUSED: dict[str, list[tuple[Any, ...]]] = {
    "producer": [
        ("SET", "celery-task-meta-x", "forged"),
        ("PUBLISH", "celery-task-meta-x", "forged"),
        ("EVAL", "return 1", 0),
        ("ZADD", "clusterkit:redbeat::schedule", 1, "x"),
        ("GET", "clusterkit:redbeat:x"),
        ("SET", "clusterkit:executions:x", 1),
    ],
    "worker": [("HSET", "clusterkit:redbeat:x", "definition", "{}"), ("GET", "clusterkit:redbeat:x")],
    "scheduler": [
        ("SET", "celery-task-meta-x", "forged"),
        ("PUBLISH", "celery-task-meta-x", "forged"),
        ("SET", "clusterkit:executions:x", 1),
    ],
    "replication": [("GET", "celery-task-meta-x"), ("SUBSCRIBE", "celery-task-meta-x")],
    "sentinel": [
        ("GET", "celery-task-meta-x"),
        ("PUBLISH", "celery-task-meta-x", "forged"),
        ("CONFIG", "GET", "*"),
    ],
}
FOR_NOBODY: list[tuple[Any, ...]] = [
    ("GET", "another-key"),
    ("KEYS", "*"),
    ("SCAN", 0),
    ("FLUSHALL",),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("ACL", "LIST"),
    ("SHUTDOWN",),
    ("MONITOR",),
    ("PSUBSCRIBE", "*"),
]
ACTS = [(role, act) for role, acts in REFUSED.items() for act in acts + FOR_NOBODY]


@needs_server
@pytest.mark.parametrize(
    ("role", "act"), ACTS, ids=[f"{role}: {' '.join(map(str, act))}" for role, act in ACTS]
)
def test_a_role_is_refused_what_is_not_its_work(store: Store, role: str, act: tuple[Any, ...]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        run(store.admin(store.addresses[0], user=role), *act)


@needs_server
def test_a_server_that_starts_again_has_its_transactions_and_scripts(tmp_path: Path) -> None:
    store = Store(tmp_path, replicated=False)
    store.start()
    try:
        worker = store.admin(ADDRESSES[0], user="worker")
        worker.pipeline(transaction=True).set("celery-task-meta-1", 1).set("celery-task-meta-2", 2).execute()
        script = "redis.call('SET', KEYS[1], 3) redis.call('SET', KEYS[2], 4)"
        run(worker, "EVAL", script, 2, "celery-taskset-meta-3", "celery-taskset-meta-4")
        with contextlib.suppress(redis.exceptions.ConnectionError):
            store.admin(ADDRESSES[0]).shutdown()
        store.processes[ADDRESSES[0]].wait()
        store.start()
        assert store.admin(ADDRESSES[0]).dbsize() == 4
    finally:
        store.stop()


@needs_server
def test_without_a_login_nothing_works(store: Store) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        store.admin(store.addresses[0], username=None, password=None).ping()


@needs_server
def test_ping_tells_a_wrong_password_at_once(store: Store) -> None:
    results.ping(store.file("producer"), timeout=5)
    with pytest.raises(redis.exceptions.AuthenticationError):
        results.ping(store.file("producer", password="wrong"), timeout=5)


# Several servers.


@needs_server
def test_a_master_dies_and_nothing_is_lost_and_who_waits_gets_the_result(cluster: Store) -> None:
    worker, producer = cluster.app("worker"), cluster.app("producer")
    waited_for = producer.send_task("add", (20, 22))
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(waited_for.get(timeout=40)), daemon=True)
    waiting.start()
    for number in range(50):
        worker.backend.store_result(f"before-{number}", number, "SUCCESS")
    cluster.processes[cluster.master()].kill()
    # Each of these waits for a master; the first, until the Sentinels have chosen one.
    for number in range(50):
        worker.backend.store_result(f"after-{number}", number, "SUCCESS")
    worker.backend.store_result(waited_for.id, 42, "SUCCESS")
    waiting.join(timeout=40)
    assert got == [42]
    assert cluster.master() != ADDRESSES[0]
    stored = [
        AsyncResult(f"{when}-{i}", app=producer).result for when in ("before", "after") for i in range(50)
    ]
    assert stored == [*range(50), *range(50)]


@needs_server
def test_clients_may_find_the_master_and_not_choose_it(cluster: Store) -> None:
    for role in ("worker", "producer", "scheduler"):
        sentinel = cluster.admin(ADDRESSES[1], cluster.sentinel_port, user=role)
        assert "results" in sentinel.sentinel_masters()
        for act in ("SENTINEL FAILOVER results", "SENTINEL REMOVE results", "SENTINEL SET results quorum 1"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                run(sentinel, *act.split())


@needs_server
def test_a_master_without_replicas_stores_nothing(cluster: Store, impatient: None) -> None:
    for address in ADDRESSES[1:]:
        cluster.processes[address].kill()
    backend = cluster.app("producer").backend
    with pytest.raises(redis.exceptions.ConnectionError, match=r"NOREPLICAS|no replica"):
        backend.ensure(backend._set_chord_key, ("celery-taskset-meta-x.s", 3))


@needs_server
def test_the_last_part_of_a_chord_calls_back_although_the_first_answer_was_lost(cluster: Store) -> None:
    backend = cluster.app("worker").backend
    backend.set_chord_size("chord", 1)
    keys = [backend.get_key_for_group("chord", end) for end in (".j", ".t", ".s", ".d", "", ".c")]
    arguments = ["task", "[1, 2, 3]", 1, 0, 60, 60, 60, "the-token"]
    lost = backend._count_chord_part(keys, arguments)
    again = backend._count_chord_part(keys, arguments)
    assert (lost[0], lost[3]) == (again[0], again[3]) == (1, 1)
    another = backend._count_chord_part(keys, [*arguments[:-1], "another-worker's-token"])
    assert another[3] == 0
