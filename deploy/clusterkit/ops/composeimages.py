"""The images of the Compose project, built from `compose/images/`, and Compose itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clusterkit.ops import images
from clusterkit.ops.errors import DeployError, PreflightError, ReleaseError
from clusterkit.ops.wheels import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from clusterkit.ops.model import Cluster
    from clusterkit.ops.release import Release

    Tell = Callable[[str], None]

#: The Debian release the images are made from (their Dockerfiles), and its Python.
DEBIAN: Final = "trixie"
PYTHON: Final = "3.13"
#: Label of the images: they can be found, and removed, by it.
LABEL: Final = "clusterkit.image"
_DIGITS: Final = 12
#: Seconds for making an image, packages fetched included; usually 5 to 20.
_BUILD_DEADLINE: Final = 900
#: Lines of a failed build's output that are shown.
_TAIL: Final = 25


def target() -> Target:
    """Return what releases for the Docker engine's containers are built for."""
    return Target(PYTHON, images.docker("info", "--format", "{{.Architecture}}").strip())


def cores() -> int:
    """Return the number of processor cores that containers have."""
    return int(images.docker("info", "--format", "{{.NCPU}}"))


def ensure(cluster: Cluster, release: Release, tell: Tell) -> dict[str, str]:
    """Return the tags of the images broker, results and worker, building those that are not there.

    A tag has a digest of all that goes in, so what is built already is found, and a change makes another.

    Raises:
        PreflightError: Debian's base image can be neither pulled nor made.
        ReleaseError: the app cannot be installed or imported in the image.
        DeployError: another image could not be built.
    """
    base = images.docker("image", "inspect", "--format", "{{.Id}}", images.ensure_base(DEBIAN, tell)).strip()
    folder = cluster.root / "compose" / "images"
    tags = {name: _ensure(_Recipe(folder, name, base), tell) for name in ("broker", "results")}
    arguments = {"RELEASE": release.id, "APP": cluster.celery_app}
    recipe = _Recipe(folder, "worker", base, arguments, {"release.tar": release.archives[target()]})
    try:
        return {**tags, "worker": _ensure(recipe, tell)}
    except DeployError as error:
        raise ReleaseError(
            f"the app cannot be installed or imported, so nothing was switched to it:\n{error}",
            next_step="correct the app, celery_app or app_source, and run the command again",
        ) from error


@dataclass(frozen=True)
class _Recipe:
    """All that goes into an image."""

    folder: Path
    name: str
    base: str
    arguments: dict[str, str] = field(default_factory=dict)
    besides: dict[str, Path] = field(default_factory=dict)
    """Files that are not in the image's folder."""

    @property
    def files(self) -> dict[str, Path]:
        own = {file.name: file for file in (self.folder / self.name).iterdir()}
        return {**own, "start": self.folder / "start", **self.besides}

    @property
    def tag(self) -> str:
        digest = hashlib.sha256(f"{self.base} {sorted(self.arguments.items())}".encode())
        for name, file in sorted(self.files.items()):
            digest.update(f"{name} {file.stat().st_mode & 0o111:o} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
        return f"clusterkit-{self.name}:{DEBIAN}-{digest.hexdigest()[:_DIGITS]}"


def _ensure(recipe: _Recipe, tell: Tell) -> str:
    tag = recipe.tag
    if not images.docker("image", "ls", "--quiet", tag):
        tell(f"building the image {recipe.name}")
        with tempfile.TemporaryDirectory() as context:
            for name, file in recipe.files.items():
                shutil.copy(file, Path(context) / name)
            arguments = (f"--build-arg={key}={value}" for key, value in recipe.arguments.items())
            _build(["--tag", tag, "--label", f"{LABEL}={recipe.name}", *arguments, context], recipe.name)
    return tag


def _build(options: list[str], name: str) -> None:
    done = subprocess.run(
        ["docker", "build", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_BUILD_DEADLINE,
    )
    if done.returncode:
        lines = "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-_TAIL:])
        raise DeployError(f"building the image {name} failed:\n{lines}")


def tasks(image: str, release: str) -> dict[str, str | None]:
    """Return the task names of the release in the worker's ``image``, with their queues."""
    path = f"/opt/clusterkit/releases/{release}/manifest.json"
    found: dict[str, str | None] = json.loads(
        images.docker("run", "--rm", "--network=none", "--entrypoint=cat", image, path)
    )["tasks"]
    return found


def compose_command(root: Path, tell: Tell) -> list[str]:
    """Return how Docker Compose, version 2, is called; its package is fetched where it is missing.

    Debian 12 has version 1 only. The one program in Debian 13's package runs there too.

    Raises:
        PreflightError: it is not installed and cannot be fetched.
    """
    if _works("docker", "compose"):
        return ["docker", "compose"]
    tool = root / ".cluster" / "tools" / "docker-compose"
    if not tool.exists():
        tell("fetching Docker Compose from Debian's package")
        _fetch_compose(tool, images.ensure_base(DEBIAN, tell))
    return [str(tool)]


def _works(*command: str) -> bool:
    done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip().lstrip("v").startswith(("2.", "3.", "4.", "5."))


def _fetch_compose(tool: Path, base: str) -> None:
    script = (
        "cd /tmp && apt-get -qq update && apt-get -qq download docker-compose"
        " && dpkg -x docker-compose_*.deb . && cat usr/libexec/docker/cli-plugins/docker-compose"
    )
    tool.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tool.with_suffix(".part")
    with unfinished.open("wb") as file:
        done = subprocess.run(
            ["docker", "run", "--rm", base, "sh", "-c", script],
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
        )
    if done.returncode:
        unfinished.unlink()
        raise PreflightError(
            "Docker Compose is not installed and could not be fetched",
            done.stderr.decode(errors="replace").strip().splitlines()[-_TAIL:],
            next_step="install docker-compose-plugin (Docker's package), or docker-compose-v2 (Ubuntu's)",
        )
    unfinished.chmod(0o755)
    unfinished.rename(tool)
