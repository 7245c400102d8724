"""Brings a broker node back that its cluster has lost sight of although it can be reached.

Mnesia never merges by itself what a network failure has split, and `pause_minority` only helps when the
failure lasts long enough to be noticed (rabbitmq-server #17319, RabbitMQ 3.x to 4.2). A failure of
milliseconds leaves a node that takes clients, but knows no queue that is declared elsewhere, until somebody
restarts it. This does: the node of the smaller side stops, its service starts it again, and it takes the
others' state. Quorum queues have their own consensus and lose nothing by it.

Run by the role `rabbitmq` as a service. Reads the environment variables NODE (its own), URL, USER and
PASSWORD (of the management API), CA (a file, or empty) and COMMAND (rabbitmqctl).
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from typing import Any

# Seconds between two looks.
INTERVAL = 10.0
# So many looks in a row have to find it: nodes that start and stop are out of sight for a while.
LOOKS = 3
# Seconds for an answer, and for a command.
ANSWER, COMMAND = 10, 60
# Seconds a node may need to stop and start again.
AWAY = 120.0

_REACHABLE = (
    "Running = [atom_to_list(N) || N <- nodes(), rpc:call(N, rabbit, is_running, []) == true],"
    " io:put_chars([[Name, 10] || Name <- Running])."
)


def lost(own: str, nodes: list[dict[str, Any]]) -> set[str]:
    """Return the nodes out of the sight of `own` that it should go back to: none on the larger side."""
    seen = {node["name"] for node in nodes if node.get("running")}
    gone = {node["name"] for node in nodes} - seen
    if own not in seen:  # it stops
        return set()
    # Of two halves that with the first name stays.
    smaller = len(seen) < len(gone) or (len(seen) == len(gone) and min(seen) > min(gone))
    return gone if smaller else set()


def nodes_of(environment: dict[str, str]) -> list[dict[str, Any]]:
    """Return the cluster's nodes as this one sees them; nothing while it does not answer."""
    login = f"{environment['USER']}:{environment['PASSWORD']}"
    credentials = base64.b64encode(login.encode()).decode()
    address = f"{environment['URL']}/api/nodes?columns=name,running"
    request = urllib.request.Request(address, headers={"Authorization": f"Basic {credentials}"})  # noqa: S310
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if environment["CA"]:
        handlers.append(
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=environment["CA"]))
        )
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=ANSWER) as answer:
            found: list[dict[str, Any]] = json.load(answer)
    except (OSError, ValueError):  # it starts, stops or pauses
        return []
    return found


def reachable(command: str) -> set[str]:
    """Return the other nodes that this one is connected to, and that run."""
    try:
        done = subprocess.run(
            [command, "--quiet", "eval", _REACHABLE],
            capture_output=True,
            text=True,
            timeout=COMMAND,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return set()
    return set(done.stdout.split()) if done.returncode == 0 else set()


def watch(environment: dict[str, str]) -> None:
    """Look every few seconds, for ever."""
    looks = 0
    while True:
        time.sleep(INTERVAL)
        gone = lost(environment["NODE"], nodes_of(environment))
        looks = looks + 1 if gone else 0
        # The others may be away in earnest: then there is nothing to go back to.
        if looks < LOOKS or not gone <= reachable(environment["COMMAND"]):
            continue
        names = ", ".join(sorted(gone))
        sys.stderr.write(f"a partition is left of {names}, which can be reached: the node is restarted\n")
        subprocess.run([environment["COMMAND"], "--quiet", "stop"], timeout=AWAY, check=False)
        looks = 0
        time.sleep(AWAY)


if __name__ == "__main__":
    watch(dict(os.environ))
