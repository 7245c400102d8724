#!/usr/bin/python
"""Ansible module: ask a Valkey or Redis server and its Sentinel how they are, and bring them up to date."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_logs import last_lines, with_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DOCUMENTATION = r"""
---
module: valkey_cluster
short_description: Ask a Valkey or Redis server and its Sentinel, and bring them up to date
description:
  - With O(state=asked), finds out who is the master, from the Sentinels of all hosts, or else from the
    file of this host's Sentinel. Changes nothing.
  - With O(state=ready), waits until the server of this host takes part, as master or as a replica that has
    all data, and its Sentinel knows all others. Users, certificates and the Sentinels' majority are brought
    up to date in the running processes.
  - With O(state=replica), makes another server the master when this host's is.
options:
  state:
    description: What to do.
    type: str
    choices: [asked, ready, replica]
    default: ready
  address:
    description: Address of this host's server and Sentinel.
    type: str
    required: true
  port:
    description: Port of the servers.
    type: int
    required: true
  sentinel_port:
    description: Port of the Sentinels; 0 when there is one server alone, without any.
    type: int
    default: 0
  addresses:
    description: Addresses of all hosts, this one included.
    type: list
    elements: str
    required: true
  master_name:
    description: What the Sentinels call the master.
    type: str
    default: results
  password:
    description: Password of the user C(operator).
    type: str
    required: true
  ca:
    description: Certificate authority of the servers, in PEM; empty without TLS.
    type: str
    default: ""
  directory:
    description: Directory of the server, with its C(valkey.conf), C(users.acl), C(tls) and C(sentinel).
    type: path
    required: true
  log_directory:
    description: Directory of the logs on the host, of which the end is shown when there is no answer.
    type: path
    required: true
  timeout:
    description: Seconds to wait; loading or copying a large data set takes time.
    type: int
    default: 60
attributes:
  check_mode:
    support: none
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Wait for the result store
  valkey_cluster:
    address: 127.0.0.1
    port: 24379
    addresses: [127.0.0.1]
    password: "{{ valkey_passwords.operator }}"
    directory: /srv/demo/.cluster/local/valkey
    log_directory: /srv/demo/.cluster/local/log
"""

RETURN = r"""
address:
  description: The argument.
  type: str
  returned: always
master:
  description: Address of the master; empty when nobody knows one.
  type: str
  returned: always
epoch:
  description: How often the Sentinels have chosen a master; with O(state=asked).
  type: int
  returned: always
data:
  description: Whether this host has data of a server; with O(state=asked).
  type: bool
  returned: always
files:
  description: Those of the files which the servers write themselves that are there; with O(state=asked).
  type: list
  elements: str
  returned: always
version:
  description: The server's version; with O(state=ready).
  type: str
  returned: always
waited:
  description: Seconds it took.
  type: float
  returned: always
updated:
  description: What was brought up to date in the running processes.
  type: list
  elements: str
  returned: always
"""

_POLL = 0.2
# Seconds a server may need for an answer.
_ANSWER = 3.0
# Milliseconds for which a master holds writes back, at most, while another one is chosen.
_PAUSE = "10000"


class ReplyError(Exception):
    """The server answered with an error, such as that it still loads its data."""


class NotReadyError(Exception):
    """It answers, and is not yet as it should be."""


class WrongServerError(Exception):
    """Another server answers there, or this one with another password: waiting does not help."""


def command(*words: str) -> bytes:
    """Return a command in the server's protocol (RESP)."""
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        data = word.encode()
        parts.append(f"${len(data)}\r\n".encode() + data + b"\r\n")
    return b"".join(parts)


def reply(stream: BinaryIO) -> Any:
    """Read one answer: a text, or a list of answers.

    Raises:
        ReplyError: it is an error.
        ConnectionError: the connection ended.
    """
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the connection was closed")
    text = line[1:-2].decode(errors="replace")
    if line[:1] == b"-":
        raise ReplyError(text)
    if line[:1] == b"$":
        return stream.read(int(text) + 2)[:-2].decode(errors="replace") if int(text) >= 0 else ""
    if line[:1] == b"*":
        return [reply(stream) for _ in range(int(text))]
    return text


def pairs(values: list[str]) -> dict[str, str]:
    """Return the mapping that a flat list of names and values stands for."""
    return dict(zip(values[::2], values[1::2], strict=True))


