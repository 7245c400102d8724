"""Directories and files of a component, in one call."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import clusterkit_files

Call = Callable[..., dict[str, Any]]


def wanted(place: Path, content: str = "one\n", **more: Any) -> dict[str, Any]:
    file = {"path": str(place / "etc" / "a.conf"), "content": content, **more}
    return {"directories": [{"path": str(place / "etc")}], "files": [file]}


def test_what_is_missing_is_made_private_and_the_second_time_nothing_is(call: Call, tmp_path: Path) -> None:
    first = call("file_set", **wanted(tmp_path))
    file = tmp_path / "etc" / "a.conf"
    assert first["changed_paths"] == [str(tmp_path / "etc"), str(file)]
    assert file.read_text() == "one\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert call("file_set", **wanted(tmp_path))["changed"] is False


def test_another_content_or_mode_is_a_change_of_that_path_alone(call: Call, tmp_path: Path) -> None:
    call("file_set", **wanted(tmp_path))
    file = tmp_path / "etc" / "a.conf"
    assert call("file_set", **wanted(tmp_path, "two\n"))["changed_paths"] == [str(file)]
    assert file.read_text() == "two\n"
    file.chmod(0o644)
    assert call("file_set", **wanted(tmp_path, "two\n"))["changed_paths"] == [str(file)]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_check_mode_writes_nothing(call: Call, tmp_path: Path) -> None:
    result = call("file_set", check_mode=True, **wanted(tmp_path))
    assert result["changed"] is True
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_its_command_refuses_stays_as_it_was(call: Call, tmp_path: Path) -> None:
    call("file_set", **wanted(tmp_path))
    result = call("file_set", **wanted(tmp_path, "two\n", validate="/bin/grep --quiet one %s"))
    assert result["failed"]
    assert "a.conf is not valid, and was left as it was" in result["msg"]
    assert [path.name for path in (tmp_path / "etc").iterdir()] == ["a.conf"]
    assert (tmp_path / "etc" / "a.conf").read_text() == "one\n"


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_content_is_never_shown(call: Call, tmp_path: Path, check_mode: bool) -> None:
    assert "xyzzy" not in str(call("file_set", check_mode=check_mode, **wanted(tmp_path, "secret xyzzy")))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def owners(place: Path) -> list[tuple[int, int]]:
    status = [(place / "etc").stat(), (place / "etc" / "a.conf").stat()]
    return [(s.st_uid, s.st_gid) for s in status]


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be two users, one and two, and no others."""
    known = {
        "one": SimpleNamespace(pw_uid=4001, pw_gid=5001),
        "two": SimpleNamespace(pw_uid=4002, pw_gid=5002),
    }
    monkeypatch.setattr(clusterkit_files, "pwd", SimpleNamespace(getpwnam=known.__getitem__))


@needs_root
@pytest.mark.usefixtures("accounts")
def test_everything_has_the_owner_and_the_owner_s_group_unless_it_names_its_own(
    call: Call, tmp_path: Path
) -> None:
    call("file_set", owner="one", **wanted(tmp_path, owner="two"))
    assert owners(tmp_path) == [(4001, 5001), (4002, 5002)]
    assert call("file_set", owner="one", **wanted(tmp_path, owner="two"))["changed"] is False
    again = call("file_set", owner="one", **wanted(tmp_path))
    assert again["changed_paths"] == [str(tmp_path / "etc" / "a.conf")]
    assert owners(tmp_path) == [(4001, 5001)] * 2


@pytest.mark.usefixtures("accounts")
def test_an_owner_that_does_not_exist_is_named(call: Call, tmp_path: Path) -> None:
    result = call("file_set", owner="three", **wanted(tmp_path))
    assert result["failed"]
    assert "etc shall belong to three, and there is no such user" in result["msg"]
    # A user who would be made first, perhaps.
    assert call("file_set", check_mode=True, owner="three", **wanted(tmp_path))["failed"] is False


@needs_root
@pytest.mark.usefixtures("accounts")
def test_a_link_in_somebody_else_s_directory_is_not_followed(call: Call, tmp_path: Path) -> None:
    (tmp_path / "of-one").mkdir()
    (tmp_path / "target").mkdir()
    os.chown(tmp_path / "of-one", 4001, 5001)
    (tmp_path / "of-one" / "etc").symlink_to(tmp_path / "target")
    result = call("file_set", owner="one", **wanted(tmp_path / "of-one"))
    assert result["failed"]
    assert "is a symbolic link in somebody else's directory" in result["msg"]
    assert (tmp_path / "target").stat().st_uid == 0


def test_a_file_that_is_a_link_is_replaced_and_not_followed(call: Call, tmp_path: Path) -> None:
    call("file_set", **wanted(tmp_path))
    file, target = tmp_path / "etc" / "a.conf", tmp_path / "target"
    target.write_text("one\n")
    file.unlink()
    file.symlink_to(target)
    assert call("file_set", **wanted(tmp_path))["changed_paths"] == [str(file)]
    assert not file.is_symlink()
