"""The Docker engine and the images made on it: what is missing is installed, pulled, or made here.

Only the lab and `compose/` need them; a cluster on hosts of its own does without Docker.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from clusterkit.ops.errors import DeployError, PreflightError

if TYPE_CHECKING:
    from collections.abc import Callable

    Tell = Callable[[str], None]

Release = Literal["trixie", "bookworm"]
#: Debian's releases that images are made of, the newest first.
RELEASES: Final[tuple[Release, ...]] = get_args(Release)
#: Seconds another process may hold the package manager's lock.
APT_LOCK_TIMEOUT: Final = 300
#: Seconds a started engine may take to answer.
ENGINE_DEADLINE: Final = 60
#: Seconds for fetching a base image of 30 MB; an unreachable registry is known after the engine's own 15.
PULL_DEADLINE: Final = 300
#: Seconds for making an image: packages are fetched meanwhile. Usually 10 to 40.
BUILD_DEADLINE: Final = 900
#: Where systemd runs.
SYSTEMD: Final = Path("/run/systemd/system")
_LOG_TAIL: Final = 15


def docker(*arguments: str, deadline: float = 60) -> str:
    """Return what `docker ARGUMENTS` prints.

    Raises:
        DeployError: it failed, or took more than ``deadline`` seconds.
    """
    done = _run("docker", *arguments, deadline=deadline)
    if done.returncode:
        raise DeployError(f"docker {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def engine_problem() -> str:
    """Return why no Docker engine answers, or an empty text when one does."""
    done = _run("docker", "version", "--format", "{{.Server.Version}}", deadline=30)
    return (done.stderr.strip() or "docker version failed") if done.returncode else ""


def ensure_engine(log: Path, tell: Tell) -> None:
    """See to it that a Docker engine answers: root gets it installed and started when it does not.

    Where systemd does not run, the engine is started in the background and writes to ``log``.

    Raises:
        PreflightError: there is none, and it is not ours to change that or it did not work.
    """
    problem = engine_problem()
    if not problem:
        return
    if not sys.platform.startswith("linux"):
        raise PreflightError(
            "Docker does not answer", [problem], next_step="start Docker Desktop, or what you use for it"
        )
    if os.geteuid() != 0 or os.environ.get("DOCKER_HOST"):
        raise PreflightError("Docker does not answer", [problem], next_step=_advice(problem))
    if not shutil.which("dockerd"):
        install("docker.io", tell=tell)
    if engine_problem():
        tell("starting the Docker engine")
        _start_engine(log)


def install(*packages: str, tell: Tell) -> None:
    """Install packages of the distribution on this machine; needs root.

    Raises:
        PreflightError: it has no apt-get, or that failed.
    """
    names = " ".join(packages)
    if not shutil.which("apt-get"):
        raise PreflightError(f"{names} is missing, and there is no apt-get to install it with")
    tell(f"installing {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wait = f"DPkg::Lock::Timeout={APT_LOCK_TIMEOUT}"
    for command in (["update"], ["install", "--yes", *packages]):
        done = _run("apt-get", "-qq", "-o", wait, *command, deadline=BUILD_DEADLINE, environment=environment)
        if done.returncode:
            raise PreflightError(
                f"{names} could not be installed: apt-get {command[0]} failed",
                _tail(done.stderr),
                next_step=f"apt-get install {names}",
            )


def ensure_image(root: Path, name: str, release: str, tell: Tell) -> str:
    """Return the tag of the image made from `compose/images/NAME` on Debian ``release``.

    The tag has a digest of everything that goes in, so a changed Dockerfile, file or base makes a new image.

    Raises:
        PreflightError: Debian's base image can be neither pulled nor made.
        DeployError: building it failed.
    """
    base = ensure_base(release, tell)
    context = root / "compose" / "images" / name
    tag = f"clusterkit-{name}:{release}-{_digest(context, docker('image', 'inspect', '-f', '{{.Id}}', base))}"
    if not _have(tag):
        tell(f"building the image {name} on Debian {release}")
        docker(
            *("build", "--quiet", "--build-arg", f"DEBIAN={release}", "--tag", tag, str(context)),
            deadline=BUILD_DEADLINE,
        )
    return tag


def ensure_base(release: str, tell: Tell) -> str:
    """Return the tag of Debian's own small image of ``release``, pulled or made with debootstrap.

    Raises:
        PreflightError: neither works here.
    """
    tag = f"debian:{release}-slim"
    if _have(tag):
        return tag
    tell(f"pulling {tag}")
    try:
        docker("pull", "--quiet", tag, deadline=PULL_DEADLINE)
    except DeployError as error:
        if os.geteuid() != 0:
            raise PreflightError(
                f"there is no image {tag}, and only root can make it with debootstrap",
                [error],
                next_step="give Docker a registry it can reach (registry-mirrors in /etc/docker/daemon.json),"
                " or run this once as root",
            ) from error
        _debootstrap(release, tag, tell)
    return tag


def _debootstrap(release: str, tag: str, tell: Tell) -> None:
    if not shutil.which("debootstrap"):
        install("debootstrap", "debian-archive-keyring", tell=tell)
    tell(f"no registry: making {tag} with debootstrap")
    # Not in /tmp, which may be mounted without device files or too small.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="clusterkit-debian-") as folder:
        system = Path(folder, "system")  # not the folder itself, which only its owner may enter
        done = _run("debootstrap", "--variant=minbase", release, str(system), deadline=BUILD_DEADLINE)
        if done.returncode:
            raise PreflightError(
                f"{tag} can be neither pulled nor made: debootstrap failed",
                _tail(done.stdout + done.stderr),
                next_step="the machine needs a registry of images or Debian's packages",
            )
        _import(system, tag)


def _import(folder: Path, tag: str) -> None:
    leave_out = ("./dev/*", "./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*")
    options = ["--numeric-owner", *(f"--exclude={pattern}" for pattern in leave_out)]
    with subprocess.Popen(["tar", "-C", folder, *options, "-c", "."], stdout=subprocess.PIPE) as packed:
        done = subprocess.run(
            ["docker", "import", "--change", 'CMD ["bash"]', "-", tag],
            stdin=packed.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or packed.returncode:
        raise DeployError(f"docker import of {tag} failed: {done.stderr.strip()}")


def _start_engine(log: Path) -> None:
    engine = None
    if SYSTEMD.is_dir():
        log_command = "journalctl -u docker"
        _run("systemctl", "start", "docker", deadline=ENGINE_DEADLINE)
    else:
        log_command = f"tail {log}"
        engine = _start_in_background(log)
    if until(lambda: not engine_problem() or _ended(engine), ENGINE_DEADLINE) and not engine_problem():
        return
    said = _tail(log.read_text(errors="replace")) if engine else ()
    raise PreflightError("the Docker engine was started and does not answer", said, next_step=log_command)


def _start_in_background(log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        # A session of its own: the engine outlives the command, whatever ends that.
        return subprocess.Popen(
            ["dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _ended(process: subprocess.Popen[bytes] | None) -> bool:
    return process is not None and process.poll() is not None


def until(condition: Callable[[], bool], seconds: float, pause: float = 0.1) -> bool:
    """Wait until ``condition`` holds, looking every ``pause`` seconds; return whether it did in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def _have(tag: str) -> bool:
    return _run("docker", "image", "inspect", tag, deadline=30).returncode == 0