def fields(text: str) -> dict[str, str]:
    """Return what INFO answers as a mapping."""
    return dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)


@dataclass
class Server:
    """Where a server or a Sentinel is, and how to log in."""

    address: str
    port: int
    password: str
    tls: ssl.SSLContext | None

    def ask(self, *questions: tuple[str, ...]) -> list[Any]:
        """Log in, ask, and return the answers.

        Raises:
            WrongServerError, ReplyError, OSError: there is no answer, or not the right one.
        """
        with socket.create_connection((self.address, self.port), timeout=_ANSWER) as plain:
            connection = self.tls.wrap_socket(plain, server_hostname=self.address) if self.tls else plain
            with connection, connection.makefile("rb") as stream:
                connection.sendall(command("AUTH", "operator", self.password))
                try:
                    reply(stream)
                except ReplyError as error:
                    raise WrongServerError(f"it refuses the operator's password ({error})") from None
                answers = []
                for question in questions:
                    connection.sendall(command(*question))
                    answers.append(reply(stream))
                return answers


class Cluster:
    """This host's server and Sentinel among those of the other hosts."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.address: str = options["address"]
        self.name: str = options["master_name"]
        self.directory = Path(options["directory"])
        self.files = [self.directory / "valkey.conf", self.directory / "sentinel" / "sentinel.conf"]
        self.others = sorted(set(options["addresses"]) - {self.address})
        self.tls = ssl.create_default_context(cadata=options["ca"]) if options["ca"] else None
        self.server = self._server(self.address, options["port"])
        self.sentinel = self._server(self.address, options["sentinel_port"])
        self.updated: list[str] = []

    def _server(self, address: str, port: int) -> Server:
        return Server(address, port, self.options["password"], self.tls)

    def asked(self) -> dict[str, Any]:
        """Return who is the master, and what of a server this host has."""
        there = [str(path) for path in self.files if path.exists()]
        epoch, master = max(self._told(), default=(-1, ""))
        if master == self.address and str(self.files[0]) not in there:
            # This host was the master, and was replaced by a blank one: as a master without data it would
            # make the others throw theirs away. They choose another one in a moment.
            raise NotReadyError(f"{master} is still the master for the Sentinels, and is blank")
        return {
            "master": master,
            "epoch": epoch,
            "data": (self.directory / "appendonlydir").exists(),
            "files": there,
        }

    def _told(self) -> list[tuple[int, str]]:
        """Return (epoch, master) of each Sentinel that runs; when none does, of this host's own file."""
        found = []
        for address in [self.address, *self.others]:
            sentinel = self._server(address, self.options["sentinel_port"])
            try:
                [answer] = sentinel.ask(("SENTINEL", "MASTER", self.name))
            except (ReplyError, WrongServerError, OSError):
                continue
            state = pairs(answer)
            found.append((int(state["config-epoch"]), state["ip"]))
        return found or self._noted()

    def _noted(self) -> list[tuple[int, str]]:
        try:
            text = self.files[1].read_text()
        except OSError:
            return []
        master = re.search(rf"^sentinel monitor {re.escape(self.name)} (\S+) ", text, re.MULTILINE)
        epoch = re.search(rf"^sentinel config-epoch {re.escape(self.name)} (\d+)", text, re.MULTILINE)
        return [(int(epoch[1]) if epoch else 0, master[1])] if master else []

    def ready(self) -> dict[str, Any]:
        """Bring the running processes up to date, and return the version and the master.

        Raises:
            WrongServerError: another server answers there.
            NotReadyError, ReplyError, OSError: it does not take part yet.
        """
        [text] = self.server.ask(("INFO",))
        info = fields(text)
        configured = info.get("config_file", "")
        if os.path.realpath(configured) != os.path.realpath(self.files[0]):
            raise WrongServerError(f"it was started with another file, {configured or 'none'}")
        self._update_users(self.server, self.directory / "users.acl")
        if self.tls:
            self._reload_certificate()
        master = self.address
        if self.options["sentinel_port"]:
            self._update_users(self.sentinel, self.directory / "sentinel" / "users.acl")
            master = self._joined(info)
        elif info["role"] != "master":
            raise WrongServerError(
                f"it is a replica of {info.get('master_host')}, which the cluster no longer has;"
                " `valkey-cli REPLICAOF NO ONE` makes it the master"
            )
        return {
            "version": info.get("valkey_version") or info.get("redis_version", ""),
            "master": master,
        }

    def _joined(self, info: dict[str, str]) -> str:
        """Return the master, when server and Sentinel agree about it and know everybody.

        Raises:
            NotReadyError: they do not.
        """
        state, replicas, sentinels = self.sentinel.ask(
            ("SENTINEL", "MASTER", self.name),
            ("SENTINEL", "REPLICAS", self.name),
            ("SENTINEL", "SENTINELS", self.name),
        )
        state = pairs(state)
        master = self.address if info["role"] == "master" else info["master_host"]
        if "failover_in_progress" in state["flags"]:
            raise NotReadyError("the Sentinels are choosing a master")
        if state["ip"] != master:
            raise NotReadyError(f"its master is {master}, and Sentinel's is {state['ip']}")
        if info["role"] != "master" and info["master_link_status"] != "up":
            raise NotReadyError(f"it does not have the data of its master {master} yet")
        known = self._known("a Sentinel", sentinels, self.others)
        known |= self._known("a replica", replicas, set(self.options["addresses"]) - {master})
        if known - set(self.options["addresses"]):
            # They would count for majorities. What is forgotten too much is found again in seconds.
            self._tell(f"forgot {known}", self.sentinel, "SENTINEL", "RESET", self.name)
            raise NotReadyError("its Sentinel has just forgotten hosts that are gone")
        quorum = str(len(self.options["addresses"]) // 2 + 1)
        if state["quorum"] != quorum:
            self._tell("quorum", self.sentinel, "SENTINEL", "SET", self.name, "quorum", quorum)
        return master

    def _known(self, what: str, answers: Iterable[list[str]], wanted: Iterable[str]) -> set[str]:
        """Return the addresses in the Sentinel's answers.

        Raises:
            NotReadyError: one that is wanted is not among them, or is down.
        """
        states = [pairs(answer) for answer in answers]
        for address in wanted:
            flags = {flag for state in states if state["ip"] == address for flag in state["flags"].split(",")}
            if not flags:
                raise NotReadyError(f"its Sentinel does not know {what} at {address} yet")
            if flags & {"s_down", "o_down", "disconnected"}:
                raise NotReadyError(f"its Sentinel does not reach {what} at {address}")
        return {state["ip"] for state in states}

    def _tell(self, what: str, server: Server, *words: str) -> None:
        server.ask(words)
        if what not in self.updated:
            self.updated.append(what)

    def _update_users(self, server: Server, file: Path) -> None:
        """Make the running process's users those of the file, without ending anybody's connection."""
        wanted = [line.split()[1:] for line in file.read_text().splitlines() if line.startswith("user ")]
        [before] = server.ask(("ACL", "LIST"))
        names = {line.split()[1] for line in before} - {name for name, *_ in wanted}
        commands = [("ACL", "SETUSER", name, "reset", *in_groups(rules)) for name, *rules in wanted]
        commands += [("ACL", "DELUSER", name) for name in sorted(names)]
        *_, after = server.ask(*commands, ("ACL", "LIST"))
        if after != before:
            self.updated.append(f"users at port {server.port}")

    def _reload_certificate(self) -> None:
        """Make the server read its certificate anew when the files have changed since it last did."""
        names = {"tls-cert-file": "cert.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "ca.pem"}
        paths = {option: self.directory / "tls" / name for option, name in names.items()}
        present = hashlib.sha256(b"".join(path.read_bytes() for path in paths.values())).hexdigest()
        note = self.directory / "tls" / "loaded"
        if note.exists() and note.read_text() == present:
            return
        first = not note.exists()
        words = [word for option, path in paths.items() for word in (option, str(path))]
        self.server.ask(("CONFIG", "SET", *words))
        note.write_text(present)
        if not first:
            self.updated.append("certificate")

    def replica(self) -> dict[str, Any]:
        """Return the master, when it is another host's server, and this one its replica.

        Nothing that a client was told to be stored is lost on the way: writes are held back, the replicas
        catch up, and only then the Sentinels choose one of them. They would not wait for that.

        Raises:
            NotReadyError: it is not done.
            ReplyError: the Sentinels cannot, yet.
        """
        if self._master() == self.address:
            self.server.ask(("CLIENT", "PAUSE", _PAUSE, "WRITE"))
            replication = fields(self.server.ask(("INFO", "replication"))[0])
            behind = [
                value
                for name, value in replication.items()
                if re.fullmatch(r"slave\d+", name)
                and f"offset={replication['master_repl_offset']}," not in value
            ]
            if behind:
                raise NotReadyError(f"replicas have not caught up: {', '.join(behind)}")
            try:
                self._tell("master", self.sentinel, "SENTINEL", "FAILOVER", self.name)
            except ReplyError as error:
                if not str(error).startswith("INPROG"):
                    raise
            raise NotReadyError("it is still the master")
        master = self._master()
        [role] = self._server(master, self.options["port"]).ask(("ROLE",))
        if role[0] != "master":
            raise NotReadyError(f"{master} is not the master yet")
        [own] = self.server.ask(("ROLE",))
        if own[0] == "master":
            # As the Sentinels do, after ten seconds; connections end so that clients ask for the master.
            self.server.ask(
                ("REPLICAOF", master, str(self.options["port"])),
                ("CONFIG", "REWRITE"),
                ("CLIENT", "UNPAUSE"),
                ("CLIENT", "KILL", "TYPE", "pubsub"),
                ("CLIENT", "KILL", "TYPE", "normal"),
            )
            raise NotReadyError("it has just become a replica")
        if own[3] != "connected":
            raise NotReadyError(f"it does not have the data of its master {master} yet")
        return {"master": master}

    def _master(self) -> str:
        [(master, _)] = self.sentinel.ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name))
        return str(master)


