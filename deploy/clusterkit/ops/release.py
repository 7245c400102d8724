"""Builds a release on the control machine: archives of wheels that hosts install without an index.

A release is the user's app, the kit's runtime and everything they need. Its id comes from the contents,
so building the same thing twice gives the same release, and a host that has it has nothing to do. There is
one archive for each Python that the hosts have; the release and its id are the same in all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from clusterkit.ops import wheels
from clusterkit.ops.errors import ReleaseError
from clusterkit.ops.wheels import Target, own_target, run

if TYPE_CHECKING:
    from clusterkit.ops.model import AppSource, Cluster

__all__ = ["Release", "Target", "build", "kept", "own_target"]

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

Report = Callable[[str], None]


@dataclass(frozen=True)
class Release:
    """A built release: its id, and an archive (a tar of wheels and ``requirements.txt``) per Python."""

    id: str
    archives: dict[Target, Path]


def build(cluster: Cluster, targets: Collection[Target], report: Report = lambda _: None) -> Release:
    """Build the release of ``cluster``'s app for hosts like ``targets``, or find it built already.

    ``report`` is told what is being done. Wheels of the kit's own dependencies are kept per lock file and
    target under ``.cluster/wheels``; releases under the cluster's state directory.

    Raises:
        ReleaseError: the app could not be found, built, or its dependencies not be had.
    """
    runtime = Path(__file__).parent.parent / "runtime"
    lock = cluster.root / "requirements" / "worker.txt"
    builds = cluster.state_dir / "builds"
    builds.mkdir(parents=True, exist_ok=True)
    sources = _digest(
        [_fingerprint(cluster.app), _tree_digest(runtime), _file_digest(lock), str(own_target())]
    )
    # The sources' fingerprint only saves building what is built; the id is the contents'.
    known = builds / f"sources-{sources}.json"
    if known.exists():
        built = _release(builds, json.loads(known.read_text())["release"], targets)
        if all(archive.exists() for archive in built.archives.values()):
            return built
    with tempfile.TemporaryDirectory(dir=builds) as temporary, ThreadPoolExecutor() as pool:
        folder = Path(temporary)
        report("building the app and the kit's runtime; fetching wheels")
        app = pool.submit(_app_wheel, cluster.app, folder / "app")
        own = pool.submit(_wheel_of_project, runtime, folder / "runtime")
        cache = cluster.root / ".cluster" / "wheels"
        kit = {target: pool.submit(wheels.kit_wheels, lock, cache, target) for target in targets}
        roots = [own.result(), app.result()]
        _check_fits(app.result(), targets)
        built = _release(builds, _digest([*map(_wheel_digest, roots), _file_digest(lock)]), targets)
        missing = [(target, archive) for target, archive in built.archives.items() if not archive.exists()]
        if missing:
            report("resolving what the app needs besides")
        packed = [
            pool.submit(_make, archive, roots, kit[target].result(), folder / str(target), target)
            for target, archive in missing
        ]
        for done in packed:
            done.result()
    known.write_text(json.dumps({"release": built.id}))
    return built


def kept(cluster: Cluster, release_id: str, targets: Collection[Target]) -> Release:
    """Return a release that was built before, without building anything.

    Raises:
        ReleaseError: its archive is not there, or not for one of the hosts' Pythons.
    """
    found = _release(cluster.state_dir / "builds", release_id, targets)
    missing = [str(target) for target, archive in found.archives.items() if not archive.exists()]
    if missing:
        raise ReleaseError(
            f"there is no archive of release {release_id} for {', '.join(missing)}",
            next_step="make cluster-releases lists releases; make cluster-release builds one from the app",
        )
    return found


_TWIN: Final = "-twin"


def twin(cluster: Cluster, release_id: str) -> str:
    """Give a release that was built a second name, under which hosts take it for another; return that.

    Raises:
        ReleaseError: there is no archive of it.
    """
    builds = cluster.state_dir / "builds"
    # The twin's twin is the release itself: a drill that was interrupted may have left the twin.
    name = release_id.removesuffix(_TWIN) if release_id.endswith(_TWIN) else f"{release_id}{_TWIN}"
    archives = sorted(builds.glob(f"{release_id}-cp*.tar"))
    if not archives:
        raise ReleaseError(f"there is no archive of release {release_id}", next_step="make cluster-release")
    for archive in archives:
        copy = builds / archive.name.replace(release_id, name, 1)
        if not copy.exists():
            copy.hardlink_to(archive)
    return name


def _release(builds: Path, release_id: str, targets: Collection[Target]) -> Release:
    return Release(release_id, {target: builds / f"{release_id}-{target}.tar" for target in targets})


def _make(archive: Path, roots: list[Path], kit: Path, folder: Path, target: Target) -> None:
    wheels.collect(roots, kit, folder, target)
    _pack(folder, archive)


def _check_fits(wheel: Path, targets: Collection[Target]) -> None:
    """Refuse an app that is compiled, and for something else than the hosts have."""
    unfit = [
        f"Python {target.python} on {target.machine}" for target in sorted(targets) if not target.takes(wheel)
    ]
    if unfit:
        raise ReleaseError(
            f"the app's wheel {wheel.name} is not pure Python, and cannot be installed on hosts with "
            + " or ".join(unfit),
            next_step="build it where the hosts' Python is (python3 -m pip wheel --no-deps PROJECT) and name "
            "that wheel as app_source; all hosts need the same Python then",
        )


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
    listed = run(["git", "ls-remote", url, ref], f"asking {url} for {ref}").split()
    return listed[0] if listed else ref  # a commit's id is not listed: it stands for itself


def _app_wheel(app: AppSource, target: Path) -> Path:
    if app.kind == "wheel":
        return _named_as_wheel(Path(app.location))
    if app.kind == "git":
        target.mkdir(parents=True)
        run(
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


def _named_as_wheel(path: Path) -> Path:
    try:
        parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise ReleaseError(
            f"app_source: {error}",
            next_step="keep the name the wheel was built with: name-version-python-abi-platform.whl",
        ) from None
    return path


def _wheel_of_project(project: Path, target: Path) -> Path:
    with tempfile.TemporaryDirectory() as temporary:
        # Built from a copy: setuptools leaves build/ behind, with files of earlier builds in it.
        copy = Path(temporary) / project.name
        shutil.copytree(
            project,
            copy,
            ignore=lambda _, names: {n for n in names if n in _NOT_SOURCE or n.endswith(".egg-info")},
        )
        run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(target), str(copy)], f"building {project}")
    return next(target.glob("*.whl"))


def _pack(folder: Path, archive: Path) -> None:
    unfinished = archive.with_suffix(".part")
    with tarfile.open(unfinished, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name)
    unfinished.rename(archive)


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
