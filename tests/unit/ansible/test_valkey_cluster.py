"""What the result store's module makes of what servers and Sentinels answer."""

from __future__ import annotations

import importlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., dict[str, Any]]

HERE, THERE, ELSEWHERE = "127.0.0.1", "127.0.0.2", "127.0.0.3"


class Fake(socketserver.ThreadingTCPServer):
    """Answers in Redis's protocol, with what ``answers`` has for the beginning of a command."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str = HERE, port: int = 0) -> None:
        self.answers: dict[str, Any] = {"AUTH operator open-sesame": "OK", "AUTH": ValueError("WRONGPASS no")}
        self.asked: list[str] = []
        super().__init__((address, port), Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def answer(self, words: list[str]) -> Any:
        said = " ".join(words)
        self.asked.append(said)
        found = next((value for start, value in self.answers.items() if said.startswith(start)), "OK")
        return found.pop(0) if isinstance(found, Turns) and len(found) > 1 else found


class Turns(list[Any]):
    """Answers given one after the other; the last one for good."""


class Handler(socketserver.StreamRequestHandler):
    """Answers one connection."""

    server: Fake

    def handle(self) -> None:
        while words := self.words():
            self.wfile.write(encoded(self.server.answer(words)))

    def words(self) -> list[str]:
        count = self.rfile.readline()
        words = []
        for _ in range(int(count[1:]) if count else 0):
            length = int(self.rfile.readline()[1:])
            words.append(self.rfile.read(length + 2)[:-2].decode())
        return words


def encoded(value: Any) -> bytes:
    if isinstance(value, Turns):
        value = value[0]
    if isinstance(value, Exception):
        return f"-{value}\r\n".encode()
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(encoded(one) for one in value)
    if isinstance(value, dict):
        return encoded([part for pair in value.items() for part in pair])
    return b"$%d\r\n%b\r\n" % (len(str(value).encode()), str(value).encode())


def info(directory: Path, **more: str) -> str:
    lines = {
        "valkey_version": "8.1.1",
        "config_file": str(directory / "valkey.conf"),
        "role": "master",
        **more,
    }
    return "# Server\r\n" + "".join(f"{name}:{value}\r\n" for name, value in lines.items())


def state(address: str, **more: str) -> dict[str, str]:
    return {"ip": address, "flags": "slave", "config-epoch": "1", "quorum": "2", **more}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a server's directory, as the role leaves it before the first start."""
    (tmp_path / "sentinel").mkdir()
    rules = "user default off ~* &* +@all\nuser worker on #00 ~a* +get (~b* +set)\n"
    for path in (tmp_path / "users.acl", tmp_path / "sentinel" / "users.acl"):
        path.write_text(rules)
    (tmp_path / "valkey.log").write_text("what the server says\n")
    return tmp_path


def serve(fake: Fake) -> Iterator[Fake]:
    with fake:
        threading.Thread(target=fake.serve_forever, args=(0.01,), daemon=True).start()
        yield fake
        fake.shutdown()


@pytest.fixture
def server(directory: Path) -> Iterator[Fake]:
    """Return a server that runs."""
    fake = Fake()
    fake.answers |= {"INFO": info(directory), "ACL LIST": ["user default off", "user worker on"]}
    yield from serve(fake)


@pytest.fixture
def sentinel() -> Iterator[Fake]:
    """Return a Sentinel of three hosts that knows everybody; the master is here."""
    fake = Fake()
    fake.answers |= {
        "ACL LIST": ["user default off"],
        "SENTINEL MASTER results": state(HERE, flags="master"),
        "SENTINEL REPLICAS": [state(THERE), state(ELSEWHERE)],
        "SENTINEL SENTINELS": [state(THERE), state(ELSEWHERE)],
    }
    yield from serve(fake)


@pytest.fixture
def ask(call: Call, directory: Path, server: Fake) -> Call:
    """Return a function that calls the module for this host."""

    def run(sentinel: Fake | None = None, **more: Any) -> dict[str, Any]:
        arguments = {
            "address": HERE,
            "port": server.port,
            "sentinel_port": sentinel.port if sentinel else 0,
            "addresses": [HERE, THERE, ELSEWHERE] if sentinel else [HERE],
            "password": "open-sesame",
            "directory": str(directory),
            "log_directory": str(directory),
            "timeout": 0,
        }
        return call("valkey_cluster", **{**arguments, **more})

    return run