def in_groups(rules: list[str]) -> list[str]:
    """Return the rules as they are arguments: a selector, from one parenthesis to the other, is one."""
    found: list[str] = []
    for rule in rules:
        if found and found[-1].startswith("(") and not found[-1].endswith(")"):
            found[-1] += f" {rule}"
        else:
            found.append(rule)
    return found


def logged(module: AnsibleModule, name: str) -> list[str]:
    """Return the last lines that the service has logged, wherever it does."""
    path = Path(module.params["log_directory"], f"{name}.log")
    if path.exists():
        kept: list[str] = last_lines(path)
        return kept
    _, output, _ = module.run_command(
        ["journalctl", "--unit", f"clusterkit-{name}", "--lines=30", "--output=cat"]
    )
    return str(output).splitlines()


def until(timeout: float, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``attempt`` returns, as soon as it does; after ``timeout`` seconds raise what it raised."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return attempt()
        except (NotReadyError, ReplyError, OSError, KeyError) as error:
            # A certificate that is not right stays so.
            if time.monotonic() > deadline or isinstance(error, ssl.SSLCertVerificationError):
                raise
        time.sleep(_POLL)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["asked", "ready", "replica"], "default": "ready"},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "sentinel_port": {"type": "int", "default": 0},
            "addresses": {"type": "list", "elements": "str", "required": True},
            "master_name": {"type": "str", "default": "results"},
            "password": {"type": "str", "required": True, "no_log": True},
            "ca": {"type": "str", "default": ""},
            "directory": {"type": "path", "required": True},
            "log_directory": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    options = module.params
    where = f"the result store at {options['address']}:{options['port']}"
    begin = time.monotonic()
    cluster = Cluster(options)
    try:
        result = until(options["timeout"], getattr(cluster, options["state"]))
    except (WrongServerError, ssl.SSLCertVerificationError) as error:
        module.fail_json(msg=f"{where} is not the right one: {error}")
    except (NotReadyError, ReplyError, OSError, KeyError) as error:
        lines = logged(module, "valkey") + (
            logged(module, "valkey-sentinel") if options["sentinel_port"] else []
        )
        message = f"{where} does not take part after {options['timeout']} s: {error}"
        module.fail_json(msg=with_lines(message, "their logs", lines))
    module.exit_json(
        changed=bool(cluster.updated),
        updated=cluster.updated,
        address=options["address"],
        waited=round(time.monotonic() - begin, 1),
        **{"master": "", "epoch": -1, "data": False, "files": [], "version": "", **result},
    )


if __name__ == "__main__":
    main()
