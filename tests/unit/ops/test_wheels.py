"""Wheels are chosen for the Python of the hosts, not for the one that runs here."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusterkit.ops import wheels
from clusterkit.ops.errors import ReleaseError
from clusterkit.ops.wheels import Target

BOOKWORM = Target("3.11", "x86_64")
TRIXIE = Target("3.13", "x86_64")
ARM = Target("3.13", "aarch64")
#: A version of Python that nothing is built with here.
OTHER = TRIXIE if wheels.own_target() != TRIXIE else Target("3.12", "x86_64")


def wheel(tags: str) -> Path:
    return Path(f"thing-1-{tags}.whl")


@pytest.mark.parametrize(
    ("tags", "takers"),
    [
        ("py3-none-any", {BOOKWORM, TRIXIE, ARM}),
        ("cp311-cp311-manylinux_2_28_x86_64", {BOOKWORM}),
        ("cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64", {TRIXIE}),
        ("cp310-abi3-manylinux2014_aarch64", {ARM}),
        ("cp311-abi3-linux_x86_64", {BOOKWORM, TRIXIE}),
        # Needs a newer glibc than Debian 12 has.
        ("cp311-cp311-manylinux_2_39_x86_64", set()),
        ("cp313-cp313-macosx_11_0_arm64", set()),
    ],
)
def test_a_wheel_goes_where_its_tags_say(tags: str, takers: set[Target]) -> None:
    assert {target for target in (BOOKWORM, TRIXIE, ARM) if target.takes(wheel(tags))} == takers


def test_markers_are_looked_at_for_the_hosts_python(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# made by uv\n"
        "always==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "early==2 ; python_full_version < '3.11.3' \\\n    --hash=sha256:cc\n"
        "elsewhere==3 ; sys_platform == 'win32' \\\n    --hash=sha256:dd\n"
        "arm==4 ; platform_machine == 'aarch64' \\\n    --hash=sha256:ee\n"
    )
    always = "always==1 --hash=sha256:aa --hash=sha256:bb"
    # Debian 12 has 3.11.2: all of 3.11 is served by what its first release needs.
    assert list(wheels._locked(lock, BOOKWORM)) == [always, "early==2 --hash=sha256:cc"]
    assert list(wheels._locked(lock, TRIXIE)) == [always]
    assert list(wheels._locked(lock, ARM)) == [always, "arm==4 --hash=sha256:ee"]


def test_wheels_that_another_command_fetched_first_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("always==1 --hash=sha256:aa\n")

    def fetch(_: list[str], folder: Path, target: Target, doing: str) -> None:
        folder.mkdir()
        (folder / "slower.whl").touch()
        theirs = wheels._kit_folder(lock, tmp_path / "cache", target)
        theirs.mkdir()
        (theirs / "faster.whl").touch()

    monkeypatch.setattr(wheels, "_download", fetch)
    folder = wheels.kit_wheels(lock, tmp_path / "cache", TRIXIE)
    assert [path.name for path in folder.iterdir()] == ["faster.whl"]


def test_a_failing_tool_shows_its_last_lines() -> None:
    with pytest.raises(ReleaseError, match="trying failed:\n  out\n  err"):
        wheels.run(["sh", "-c", "echo out; echo err >&2; exit 1"], "trying")
