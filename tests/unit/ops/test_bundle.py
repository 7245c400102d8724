"""A bundle says what it is for, and what is no bundle is refused before anything is sent to a host."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from clusterkit.ops import bundle, images
from clusterkit.ops.bundle import Bundle
from clusterkit.ops.errors import DeployError, PreflightError

WANTED = [["rabbitmq-server"], ["valkey-server", "redis-server"]]
ABOUT = b'{"release": "bookworm", "architecture": "arm64", "packages": "rabbitmq-server redis-server"}'


def archive(path: Path, *files: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, contents in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(contents)
            tar.addfile(entry, io.BytesIO(contents))
    return path


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the stand-in for `docker`, which prints a bundle and keeps how it was called."""
    path = tmp_path / "docker"
    archive(tmp_path / "made.tar", ("bundle.json", ABOUT), ("Packages", b""), ("a.deb", b""))
    path.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\ncat {tmp_path}/made.tar\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(images, "ensure_engine", lambda log, tell: None)
    monkeypatch.setattr(images, "ensure_base", lambda release, tell: f"debian:{release}-slim")
    return path


def test_a_bundle_is_made_in_a_container_of_its_release(docker: Path, tmp_path: Path) -> None:
    made = bundle.build(tmp_path, "bookworm", WANTED)
    path = tmp_path / ".cluster" / "bundles" / "bookworm.tar"
    assert made == Bundle(path, "bookworm", "arm64", ("rabbitmq-server", "redis-server"))
    called = (tmp_path / "called").read_text()
    assert "debian:bookworm-slim sh -s -- rabbitmq-server valkey-server|redis-server" in called


def test_a_second_bundle_takes_the_place_of_the_first(docker: Path, tmp_path: Path) -> None:
    first = bundle.build(tmp_path, "bookworm", WANTED)
    assert bundle.build(tmp_path, "bookworm", WANTED) == first
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_what_apt_says_is_shown_when_packages_cannot_be_had(docker: Path, tmp_path: Path) -> None:
    docker.write_text("#!/bin/sh\necho 'E: Failed to fetch it' >&2\nexit 100\n")
    with pytest.raises(DeployError, match="bookworm cannot be made:\n  E: Failed to fetch it"):
        bundle.build(tmp_path, "bookworm", WANTED)


def test_a_bundle_is_read_from_its_first_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "mine.tar", ("bundle.json", ABOUT), ("Packages", b""))
    assert bundle.read(path).release == "bookworm"


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    other = archive(tmp_path / "other.tar", ("readme", b"hello"))
    text = tmp_path / "text.tar"
    text.write_text("no tar at all")
    for path in (other, text, tmp_path / "nowhere.tar"):
        with pytest.raises(PreflightError, match=f"{path} is no bundle"):
            bundle.read(path)
