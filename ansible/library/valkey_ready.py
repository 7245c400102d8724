#!/usr/bin/python
"""Ansible module: wait until a private Valkey or Redis server answers."""

from __future__ import annotations

import os
import socket
import time
from typing import BinaryIO

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_logs import with_log

DOCUMENTATION = r"""
---
module: valkey_ready
short_description: Wait until a Valkey or Redis server answers
description:
  - Logs in, asks C(PING) and makes sure that the server which answers is the one with O(config_file).
options:
  host:
    description: Address of the server.
    type: str
    required: true
  port:
    description: Port of the server.
    type: int
    required: true
  password:
    description: Its password.
    type: str
    required: true
  config_file:
    description: The file the server was started with.
    type: path
    required: true
  timeout:
    description: Seconds to wait; loading a large data set takes time.
    type: int
    default: 60
  log_file:
    description: The server's log on the host, of which the end is shown when it does not answer.
    type: path
    required: true
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Wait for the result store
  valkey_ready:
    host: 127.0.0.1
    port: 24379
    password: "{{ valkey_password }}"
    config_file: /srv/demo/.cluster/local/valkey/valkey.conf
    log_file: /srv/demo/.cluster/local/log/valkey.log
"""

RETURN = r"""
version:
  description: The server's version.
  type: str
  returned: always
waited:
  description: Seconds until it answered.
  type: float
  returned: always
"""

_POLL = 0.1


class ReplyError(Exception):
    """The server answered with an error, such as that it still loads its data."""


class WrongServerError(Exception):
    """Another server answers there, or this one with another password."""


def command(*words: str) -> bytes:
    """Return a command in the server's protocol (RESP)."""
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        data = word.encode()
        parts.append(f"${len(data)}\r\n".encode() + data + b"\r\n")
    return b"".join(parts)


def reply(stream: BinaryIO) -> str:
    """Read one answer that is a line or a text.

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
        return stream.read(int(text) + 2)[:-2].decode(errors="replace")
    return text


def ask(address: tuple[str, int], password: str, config_file: str) -> str:
    """Log in and return the server's version.

    Raises:
        WrongServerError, ReplyError, OSError: it is not (yet) there.
    """
    with socket.create_connection(address, timeout=5) as connection, connection.makefile("rb") as stream:
        connection.sendall(command("AUTH", password))
        try:
            reply(stream)
        except ReplyError as error:
            raise WrongServerError(f"it refuses the password ({error})") from None
        connection.sendall(command("PING") + command("INFO", "server"))
        reply(stream)
        info = dict(line.partition(":")[::2] for line in reply(stream).splitlines())
    if os.path.realpath(info.get("config_file", "")) != os.path.realpath(config_file):
        raise WrongServerError(f"it was started with another file, {info.get('config_file') or 'none'}")
    return info.get("valkey_version") or info.get("redis_version", "")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "config_file": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 60},
            "log_file": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    address = (options["host"], options["port"])
    where = f"the result store at {address[0]}:{address[1]}"
    begin = time.monotonic()
    while True:
        try:
            version = ask(address, options["password"], options["config_file"])
            break
        except WrongServerError as error:
            module.fail_json(msg=f"{where} is not the right one: {error}")
        except (ReplyError, OSError) as error:
            if time.monotonic() - begin > options["timeout"]:
                message = f"{where} does not answer after {options['timeout']} s: {error}"
                module.fail_json(msg=with_log(message, options["log_file"]))
        time.sleep(_POLL)
    module.exit_json(changed=False, version=version, waited=round(time.monotonic() - begin, 1))


if __name__ == "__main__":
    main()
