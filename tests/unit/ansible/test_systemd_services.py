"""Sets of services under a stand-in for systemd: what is asked of it, and how often."""

from __future__ import annotations

import fnmatch
import importlib
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import clusterkit_files, clusterkit_systemd

Call = Callable[..., dict[str, Any]]


def now() -> int:
    return int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1_000_000)


@dataclass
class Unit:
    """A unit as the stand-in knows it: by default one that runs for a minute already when it is started."""

    enabled: bool = False
    active: str = "inactive"
    sub: str = "dead"
    pid: int = 0
    since: int = 0
    ended: int = 0
    status: int = 0


@dataclass
class Systemd:
    """Answers in the place of systemctl, systemd-analyze and journalctl, and notes what it was asked."""

    place: Path
    units: dict[str, Unit] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)
    """Unit -> exit status with which its program ends at once."""
    starts: int = 0

    @property
    def verbs(self) -> list[str]:
        return [words[0] for words in self.asked]

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[Any]:
        program, *words = [word for word in command if word != "--no-pager"]
        if program == "journalctl":
            return subprocess.CompletedProcess(command, 0, b"what is wrong\n", b"")
        if program == "systemd-analyze":
            self.asked.append(["verify"])
            return subprocess.CompletedProcess(command, 0, "", "")
        self.asked.append([word for word in words if not word.startswith("--")])
        verb, *units = self.asked[-1]
        said = getattr(self, verb.replace("-", "_"))(units) or ""
        return subprocess.CompletedProcess(command, 0, said, "")

    def known(self, name: str) -> Unit:
        return self.units.setdefault(name, Unit())

    def show(self, names: list[str]) -> str:
        """Tell how units are; what failed was tried again since."""
        self.restart([name for name in names if self.known(name).sub == "auto-restart"])
        return "\n\n".join(
            "\n".join(
                [
                    f"Id={name}",
                    f"ActiveState={unit.active}",
                    f"SubState={unit.sub}",
                    f"UnitFileState={'enabled' if unit.enabled else 'disabled'}",
                    "NeedDaemonReload=no",
                    f"MainPID={unit.pid}",
                    f"ActiveEnterTimestampMonotonic={unit.since}",
                    f"ExecMainCode={1 if unit.ended else 0}",
                    f"ExecMainStatus={unit.status}",
                    f"ExecMainExitTimestampMonotonic={unit.ended}",
                    f"Result={'exit-code' if unit.status else 'success'}",
                ]
            )
            for name, unit in ((name, self.known(name)) for name in names)
        )

    def restart(self, names: list[str]) -> None:
        for name in names:
            unit = self.known(name)
            self.starts += 1
            if status := self.fails.get(name):
                unit.active, unit.sub, unit.ended, unit.status = "activating", "auto-restart", now(), status
                continue
            unit.active, unit.sub, unit.ended, unit.status = "active", "running", 0, 0
            unit.pid, unit.since = 1000 + self.starts, now() - 60_000_000
            service = name.removeprefix("clusterkit-").removesuffix(".service")
            environment = (self.place / "env" / f"{service}.env").read_text()
            found = re.search('CLUSTERKIT_FINGERPRINT="(.*)"', environment)
            assert found
            (self.place / "records").mkdir(exist_ok=True)
            (self.place / "records" / service).write_text(found[1] + "\n")

    def stop(self, names: list[str]) -> None:
        for name in names:
            self.units[name] = Unit(enabled=self.known(name).enabled)

    def enable(self, names: list[str]) -> None:
        for name in names:
            self.known(name).enabled = True

    def disable(self, names: list[str]) -> None:
        for name in names:
            self.known(name).enabled = False

    def daemon_reload(self, names: list[str]) -> None:
        assert not names

    def reset_failed(self, names: list[str]) -> None:
        assert names


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """Put a stand-in in systemd's place; every user that is asked for is the present one."""
    stand_in = Systemd(tmp_path)
    account = SimpleNamespace(pw_uid=os.geteuid(), pw_gid=os.getegid())
    accounts = SimpleNamespace(getpwnam=lambda name: account)
    (tmp_path / "units").mkdir()
    monkeypatch.setattr(clusterkit_systemd, "subprocess", SimpleNamespace(run=stand_in.run, DEVNULL=-3))
    monkeypatch.setattr(clusterkit_systemd, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(clusterkit_systemd, "_POLL", 0)
    monkeypatch.setattr(clusterkit_files, "pwd", accounts)
    monkeypatch.setattr(importlib.import_module("systemd_services"), "pwd", accounts)
    monkeypatch.setattr(importlib.import_module("systemd_control"), "RECORDS", tmp_path / "records")
    return stand_in


@pytest.fixture
def apply(systemd: Systemd, call: Call) -> Call:
    """Return a function that applies a set of services."""

    def run(services: list[dict[str, Any]], set_name: str = "things", **more: Any) -> dict[str, Any]:
        systemd.asked.clear()
        return call(
            "systemd_services",
            home=str(systemd.place / "home"),
            set=set_name,
            services=services,
            user="clusterkit-worker",
            unit_directory=str(systemd.place / "units"),
            environment_directory=str(systemd.place / "env"),
            **more,
        )

    return run


@pytest.fixture
def control(systemd: Systemd, call: Call) -> Call:
    """Return a function that controls services."""

    def run(state: str, **more: Any) -> dict[str, Any]:
        systemd.asked.clear()
        return call(
            "systemd_control",
            state=state,
            unit_directory=str(systemd.place / "units"),
            environment_directory=str(systemd.place / "env"),
            **more,
        )

    return run


def service(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "command": "/bin/sleep 1000", **more}


def test_a_second_run_asks_systemd_once_and_changes_nothing(apply: Call, systemd: Systemd) -> None:
    first = apply([service("a"), service("b")])
    assert (first["changed"], first["started"]) == (True, ["a", "b"])
    assert systemd.verbs == ["show", "verify", "enable", "daemon-reload", "restart", "show"]
    second = apply([service("a"), service("b")])
    assert second["changed"] is False
    assert systemd.verbs == ["show"]
    assert [s["state"] for s in second["services"]] == ["RUNNING", "RUNNING"]


def test_only_a_service_with_another_fingerprint_is_restarted_and_needs_no_new_unit(
    apply: Call, systemd: Systemd
) -> None:
    apply([service("a", fingerprint="1"), service("b")])
    result = apply([service("a", fingerprint="2"), service("b")])
    assert (result["restarted"], result["started"], result["removed"]) == (["a"], [], [])
    assert systemd.asked[1:] == [["restart", "clusterkit-a.service"], systemd.asked[0]]


def test_a_restart_that_is_not_wanted_stays_pending_over_runs_until_it_is(
    apply: Call, systemd: Systemd
) -> None:
    apply([service("a")])
    first = apply([service("a", fingerprint="2")], restart=False)
    assert (first["changed"], first["pending"], first["restarted"]) == (True, ["a"], [])
    second = apply([service("a", fingerprint="2")], restart=False)
    assert (second["changed"], second["pending"]) == (False, ["a"])
    third = apply([service("a", fingerprint="2")])
    assert (third["restarted"], third["pending"]) == (["a"], [])
    assert apply([service("a", fingerprint="2")], restart=False)["pending"] == []


def test_what_came_back_by_itself_runs_the_new_version(apply: Call, systemd: Systemd) -> None:
    apply([service("a")])
    apply([service("a", fingerprint="2")], restart=False)
    systemd.restart(["clusterkit-a.service"])
    assert apply([service("a", fingerprint="2")], restart=False)["pending"] == []


def test_a_service_that_does_not_run_is_started_also_without_restarts(apply: Call, systemd: Systemd) -> None:
    apply([service("a")])
    systemd.stop(["clusterkit-a.service"])
    result = apply([service("a", fingerprint="2")], restart=False)
    assert (result["started"], result["pending"]) == (["a"], [])


def test_services_start_in_the_order_of_their_priorities(apply: Call, systemd: Systemd) -> None:
    apply([service("b", priority=20), service("a", priority=10), service("c", priority=10)])
    restarts = [words[1:] for words in systemd.asked if words[0] == "restart"]
    assert restarts == [["clusterkit-a.service", "clusterkit-c.service"], ["clusterkit-b.service"]]


def test_a_service_that_left_the_set_is_stopped_and_removed_first(apply: Call, systemd: Systemd) -> None:
    apply([service("a"), service("b")])
    assert apply([service("a", fingerprint="2")])["removed"] == ["b"]
    order = [verb for verb in systemd.verbs if verb in {"stop", "restart"}]
    assert order == ["stop", "restart"]
    assert sorted(path.name for path in systemd.place.glob("*/*")) == [
        "a",
        "a.env",
        "clusterkit-a.service",
    ]


def test_sets_do_not_touch_each_other(apply: Call, systemd: Systemd) -> None:
    apply([service("a")], set_name="one")
    assert apply([service("b")], set_name="two")["removed"] == []
    refused = apply([service("a")], set_name="two")
    assert refused["failed"]
    assert "the service a of the set two is in one too" in refused["msg"]


@pytest.mark.parametrize(
    ("status", "looks"),
    [
        # systemd tries again by itself.
        (3, 3),
        # It could not even execute the program, and never will.
        (203, 1),
    ],
)
def test_a_service_that_does_not_stay_up_fails_with_what_it_logged(
    apply: Call, systemd: Systemd, status: int, looks: int
) -> None:
    systemd.fails["clusterkit-a.service"] = status
    result = apply([service("a")])
    assert result["failed"]
    assert f"a does not stay up: exit-code, exit status {status}" in result["msg"]
    assert "  what is wrong" in result["msg"]
    restart = systemd.verbs.index("restart")
    assert systemd.verbs[restart + 1 :] == ["show"] * looks


def test_a_service_that_has_just_come_back_has_to_stay_up_too(apply: Call, systemd: Systemd) -> None:
    apply([service("a")])
    systemd.units["clusterkit-a.service"].since = now()
    assert apply([service("a")])["changed"] is False
    assert len(systemd.asked) > 1


def test_a_service_may_write_the_directories_of_its_user_alone(apply: Call, systemd: Systemd) -> None:
    place = str(systemd.place)
    directories = [
        {"path": f"{place}/own"},
        {"path": f"{place}/own/data"},
        {"path": f"{place}/shared", "owner": "root", "mode": "0755"},
        {"path": f"{place}/other", "owner": "clusterkit-flower"},
    ]
    apply([service("a", writable=["/data"])], directories=directories)
    text = (systemd.place / "units" / "clusterkit-a.service").read_text()
    assert f'\nReadWritePaths="/data" "{place}/own"\n' in text


def test_environments_are_private_and_contents_are_never_shown(apply: Call, systemd: Systemd) -> None:
    files = [{"path": str(systemd.place / "home" / "a.conf"), "content": "secret-content"}]
    result = apply([service("a", secret_environment={"TOKEN": "xyzzy"})], files=files)
    assert "secret-content" not in str(result)
    assert "xyzzy" not in str(result)
    environment = systemd.place / "env" / "a.env"
    assert 'TOKEN="xyzzy"' in environment.read_text()
    assert environment.stat().st_mode & 0o777 == 0o600


def test_check_mode_tells_and_does_nothing(apply: Call, systemd: Systemd) -> None:
    planned = apply([service("a")], check_mode=True)
    assert (planned["changed"], planned["started"]) == (True, ["a"])
    assert [path.name for path in systemd.place.rglob("*")] == ["units"]
    apply([service("a"), service("b")])
    planned = apply([service("a", fingerprint="2")], check_mode=True)
    assert (planned["restarted"], planned["removed"]) == (["a"], ["b"])
    assert systemd.verbs == ["show"]
    assert apply([service("a"), service("b")], check_mode=True)["changed"] is False


@pytest.mark.parametrize(
    ("services", "message"),
    [
        ([service("a"), service("a")], "a is listed twice"),
        ([service("a b")], "'a b' is not a letter"),
        ([{"name": "a", "command": "sleep 1"}], "does not begin with an absolute path"),
        ([service("a", environment={"A B": "1"})], "'A B' is not the name"),
    ],
)
def test_a_set_that_cannot_be_run_is_refused_before_anything_is_written(
    apply: Call, systemd: Systemd, services: list[dict[str, Any]], message: str
) -> None:
    result = apply(services)
    assert result["failed"]
    assert message in result["msg"]
    assert [path.name for path in systemd.place.rglob("*")] == ["units"]


def test_everything_stops_in_the_reverse_order_and_stays_down_over_a_boot(
    apply: Call, control: Call, systemd: Systemd
) -> None:
    apply([service("first", priority=10), service("second", priority=20)])
    stopped = control("stopped")
    assert stopped["affected"] == ["first", "second"]
    assert [words for words in systemd.asked if words[0] == "stop"] == [
        ["stop", "clusterkit-second.service"],
        ["stop", "clusterkit-first.service"],
    ]
    assert not any(unit.enabled for unit in systemd.units.values())
    again = control("stopped")
    assert (again["changed"], again["affected"]) == (False, [])
    assert apply([service("first", priority=10)])["started"] == ["first"]
    assert systemd.units["clusterkit-first.service"].enabled


def test_stopping_a_set_leaves_the_others_running(apply: Call, control: Call) -> None:
    apply([service("a")], set_name="one")
    apply([service("b")], set_name="two")
    result = control("stopped", set="one")
    assert result["affected"] == ["a"]
    assert {s["name"]: s["state"] for s in result["services"]} == {"a": "STOPPED", "b": "RUNNING"}
    assert control("stopped", set="none")["changed"] is False


def test_services_restart_one_after_the_other(apply: Call, control: Call, systemd: Systemd) -> None:
    apply([service("b", priority=20), service("a", priority=10)])
    assert control("restarted")["affected"] == ["a", "b"]
    restarts = [words[1:] for words in systemd.asked if words[0] == "restart"]
    assert restarts == [["clusterkit-a.service"], ["clusterkit-b.service"]]
    refused = control("restarted", services=["c"])
    assert "there is no service c; there are: a, b" in refused["msg"]


def test_what_was_stopped_with_everything_comes_back_for_good_when_it_is_restarted(
    apply: Call, control: Call, systemd: Systemd
) -> None:
    apply([service("a")])
    control("stopped")
    control("restarted", services=["a"])
    unit = systemd.units["clusterkit-a.service"]
    assert (unit.active, unit.enabled) == ("active", True)


def test_what_is_pending_is_restarted_by_name(apply: Call, control: Call) -> None:
    apply([service("a")])
    assert apply([service("a", fingerprint="2")], restart=False)["pending"] == ["a"]
    control("restarted", services=["a"])
    assert apply([service("a", fingerprint="2")], restart=False)["pending"] == []


def test_removing_everything_leaves_nothing(apply: Call, control: Call, systemd: Systemd) -> None:
    apply([service("a")], set_name="one")
    apply([service("b")], set_name="two")
    assert control("removed")["affected"] == ["a", "b"]
    left = [path for path in systemd.place.rglob("*") if fnmatch.fnmatch(path.name, "*[ab]*")]
    assert left == []
    assert not (systemd.place / "env").exists()
    assert control("removed")["changed"] is False


def test_a_list_tells_how_services_are(apply: Call, control: Call, systemd: Systemd) -> None:
    apply([service("a"), service("b")], set_name="workers")
    systemd.fails["clusterkit-b.service"] = 3
    systemd.restart(["clusterkit-b.service"])
    assert control("listed")["services"] == [
        {
            "name": "a",
            "service": "a",
            "set": "workers",
            "state": "RUNNING",
            "pid": systemd.units["clusterkit-a.service"].pid,
            "uptime": 60,
            "exit_status": 0,
            "error": "",
            "log": "journalctl --unit=clusterkit-a.service",
        },
        {
            "name": "b",
            "service": "b",
            "set": "workers",
            "state": "BACKOFF",
            "pid": systemd.units["clusterkit-b.service"].pid,
            "uptime": 0,
            "exit_status": 3,
            "error": "exit-code, exit status 3",
            "log": "journalctl --unit=clusterkit-b.service",
        },
    ]


def handed_over(name: str, **more: Any) -> dict[str, Any]:
    return service(name, handover=True, **more)


def test_a_hand_over_enables_the_new_one_before_the_old_one_is_asked_to_end(
    apply: Call, control: Call, systemd: Systemd
) -> None:
    apply([handed_over("a", fingerprint="1")])
    joined = apply([handed_over("a", fingerprint="2")])
    assert joined["joining"] == [{"name": "a.b", "replaces": "a"}]
    old, new = systemd.units["clusterkit-a.service"], systemd.units["clusterkit-a.b.service"]
    assert (old.active, old.enabled, new.active, new.enabled) == ("active", True, "active", False)
    assert control("promoted", services=["a.b"])["affected"] == ["a"]
    assert [words for words in systemd.asked if words[0] in {"enable", "disable", "stop"}] == [
        ["enable", "clusterkit-a.b.service"],
        ["disable", "clusterkit-a.service"],
        ["stop", "clusterkit-a.service"],
    ]
    assert apply([handed_over("a", fingerprint="2")])["removed"] == ["a"]
    assert apply([handed_over("a", fingerprint="2")])["changed"] is False
    assert systemd.verbs == ["show"]


def test_one_that_still_ends_is_no_obstacle(apply: Call, control: Call, systemd: Systemd) -> None:
    apply([handed_over("a", fingerprint="1")])
    apply([handed_over("a", fingerprint="2")])
    control("promoted", services=["a.b"])
    systemd.units["clusterkit-a.service"].active = "deactivating"
    assert {s["name"]: s["state"] for s in control("listed")["services"]} == {
        "a": "RETIRING",
        "a.b": "RUNNING",
    }
    assert apply([handed_over("a", fingerprint="2")])["changed"] is False
    assert apply([handed_over("a", fingerprint="3")])["joining"] == [{"name": "a.c", "replaces": "a.b"}]
    assert control("restarted", services=["a"])["affected"] == ["a.b", "a.c"]


def test_a_new_one_that_fails_is_removed_and_the_old_one_goes_on(apply: Call, systemd: Systemd) -> None:
    apply([handed_over("a", fingerprint="1")])
    pid = systemd.units["clusterkit-a.service"].pid
    systemd.fails["clusterkit-a.b.service"] = 3
    failed = apply([handed_over("a", fingerprint="2")])
    assert "a.b does not stay up" in failed["msg"]
    assert systemd.units["clusterkit-a.service"].pid == pid
    assert systemd.units["clusterkit-a.service"].enabled
    assert [path.name for path in (systemd.place / "units").iterdir()] == ["clusterkit-a.service"]
    assert apply([handed_over("a", fingerprint="1")])["changed"] is False