def test_a_server_alone_tells_its_version_and_is_the_master(ask: Call) -> None:
    result = ask()
    assert (result["failed"], result["changed"], result["version"], result["master"]) == (
        False,
        False,
        "8.1.1",
        HERE,
    )


def test_a_server_that_loads_its_data_is_waited_for(ask: Call, server: Fake, directory: Path) -> None:
    server.answers["INFO"] = Turns(
        [ValueError("LOADING it is"), ValueError("LOADING it is"), info(directory)]
    )
    assert ask(timeout=10)["version"] == "8.1.1"


def test_a_server_that_goes_on_loading_fails_with_its_log(ask: Call, server: Fake) -> None:
    server.answers["INFO"] = ValueError("LOADING it is")
    message = ask()["msg"]
    assert "does not take part after 0 s: LOADING it is" in message
    assert "what the server says" in message


def test_another_server_is_not_waited_for(ask: Call, server: Fake, tmp_path: Path) -> None:
    assert "it refuses the operator's password (WRONGPASS no)" in ask(password="wrong", timeout=60)["msg"]
    server.answers["INFO"] = info(tmp_path / "other")
    assert "it was started with another file" in ask(timeout=60)["msg"]


def test_a_replica_of_a_host_that_is_gone_is_told_what_to_do(
    ask: Call, server: Fake, directory: Path
) -> None:
    server.answers["INFO"] = info(directory, role="slave", master_host=THERE)
    assert f"replica of {THERE}" in ask(timeout=60)["msg"]


def test_users_are_brought_up_to_date_in_the_running_server(ask: Call, server: Fake) -> None:
    before, after = ["user default off", "user gone on"], ["user default off", "user worker on"]
    server.answers["ACL LIST"] = Turns([before, after])
    result = ask()
    assert (result["changed"], result["updated"]) == (True, [f"users at port {server.port}"])
    assert "ACL SETUSER worker reset on #00 ~a* +get (~b* +set)" in server.asked
    assert "ACL DELUSER gone" in server.asked


def test_a_selector_is_one_argument() -> None:
    valkey_cluster = importlib.import_module("valkey_cluster")
    rules = ["on", "~a", "(~b", "+set", "+get)", "(~c", "+del)", "+ping"]
    assert valkey_cluster.in_groups(rules) == ["on", "~a", "(~b +set +get)", "(~c +del)", "+ping"]


def test_a_master_that_sentinel_agrees_with_is_ready(ask: Call, sentinel: Fake) -> None:
    result = ask(sentinel)
    assert (result["failed"], result["changed"], result["master"]) == (False, False, HERE)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("SENTINEL MASTER results", state(THERE), f"its master is {HERE}, and Sentinel's is {THERE}"),
        ("SENTINEL MASTER results", state(HERE, flags="failover_in_progress"), "are choosing a master"),
        ("SENTINEL REPLICAS", [state(THERE)], f"does not know a replica at {ELSEWHERE} yet"),
        (
            "SENTINEL SENTINELS",
            [state(THERE), state(ELSEWHERE, flags="s_down,sentinel")],
            f"does not reach a Sentinel at {ELSEWHERE}",
        ),
    ],
)
def test_what_is_not_settled_yet_is_waited_for(
    ask: Call, sentinel: Fake, question: str, answer: Any, reason: str
) -> None:
    sentinel.answers[question] = answer
    assert reason in ask(sentinel)["msg"]


def test_a_replica_without_the_data_is_waited_for(
    ask: Call, server: Fake, sentinel: Fake, directory: Path
) -> None:
    sentinel.answers["SENTINEL MASTER results"] = state(THERE)
    sentinel.answers["SENTINEL REPLICAS"] = [state(HERE), state(ELSEWHERE)]
    server.answers["INFO"] = info(directory, role="slave", master_host=THERE, master_link_status="down")
    assert f"does not have the data of its master {THERE} yet" in ask(sentinel)["msg"]
    server.answers["INFO"] = info(directory, role="slave", master_host=THERE, master_link_status="up")
    assert ask(sentinel)["master"] == THERE


