"""Collects the wheels a host installs from, for the host's Python, whichever Python runs here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from platform import machine as own_machine
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from clusterkit.ops.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from packaging.tags import Tag

#: Minor version of the glibc that every host has at least: Debian 12's is 2.36.
_GLIBC = 36
#: Minor version of the oldest glibc that wheels are tagged with (PEP 600).
_OLDEST_GLIBC = 5
#: Seconds: a build or a download that takes longer hangs.
_TIMEOUT = 900
#: Lines of a failed command's output that are shown.
_TAIL = 25
_NOTHING_CHANGED = "nothing was changed; correct it and run the command again"


@dataclass(frozen=True, order=True)
class Target:
    """What wheels are made for: a version of CPython (``3.13``) on Linux, and a machine (``x86_64``)."""

    python: str
    machine: str

    def __str__(self) -> str:
        return f"cp{self.python.replace('.', '')}-{self.machine}"

    @property
    def version(self) -> tuple[int, int]:
        """The version of Python, as numbers."""
        major, minor = self.python.split(".")
        return int(major), int(minor)

    @property
    def platforms(self) -> list[str]:
        """Tags of the platforms that run there, the newest first (PEP 600, and its older names)."""
        tags = [f"manylinux_2_{minor}" for minor in range(_GLIBC, _OLDEST_GLIBC - 1, -1)]
        old = ["manylinux2014", "manylinux2010", "manylinux1", "linux"]
        return [f"{tag}_{self.machine}" for tag in [*tags, *old]]

    @property
    def markers(self) -> dict[str, str]:
        """The environment in which requirements' markers are looked at (PEP 508).

        The patch level is 0: what a requirement wants for an early one does no harm in a later one.
        """
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def takes(self, wheel: Path) -> bool:
        """Tell whether ``wheel`` can be installed there."""
        return not parse_wheel_filename(wheel.name)[3].isdisjoint(self._tags())

    def _tags(self) -> Iterator[Tag]:
        yield from cpython_tags(self.version, platforms=self.platforms)
        yield from compatible_tags(self.version, f"cp{self.python.replace('.', '')}", self.platforms)


def own_target() -> Target:
    """Return what the Python that runs here would be as a target."""
    return Target(f"{sys.version_info.major}.{sys.version_info.minor}", own_machine())


def kit_wheels(lock: Path, cache: Path, target: Target) -> Path:
    """Return a folder with the wheels of the lock file, fetched once for this lock and target.

    Raises:
        ReleaseError: they cannot be had.
    """
    folder = _kit_folder(lock, cache, target)
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        # pip looks at markers with the Python that runs it, so it gets a file without any.
        wanted = Path(temporary) / "requirements.txt"
        wanted.write_text("".join(f"{line}\n" for line in _locked(lock, target)))
        doing = f"fetching the wheels of {lock.parent.name}/{lock.name} for Python {target.python}"
        _download(["--require-hashes", "-r", str(wanted)], Path(temporary) / "wheels", target, doing)
        try:
            (Path(temporary) / "wheels").rename(folder)
        except OSError:
            if not folder.exists():  # another cluster's command was faster
                raise
    return folder


def _kit_folder(lock: Path, cache: Path, target: Target) -> Path:
    return cache / f"{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}-{target}"


def _locked(lock: Path, target: Target) -> Iterator[str]:
    """Yield the lines of ``lock`` that count for ``target``, with their hashes, without their markers."""
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        pin, *hashes = line.split(" --hash=")
        if not pin.strip() or pin.lstrip().startswith("#"):
            continue
        requirement = Requirement(pin)
        if requirement.marker is None or requirement.marker.evaluate(target.markers):
            yield " ".join(
                [f"{requirement.name}{requirement.specifier}", *(f"--hash={h.strip()}" for h in hashes)]
            )


def collect(wheels: list[Path], kit: Path, folder: Path, target: Target) -> None:
    """Put ``wheels``, all the kit's and what they need besides into ``folder``, with a ``requirements.txt``.

    Raises:
        ReleaseError: something the app needs cannot be had for ``target``, or not together with the kit.
    """
    folder.mkdir()
    for wheel in [*kit.glob("*.whl"), *wheels]:
        shutil.copy(wheel, folder)
    pinned = folder.with_name(f"{folder.name}-constraints.txt")
    pinned.write_text("".join(f"{pin}\n" for pin in _pins(kit.glob("*.whl"))))
    try:
        # Mostly the kit's wheels are enough, and no index need be asked.
        _resolve(wheels, target, ["--offline", "--no-index", "--find-links", str(folder)])
    except ReleaseError:
        _fetch_missing(wheels, folder, pinned, target)
    # A host runs pip out of its wheel, and has no need of it in the release.
    pins = [pin for pin in _pins(folder.glob("*.whl")) if not pin.startswith("pip==")]
    (folder / "requirements.txt").write_text("".join(f"{pin}\n" for pin in pins))


def _fetch_missing(wheels: list[Path], folder: Path, pinned: Path, target: Target) -> None:
    if sys.platform == "linux" and target == own_target():
        # Python itself is here: what has no wheel can be built.
        command = ["wheel", "--quiet", "--find-links", str(folder), "-c", str(pinned), "-w", str(folder)]
        _pip(
            [*command, *map(str, wheels)],
            "resolving what the app needs together with the kit's pinned packages",
        )
        return
    resolved = _resolve(wheels, target, ["-c", str(pinned), "--find-links", str(folder)])
    there = {canonicalize_name(pin.partition("==")[0]) for pin in _pins(folder.glob("*.whl"))}
    missing = [pin for pin in resolved if canonicalize_name(pin.partition("==")[0]) not in there]
    if missing:
        _download(missing, folder, target, f"fetching what the app needs for Python {target.python}")


def _resolve(wheels: list[Path], target: Target, options: list[str]) -> list[str]:
    """Return the pins of everything that ``wheels`` need on ``target``; uv finds them, among wheels alone."""
    with tempfile.TemporaryDirectory() as temporary:
        roots = Path(temporary) / "roots.in"
        roots.write_text("".join(f"{_name(wheel)} @ {wheel.absolute().as_uri()}\n" for wheel in wheels))
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
        platform = f"{target.machine}-manylinux_2_{_GLIBC}"
        where = ["--python", sys.executable, "--python-version", target.python, "--python-platform", platform]
        own = [option for wheel in wheels for option in ("--no-emit-package", _name(wheel))]
        output = run(
            [*command, *where, *own, *options, "--only-binary", ":all:", str(roots)],
            f"resolving what the app needs, besides the kit's pinned packages, on Python {target.python}",
            "each package has to have a wheel for the hosts' Python: choose versions that have one, "
            f"or use a control machine with Python {target.python}, which can build them",
        )
    return [line.strip() for line in output.splitlines() if "==" in line]


def _download(what: list[str], folder: Path, target: Target, doing: str) -> None:
    """Fetch exactly ``what`` (pins or pip's options) into ``folder``, as wheels for ``target``."""
    platforms = [option for tag in target.platforms for option in ("--platform", tag)]
    python = ["--python-version", target.python, "--implementation", "cp", *platforms]
    _pip(
        ["download", "--quiet", "--no-deps", "--only-binary=:all:", *python, "-d", str(folder), *what], doing
    )


def _pins(wheels: Iterable[Path]) -> Iterator[str]:
    for wheel in sorted(wheels):
        yield f"{_name(wheel)}=={parse_wheel_filename(wheel.name)[1]}"


def _name(wheel: Path) -> str:
    return parse_wheel_filename(wheel.name)[0]


def _pip(arguments: list[str], doing: str) -> None:
    run([sys.executable, "-m", "pip", *arguments], doing)


def run(command: list[str], doing: str, next_step: str = _NOTHING_CHANGED) -> str:
    """Run a tool of the environment and return its output.

    Raises:
        ReleaseError: it failed; the message is ``doing`` and its last lines.
    """
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
            env={**os.environ, **caches, "UV_PYTHON_DOWNLOADS": "never"},
        )
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"{doing} took more than {_TIMEOUT} s", next_step="run it again") from error
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-_TAIL:]
        raise ReleaseError(
            f"{doing} failed:\n" + "\n".join(f"  {line}" for line in lines), next_step=next_step
        )
    return done.stdout
