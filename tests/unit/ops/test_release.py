"""A release's id follows its contents, whatever the hosts' Python; what cannot be built is told."""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clusterkit.ops import release
from clusterkit.ops.errors import ReleaseError
from clusterkit.ops.model import AppSource, app_source
from clusterkit.ops.release import Release, Target, own_target

ROOT = Path(__file__).resolve().parents[3]
OWN = own_target()
#: A Python that does not run here.
OTHER = Target("3.13" if OWN.python != "3.13" else "3.12", "x86_64")


def cluster(tmp_path: Path, source: str) -> Any:
    """What ``build`` reads of a cluster; the wheels fetched for one test serve the next."""
    return SimpleNamespace(app=app_source(source, tmp_path), root=ROOT, state_dir=tmp_path / "state")


def build(tmp_path: Path, source: str, *targets: Target) -> Release:
    return release.build(cluster(tmp_path, source), targets or [OWN])


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "plain.py").write_text("colour = 'red'\n")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=80"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "plain"\nversion = "1"\n[tool.setuptools]\npy-modules = ["plain"]\n'
    )
    return folder


def test_the_same_contents_are_the_same_release(project: Path, tmp_path: Path) -> None:
    first = build(tmp_path, "plain")
    os.utime(project / "plain.py", (0, 1_000_000_000))
    (project / "notes.txt").write_text("no part of the wheel")
    assert build(tmp_path, "plain") == first
    (project / "plain.py").write_text("colour = 'blue'\n")
    assert build(tmp_path, "plain").id != first.id


def test_an_archive_has_all_a_host_needs(project: Path, tmp_path: Path) -> None:
    found = names(build(tmp_path, "plain").archives[OWN])
    for wanted in ("plain-1-", "clusterkit_runtime-", "celery-5.7", "pip-", "flower-", "requirements.txt"):
        assert any(name.startswith(wanted) for name in found), wanted


def test_hosts_with_different_pythons_get_the_same_release_each_in_its_own_archive(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = build(tmp_path, "plain", OWN)
    both = build(tmp_path, "plain", OWN, OTHER)
    assert both.id == alone.id
    assert both.archives[OWN] == alone.archives[OWN]
    compiled = [name for name in names(both.archives[OTHER]) if name.startswith("gevent-")]
    assert len(compiled) == 1
    assert f"-cp{OTHER.python.replace('.', '')}-" in compiled[0]
    # What is built is found again, and nothing is run for it.
    monkeypatch.setattr(release, "run", None)
    monkeypatch.setattr(release, "wheels", None)
    assert build(tmp_path, "plain", OTHER, OWN) == both


def test_an_app_that_is_compiled_for_another_python_is_refused(tmp_path: Path) -> None:
    wheel = f"fast-1-{str(OWN).partition('-')[0]}-{str(OWN).partition('-')[0]}-linux_x86_64.whl"
    with zipfile.ZipFile(tmp_path / wheel, "w") as archive:
        archive.writestr("fast.so", "machine code")
    with pytest.raises(ReleaseError, match=f"{wheel} is not pure Python.*Python {OTHER.python} on x86_64"):
        build(tmp_path, wheel, OTHER)


def test_a_wheel_without_a_wheels_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latest.whl").touch()
    with pytest.raises(ReleaseError, match=r"app_source: Invalid wheel filename .*latest"):
        build(tmp_path, "latest.whl")


def test_a_git_url_is_built_at_the_ref_it_names(project: Path, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)

    git("init", "-b", "main")
    git("add", ".")
    git("commit", "-m", "red")
    git("tag", "v1")
    (project / "plain.py").write_text("colour = 'blue'\n")
    git("commit", "-am", "blue")
    wheel = release._app_wheel(AppSource(kind="git", location=f"git+file://{project}@v1"), tmp_path / "wheel")
    assert "red" in zipfile.ZipFile(wheel).read("plain.py").decode()
    assert release._git_commit(f"git+file://{project}@v1") != release._git_commit(f"git+file://{project}")


def test_a_project_without_pyproject_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(ReleaseError, match=r"no pyproject\.toml"):
        build(tmp_path, "bare")


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="nowhere does not exist"):
        build(tmp_path, "nowhere")


def test_a_failing_build_shows_its_last_lines(project: Path, tmp_path: Path) -> None:
    (project / "pyproject.toml").write_text("[build-system\n")
    with pytest.raises(ReleaseError, match=r"building .*plain failed:\n"):
        build(tmp_path, "plain")