def test_a_host_that_is_gone_is_forgotten(ask: Call, sentinel: Fake) -> None:
    three = [state(THERE), state(ELSEWHERE), state("127.0.0.9", flags="s_down")]
    sentinel.answers["SENTINEL SENTINELS"] = Turns([three, three[:2]])
    result = ask(sentinel, timeout=10)
    assert (result["failed"], result["changed"]) == (False, True)
    assert "SENTINEL RESET results" in sentinel.asked


def test_another_majority_is_told_to_the_running_sentinel(ask: Call, sentinel: Fake) -> None:
    sentinel.answers["SENTINEL MASTER results"] = state(HERE, quorum="3")
    assert ask(sentinel)["updated"] == ["quorum"]
    assert "SENTINEL SET results quorum 2" in sentinel.asked


def test_without_any_answer_the_sentinels_own_file_tells_the_master(ask: Call, directory: Path) -> None:
    stopped = Fake()
    stopped.server_close()
    assert ask(stopped, state="asked")["master"] == ""
    (directory / "sentinel" / "sentinel.conf").write_text(
        f"sentinel monitor results {THERE} 6379 2\nsentinel config-epoch results 7\n"
    )
    result = ask(stopped, state="asked")
    assert (result["master"], result["epoch"], result["data"]) == (THERE, 7, False)


def test_of_several_answers_the_latest_choice_counts(ask: Call, sentinel: Fake, directory: Path) -> None:
    (directory / "valkey.conf").touch()
    other = Fake(THERE, sentinel.port)
    other.answers["SENTINEL MASTER results"] = {**state(ELSEWHERE), "config-epoch": "2"}
    for _ in serve(other):
        result = ask(sentinel, state="asked")
        assert (result["master"], result["epoch"], result["changed"]) == (ELSEWHERE, 2, False)


def test_a_blank_host_that_was_the_master_waits_until_another_one_is(ask: Call, sentinel: Fake) -> None:
    assert "is blank" in ask(sentinel, state="asked")["msg"]
    sentinel.answers["SENTINEL MASTER results"] = Turns([state(HERE), state(THERE)])
    assert ask(sentinel, state="asked", timeout=10)["master"] == THERE


def test_a_master_hands_over_when_its_replicas_have_caught_up(
    ask: Call, server: Fake, sentinel: Fake
) -> None:
    behind, equal = (f"master_repl_offset:9\r\nslave0:ip={THERE},offset={n},lag=0\r\n" for n in (8, 9))
    server.answers = {"INFO replication": Turns([behind, equal]), **server.answers}
    server.answers["ROLE"] = Turns([["master"], ["slave", THERE, "1", "connected"]])
    sentinel.answers["SENTINEL GET-MASTER-ADDR-BY-NAME"] = Turns([[HERE, 1], [HERE, 1], [THERE, 1]])
    # The new master answers too, at its own address.
    other = Fake(THERE, server.port)
    other.answers["ROLE"] = ["master"]
    for _ in serve(other):
        result = ask(sentinel, state="replica", timeout=10)
    assert (result["changed"], result["updated"], result["master"]) == (True, ["master"], THERE)
    acts = [one for one in server.asked if one.startswith(("CLIENT PAUSE", "REPLICAOF", "CONFIG"))]
    assert acts == [
        *("CLIENT PAUSE 10000 WRITE",) * 2,
        f"REPLICAOF {THERE} {server.port}",
        "CONFIG REWRITE",
    ]
    assert sentinel.asked.count("SENTINEL FAILOVER results") == 1


def test_a_replica_needs_not_hand_over(ask: Call, server: Fake, sentinel: Fake) -> None:
    sentinel.answers["SENTINEL GET-MASTER-ADDR-BY-NAME"] = [THERE, 1]
    server.answers["ROLE"] = ["slave", THERE, "1", "connected"]
    other = Fake(THERE, server.port)
    other.answers["ROLE"] = ["master"]
    for _ in serve(other):
        assert ask(sentinel, state="replica")["changed"] is False
