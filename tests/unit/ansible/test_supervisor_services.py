"""Sets of services under a real supervisord."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., dict[str, Any]]


def service(name: str, command: str = "/bin/sleep 1000", **more: Any) -> dict[str, Any]:
    return {"name": name, "command": command, "start_seconds": 0, **more}


def states(call: Call, home: Path) -> dict[str, dict[str, Any]]:
    return {s["name"]: s for s in call("supervisor_control", home=str(home))["services"]}


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def test_a_second_run_changes_nothing_and_keeps_the_processes(
    supervised: Call, call: Call, home: Path
) -> None:
    first = supervised([service("a"), service("b")])
    assert (first["changed"], first["started"]) == (True, ["a", "b"])
    assert first["supervisord"]["started"] is True
    before = states(call, home)
    second = supervised([service("a"), service("b")])
    assert second["changed"] is False
    assert {n: s["pid"] for n, s in states(call, home).items()} == {n: s["pid"] for n, s in before.items()}


def test_only_a_service_with_another_fingerprint_is_restarted(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([service("a", fingerprint="1"), service("b")])
    before = states(call, home)
    result = supervised([service("a", fingerprint="2"), service("b")])
    after = states(call, home)
    assert (result["restarted"], result["started"], result["removed"]) == (["a"], [], [])
    assert after["a"]["pid"] != before["a"]["pid"]
    assert after["b"]["pid"] == before["b"]["pid"]


def test_a_restart_that_is_not_wanted_stays_pending_over_runs_until_it_is(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([service("a", fingerprint="1")])
    pid = states(call, home)["a"]["pid"]
    first = supervised([service("a", fingerprint="2")], restart=False)
    assert (first["changed"], first["pending"], first["restarted"]) == (True, ["a"], [])
    second = supervised([service("a", fingerprint="2")], restart=False)
    assert (second["changed"], second["pending"]) == (False, ["a"])
    assert supervised([service("a", fingerprint="2")], restart=False, check_mode=True)["pending"] == ["a"]
    supervised([service("b")], set_name="others")
    assert states(call, home)["a"]["pid"] == pid
    third = supervised([service("a", fingerprint="2")])
    assert (third["restarted"], third["pending"]) == (["a"], [])


def test_what_is_pending_is_restarted_by_name_as_it_is_described_by_now(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([service("a")])
    supervised([service("a", "/bin/sleep 2000")], restart=False)
    call("supervisor_control", home=str(home), state="restarted", services=["a"])
    pid = states(call, home)["a"]["pid"]
    command = Path(f"/proc/{pid}/cmdline")
    wait_for(lambda: command.read_bytes() == b"/bin/sleep\x002000\0", "it is the new command")
    assert supervised([service("a", "/bin/sleep 2000")], restart=False)["pending"] == []


def test_a_service_that_does_not_run_is_started_also_without_restarts(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([service("a")])
    call("supervisor_control", home=str(home), state="stopped", services=["a"])
    result = supervised([service("a", "/bin/sleep 2000")], restart=False)
    assert (result["started"], result["pending"]) == (["a"], [])


def test_a_service_that_is_no_longer_listed_is_stopped_and_removed(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([service("a"), service("b")])
    pid = states(call, home)["b"]["pid"]
    assert supervised([service("a")])["removed"] == ["b"]
    assert list(states(call, home)) == ["a"]
    assert not Path(f"/proc/{pid}").exists()


def test_an_empty_set_is_removed(supervised: Call, call: Call, home: Path) -> None:
    supervised([service("a")])
    assert supervised([])["removed"] == ["a"]
    assert states(call, home) == {}
    assert supervised([])["changed"] is False


def test_sets_do_not_touch_each_other(supervised: Call, call: Call, home: Path) -> None:
    supervised([service("a")], set_name="one")
    pid = states(call, home)["a"]["pid"]
    supervised([service("b")], set_name="two")
    assert states(call, home)["a"]["pid"] == pid
    refused = supervised([service("a")], set_name="two")
    assert refused["failed"]
    assert "the service a of the set two is in one too" in refused["msg"]


@pytest.mark.parametrize("how", ["stopped by hand", "killed with its supervisor"])
def test_a_service_that_does_not_run_is_started_again(
    supervised: Call, call: Call, home: Path, how: str
) -> None:
    first = supervised([service("a"), service("b")])
    if how == "stopped by hand":
        call("supervisor_control", home=str(home), state="stopped", services=["a"])
        expected = ["a"]
    else:
        os.kill(first["supervisord"]["pid"], signal.SIGKILL)
        wait_for(lambda: not call("supervisor_control", home=str(home))["supervisord"], "supervisord ends")
        call("leftover_processes", home=str(home))
        expected = ["a", "b"]
    result = supervised([service("a"), service("b")])
    assert (result["changed"], result["started"]) == (True, expected)


def test_a_service_that_was_killed_comes_back_by_itself(supervised: Call, call: Call, home: Path) -> None:
    supervised([service("a")])
    pid = states(call, home)["a"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: states(call, home)["a"]["pid"] not in {0, pid}, "another process")


def test_a_service_that_does_not_stay_up_fails_with_its_log(supervised: Call) -> None:
    command = "/bin/sh -c 'echo what is wrong; echo ${NUMBER} >&2; exit 3'"
    result = supervised([service("a", command, start_seconds=1, environment={"NUMBER": 42})])
    assert result["failed"]
    assert "a does not stay up" in result["msg"]
    assert "  what is wrong\n  42" in result["msg"]
    # Corrected, it is started at once and not after the pause that supervisord makes.
    assert supervised([service("a", start_seconds=1)])["started"] == ["a"]


def test_a_command_that_is_not_there_fails_with_its_path(supervised: Call) -> None:
    result = supervised([service("a", "/nowhere/program")])
    assert result["failed"]
    assert "/nowhere/program" in result["msg"]


def test_services_start_by_ascending_and_stop_by_descending_priority(
    supervised: Call, call: Call, home: Path
) -> None:
    log = home / "order"
    script = "trap 'echo stop $0 >> {log}; exit 0' TERM; echo start $0 >> {log}; while :; do sleep 0.02; done"
    commands = {name: f'/bin/sh -c "{script.format(log=log)}" {name}' for name in ("first", "second")}
    supervised(
        [
            service("second", commands["second"], priority=20, start_seconds=1),
            service("first", commands["first"], priority=10, start_seconds=1),
        ]
    )
    call("supervisor_control", home=str(home), state="stopped")
    assert log.read_text().splitlines() == ["start first", "start second", "stop second", "stop first"]


def test_every_process_carries_the_home_and_nothing_of_the_callers_environment(
    supervised: Call, call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_NODENAME", "of-the-shell")
    supervised([service("a", environment={"PERCENT": "100%"}, secret_environment={"TOKEN": "xyzzy"})])
    pid = states(call, home)["a"]["pid"]
    wanted = {f"CLUSTERKIT_HOME={home}", "PERCENT=100%", "TOKEN=xyzzy"}
    deadline = time.monotonic() + 10
    environment: list[str] = []
    while time.monotonic() < deadline and not wanted <= set(environment):
        # Between its fork and its exec a process still has its parent's.
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    assert wanted <= set(environment)
    assert not [line for line in environment if line.startswith("RABBITMQ")]


def test_files_are_written_before_the_services_start_and_only_when_they_differ(
    supervised: Call, home: Path
) -> None:
    directory, file = home / "etc", home / "etc" / "a.conf"
    more = {
        "directories": [{"path": str(directory)}],
        # Only root could give it away.
        "files": [{"path": str(file), "content": "secret-content", "owner": "nobody"}],
    }
    first = supervised([service("a", f"/usr/bin/tail -f {file}")], **more)
    assert {str(directory), str(file)} <= set(first["changed_paths"])
    assert "secret-content" not in str(first)
    assert file.stat().st_mode & 0o777 == 0o600
    assert supervised([service("a", f"/usr/bin/tail -f {file}")], **more)["changed"] is False


def test_check_mode_tells_and_does_nothing(supervised: Call, call: Call, home: Path) -> None:
    planned = supervised([service("a")], check_mode=True)
    assert (planned["changed"], planned["started"]) == (True, ["a"])
    assert not home.exists()
    supervised([service("a"), service("b")])
    planned = supervised([service("a", fingerprint="2")], check_mode=True)
    assert (planned["restarted"], planned["removed"]) == (["a"], ["b"])
    assert sorted(states(call, home)) == ["a", "b"]
    assert supervised([service("a"), service("b")], check_mode=True)["changed"] is False


@pytest.mark.parametrize(
    ("services", "message"),
    [
        ([service("a"), service("a")], "a is listed twice"),
        ([service("a b")], "'a b' is not a letter"),
        ([service("a", "sleep 1")], "does not begin with an absolute path"),
        ([service("a", environment={"A": "1\n2"})], "the value of A"),
    ],
)
def test_a_set_that_cannot_be_run_is_refused_before_anything_is_written(
    supervised: Call, home: Path, services: list[dict[str, Any]], message: str
) -> None:
    result = supervised(services)
    assert result["failed"]
    assert message in result["msg"]
    assert not (home / "supervisor" / "sets" / "things.conf").exists()


def test_a_cluster_with_a_long_path_runs_too(tmp_path: Path, call: Call, supervised: Call) -> None:
    long = tmp_path / ("x" * 110)
    try:
        result = supervised([service("a")], home=str(long))
        assert result["supervisord"]["socket"].startswith("/tmp/clusterkit-")  # noqa: S108
        assert states(call, long)["a"]["state"] == "RUNNING"
    finally:
        call("supervisor_control", home=str(long), state="stopped")
    assert not Path(result["supervisord"]["socket"]).parent.exists()


def test_restarting_a_service_by_name_gives_it_another_process(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([service("a"), service("b")])
    before = states(call, home)
    result = call("supervisor_control", home=str(home), state="restarted", services=["a"])
    assert result["affected"] == ["a"]
    assert states(call, home)["a"]["pid"] != before["a"]["pid"]
    assert states(call, home)["b"]["pid"] == before["b"]["pid"]


def test_a_name_that_does_not_exist_is_answered_with_those_that_do(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([service("a"), service("b")])
    result = call("supervisor_control", home=str(home), state="restarted", services=["c"])
    assert result["failed"]
    assert "there is no service c; there are: a, b" in result["msg"]


def test_stopping_a_set_leaves_the_others_running(supervised: Call, call: Call, home: Path) -> None:
    supervised([service("a")], set_name="one")
    supervised([service("b")], set_name="two")
    result = call("supervisor_control", home=str(home), state="stopped", set="one")
    assert result["affected"] == ["a"]
    assert {name: s["state"] for name, s in states(call, home).items()} == {"a": "STOPPED", "b": "RUNNING"}
    assert call("supervisor_control", home=str(home), state="stopped", set="none")["changed"] is False


def test_stopping_everything_twice_changes_nothing_the_second_time(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([service("a")])
    first = call("supervisor_control", home=str(home), state="stopped")
    assert (first["affected"], first["supervisord"]) == (["a"], 0)
    assert call("supervisor_control", home=str(home), state="stopped")["changed"] is False


STUBBORN = "/bin/sh -c \"trap '' TERM; while :; do sleep 0.05; done\" {slot}"


def handed_over(name: str, command: str = "/bin/sleep 1000", **more: Any) -> dict[str, Any]:
    return service(name, command, handover=True, **more)


def promote(call: Call, home: Path, *names: str) -> dict[str, Any]:
    return call("supervisor_control", home=str(home), state="promoted", services=list(names))


def test_what_changed_runs_beside_the_old_one_until_it_is_promoted(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([handed_over("a")])
    old = states(call, home)["a"]["pid"]
    joined = supervised([handed_over("a", "/bin/sleep 2000")])
    assert joined["joining"] == [{"name": "a.b", "replaces": "a"}]
    assert {name: s["state"] for name, s in states(call, home).items()} == {"a": "RUNNING", "a.b": "RUNNING"}
    assert states(call, home)["a"]["pid"] == old
    assert promote(call, home, "a.b")["affected"] == ["a"]
    wait_for(lambda: list(states(call, home)) == ["a.b"], "the old one has ended")
    again = supervised([handed_over("a", "/bin/sleep 2000")])
    assert (again["removed"], again["joining"], again["started"]) == (["a"], [], [])
    assert supervised([handed_over("a", "/bin/sleep 2000")])["changed"] is False


def test_the_slot_called_as_the_service_is_takes_over_again(supervised: Call, call: Call, home: Path) -> None:
    supervised([handed_over("a")])
    for command, name, old in [("/bin/sleep 2000", "a.b", "a"), ("/bin/sleep 3000", "a", "a.b")]:
        assert supervised([handed_over("a", command)])["joining"] == [{"name": name, "replaces": old}]
        assert promote(call, home, name)["affected"] == [old]
        wait_for(lambda name=name: list(states(call, home)) == [name], "the old one has ended")


def test_nobody_waits_for_the_old_one_and_nothing_brings_it_back(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([handed_over("a", STUBBORN, stop_timeout=1000)])
    old = states(call, home)["a"]["pid"]
    supervised([handed_over("a")])
    promote(call, home, "a.b")
    assert states(call, home)["a"]["state"] == "RETIRING"
    assert supervised([handed_over("a")])["changed"] is False
    assert call("supervisor_control", home=str(home), state="restarted")["affected"] == ["a.b"]
    assert states(call, home)["a"] == states(call, home)["a"] | {"pid": old, "state": "RETIRING"}
    assert supervised([handed_over("a", "/bin/sleep 3000")])["joining"] == [
        {"name": "a.c", "replaces": "a.b"}
    ]
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: "a" not in states(call, home), "the old one has ended")


def test_a_new_one_that_does_not_stay_up_is_removed_and_the_old_one_goes_on(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([handed_over("a"), handed_over("b")])
    before = states(call, home)
    failed = supervised(
        [handed_over("a", "/bin/false", start_seconds=1), handed_over("b", "/bin/sleep 2000")]
    )
    assert failed["failed"]
    assert "a.b does not stay up" in failed["msg"]
    after = states(call, home)
    assert {n: s["pid"] for n, s in after.items()} == {n: s["pid"] for n, s in before.items()}
    assert supervised([handed_over("a"), handed_over("b")])["joining"] == []


def test_a_new_one_that_is_discarded_leaves_nothing_behind(supervised: Call, call: Call, home: Path) -> None:
    supervised([handed_over("a")])
    pid = states(call, home)["a"]["pid"]
    supervised([handed_over("a", "/bin/sleep 2000")])
    assert call("supervisor_control", home=str(home), state="discarded", services=["a.b"])["affected"] == [
        "a.b"
    ]
    assert {name: s["pid"] for name, s in states(call, home).items()} == {"a": pid}
    assert supervised([handed_over("a")])["changed"] is False


def test_a_service_with_slots_that_left_the_set_ends_in_its_own_time(
    supervised: Call, call: Call, home: Path
) -> None:
    supervised([handed_over("a", STUBBORN, stop_timeout=1000), service("b")])
    left = supervised([service("b")])
    assert (left["retired"], left["removed"]) == (["a"], [])
    assert states(call, home)["a"]["state"] == "RETIRING"
    os.kill(states(call, home)["a"]["pid"], signal.SIGKILL)
    wait_for(lambda: list(states(call, home)) == ["b"], "it has ended")
    assert supervised([service("b")])["removed"] == ["a"]
