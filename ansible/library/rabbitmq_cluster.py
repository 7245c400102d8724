#!/usr/bin/python
"""Ansible module: the membership of one RabbitMQ node in its cluster, looked at, waited for and mended."""

from __future__ import annotations

import http.client
import re
import subprocess
import time
import urllib.error
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_rabbitmq import (
    CONNECTION,
    POLL,
    Api,
    BrokerError,
    NotUpError,
    View,
    answer_text,
    path_of,
    wait_for_node,
    with_node_log,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DOCUMENTATION = r"""
---
module: rabbitmq_cluster
short_description: Look at, wait for and mend a RabbitMQ node's membership in its cluster
description:
  - Everything is asked of the node's own HTTP API, because each of RabbitMQ's commands costs a second. A
    command is called when a queue lacks a member, and to see how far each member is, for the API's figures
    are seconds old.
  - Nothing here resets a node or removes its data. A node that is not where it belongs is an error that names
    the command to run next.
options:
  state:
    description:
      - V(inspected) looks at the node's data and asks the node, which need not run; it fails for nothing.
      - V(startable) fails when starting the node would make it part of another cluster than O(members), or of
        none. It compares what was found on the hosts (O(found)).
      - V(joined) waits until the node accepts clients and the cluster is O(members), all of them running.
      - V(restartable) waits until the cluster can do without the node for a while, and gives each quorum
        queue a member on every node before. All members run, none has an alarm, no queue would lose its
        quorum, and no queue has a member that is behind.
      - V(synced) waits until each member of every quorum queue answers and has what the others have.
      - V(settled) enables what feature flags are left, gives each quorum queue a member on every node, and
        spreads their leaders when they are not.
      - V(described) tells the versions that the node runs, and the feature flags that are left.
      - V(removable) fails when the cluster cannot do without the node O(leaving), or would lose messages.
    type: str
    choices: [inspected, startable, joined, restartable, synced, settled, removable, described]
    default: inspected
  node:
    description: Erlang name of the host's node.
    type: str
    required: true
  members:
    description: Erlang names of all nodes that the cluster shall have.
    type: list
    elements: str
    required: true
  url:
    description: Address of the node's management plugin.
    type: str
    required: true
  username:
    description: A user with the tag C(administrator).
    type: str
    required: true
  password:
    description: Its password.
    type: str
    required: true
  ca:
    description: PEM text of the certificate authority of an C(https) address.
    type: str
    default: ""
  port:
    description: The port on which the node listens for clients; the node is up when it does.
    type: int
    default: 5672
  directory:
    description: The node's directory, with its cookie and C(data).
    type: path
    required: true
  cookie:
    description: The Erlang cookie the node shall have.
    type: str
    default: ""
  program:
    description: The server's program, which has to be there.
    type: path
    default: ""
  commands:
    description: Directory with the node's commands. Needed with V(settled), V(restartable) and V(synced).
    type: path
    default: ""
  found:
    description: What V(inspected) found on all hosts, for O(state=startable).
    type: list
    elements: dict
    default: []
  leaving:
    description: Erlang name of the node to go, for O(state=removable).
    type: str
    default: ""
  cluster:
    description: Name of the cluster, for the commands in messages.
    type: str
    default: local
  timeout:
    description: Seconds to wait.
    type: int
    default: 120
  log_file:
    description: The node's log on the host, of which the end is shown when it does not come up. When there is
      no such file the journal's is.
    type: path
    default: ""
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Wait until the node is in its cluster
  rabbitmq_cluster:
    state: joined
    node: rabbit-demo@h1.demo.internal
    members: [rabbit-demo@h1.demo.internal, rabbit-demo@h2.demo.internal, rabbit-demo@h3.demo.internal]
    url: https://192.0.2.1:15671
    username: operator
    password: "{{ rabbitmq_operator_password }}"
    ca: "{{ rabbitmq_ca }}"
    port: 5671
    directory: /opt/clusterkit/rabbitmq
"""

RETURN = r"""
node:
  description: The node.
  type: str
  returned: always
data:
  description: Whether the node has data, and so belongs to a cluster already.
  type: bool
  returned: with V(inspected)
known:
  description: The members of the cluster that the node's data tells of, which may be older than the cluster.
  type: list
  elements: str
  returned: with V(inspected)
strangers:
  description: Other nodes that have data in the node's directory.
  type: list
  elements: str
  returned: with V(inspected)
cookie_differs:
  description: Whether the host has another cookie.
  type: bool
  returned: with V(inspected)
listed:
  description: The members of the cluster that the running node tells of; empty when it does not run.
  type: list
  elements: str
  returned: with V(inspected)
ready:
  description: Whether the node accepts clients and its cluster is whole.
  type: bool
  returned: with V(inspected)
member:
  description: Whether the leaving node is a member of the cluster.
  type: bool
  returned: with V(removable)
queues:
  description: Names of the quorum queues that have a member on the leaving node, whether it lives or not.
  type: list
  elements: str
  returned: with V(removable)
changes:
  description: What was, or would be, mended.
  type: list
  elements: str
  returned: with V(settled) and V(restartable)
version:
  description: RabbitMQ's version, as the running node says.
  type: str
  returned: with V(joined), V(restartable) and V(described)
erlang:
  description: Erlang's version, as the running node says.
  type: str
  returned: with V(described)
flags:
  description: Feature flags that are not enabled, but those that are never.
  type: list
  elements: str
  returned: with V(described)
"""

# A flag that is never enabled: with it a 4.0 node that holds an exclusive bound queue does not start again.
_NEVER_ENABLED = "khepri_db"
# Seconds the leaders get to move; they go one queue after the other.
_MOVING = 20.0
# Seconds a command may take; growing copies what the queues hold.
_COMMAND = 600

# Queues that are named in a message; the others are counted.
_SHOWN = 3

_NODE = re.compile(r"[\w.-]+@[\w.-]+")

# What helps against an alarm, by the last letters of what `View` says.
_ALARMS = {
    "mory": "let the workers empty the queues, or give the host more memory",
    "disk": "free space on the host's disk",
}

# A member of a quorum queue is behind when its log has this many entries less than others have committed.
# Under load each always lacks some; thousands are caught up with in less than a second.
_IN_STEP = 1000
# Asked of all queues at once: RabbitMQ's own command takes one at a time, and a second each.
_MEMBERS_BEHIND = """
Get = fun(Keys, Member) ->
    hd([Value || Key <- Keys, Value <- [proplists:get_value(Key, Member)], is_integer(Value)] ++ [none]) end,
Lag = fun(Member, Committed) ->
    case Get([<<"Last Written">>, <<"Log Index">>, <<"Last Log Index">>], Member) of
        none -> down;
        Written -> Committed - Written end end,
lists:append([
    begin
        {resource, VHost, queue, Name} = amqqueue:get_name(Queue),
        Members = case rabbit_quorum_queue:status(VHost, Name) of {error, _} -> []; Found -> Found end,
        Committed = lists:max([0 | [Index || Member <- Members,
                                    Index <- [Get([<<"Commit Index">>], Member)], is_integer(Index)]]),
        [{Name, proplists:get_value(<<"Node Name">>, Member), Lag(Member, Committed)}
         || Member <- Members, Lag(Member, Committed) > IN_STEP]
    end || Queue <- rabbit_amqqueue:list_by_type(rabbit_quorum_queue)]).
""".replace("IN_STEP", str(_IN_STEP))
_MEMBER = re.compile(r"""\{<<"([^"]*)">>,\s*'?([^',]+)'?,\s*(down|\d+)\}""")


@dataclass(frozen=True)
class Found:
    """What was found of one host's node: on its disk, and by asking it."""

    node: str
    data: bool = False
    known: frozenset[str] = frozenset()
    strangers: tuple[str, ...] = ()
    cookie_differs: bool = False
    listed: frozenset[str] = frozenset()
    ready: bool = False

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Found:
        """Take what the module returned on a host."""
        return cls(
            result["node"],
            result["data"],
            frozenset(result["known"]),
            tuple(result["strangers"]),
            result["cookie_differs"],
            frozenset(result["listed"]),
            result["ready"],
        )

    def result(self) -> dict[str, Any]:
        """Return what the module returns."""
        return {
            "node": self.node,
            "data": self.data,
            "known": sorted(self.known),
            "strangers": list(self.strangers),
            "cookie_differs": self.cookie_differs,
            "listed": sorted(self.listed),
            "ready": self.ready,
        }


def inspect(options: Mapping[str, Any], api: Api) -> Found:
    """Look at the node's files, and ask the node if it runs."""
    node, directory = options["node"], Path(options["directory"])
    there = {path.name for path in directory.glob("data/*@*") if (path / "cluster_nodes.config").exists()}
    known = frozenset(_NODE.findall(text_of(directory / "data" / node / "cluster_nodes.config")))
    cookie = text_of(directory / ".erlang.cookie")
    listed, ready = ask(options, api)
    return Found(
        node,
        data=node in there,
        known=known,
        strangers=tuple(sorted(there - {node})),
        cookie_differs=bool(cookie) and cookie != options["cookie"],
        listed=listed,
        ready=ready,
    )


def text_of(path: Path) -> str:
    """Return what the file holds, nothing when it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def ask(options: Mapping[str, Any], api: Api) -> tuple[frozenset[str], bool]:
    """Return the members that the node tells of, and whether it and the cluster are as they shall be."""
    wanted = frozenset(options["members"])
    try:
        view = View.of(api)
    except (OSError, http.client.HTTPException):
        return frozenset(), False
    whole = view.members == wanted and not view.lacks(wanted)
    serving = whole and not (api.problem(f"port-listener/{options['port']}") or api.problem("virtual-hosts"))
    return view.members, serving


class Start:
    """Whether a node can be started without ending up in another cluster than the wanted one."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        hosts = {found.node: found for found in map(Found.of, options["found"])}
        self._own = hosts[options["node"]]
        self._others = [found for node, found in hosts.items() if node != options["node"]]
        self._wanted = frozenset(options["members"])
        self._directory: str = options["directory"]
        self._program: str = options["program"]
        self._cluster: str = options["cluster"]

    def check(self) -> None:
        """Refuse a node that is not where it belongs.

        Raises:
            BrokerError: says what is wrong and what to do.
        """
        for check in (self._check_program, self._check_files, self._check_members, self._check_own_view):
            check()

    def _check_program(self) -> None:
        if self._program and not Path(self._program).exists():
            raise BrokerError(f"{self._program} is not there: the package rabbitmq-server is missing")

    def _check_files(self) -> None:
        if self._own.strangers:
            names = ", ".join(self._own.strangers)
            raise BrokerError(
                f"{self._directory}/data is not this node's: it has the data of {names}. If nobody needs "
                f"that any more, move it away; else bring that cluster up with its own inventory"
            )
        if self._own.cookie_differs and self._own.data and len(self._wanted) > 1:
            raise BrokerError(
                f"the node in {self._directory} has data and another Erlang cookie than this cluster's: it "
                "belongs to another cluster, or this one's secrets were lost. Bring the cluster's state "
                "directory with its secrets back, or move the node's directory away if nobody needs its data"
            )

    def _check_members(self) -> None:
        foreign = sorted((self._own.listed or self._own.known) - self._wanted)
        if foreign:
            names, hosts = ", ".join(foreign), [host_of(node) for node in foreign]
            raise BrokerError(
                f"the node belongs to a cluster that has members which are not in the inventory: {names}. If "
                f"their hosts left this cluster: {self._command('broker-remove', hosts[0])}"
            )

    def _check_own_view(self) -> None:
        """Compare with the others' view: that of the running ones if there are any, else that on disk."""
        own = self._own.node
        views = [found.listed for found in self._others if found.listed]
        views = views or [found.known for found in self._others if found.data]
        listed = any(own in view for view in views)
        if not self._own.data and listed:
            raise BrokerError(
                f"the host has no data, but the cluster has {own} as a member: it would come up apart from "
                f"the others. Let the cluster forget the lost node: {self._replace()}"
            )
        if self._own.data and views and not listed:
            raise BrokerError(
                f"{own} has data and is not a member of the cluster of the other hosts. If nobody needs its "
                f"data: {self._replace()}"
            )

    def _replace(self) -> str:
        return self._command("broker-replace", host_of(self._own.node))

    def _command(self, target: str, host: str) -> str:
        return f"make {target} CLUSTER={self._cluster} HOST={host}"


def host_of(node: str) -> str:
    """Return the inventory's name of the node's host, as nodes are named here."""
    return node.partition("@")[2].partition(".")[0]


def wait_until(problems: Callable[[], Sequence[str]], timeout: float) -> Sequence[str]:
    """Ask until there are no problems, or the time is over; return those of the last time."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            found = problems()
        except (OSError, http.client.HTTPException) as error:
            found = [f"the node does not answer: {error}"]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(POLL)


def await_joined(options: Mapping[str, Any], api: Api) -> None:
    """Wait until the node accepts clients and all members are there.

    Raises:
        NotUpError: the node does not accept clients.
        BrokerError: it is alone, or with others than it should be.
    """
    begin = time.monotonic()
    wait_for_node(api, options["port"], options["timeout"])
    wanted = frozenset(options["members"])

    def problems() -> list[str]:
        view = View.of(api)
        foreign = sorted(view.members - wanted)
        if foreign:
            raise BrokerError(
                f"the cluster has members that are not in the inventory: {', '.join(foreign)}. If their "
                f"hosts left it: make broker-remove CLUSTER={options['cluster']} HOST={host_of(foreign[0])}"
            )
        lacks: list[str] = view.lacks(wanted)
        return lacks

    left = wait_until(problems, options["timeout"] - (time.monotonic() - begin))
    if left:
        raise BrokerError(
            f"the cluster of {options['node']} is not whole after {options['timeout']} s: {'; '.join(left)}. "
            "Nodes find each other by their names, through the ports epmd and distribution: look at the name "
            "resolution and the firewall of the hosts, and at the log of the ones named"
        )


def await_restartable(options: Mapping[str, Any], api: Api) -> list[str]:
    """Wait until the cluster can do without this node; return what was mended for that.

    Raises:
        BrokerError: it cannot; says what is in the way and what helps.
    """
    deadline = time.monotonic() + options["timeout"]
    several = len(options["members"]) > 1
    _gate(options, lambda: in_the_way(options, View.of(api)), deadline)
    # Or queues whose members all are on this node would keep it from being restarted. 3.10 does not do it.
    changes = fill(options, api, check_mode=False, deadline=deadline) if several else []
    _gate(options, lambda: in_the_way(options, View.of(api)) or critical(api), deadline)
    _gate(options, lambda: behind(options), deadline)
    return changes


def _gate(options: Mapping[str, Any], problems: Callable[[], Sequence[str]], deadline: float) -> None:
    left = wait_until(problems, deadline - time.monotonic())
    if left:
        raise BrokerError(
            f"{options['node']} is not restarted, because the cluster cannot do without it:"
            f" {'; '.join(left)}. This was so for {options['timeout']} s. Mend it and run the command again"
        )


def in_the_way(options: Mapping[str, Any], view: View) -> list[str]:
    """Return, in words, what keeps any node of the cluster from being restarted, and what helps."""
    members = frozenset(options["members"])
    up = f"make cluster-up CLUSTER={options['cluster']}"
    found = [f"{name} has not joined ({up})" for name in sorted(members - view.members)]
    found += [
        f"{name} does not run ({up} starts it)" for name in sorted((members & view.members) - view.running)
    ]
    found += [
        f"{name} is cut off from others (it comes back when they reach each other: look at the network)"
        for name in sorted(view.parted)
    ]
    return found + [
        f"{alarm} alarm, publishers are held back ({_ALARMS[alarm[-4:]]})" for alarm in view.alarms
    ]


def critical(api: Api) -> list[str]:
    """Return, in words, which queues would lose their quorum without this node."""
    reason = api.problem("node-is-quorum-critical")
    return [f"queues would lose their quorum: {reason}"] if reason else []


def behind(options: Mapping[str, Any]) -> list[str]:
    """Return, in words, which members of quorum queues do not answer or are behind."""
    if len(options["members"]) == 1:
        return []
    done = subprocess.run(
        [f"{options['commands']}/rabbitmqctl", "--quiet", "eval", _MEMBERS_BEHIND],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_COMMAND,
    )
    if done.returncode:
        return [f"the queues' members cannot be asked: {(done.stdout + done.stderr).strip()}"]
    found = _MEMBER.findall(done.stdout)
    if not found:
        return []
    names = [
        f"{queue} on {node} " + ("does not answer" if lag == "down" else f"is {lag} entries behind")
        for queue, node, lag in found
    ]
    replace = f"make broker-replace CLUSTER={options['cluster']} HOST={host_of(found[0][1])}"
    way_out = f"they catch up by themselves; if one does not: {replace}"
    return [f"queues have members that are not in step: {listed(names)} ({way_out})"]


def await_synced(options: Mapping[str, Any]) -> None:
    """Wait until each member of every quorum queue has what the others have.

    Raises:
        BrokerError: one has not.
    """
    left = wait_until(lambda: behind(options), options["timeout"])
    if left:
        raise BrokerError(
            f"{options['node']} is back, but after {options['timeout']} s {'; '.join(left)}. The nodes"
            " after it are left as they are; run the command again when it has caught up"
        )


class Queues:
    """The quorum queues, and others that hold messages, as the node's API lists them."""

    def __init__(self, api: Api) -> None:
        columns = "name,vhost,type,durable,node,leader,members,online,messages"
        self._all = api.request("GET", f"queues?columns={columns}")
        self.quorum = [queue for queue in self._all if queue["type"] == "quorum"]

    def lacking(self, nodes: Sequence[str]) -> list[str]:
        """Return which of `nodes` are not members of every quorum queue."""
        return [node for node in nodes if any(node not in queue["members"] for queue in self.quorum)]

    def silent(self) -> list[str]:
        """Return, in words, which queues have a member that does not answer."""
        return [
            f"{queue['name']} on {node}"
            for queue in self.quorum
            for node in sorted(set(queue["members"]).difference(queue["online"]))
        ]

    def on(self, node: str) -> list[str]:
        """Return the names of the quorum queues that have a member on `node`, whether it lives or not."""
        return [queue["name"] for queue in self.quorum if node in queue["members"]]

    def skewed(self, nodes: Sequence[str]) -> bool:
        """Tell whether a node leads clearly more queues than an equal share."""
        leaders = Counter(queue.get("leader") for queue in self.quorum)
        # RabbitMQ itself is content with one more than the share, rounded down.
        return any(leaders[node] > len(self.quorum) // len(nodes) + 2 for node in nodes)

    def lost_with(self, leaving: str, staying: frozenset[str]) -> list[str]:
        """Return, in words, what would be lost without the node `leaving`."""
        without = [
            queue["name"]
            for queue in self.quorum
            if leaving in queue["members"]
            and 2 * len(staying.intersection(queue["members"], queue["online"])) <= len(queue["members"])
        ]
        found = [f"queues would lose their quorum: {listed(without)}"] if without else []
        for queue in self._all:
            held = queue.get("messages", 0) if queue.get("durable") else 0
            if queue["type"] != "quorum" and queue.get("node") == leaving and held:
                found.append(f"the {queue['type']} queue {queue['name']} has {held} messages there alone")
        return found


def listed(names: Sequence[str]) -> str:
    """Return the first of the names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def enable_flags(api: Api, *, check_mode: bool) -> list[str]:
    """Enable the feature flags that are not; return what was changed."""
    left = left_flags(api)
    for name in left if not check_mode else ():
        api.request("PUT", path_of("feature-flags", name, "enable"), {"name": name})
    return [f"feature flag {name} enabled" for name in left]


def grow(options: Mapping[str, Any], nodes: Sequence[str]) -> None:
    """Give every quorum queue a member on each of `nodes`.

    Raises:
        BrokerError: the command failed.
    """
    for node in nodes:
        done = subprocess.run(
            [f"{options['commands']}/rabbitmq-queues", "grow", node, "all"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise BrokerError(f"the queues cannot be given a member on {node}:\n{said}")


def left_flags(api: Api) -> list[str]:
    """Return the feature flags that are not enabled; those are what a later version takes for granted."""
    return [
        flag["name"]
        for flag in api.request("GET", "feature-flags")
        if flag["state"] == "disabled"
        and flag["stability"] != "experimental"
        and flag["name"] != _NEVER_ENABLED
    ]


def settle(options: Mapping[str, Any], api: Api, *, check_mode: bool) -> list[str]:
    """Make flags, queues and leaders what they shall be; return what was changed.

    Raises:
        BrokerError: a queue lacks a member still, or has one that does not answer.
    """
    nodes = sorted(options["members"])
    changes = enable_flags(api, check_mode=check_mode)
    changes += fill(options, api, check_mode=check_mode, deadline=time.monotonic() + options["timeout"])
    if Queues(api).skewed(nodes):
        changes.append("leaders of quorum queues are spread over the nodes")
        if not check_mode:
            api.request("POST", "rebalance/queues", {})
            # Whatever is left then is left: a queue whose other members are behind keeps its leader.
            wait_until(lambda: ["skewed"] * Queues(api).skewed(nodes), _MOVING)
    return changes


def fill(options: Mapping[str, Any], api: Api, *, check_mode: bool, deadline: float) -> list[str]:
    """Give each quorum queue a member on every node; return what was changed.

    Raises:
        BrokerError: a queue lacks a member still, or has one that does not answer.
    """
    nodes = sorted(options["members"])
    lacking = Queues(api).lacking(nodes)
    if not check_mode:
        if lacking:
            grow(options, lacking)
        # The figures are up to some seconds old.
        left = wait_until(lambda: without_member(Queues(api), nodes), deadline - time.monotonic())
        if left:
            host = host_of(left[0])
            raise BrokerError(
                f"there are quorum queues without a member that answers: {listed(left)}. If it stays so: "
                f"make broker-replace CLUSTER={options['cluster']} HOST={host}"
            )
    return [f"quorum queues have a member on {node}" for node in lacking]


def without_member(queues: Queues, nodes: Sequence[str]) -> list[str]:
    """Return, in words, which queues have no member, or none that answers, on which of `nodes`."""
    return [f"some on {node}" for node in queues.lacking(nodes)] or queues.silent()


def check_removable(options: Mapping[str, Any], api: Api) -> dict[str, Any]:
    """Refuse to remove a node that the cluster needs; return whether it is a member, and of what queues.

    Raises:
        BrokerError: says what would be lost.
    """
    leaving = options["leaving"]
    view, queues = View.of(api), Queues(api)
    result = {"member": leaving in view.members, "queues": queues.on(leaving)}
    if not result["member"]:
        return result
    staying = (view.members & view.running) - view.parted - {leaving}
    if len(view.members) == 1:
        problems = ["it is the only one"]
    elif 2 * len(staying) <= len(view.members):
        problems = [
            f"the others that run are {len(staying)} of {len(view.members)}, no majority, and would pause"
        ]
    else:
        problems = queues.lost_with(leaving, staying)
    if problems:
        raise BrokerError(f"{leaving} cannot be taken out of the cluster: {'; '.join(problems)}")
    return result


def describe(api: Api) -> dict[str, Any]:
    """Return the versions that the node runs, and the feature flags that are left."""
    overview = api.request("GET", "overview?columns=rabbitmq_version,erlang_version")
    return {
        "version": overview["rabbitmq_version"],
        "erlang": overview["erlang_version"],
        "flags": left_flags(api),
    }


def run(module: AnsibleModule, api: Api) -> dict[str, Any]:
    """Do what the module's `state` says and return the result.

    Raises:
        BrokerError: it cannot be done.
        OSError, http.client.HTTPException: the node does not answer.
    """
    options = module.params
    actions: dict[str, Callable[[], dict[str, Any] | None]] = {
        "inspected": lambda: inspect(options, api).result(),
        "startable": lambda: Start(options).check(),
        "joined": lambda: await_joined(options, api),
        "restartable": lambda: {"changes": await_restartable(options, api)},
        "synced": lambda: await_synced(options),
        "removable": lambda: check_removable(options, api),
        "settled": lambda: {"changes": settle(options, api, check_mode=module.check_mode)},
        "described": lambda: describe(api),
    }
    result = {"node": options["node"], **(actions[options["state"]]() or {})}
    if options["state"] in {"joined", "restartable"}:
        result["version"] = describe(api)["version"]
    return result


ARGUMENTS: dict[str, Any] = {
    "state": {
        "type": "str",
        "choices": [
            *(
                "inspected",
                "startable",
                "joined",
                "restartable",
                "synced",
                "settled",
                "removable",
                "described",
            )
        ],
        "default": "inspected",
    },
    "node": {"type": "str", "required": True},
    "members": {"type": "list", "elements": "str", "required": True},
    **CONNECTION,
    "port": {"type": "int", "default": 5672},
    "directory": {"type": "path", "required": True},
    "cookie": {"type": "str", "default": "", "no_log": True},
    "program": {"type": "path", "default": ""},
    "commands": {"type": "path", "default": ""},
    "found": {"type": "list", "elements": "dict", "default": []},
    "leaving": {"type": "str", "default": ""},
    "cluster": {"type": "str", "default": "local"},
    "timeout": {"type": "int", "default": 120},
    "log_file": {"type": "path", "default": ""},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    options = module.params
    api = Api(options["url"], options["username"], options["password"], options["ca"])
    try:
        result = run(module, api)
    except NotUpError as error:
        module.fail_json(msg=with_node_log(f"{options['node']}: {error}", options["log_file"]))
    except BrokerError as error:
        module.fail_json(msg=str(error))
    except urllib.error.HTTPError as error:
        module.fail_json(msg=f"{options['node']} refuses: {answer_text(error)}")
    except (OSError, http.client.HTTPException) as error:
        module.fail_json(
            msg=with_node_log(f"{options['node']} does not answer: {error}", options["log_file"])
        )
    module.exit_json(changed=bool(result.get("changes")), **result)


if __name__ == "__main__":
    main()
