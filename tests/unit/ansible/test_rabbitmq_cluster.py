"""A broker's node starts only in its own cluster, is waited for, and is spared only when nothing is lost."""

from __future__ import annotations

import http.server
import importlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

rabbitmq_cluster = importlib.import_module("rabbitmq_cluster")

Call = Callable[..., dict[str, Any]]

H1, H2, H3, H4 = (f"rabbit-demo@h{number}.demo.internal" for number in (1, 2, 3, 4))
ALL = [H1, H2, H3]


def quorum(
    name: str, members: list[str], leader: str = H1, online: list[str] | None = None
) -> dict[str, Any]:
    alive = members if online is None else online
    return {
        "name": name,
        "type": "quorum",
        "durable": True,
        "leader": leader,
        "members": members,
        "online": alive,
    }


class Broker(http.server.ThreadingHTTPServer):
    """Answers as the node h1 of a cluster would."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.members = list(ALL)
        self.down: set[str] = set()
        self.partitions: list[str] = []
        self.alarmed: set[str] = set()
        self.queues = [quorum(f"q{number}", ALL, leader) for number, leader in enumerate(ALL)]
        self.flags: dict[str, tuple[str, str]] = {"khepri_db": ("disabled", "stable")}
        self.failing: dict[str, str] = {}
        self.requests: list[str] = []

    def answer(self, path: str) -> Any:
        """Return what the API has at `path`."""
        if path == "nodes":
            return [
                {
                    "name": name,
                    "running": name not in self.down,
                    "partitions": self.partitions,
                }
                for name in self.members
            ]
        if path == "feature-flags":
            return [
                {"name": name, "state": state, "stability": stability}
                for name, (state, stability) in self.flags.items()
            ]
        if path == "overview":
            return {"rabbitmq_version": "4.0.5", "erlang_version": "27.3.4.1"}
        return self.queues if path == "queues" else {"status": "ok"}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    server: Broker

    def log_message(self, *_: Any) -> None: ...

    def reply(self, code: int, content: Any = None) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"" if content is None else json.dumps(content).encode())

    def do_GET(self) -> None:
        path = self.path.removeprefix("/api/").partition("?")[0]
        check = path.removeprefix("health/checks/")
        if check == "alarms" and self.server.alarmed:
            alarms = [{"node": name, "resource": "disk"} for name in self.server.alarmed]
            self.reply(503, {"status": "failed", "reason": "There are alarms", "alarms": alarms})
        elif check in self.server.failing:
            self.reply(503, {"status": "failed", "reason": self.server.failing[check]})
        else:
            self.reply(200, self.server.answer(path))

    def do_PUT(self) -> None:
        self.take("PUT")
        self.server.flags[self.path.split("/")[-2]] = ("enabled", "stable")
        self.reply(204)

    def do_POST(self) -> None:
        self.take("POST")
        for number, queue in enumerate(self.server.queues):
            queue["leader"] = queue["members"][number % len(queue["members"])]
        self.reply(204)

    def take(self, method: str) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(f"{method} {unquote(self.path)}")


@pytest.fixture
def broker() -> Iterator[Broker]:
    """Return a running node of a cluster that is as it shall be."""
    with Broker() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def ask(call: Call, broker: Broker, tmp_path: Path) -> Call:
    """Return a function that runs the module against `broker`, on h1."""

    def run(state: str, **more: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "state": state,
            "node": H1,
            "members": ALL,
            "url": f"http://127.0.0.1:{broker.server_address[1]}",
            "username": "operator",
            "password": "open-sesame",
            "directory": str(tmp_path),
            "cookie": "COOKIE",
            "cluster": "demo",
            "commands": str(tmp_path),
            "timeout": 1,
        }
        return call("rabbitmq_cluster", **{**arguments, **more})

    return run


def write_data(directory: Path, node: str, members: list[str]) -> None:
    """Write what a node of RabbitMQ has on its disk of its cluster."""
    place = directory / "data" / node
    place.mkdir(parents=True)
    (directory / "data" / f"{node}-plugins-expand").mkdir()
    names = ",".join(f"'{member}'" for member in members)
    (place / "cluster_nodes.config").write_text(f"{{[{names}],[{names}]}}.\n")


def found(node: str, **more: Any) -> dict[str, Any]:
    """Return what inspecting a host without data gives, but for what is said."""
    return {**rabbitmq_cluster.Found(node).result(), **more}


def with_data(node: str, known: list[str], **more: Any) -> dict[str, Any]:
    return found(node, data=True, known=known, **more)


# --- inspected


def test_a_host_is_inspected_by_its_data_and_by_asking_its_node(ask: Call, tmp_path: Path) -> None:
    write_data(tmp_path, H1, ALL)
    (tmp_path / ".erlang.cookie").write_text("COOKIE")
    result = ask("inspected")
    assert {name: result[name] for name in found(H1)} == with_data(H1, ALL, listed=ALL, ready=True)
    assert result["changed"] is False


def test_a_host_without_data_whose_node_does_not_run_is_blank(ask: Call) -> None:
    result = ask("inspected", url="http://127.0.0.1:9")
    assert {name: result[name] for name in found(H1)} == found(H1)


def test_data_of_another_node_and_another_cookie_are_noticed(ask: Call, tmp_path: Path) -> None:
    write_data(tmp_path, "rabbit-other@h1.other.internal", ["rabbit-other@h1.other.internal"])
    (tmp_path / ".erlang.cookie").write_text("OTHER")
    result = ask("inspected")
    assert result["data"] is False
    assert result["strangers"] == ["rabbit-other@h1.other.internal"]
    assert result["cookie_differs"] is True


def test_a_node_is_ready_only_when_it_serves_and_its_cluster_is_whole(ask: Call, broker: Broker) -> None:
    broker.failing["port-listener/5672"] = "no listener"
    assert ask("inspected")["ready"] is False
    broker.failing.clear()
    broker.down.add(H3)
    assert ask("inspected")["ready"] is False


# --- startable


def test_blank_nodes_start_together(ask: Call) -> None:
    assert ask("startable", found=[found(node) for node in ALL])["failed"] is False


def test_a_stopped_cluster_starts(ask: Call) -> None:
    assert ask("startable", found=[with_data(node, ALL) for node in ALL])["failed"] is False


def test_a_new_host_joins_a_cluster_that_does_not_know_it(ask: Call) -> None:
    hosts = [found(H1), with_data(H2, [H2, H3], listed=[H2, H3]), with_data(H3, [H2, H3])]
    assert ask("startable", found=hosts)["failed"] is False


def test_a_host_that_lost_its_data_is_not_started_beside_its_cluster(ask: Call) -> None:
    for others in (
        [with_data(H2, ALL, listed=ALL), with_data(H3, ALL)],
        [with_data(H2, ALL), with_data(H3, ALL)],
    ):
        message = ask("startable", found=[found(H1), *others])["msg"]
        assert f"the host has no data, but the cluster has {H1} as a member" in message
        assert "make broker-replace CLUSTER=demo HOST=h1" in message


def test_what_a_running_node_says_counts_more_than_old_data(ask: Call) -> None:
    hosts = [found(H1), with_data(H2, [H2, H3], listed=[H2, H3]), with_data(H3, ALL)]
    assert ask("startable", found=hosts)["failed"] is False


def test_a_node_that_came_up_apart_is_not_started_again(ask: Call) -> None:
    message = ask("startable", found=[with_data(H1, [H1]), with_data(H2, [H2, H3], listed=[H2, H3])])["msg"]
    assert f"{H1} has data and is not a member" in message
    assert "make broker-replace CLUSTER=demo HOST=h1" in message


def test_the_first_node_of_a_growing_cluster_starts(ask: Call) -> None:
    assert ask("startable", found=[with_data(H1, [H1]), found(H2), found(H3)])["failed"] is False


def test_members_that_are_not_in_the_inventory_are_named_with_the_way_out(ask: Call) -> None:
    message = ask("startable", found=[with_data(H1, [*ALL, H4])])["msg"]
    assert H4 in message
    assert "make broker-remove CLUSTER=demo HOST=h4" in message


def test_data_of_another_cluster_is_refused(ask: Call) -> None:
    assert (
        "has the data of rabbit-x@y" in ask("startable", found=[found(H1, strangers=["rabbit-x@y"])])["msg"]
    )
    other = ask("startable", found=[with_data(H1, ALL, cookie_differs=True)])
    assert "another Erlang cookie" in other["msg"]


def test_a_lone_node_may_get_another_cookie(ask: Call) -> None:
    lone = with_data(H1, [H1], cookie_differs=True)
    assert ask("startable", members=[H1], found=[lone])["failed"] is False


def test_a_missing_program_is_named(ask: Call) -> None:
    message = ask("startable", found=[found(H1)], program="/nowhere/rabbitmq-server")["msg"]
    assert "/nowhere/rabbitmq-server is not there" in message


# --- joined


def test_a_whole_cluster_is_joined(ask: Call) -> None:
    result = ask("joined")
    assert (result["failed"], result["version"]) == (False, "4.0.5")


def test_a_node_that_came_up_alone_is_an_error_that_names_the_others(ask: Call, broker: Broker) -> None:
    broker.members = [H1]
    message = ask("joined")["msg"]
    assert f"{H2} has not joined; {H3} has not joined" in message
    assert "name resolution" in message


def test_a_member_that_is_down_or_cut_off_is_named(ask: Call, broker: Broker) -> None:
    broker.down.add(H2)
    broker.partitions = [H3]
    assert f"{H2} does not run; {H3} is cut off from others" in ask("joined")["msg"]


def test_a_foreign_member_is_not_waited_for(ask: Call, broker: Broker) -> None:
    broker.members.append(H4)
    assert "make broker-remove CLUSTER=demo HOST=h4" in ask("joined", timeout=600)["msg"]


def test_a_node_that_does_not_come_up_fails_with_its_log(ask: Call, tmp_path: Path) -> None:
    (tmp_path / "rabbitmq.log").write_text("what the broker says\n")
    message = ask("joined", url="http://127.0.0.1:9", log_file=str(tmp_path / "rabbitmq.log"))["msg"]
    assert f"{H1}: the broker is not up after 1 s" in message
    assert "what the broker says" in message


# --- restartable


def write_eval(directory: Path, *answers: str) -> Path:
    """Write a rabbitmqctl that answers one after the other, the last one for ever; it notes its calls."""
    command = directory / "rabbitmqctl"
    for number, answer in enumerate(answers):
        (directory / f"answer{number}").write_text(answer)
    command.write_text(
        f"""#!/bin/sh
