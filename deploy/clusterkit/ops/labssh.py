"""The way into a lab's hosts: its key pair, their pinned keys, and whether they answer."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from clusterkit.ops import images
from clusterkit.ops.errors import DeployError, PreflightError
from clusterkit.ops.images import docker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clusterkit.ops.labhosts import Lab

#: The hosts' administrator, who may use sudo.
ADMIN: Final = "admin"
#: Seconds a host may take from its start to an answer by SSH; usually 1 or 2.
BOOT_DEADLINE: Final = 120
#: Seconds one answer may take.
_ANSWER: Final = 15
_HOST_KEY: Final = "/etc/ssh/ssh_host_ed25519_key.pub"


def command(lab: Lab, address: str) -> list[str]:
    """Return the command that logs in at ``address``; options and a command for the host may follow it."""
    settings = {
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f'"{lab.known_hosts}"',
        "ConnectTimeout": "5",
    }
    given = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    # No configuration file: a lab works the same for everybody.
    return ["ssh", "-F", "none", "-i", str(lab.key), *given, "-l", ADMIN, address]


def ensure_client(tell: Callable[[str], None]) -> None:
    """See to it that this machine has an SSH client: root gets it installed.

    Raises:
        PreflightError: it is missing, and not ours to install.
    """
    if shutil.which("ssh") and shutil.which("ssh-keygen"):
        return
    if os.geteuid() != 0:
        raise PreflightError("ssh is missing", next_step="sudo apt-get install openssh-client")
    images.install("openssh-client", tell=tell)


def ensure_key(lab: Lab) -> None:
    """Make the lab's key pair when there is none yet."""
    lab.directory.mkdir(parents=True, exist_ok=True)
    lab.directory.chmod(0o700)
    if not lab.key.exists():
        comment = f"clusterkit-{lab.name}"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", lab.key], check=True
        )


def pin_host_keys(lab: Lab, addresses: Mapping[str, str]) -> None:
    """Write known_hosts with keys read inside the hosts, where nobody can answer in their place.

    Raises:
        DeployError: a host has none; the message has its log.
    """
    lines = [f"{ip} {_host_key(lab, host)}\n" for host, ip in addresses.items()]
    lab.known_hosts.write_text("".join(lines), encoding="ascii")


def _host_key(lab: Lab, host: str) -> str:
    """Return type and key of ``host``, as known_hosts has them."""
    found: list[str] = []

    def read() -> bool:
        with contextlib.suppress(DeployError):
            found[:] = docker("exec", lab.container(host), "cat", _HOST_KEY).split()[:2]
        return bool(found) or not _runs(lab, host)

    if not images.until(read, BOOT_DEADLINE) or not found:
        raise _failed(lab, host, "made no host key")
    return " ".join(found)


def wait(lab: Lab, host: str, address: str, *, boots: bool) -> None:
    """Wait until ``host`` answers by SSH; when it ``boots``, until systemd has started all units as well.

    Raises:
        DeployError: it does not within BOOT_DEADLINE; the message has the host's log.
    """
    # Not with --wait: now and then that misses the end of the boot, and hangs (systemd 257).
    question = "systemctl is-system-running" if boots else "echo running"
    said = ""

    def answers() -> bool:
        nonlocal said
        try:
            done = subprocess.run(
                [*command(lab, address), "-o", "BatchMode=yes", question],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_ANSWER,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        said = done.stdout.strip() or done.stderr.strip()
        there = bool(done.stdout.strip()) and said not in {"initializing", "starting"}
        return there or not _runs(lab, host)

    # A unit of Debian's own that failed (degraded) keeps nobody from using the host; lab-status shows it.
    if not images.until(answers, BOOT_DEADLINE) or said not in {"running", "degraded"}:
        raise _failed(lab, host, f"does not answer on {address}: {said}")


def _runs(lab: Lab, host: str) -> bool:
    return docker("inspect", "--format", "{{.State.Running}}", lab.container(host)).strip() == "true"


def _failed(lab: Lab, host: str, what: str) -> DeployError:
    """Return an error with what Docker and the host itself have to say."""
    name = lab.container(host)
    said = []
    for asked in (
        ("inspect", "--format", "container: {{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", name),
        ("logs", "--tail", "15", name),
        ("exec", name, "systemctl", "--failed", "--no-legend", "--plain"),
        ("exec", name, "journalctl", "--quiet", "--no-pager", "--lines", "15"),
    ):
        with contextlib.suppress(DeployError):
            said += docker(*asked, deadline=15).splitlines()
    return DeployError(
        "\n  ".join([f"{host} {what}", *filter(str.strip, said)]),
        next_step=f"make lab-up LAB={lab.name} tries again; make lab-down LAB={lab.name} removes all of it",
    )
