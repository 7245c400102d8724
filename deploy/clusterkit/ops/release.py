"""Builds a release on the control machine: one archive of wheels that hosts install without an index.

A release is the user's app, the kit's runtime and everything they need. Its id comes from the contents,
so building the same thing twice gives the same release, and a host that has it has nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import parse_wheel_filename

from clusterkit.ops.errors import ReleaseError

if TYPE_CHECKING:
    from clusterkit.ops.model import AppSource, Cluster

#: Folders of a project that are no part of it.
_NOT_SOURCE = {
    ".git",
    ".venv",
    "venv",
    ".cluster",
    "build",
    "dist",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
}
_GIT_LOCATION = re.compile(r"git\+(?P<url>\w+://[^/]*/[^@#]+)(@(?P<ref>[^#]+))?(#.*)?")
#: Seconds: a build or a download that takes longer hangs.
_TIMEOUT = 900
#: Lines of a failed command's output that are shown.
_TAIL = 25

Report = Callable[[str], None]


@dataclass(frozen=True)
class Release:
    """A built release: its id and its archive (a tar of wheels and ``requirements.txt``)."""

    id: str
    archive: Path


def build(cluster: Cluster, report: Report = lambda _: None) -> Release:
    """Build the release of ``cluster``'s app, or find it built already.

    ``report`` is told what is being done. Wheels of the kit's own dependencies are kept per lock file
    under ``.cluster/wheels``; releases under the cluster's state directory.

    Raises:
        ReleaseError: the app could not be found, built, or its dependencies not be had.
    """
    runtime = Path(__file__).parent.parent / "runtime"
    lock = cluster.root / "requirements" / "worker.txt"
    builds = cluster.state_dir / "builds"
    builds.mkdir(parents=True, exist_ok=True)
    sources = _digest([_fingerprint(cluster.app), _tree_digest(runtime), _file_digest(lock), _interpreter()])
    # The sources' fingerprint only saves building what is built; the id is the contents'.
    known = builds / f"sources-{sources}.json"
    if known.exists():
        release_id = json.loads(known.read_text())["release"]
        if (archive := builds / f"{release_id}.tar").exists():
            return Release(release_id, archive)
    with tempfile.TemporaryDirectory(dir=builds) as temporary:
        folder = Path(temporary)
        with ThreadPoolExecutor() as pool:
            report("building the app and the kit's runtime; fetching wheels")
            app = pool.submit(_app_wheel, cluster.app, folder / "app")
            own = pool.submit(_wheel_of_project, runtime, folder / "runtime")
            kit = pool.submit(_kit_wheels, lock, cluster.root / ".cluster" / "wheels")
            wheels = [own.result(), app.result()]
            kit_wheels = kit.result()
        release_id = _digest([*map(_wheel_digest, wheels), _file_digest(lock), _interpreter()])
        archive = builds / f"{release_id}.tar"
        if not archive.exists():
            report("resolving what the app needs besides")
            _collect(wheels, kit_wheels, folder / "wheelhouse")
            _pack(folder / "wheelhouse", archive)
    known.write_text(json.dumps({"release": release_id}))
    return Release(release_id, archive)


def _fingerprint(app: AppSource) -> str:
    if app.kind == "git":
        return _digest([app.location, _git_commit(app.location)])
    path = Path(app.location)
    if not path.exists():
        raise ReleaseError(f"app_source: {path} does not exist", next_step="correct app_source in group_vars")
    return _file_digest(path) if app.kind == "wheel" else _tree_digest(path)


def _git_commit(location: str) -> str:
    match = _GIT_LOCATION.fullmatch(location)
    url, ref = (match["url"], match["ref"] or "HEAD") if match else (location, "HEAD")
    listed = _run(["git", "ls-remote", url, ref], f"asking {url} for {ref}").split()
    return listed[0] if listed else ref  # a commit's id is not listed: it stands for itself


def _app_wheel(app: AppSource, target: Path) -> Path:
    if app.kind == "wheel":
        return Path(app.location)
    if app.kind == "git":
        target.mkdir(parents=True)
        _run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(target), app.location],
            f"building {app.location}",
        )
        return next(target.glob("*.whl"))
    project = Path(app.location)
    if not any((project / name).exists() for name in ("pyproject.toml", "setup.py")):
        raise ReleaseError(
            f"app_source: {project} has no pyproject.toml, so it cannot be built into a wheel",
            next_step="add one (docs/howto/bring-your-own-app.md has the ten lines), or name a wheel",
        )
    return _wheel_of_project(project, target)


def _wheel_of_project(project: Path, target: Path) -> Path:
    with tempfile.TemporaryDirectory() as temporary:
        # Built from a copy: setuptools leaves build/ behind, with files of earlier builds in it.
        copy = Path(temporary) / project.name
        shutil.copytree(
            project,
            copy,
            ignore=lambda _, names: {n for n in names if n in _NOT_SOURCE or n.endswith(".egg-info")},
        )
        _run(
            ["uv", "build", "--quiet", "--wheel", "--out-dir", str(target), str(copy)], f"building {project}"
        )
    return next(target.glob("*.whl"))


def _kit_wheels(lock: Path, cache: Path) -> Path:
    """Return a folder with the wheels of the lock file, fetched once for this lock and Python."""
    folder = cache / _digest([_file_digest(lock), _interpreter()])
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            _run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--require-hashes",
                    "--only-binary=:all:",
                    "-r",
                    str(lock),
                    "-d",
                    str(Path(temporary) / "wheels"),
                ],
                "fetching the wheels of requirements/worker.txt",
            )
            (Path(temporary) / "wheels").rename(folder)
    return folder


def _collect(wheels: list[Path], kit_wheels: Path, target: Path) -> None:
    """Put the release's wheels, all the kit's and what the app needs besides into ``target``."""
    target.mkdir()
    for wheel in [*kit_wheels.glob("*.whl"), *wheels]:
        shutil.copy(wheel, target)
    constraints = target.with_suffix(".constraints")
    constraints.write_text("".join(f"{pin}\n" for pin in _pins(kit_wheels.glob("*.whl"))))
    resolve = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--find-links",
        str(target),
        "-c",
        str(constraints),
        "-w",
        str(target),
        *map(str, wheels),
    ]
    try:
        # Mostly the kit's wheels are enough, and no index need be asked.
        _run([*resolve, "--no-index"], "resolving")
    except ReleaseError:
        _run(resolve, "resolving what the app needs together with the kit's pinned packages")
    (target / "requirements.txt").write_text("".join(f"{pin}\n" for pin in _pins(target.glob("*.whl"))))


def _pins(wheels: Iterable[Path]) -> Iterator[str]:
    for wheel in sorted(wheels):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        yield f"{name}=={version}"


def _pack(folder: Path, archive: Path) -> None:
    unfinished = archive.with_suffix(".part")
    with tarfile.open(unfinished, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name)
    unfinished.rename(archive)


def _run(command: list[str], doing: str) -> str:
    # The environment's own bin comes first: uv is installed there; its cache and locks stay there too.
    tool = Path(sys.executable).parent / command[0]
    cache = Path(sys.prefix) / "cache"
    (cache / "tmp").mkdir(parents=True, exist_ok=True)
    caches = {"UV_CACHE_DIR": str(cache), "TMPDIR": str(cache / "tmp"), "PIP_NO_CACHE_DIR": "1"}
    try:
        done = subprocess.run(
            [str(tool) if tool.exists() else command[0], *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            env={**os.environ, **caches},
        )
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"{doing} took more than {_TIMEOUT} s", next_step="run it again") from error
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-_TAIL:]
        raise ReleaseError(
            f"{doing} failed:\n" + "\n".join(f"  {line}" for line in lines),
            next_step="nothing was changed; correct it and run the command again",
        )
    return done.stdout


def _interpreter() -> str:
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tree_digest(folder: Path) -> str:
    files = sorted(path for path in _source_files(folder) if path.is_file())
    return _digest(f"{path.relative_to(folder)} {_file_digest(path)}" for path in files)


def _source_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in _NOT_SOURCE or path.name.endswith((".pyc", ".egg-info")):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _source_files(path)
        else:
            yield path


def _wheel_digest(wheel: Path) -> str:
    """Return a digest of a wheel's contents; the file itself also carries the time of its building."""
    with zipfile.ZipFile(wheel) as archive:
        return _digest(sorted(f"{info.filename} {info.CRC:08x}" for info in archive.infolist()))
