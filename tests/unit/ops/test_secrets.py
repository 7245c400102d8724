"""Secrets are made once, kept, and readable by their owner alone."""

from __future__ import annotations

import re
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import yaml

from clusterkit.ops.errors import PreflightError
from clusterkit.ops.secrets import ROLES, ensure

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".cluster" / "test" / "secrets.yml"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_user_gets_a_password_of_its_own(path: Path) -> None:
    secrets = ensure(path)
    assert tuple(secrets.broker) == ROLES
    everything = [*secrets.broker.values(), secrets.results, secrets.flower, secrets.erlang_cookie]
    assert len(set(everything)) == len(everything) == 9
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", one) for one in everything)


def test_only_the_owner_can_read_them(path: Path) -> None:
    ensure(path)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_a_directory_that_is_open_to_others_is_closed(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o755)
    ensure(path)
    assert mode(path.parent) == 0o700


def test_the_second_time_nothing_changes(path: Path) -> None:
    first, written = ensure(path), path.stat()
    assert ensure(path) == first
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_what_is_missing_is_added_and_the_rest_kept(path: Path) -> None:
    ensure(path)
    content = yaml.safe_load(path.read_text())
    del content["broker"]["monitor"], content["flower"]
    content["broker"]["auditor"] = "of-a-later-version"
    content["ca"] = "also"
    path.write_text(yaml.safe_dump(content))
    secrets = ensure(path)
    written = yaml.safe_load(path.read_text())
    assert secrets.broker["worker"] == content["broker"]["worker"]
    assert written["broker"]["monitor"] == secrets.broker["monitor"]
    assert written["flower"] == secrets.flower
    assert (written["broker"]["auditor"], written["ca"]) == ("of-a-later-version", "also")
    assert mode(path) == 0o600


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o660, 0o620])
def test_a_file_that_others_may_read_is_refused_with_the_fix(path: Path, wide: int) -> None:
    ensure(path)
    path.chmod(wide)
    with pytest.raises(PreflightError, match=f"has mode 0{wide:o}") as caught:
        ensure(path)
    assert f"chmod 600 {path}" in caught.value.next_step


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("results: [half", "it is not valid YAML"),
        ("- results", "it is not a mapping"),
        ("broker: password", "broker is not a mapping of users"),
        ("broker: {worker: 12345}", "worker is not text"),
        ("results: 12345", "results is not text"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(path: Path, content: str, reason: str) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(PreflightError, match=reason) as caught:
        ensure(path)
    assert path.read_text() == content
    assert "12345" not in str(caught.value)
    assert "backup" in caught.value.next_step


def test_nothing_half_written_stays_when_writing_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure(path)
    assert list(path.parent.iterdir()) == []


def test_two_runs_at_once_agree(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: ensure(path), range(8)))
    assert all(result == results[0] for result in results)


def test_a_secret_is_not_shown_by_accident(path: Path) -> None:
    secrets = ensure(path)
    shown = repr(secrets) + str(secrets)
    assert secrets.results not in shown
    assert secrets.broker["worker"] not in shown


def test_playbooks_get_them_as_plain_values(path: Path) -> None:
    secrets = ensure(path)
    assert secrets.to_ansible() == {
        "broker": dict(secrets.broker),
        "results": secrets.results,
        "flower": secrets.flower,
        "erlang_cookie": secrets.erlang_cookie,
    }
