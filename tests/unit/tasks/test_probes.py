"""The probes do what they say, and crash only where it is safe."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tasks import probes


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: kills.append((pid, number)))
    return kills


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [1, {"a": [None]}], {"b": "c"}])
def test_echo_returns_any_json(value: Any) -> None:
    assert probes.echo(value) == value


def test_echo_refuses_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MAX_ECHO_BYTES", 100)
    with pytest.raises(ValueError, match=r"at most 100 bytes of JSON \(it is 202\)"):
        probes.echo("x" * 200)


def test_sleep_returns_its_seconds() -> None:
    assert probes.sleep(0.01) == 0.01


@pytest.mark.parametrize("seconds", [-1, 3601, float("nan"), float("inf"), "1"])
def test_sleep_out_of_bounds_is_refused(seconds: Any) -> None:
    with pytest.raises(ValueError, match="sleep: seconds: "):
        probes.sleep(seconds)


def test_fail_says_what_it_was_told() -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        probes.fail("on purpose")


def test_allocate_holds_and_returns_its_mebibytes() -> None:
    assert probes.allocate(2, 0) == 2
    with pytest.raises(ValueError, match="allocate: mebibytes: "):
        probes.allocate(4097)


def test_crash_refuses_to_end_a_whole_worker_node(killed: list[tuple[int, int]]) -> None:
    with pytest.raises(RuntimeError, match="whole worker node, not a prefork pool's child"):
        probes.crash()
    assert killed == []


def test_crash_kills_its_own_process_when_forced(killed: list[tuple[int, int]]) -> None:
    probes.crash(force=True)
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize(
    ("redelivered", "again", "kills"),
    [(False, False, True), (False, True, True), (True, False, False), (True, True, True)],
)
def test_crash_completes_when_delivered_again_unless_told_to_kill_again(
    killed: list[tuple[int, int]],
    redelivered: bool,
    again: bool,
    kills: bool,
) -> None:
    probes.crash.push_request(delivery_info={"redelivered": redelivered})
    try:
        # A direct call has a request of its own; run() keeps the one above.
        probes.crash.run(force=True, again=again)
    finally:
        probes.crash.pop_request()
    assert bool(killed) is kills
