"""RabbitMQ's HTTP API at one node, and what it tells of the cluster that the node is in."""

from __future__ import annotations

import base64
import http
import http.client
import json
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.clusterkit_logs import with_lines, with_log
from ansible.module_utils.clusterkit_systemd import logged_since

# The options by which a module reaches a node.
CONNECTION: dict[str, Any] = {
    "url": {"type": "str", "required": True},
    "username": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "ca": {"type": "str", "default": ""},
}

# What the role `service` calls the node.
SERVICE = "rabbitmq"

# Seconds for one answer: an import declares some dozens of quorum queues.
_ANSWER = 60.0
# Seconds for which a refusal may be that of a node that has not imported its users yet.
_REFUSED = 15.0
# Seconds and lines of the journal that are shown of a node that did not come up.
_LOGGED_SECONDS = 300.0
_LOGGED_LINES = 30
POLL = 0.2


class BrokerError(Exception):
    """The broker does not answer, or not as wanted."""


class NotUpError(BrokerError):
    """The node does not come up; its log says why."""


class Api:
    """The HTTP API of one node's management plugin; `ca` is the PEM text of who signed its certificate."""

    def __init__(self, url: str, username: str, password: str, ca: str = "") -> None:
        self._url = url.rstrip("/")
        credentials = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
        # No proxy of the environment may come between.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if ca:
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cadata=ca)))
        self._opener = urllib.request.build_opener(*handlers)

    def request(self, method: str, path: str, body: object = None, timeout: float = _ANSWER) -> Any:
        """Return the decoded answer, None when it is empty.

        Raises:
            urllib.error.HTTPError: the answer is an error.
            OSError, http.client.HTTPException: there is no answer.
        """
        data = None if body is None else json.dumps(body).encode()
        address = f"{self._url}/api/{path}"
        request = urllib.request.Request(address, data, self._headers, method=method)  # noqa: S310
        with self._opener.open(request, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def alarms(self) -> tuple[str, ...]:
        """Return the alarms that are in effect now, as "node: memory" or "node: disk".

        The list of nodes has them too, 5 s late: long enough to restart a broker meanwhile.

        Raises:
            urllib.error.HTTPError, OSError, http.client.HTTPException: as of `request`.
        """
        try:
            self.request("GET", "health/checks/alarms", timeout=10)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            found = json.loads(error.read())["alarms"]
            return tuple(sorted(f"{alarm['node']}: {alarm['resource']}" for alarm in found))
        return ()

    def problem(self, path: str) -> str:
        """Return why the health check `path` fails; empty when it passes."""
        try:
            self.request("GET", f"health/checks/{path}", timeout=10)
        except urllib.error.HTTPError as error:
            return answer_text(error)
        except (OSError, http.client.HTTPException) as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class View:
    """The cluster as one of its nodes sees it; everything is names of nodes."""

    members: frozenset[str]
    running: frozenset[str]
    # Those that at least one running node has lost sight of.
    parted: frozenset[str]
    # "node: memory" or "node: disk".
    alarms: tuple[str, ...]

    @classmethod
    def of(cls, api: Api) -> View:
        """Ask the node.

        Raises:
            urllib.error.HTTPError, OSError, http.client.HTTPException: as of `Api.request`.
        """
        nodes = api.request("GET", "nodes?columns=name,running,partitions", timeout=10)
        return cls(
            frozenset(node["name"] for node in nodes),
            frozenset(node["name"] for node in nodes if node["running"]),
            frozenset(name for node in nodes for name in node.get("partitions") or ()),
            api.alarms(),
        )

    def lacks(self, wanted: frozenset[str]) -> list[str]:
        """Return, in words, what keeps the cluster from being `wanted`, whole and running."""
        found = [f"{name} has not joined" for name in sorted(wanted - self.members)]
        found += [f"{name} does not run" for name in sorted((wanted & self.members) - self.running)]
        found += [f"{name} is cut off from others" for name in sorted(self.parted)]
        return found


def path_of(*parts: str) -> str:
    """Join the parts of an API path, each of them quoted."""
    return "/".join(urllib.parse.quote(part, safe="") for part in parts)


def wait_for_node(api: Api, port: int, timeout: float) -> float:
    """Wait until the node accepts clients on `port`; return the seconds that took.

    The management plugin answers some time before the node has its users and listens for clients.

    Raises:
        NotUpError: the deadline passed, or the user goes on being refused.
    """
    begin = time.monotonic()
    refused_since = 0.0
    while True:
        try:
            api.request("GET", f"health/checks/port-listener/{port}", timeout=5)
            api.request("GET", "health/checks/virtual-hosts", timeout=5)
            return round(time.monotonic() - begin, 1)
        except urllib.error.HTTPError as error:
            reason = answer_text(error)
            refused_since = refused_since or time.monotonic()
            if error.code != http.HTTPStatus.UNAUTHORIZED:
                refused_since = 0.0
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
        if refused_since and time.monotonic() - refused_since > _REFUSED:
            message = (
                "the broker refuses this user and password; it takes over the ones in the definitions file"
            )
            raise NotUpError(f"{message} when it is restarted ({reason})")
        if time.monotonic() - begin > timeout:
            raise NotUpError(f"the broker is not up after {timeout:.0f} s: {reason}")
        time.sleep(POLL)


def answer_text(error: urllib.error.HTTPError) -> str:
    """Return what an error answer says."""
    text = error.read().decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        return f"{error.code} {error.reason}"
    return f"{error.code} {answer.get('reason') or answer.get('error')}"


def with_node_log(message: str, log_file: str) -> str:
    """Return `message`, followed by what the node logged of late: in `log_file`, or else in the journal."""
    if not log_file:
        return message
    # Without a journal either the file that is not there is what is told.
    if Path(log_file).exists() or not shutil.which("journalctl"):
        shown: str = with_log(message, log_file)
    else:
        lines = logged_since(SERVICE, time.time() - _LOGGED_SECONDS)[-_LOGGED_LINES:]
        shown = with_lines(message, "the journal", lines)
    return shown
