"""The result store counts as ready when the right server answers."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

Call = Callable[..., dict[str, Any]]


class Server(socketserver.ThreadingTCPServer):
    """Answers as a server of Redis's protocol does."""

    allow_reuse_address = True
    daemon_threads = True
    password = "open-sesame"
    loading = 0
    config_file = "/srv/valkey.conf"


class Handler(socketserver.StreamRequestHandler):
    """Answers one connection."""

    errors: ClassVar[dict[str, bytes]] = {"loading": b"-LOADING it is\r\n", "wrong": b"-WRONGPASS no\r\n"}

    def handle(self) -> None:
        while words := self.words():
            self.wfile.write(self.answer(words))

    def words(self) -> list[bytes]:
        count = self.rfile.readline()
        words = []
        for _ in range(int(count[1:]) if count else 0):
            self.rfile.readline()
            words.append(self.rfile.readline().strip())
        return words

    def answer(self, words: list[bytes]) -> bytes:
        server: Any = self.server
        if words[0] == b"AUTH":
            return b"+OK\r\n" if words[1].decode() == server.password else self.errors["wrong"]
        if words[0] == b"PING":
            server.loading -= 1
            return self.errors["loading"] if server.loading >= 0 else b"+PONG\r\n"
        text = f"# Server\r\nvalkey_version:8.1.1\r\nconfig_file:{server.config_file}\r\n".encode()
        return b"$%d\r\n%b\r\n" % (len(text), text)


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a running server."""
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ready(call: Call, server: Server, tmp_path: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "valkey.log").write_text("what the server says\n")
    arguments = {
        "host": "127.0.0.1",
        "port": server.server_address[1],
        "password": "open-sesame",
        "config_file": "/srv/valkey.conf",
        "log_file": str(tmp_path / "valkey.log"),
        "timeout": 0,
    }
    return call("valkey_ready", **{**arguments, **more})


def test_the_right_server_tells_its_version(call: Call, server: Server, tmp_path: Path) -> None:
    result = ready(call, server, tmp_path)
    assert (result["failed"], result["changed"], result["version"]) == (False, False, "8.1.1")


def test_a_server_that_loads_its_data_is_waited_for(call: Call, server: Server, tmp_path: Path) -> None:
    server.loading = 3
    assert ready(call, server, tmp_path, timeout=10)["version"] == "8.1.1"


def test_a_server_that_goes_on_loading_fails_with_its_log(call: Call, server: Server, tmp_path: Path) -> None:
    server.loading = 10**6
    message = ready(call, server, tmp_path)["msg"]
    assert "does not answer after 0 s: LOADING it is" in message
    assert "what the server says" in message


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"password": "wrong"}, "it refuses the password (WRONGPASS no)"),
        ({"config_file": "/srv/other.conf"}, "it was started with another file, /srv/valkey.conf"),
    ],
)
def test_another_server_is_not_waited_for(
    call: Call, server: Server, tmp_path: Path, more: dict[str, str], reason: str
) -> None:
    result = ready(call, server, tmp_path, timeout=60, **more)
    assert result["failed"]
    assert f"is not the right one: {reason}" in result["msg"]