def _digest(context: Path, base: str) -> str:
    """Return 12 hexadecimal digits that change with any file of ``context``, its mode, or the base image."""
    digest = hashlib.sha256(base.encode())
    for file in sorted(path for path in context.rglob("*") if path.is_file()):
        content = file.read_bytes()
        digest.update(
            f"{file.relative_to(context)} {file.stat().st_mode & 0o111:o} {len(content)}\n".encode()
        )
        digest.update(content)
    return digest.hexdigest()[:12]


def _advice(problem: str) -> str:
    if "permission denied" in problem:
        return "sudo usermod -aG docker $USER, and log in again"
    if os.environ.get("DOCKER_HOST"):
        return f"DOCKER_HOST is {os.environ['DOCKER_HOST']}: start the engine there, or unset it"
    if shutil.which("dockerd"):
        return "sudo systemctl start docker"
    return "sudo apt-get install docker.io && sudo usermod -aG docker $USER, and log in again"


def _tail(text: str) -> list[str]:
    return text.strip().splitlines()[-_LOG_TAIL:]


def _run(
    *command: str, deadline: float, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; one that is missing or takes too long has failed, with the exit code a shell gives."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline,
            env=environment,
            umask=0o022,  # what is made for an image is for all users of its hosts
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"there is no command {command[0]}")
    except subprocess.TimeoutExpired:
        said = f"{' '.join(command[:2])} did not end within {deadline:.0f} s"
        return subprocess.CompletedProcess(command, 124, "", said)