cd {directory}
number=$(cat evals 2>/dev/null | wc -l)
[ "$number" -lt {len(answers)} ] || number={len(answers) - 1}
echo "$4" >>evals
cat "answer$number"
"""
    )
    command.chmod(0o755)
    return directory / "evals"


def test_a_node_of_a_healthy_cluster_may_be_restarted(ask: Call, tmp_path: Path) -> None:
    write_eval(tmp_path, "[]")
    result = ask("restartable")
    assert (result["failed"], result["version"], result["changed"]) == (False, "4.0.5", False)


def test_a_lone_node_may_be_restarted_without_asking_for_members(ask: Call, broker: Broker) -> None:
    broker.members = [H1]
    broker.queues = [quorum("q0", [H1])]
    assert ask("restartable", members=[H1])["failed"] is False


def test_a_node_waits_for_queues_whose_members_are_behind(ask: Call, tmp_path: Path) -> None:
    evals = write_eval(tmp_path, f"[{{<<\"cpu\">>,'{H2}',40000}}]", "[]")
    assert ask("restartable", timeout=20)["failed"] is False
    assert evals.read_text().count("eval") == 2


def test_members_that_do_not_answer_or_stay_behind_are_named_with_the_way_out(
    ask: Call, tmp_path: Path
) -> None:
    write_eval(tmp_path, f"[{{<<\"cpu\">>,'{H3}',down}},\n {{<<\"io\">>, '{H2}', 2000}}]")
    message = ask("restartable")["msg"]
    assert f"cpu on {H3} does not answer, io on {H2} is 2000 entries behind" in message
    assert "make broker-replace CLUSTER=demo HOST=h3" in message
    assert f"{H1} is back, but after 1 s queues" in ask("synced")["msg"]


def test_a_node_is_restarted_when_its_queues_have_other_members(
    ask: Call, broker: Broker, tmp_path: Path
) -> None:
    write_eval(tmp_path, "[]")
    write_grow(tmp_path, broker, 1)
    broker.queues = [quorum("q0", [H1, H2])]
    assert "cannot be given a member" in ask("restartable")["msg"]


def test_a_node_tells_its_versions_and_the_flags_that_are_left(ask: Call, broker: Broker) -> None:
    broker.flags["stream_filtering"] = ("disabled", "stable")
    result = ask("described")
    assert (result["version"], result["erlang"]) == ("4.0.5", "27.3.4.1")
    assert result["flags"] == ["stream_filtering"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda broker: broker.down.add(H2), f"{H2} does not run (make cluster-up CLUSTER=demo starts it)"),
        (lambda broker: broker.partitions.append(H2), f"{H2} is cut off from others"),
        (lambda broker: broker.alarmed.add(H3), f"{H3}: disk alarm, publishers are held back"),
        (
            lambda broker: broker.failing.update({"node-is-quorum-critical": "minimum quorum"}),
            "queues would lose their quorum: 503 minimum quorum",
        ),
    ],
    ids=["another is down", "a partition", "an alarm", "quorum"],
)
def test_a_node_the_cluster_needs_is_not_restarted(
    ask: Call, broker: Broker, change: Callable[[Broker], object], said: str
) -> None:
    change(broker)
    assert said in ask("restartable")["msg"]


# --- settled


def write_grow(directory: Path, broker: Broker, code: int = 0) -> Path:
    """Write a command that notes its arguments; members are added when it is run."""
    command = directory / "rabbitmq-queues"
    command.write_text(f'#!/bin/sh\necho "$@" >>{directory}/grown\necho no >&2\nexit {code}\n')
    command.chmod(0o755)
    return directory / "grown"


def test_a_settled_cluster_is_left_alone(ask: Call, broker: Broker) -> None:
    result = ask("settled")
    assert (result["changed"], result["changes"], broker.requests) == (False, [], [])


def test_feature_flags_are_enabled_but_not_the_one_that_breaks_a_restart(ask: Call, broker: Broker) -> None:
    broker.flags |= {"quorum_v2": ("disabled", "stable"), "trial": ("disabled", "experimental")}
    assert ask("settled")["changes"] == ["feature flag quorum_v2 enabled"]
    assert broker.requests == ["PUT /api/feature-flags/quorum_v2/enable"]


def test_queues_get_a_member_on_a_node_that_joined(ask: Call, broker: Broker, tmp_path: Path) -> None:
    broker.queues[0] |= {"members": [H1, H2], "online": [H1, H2]}
    grown = write_grow(tmp_path, broker)
    message = ask("settled")["msg"]  # the stand-in changes nothing, and that is noticed
    assert grown.read_text() == f"grow {H3} all\n"
    assert f"some on {H3}" in message


def test_a_failing_command_is_shown(ask: Call, broker: Broker, tmp_path: Path) -> None:
    broker.queues[0] |= {"members": [H1, H2], "online": [H1, H2]}
    write_grow(tmp_path, broker, code=69)
    message = ask("settled")["msg"]
    assert f"the queues cannot be given a member on {H3}:\nno" in message


def test_a_member_that_does_not_answer_is_named(ask: Call, broker: Broker) -> None:
    broker.queues[1]["online"] = [H1, H2]
    message = ask("settled")["msg"]
    assert f"q1 on {H3}" in message
    assert "make broker-replace CLUSTER=demo HOST=h3" in message


def test_leaders_are_spread_when_one_node_has_most_of_them(ask: Call, broker: Broker) -> None:
    broker.queues = [quorum(f"q{number}", ALL, H1) for number in range(9)]
    assert ask("settled")["changes"] == ["leaders of quorum queues are spread over the nodes"]
    assert broker.requests == ["POST /api/rebalance/queues"]
    assert ask("settled")["changed"] is False


def test_check_mode_tells_and_changes_nothing(ask: Call, broker: Broker) -> None:
    broker.flags["quorum_v2"] = ("disabled", "stable")
    broker.queues = [quorum(f"q{number}", [H1, H2], H1) for number in range(9)]
    assert ask("settled", check_mode=True)["changes"] == [
        "feature flag quorum_v2 enabled",
        f"quorum queues have a member on {H3}",
        "leaders of quorum queues are spread over the nodes",
    ]
    assert broker.requests == []


# --- removable


def test_one_of_three_nodes_can_go_also_when_it_is_dead(ask: Call, broker: Broker) -> None:
    expected = {"member": True, "queues": ["q0", "q1", "q2"]}
    assert ask("removable", leaving=H3).items() >= expected.items()
    broker.down.add(H3)
    assert ask("removable", leaving=H3).items() >= expected.items()


def test_a_node_that_is_no_member_can_go(ask: Call) -> None:
    result = ask("removable", leaving=H4)
    assert (result["member"], result["queues"]) == (False, [])


def test_the_last_node_stays(ask: Call, broker: Broker) -> None:
    broker.members = [H1]
    assert "it is the only one" in ask("removable", leaving=H1)["msg"]


def test_nodes_without_a_majority_cannot_let_another_go(ask: Call, broker: Broker) -> None:
    broker.down.add(H2)
    assert "1 of 3, no majority" in ask("removable", leaving=H3)["msg"]


def test_a_node_stays_when_queues_would_lose_their_quorum(ask: Call, broker: Broker) -> None:
    broker.queues = [quorum(f"q{number}", [H1, H3]) for number in range(5)]
    assert "queues would lose their quorum: q0, q1, q2 and 2 more" in ask("removable", leaving=H3)["msg"]
    broker.queues = [quorum("q", ALL, online=[H1, H3])]
    assert "queues would lose their quorum: q" in ask("removable", leaving=H3)["msg"]


def test_a_node_stays_while_it_alone_holds_messages(ask: Call, broker: Broker) -> None:
    lone = {"name": "old", "type": "classic", "durable": True, "node": H3, "messages": 7}
    broker.queues = [lone, {**lone, "name": "replies", "durable": False}]
    message = ask("removable", leaving=H3)["msg"]
    assert "the classic queue old has 7 messages there alone" in message
    assert "replies" not in message
