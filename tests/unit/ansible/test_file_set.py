"""Directories and files of a component, in one call."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
