"""Each user of the broker can do its work, and is refused the rest: run against a private RabbitMQ node."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp
import pytest
from celery import Celery, chord
from celery.result import AsyncResult

from clusterkit.ops.inventory import load
from clusterkit.ops.secrets import ROLES, ensure
from clusterkit.ops.topology import DELAY_BITS, definitions, matrix
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.settings import configure, join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clusterkit.ops.inventory import Cluster
    from clusterkit.ops.secrets import Role, Secrets

ROOT = Path(__file__).parents[2]
RABBITMQ = Path("/usr/lib/rabbitmq/bin")
NODE = "permissions@localhost"
WITH_POLICY = {"default", "cpu", "idle", "celery.dead"}
#: Seconds a node, a worker or a task gets on a slow, busy machine.
PATIENCE = 60.0

HOSTS = "\n".join(
    f"{group}: {{hosts: {{here: {{ansible_connection: local}}}}}}"
    for group in ("brokers", "results", "workers", "schedulers", "monitors")
)
SETTINGS = """
celery_app: app:app
service_backend: supervisor
queues: {default: {}, cpu: {}, idle: {delivery_limit: 3}}
worker_nodes:
  - {name: all, queues: [default, cpu], concurrency: 2}
  - {name: absent, queues: [idle]}  # is not started: tests take the messages of its queue themselves
"""
APP = """
import os
from celery import Celery, chord, group
from clusterkit.runtime import configure

app = configure(Celery("permissions"))
app.conf.result_backend = os.environ["RESULTS"]

@app.task(queue="cpu")
def add(x, y):
    return x + y

@app.task
def total(numbers):
    return sum(numbers)

@app.task(bind=True, queue="cpu")
def third_time(self):
    if self.request.retries < 2:
        raise self.retry(countdown=self.request.retries, max_retries=2)  # 0 s: at once; 1 s: delayed
    return self.request.retries

@app.task
def chord_of(n):
    return chord(group(add.s(i, i) for i in range(n)), total.s()).apply_async().id
"""


def wait_until(what: str, check: Callable[[], Any], *, log: Path | None = None) -> Any:
    """Return the first true answer of ``check``; fail, with the log's end, when there is none in time."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = check()
        if answer:
            return answer
        time.sleep(0.1)
    end = log.read_text(errors="replace")[-3_000:] if log and log.exists() else ""
    pytest.fail(f"not within {PATIENCE:g} s: {what}\n{end}")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def login(port: int, user: str, password: str) -> amqp.Connection:
    """Return a connection that has its publishes confirmed."""
    return amqp.Connection(
        f"127.0.0.1:{port}", userid=user, password=password, confirm_publish=True, connect_timeout=5
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End ``process``: politely, then by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@dataclass(frozen=True)
class Broker:
    """A RabbitMQ node of our own, loaded with a cluster's definitions."""

    cluster: Cluster
    secrets: Secrets
    home: Path
    environment: dict[str, str]
    port: int
    management: int

    def ctl(self, *arguments: str | Path) -> str:
        """Run rabbitmqctl and return what it says."""
        command = [RABBITMQ / "rabbitmqctl", "--quiet", "--node", NODE, *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def exported(self) -> dict[str, Any]:
        """Return the definitions the node has now."""
        file = self.home / "exported.json"
        self.ctl("export_definitions", file)
        exported: dict[str, Any] = json.loads(file.read_text())
        return exported

    def connection(self, role: Role) -> amqp.Connection:
        """Return a connection of ``role``; entering it opens it."""
        return login(self.port, role, self.secrets.broker[role])

    def url(self, role: Role) -> str:
        """Return the broker's URL for ``role``."""
        return f"amqp://{role}:{self.secrets.broker[role]}@127.0.0.1:{self.port}//"

    def app(self, role: Role) -> Celery:
        """Return a bare app of the kit's, logged in as ``role``."""
        app = join(configure(Celery(f"as-{role}", set_as_current=False)), self.cluster_file(role))
        app.conf.result_backend = self.results
        return app

    @property
    def results(self) -> str:
        """Where results are kept: the broker's rights are tried here, without a result store."""
        return f"file://{self.home / 'results'}"

    def cluster_file(self, role: Role) -> ClusterFile:
        """Return what tells a process of ``role`` about the cluster."""
        return ClusterFile(
            cluster="test",
            role=role,
            broker_url=self.url(role),
            result_url="redis://nobody:nothing@127.0.0.1:9/0",
            queues=tuple(self.cluster.queues),
            default_queue=self.cluster.default_queue,
            celery_app=self.cluster.celery_app,
            tasks={"app.add": "cpu", "app.third_time": "cpu", "app.total": None, "app.chord_of": None},
        )

    def process_environment(self, role: Role) -> dict[str, str]:
        """Return the environment of a process of ``role``."""
        file = self.home / f"{role}.json"
        file.write_text(json.dumps(vars(self.cluster_file(role))))
        path = os.pathsep.join([str(self.home), str(ROOT / "deploy")])
        return {**os.environ, "CLUSTERKIT_CONFIG": str(file), "PYTHONPATH": path, "RESULTS": self.results}

    @contextlib.contextmanager
    def celery(self, role: Role, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run `celery ARGUMENTS` as ``role``."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "app", *arguments],
                cwd=self.home,
                env=self.process_environment(role),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
            finally:
                stop(process)

    def api(self, role: Role, path: str, method: str = "GET") -> tuple[int, Any]:
        """Return status and content of a request to the HTTP API."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.management}/api/{path}", method=method)
        login = b64encode(f"{role}:{self.secrets.broker[role]}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http, to our own node
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, None


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if not (RABBITMQ / "rabbitmq-server").exists() or not shutil.which("epmd"):
        if os.environ.get("CI"):
            pytest.fail("rabbitmq-server is not installed")
        pytest.skip("needs the package rabbitmq-server")
    home = tmp_path_factory.mktemp("broker")
    (home / "app.py").write_text(APP)
    (home / "results").mkdir()
    broker = prepare(home)
    epmd_port = broker.environment["ERL_EPMD_PORT"]
    log = home / "broker.log"
    with log.open("wb") as output:
        epmd = subprocess.Popen(["epmd", "-address", "127.0.0.1", "-port", epmd_port], stdout=output)
        server = subprocess.Popen(
            [RABBITMQ / "rabbitmq-server"], env=broker.environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until("RabbitMQ serves", lambda: serves(broker, server), log=log)
        yield broker
    finally:
        stop(server)
        stop(epmd)


def prepare(home: Path) -> Broker:
    """Lay down everything a node needs in ``home``."""
    inventory = home / "clusters" / "test"
    (inventory / "group_vars").mkdir(parents=True)
    (inventory / "hosts.yml").write_text(HOSTS)
    (inventory / "group_vars" / "all.yml").write_text(SETTINGS)
    cluster = load(inventory, home)
    secrets = ensure(home / "state" / "secrets.yml")
    amqp_port, distribution, management, epmd = free_ports(4)
    (home / "definitions.json").write_text(json.dumps(definitions(cluster, secrets)))
    (home / "plugins").write_text("[rabbitmq_management].\n")
    (home / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{amqp_port}\n"
        f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n"
        f"load_definitions = {home / 'definitions.json'}\n"
    )
    cookie = home / ".erlang.cookie"
    cookie.write_text(secrets.erlang_cookie)
    cookie.chmod(0o400)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": NODE,
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    return Broker(cluster, secrets, home, environment, amqp_port, management)


def serves(broker: Broker, server: subprocess.Popen[bytes]) -> bool:
    """Whether the node takes logins and answers HTTP."""
    if server.poll() is not None:
        pytest.fail(f"rabbitmq-server ended with {server.returncode}")
    try:
        with broker.connection("operator"):
            pass
        return broker.api("operator", "overview")[0] == 200
    except (OSError, amqp.AMQPError):
        return False


@pytest.fixture(scope="module")
def worker(broker: Broker) -> Iterator[Path]:
    """A prefork worker of the kit's, logged in as `worker`; its log."""
    log = broker.home / "worker.log"
    arguments = (
        "worker",
        "-n",
        "all@here",
        "-Q",
        "default,cpu",
        "-c",
        "2",
        "--without-gossip",
        "--without-mingle",
        "-E",
        "-l",
        "INFO",
    )
    with broker.celery("worker", *arguments, log=log) as process:
        wait_until(
            "the worker is ready",
            lambda: process.poll() is not None or "ready." in log.read_text(),
            log=log,
        )
        assert process.poll() is None, log.read_text()
        yield log


def result_of(broker: Broker, task_id: str, log: Path) -> Any:
    result = AsyncResult(task_id, app=broker.app("producer"))
    wait_until(f"the result of {task_id}", result.ready, log=log)
    return result.get()


def test_importing_the_definitions_again_changes_nothing(broker: Broker) -> None:
    before = broker.exported()
    broker.ctl("import_definitions", broker.home / "definitions.json")
    assert broker.exported() == before
    assert {user["name"] for user in before["users"]} == set(ROLES)
    assert {policy["name"] for policy in before["policies"]} == WITH_POLICY


def test_policies_apply_to_task_queues_and_dead_letters_and_to_no_delay_queue(broker: Broker) -> None:
    queues = json.loads(broker.ctl("list_queues", "name", "type", "policy", "--formatter", "json"))
    assert {queue["name"]: queue["policy"] for queue in queues if queue["policy"]} == {
        name: name for name in WITH_POLICY
    }
    assert len(queues) == len(WITH_POLICY) + DELAY_BITS
    assert {queue["type"] for queue in queues} == {"quorum"}


def take(channel: amqp.Channel, queue: str) -> amqp.Message:
    """Return the next message of ``queue``, when it is there."""
    message: amqp.Message = wait_until(f"a message in {queue}", lambda: channel.basic_get(queue))
    return message


def death_of(channel: amqp.Channel) -> tuple[str, str, str]:
    """Take the next dead letter: queue, reason, body."""
    message = take(channel, "celery.dead")
    channel.basic_ack(message.delivery_tag)
    death = message.headers["x-death"][0]
    return death["queue"], death["reason"], message.body


def test_a_rejected_message_goes_to_the_dead_letters(broker: Broker) -> None:
    with broker.connection("operator") as connection:
        channel = connection.channel()
        publish("celery", "idle", "rejected")(channel)
        channel.basic_reject(take(channel, "idle").delivery_tag, requeue=False)
        assert death_of(channel) == ("idle", "rejected", "rejected")


def test_a_message_delivered_too_often_goes_to_the_dead_letters(broker: Broker) -> None:
    with broker.connection("operator") as connection:
        channel = connection.channel()
        publish("celery", "idle", "poison")(channel)
        for _ in range(4):  # the first time, and three times again
            channel.basic_reject(take(channel, "idle").delivery_tag, requeue=True)
        assert death_of(channel) == ("idle", "delivery_limit", "poison")


def test_looking_at_a_dead_letter_never_uses_it_up(broker: Broker) -> None:
    with broker.connection("operator") as connection:
        channel = connection.channel()
        publish("celery.dead", "idle", "looked at")(channel)
        for _ in range(25):
            channel.basic_reject(take(channel, "celery.dead").delivery_tag, requeue=True)
        assert take(channel, "celery.dead").body == "looked at"
        channel.queue_purge("celery.dead")


def test_a_worker_runs_tasks_of_a_producer_now_and_delayed(broker: Broker, worker: Path) -> None:
    producer = broker.app("producer")
    now = producer.send_task("app.add", (1, 2))
    started = time.monotonic()
    later = producer.send_task("app.add", (3, 4), countdown=2)
    assert result_of(broker, now.id, worker) == 3
    assert result_of(broker, later.id, worker) == 7
    assert time.monotonic() - started >= 1.0


def test_a_worker_publishes_retries_and_chords(broker: Broker, worker: Path) -> None:
    producer = broker.app("producer")
    retried = producer.send_task("app.third_time")
    delayed_and_retried = producer.send_task("app.third_time", countdown=1)
    from_a_task = producer.send_task("app.chord_of", (3,))
    from_a_client = chord(
        [producer.signature("app.add", (i, 1)) for i in range(3)],
        producer.signature("app.total"),
        app=producer,
    ).apply_async()
    assert result_of(broker, retried.id, worker) == 2
    assert result_of(broker, delayed_and_retried.id, worker) == 2
    assert result_of(broker, result_of(broker, from_a_task.id, worker), worker) == 6
    assert result_of(broker, from_a_client.id, worker) == 6


def test_a_scheduler_publishes_what_is_due(broker: Broker, worker: Path) -> None:
    (broker.home / "beat_app.py").write_text(
        "from app import app\n"
        "app.conf.beat_schedule = {'sum': {'task': 'app.add', 'schedule': 1.0, 'args': (20, 22)}}\n"
        "app.conf.beat_scheduler = 'celery.beat:PersistentScheduler'\n"
        f"app.conf.beat_schedule_filename = {str(broker.home / 'schedule')!r}\n"
    )
    log, ran = broker.home / "beat.log", worker.read_text().count(": 42")
    with broker.celery("scheduler", "-A", "beat_app", "beat", "-l", "INFO", log=log):
        wait_until("a scheduled task ran", lambda: worker.read_text().count(": 42") > ran, log=log)


def test_flower_sees_nodes_events_and_queue_figures(broker: Broker, worker: Path) -> None:
    flower = broker.app("flower")
    inspect = flower.control.inspect(timeout=3, limit=1)
    assert inspect.ping() == {"all@here": {"ok": "pong"}}
    queues = flower.control.inspect(timeout=3, limit=1).active_queues()
    assert {queue["name"] for queue in queues["all@here"]} == {"default", "cpu"}
    events: list[dict[str, Any]] = []
    receiver = flower.events.Receiver(flower.connection_for_read(), handlers={"*": events.append})
    with receiver.consumer_context() as (connection, _, _):
        sent = broker.app("producer").send_task("app.add", (5, 6))
        wait_until("the event of the task", lambda: seen(connection, events, sent.id), log=worker)
    status, figures = broker.api("flower", "queues/%2F")
    assert status == 200
    assert "cpu" in {queue["name"] for queue in figures}


def seen(connection: Any, events: list[dict[str, Any]], task_id: str) -> bool:
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=1)
    return any(event["type"] == "task-succeeded" and event["uuid"] == task_id for event in events)


def test_the_worker_met_no_refusal_and_no_differing_declaration(worker: Path) -> None:
    text = worker.read_text()
    for word in ("ACCESS_REFUSED", "PRECONDITION_FAILED", "NOT_FOUND", "CRITICAL", "Traceback", "WARNING"):
        assert word not in text, text


def publish(exchange: str, routing_key: str, body: str = "{}") -> Callable[[amqp.Channel], Any]:
    def act(channel: amqp.Channel) -> None:
        message = amqp.Message(body, content_type="application/json")
        channel.basic_publish_confirm(message, exchange=exchange, routing_key=routing_key, mandatory=True)

    return act


CONTROL_QUEUE = "all@here.celery.pidbox"
ACTS: dict[str, Callable[[amqp.Channel], Any]] = {
    "delete a task queue": lambda channel: channel.queue_delete("cpu"),
    "purge a task queue": lambda channel: channel.queue_purge("cpu"),
    "take a task": lambda channel: channel.basic_get("cpu"),
    "consume a task queue": lambda channel: channel.basic_consume("cpu"),
    "consume a control queue": lambda channel: channel.basic_consume(CONTROL_QUEUE),
    "declare a queue": lambda channel: channel.queue_declare("mine", durable=True),
    "declare an exchange": lambda channel: channel.exchange_declare("mine", "topic"),
    "delete the exchange": lambda channel: channel.exchange_delete("celery"),
    "bind a queue": lambda channel: channel.queue_bind("cpu", "celery", "x"),
    "publish a task": publish("celery", "cpu"),
    "publish under an unknown key": publish("celery", "nonsense"),
    "publish a delayed task": publish("celery_delayed_27", "0." * 27 + "1.cpu"),
    "publish under a broken delay": publish("celery_delayed_27", "0.1.cpu"),
    "publish past the topic exchange": publish("", "cpu"),
    "command one worker": publish("", CONTROL_QUEUE),
    "command all workers": publish("celery.pidbox", ""),
    "forge an event": publish("celeryev", "task.succeeded"),
    "forge an answer": publish("reply.celery.pidbox", "x"),
    "forge a dead letter": publish("celery.dead", "cpu"),
    "look at dead letters": lambda channel: channel.basic_get("celery.dead"),
    "delete the dead letters": lambda channel: channel.queue_delete("celery.dead"),
}
#: What each role may do of ``ACTS``; some of it is answered by something else than a refusal.
WORKS: dict[Role, set[str]] = {
    "producer": {"publish a task", "publish a delayed task"},
    "scheduler": {"publish a task", "publish a delayed task"},
    "flower": {"command all workers"},
    "monitor": set(),
    # What a worker does itself, or cannot be told apart from it: who declares a queue may delete it.
    "worker": {
        *("take a task", "consume a task queue", "consume a control queue", "bind a queue"),
        *("publish a task", "publish under an unknown key", "forge an event", "forge an answer"),
        *("publish a delayed task", "publish under a broken delay"),
        *("purge a task queue", "delete a task queue", "delete the exchange"),
    },
}


@pytest.mark.parametrize(
    ("role", "act"), [(role, act) for role, works in WORKS.items() for act in ACTS if act not in works]
)
def test_a_role_is_refused_what_is_not_its_work(broker: Broker, worker: Path, role: Role, act: str) -> None:
    del worker  # its control queue has to be there
    with broker.connection(role) as connection:
        channel = connection.channel()
        with pytest.raises(amqp.AccessRefused):
            ACTS[act](channel)


@pytest.mark.parametrize("role", ["producer", "scheduler"])
def test_a_publishing_role_can_publish(broker: Broker, worker: Path, role: Role) -> None:
    app = broker.app(role)
    sent = [app.send_task("app.add", (1, 1)), app.send_task("app.add", (1, 1), countdown=1)]
    assert [result_of(broker, one.id, worker) for one in sent] == [2, 2]


def test_a_monitor_reads_figures_and_health_and_touches_nothing(broker: Broker) -> None:
    assert broker.api("monitor", "queues/%2F")[0] == 200
    assert broker.api("monitor", "health/checks/alarms")[0] == 200
    assert broker.api("monitor", "queues/%2F/cpu/contents", method="DELETE")[0] in (401, 403)
    assert broker.api("monitor", "users/monitor", method="DELETE")[0] in (401, 403)


@pytest.mark.parametrize("role", ["worker", "producer", "scheduler"])
def test_the_http_api_is_closed_to_roles_that_do_not_need_it(broker: Broker, role: Role) -> None:
    assert broker.api(role, "overview")[0] == 401


def test_the_user_guest_is_not_there(broker: Broker) -> None:
    with pytest.raises(amqp.AccessRefused), login(broker.port, "guest", "guest"):
        pass


def test_the_broker_has_the_rights_of_the_matrix(broker: Broker) -> None:
    exported = broker.exported()
    stored = {one["user"]: (one["configure"], one["write"], one["read"]) for one in exported["permissions"]}
    assert stored == {
        rights.role: (rights.configure, rights.write, rights.read) for rights in matrix(broker.cluster)
    }
