"""A lab's hosts as Docker has them: containers and a network, found by their labels."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops import labplan
from clusterkit.ops.errors import DeployError, PreflightError
from clusterkit.ops.images import docker
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Ceiling of one host's memory: a leak ends that host's processes, not the machine's.
MEMORY: Final = "4g"

_LAB_LABEL: Final = "clusterkit.lab"
_HOST_LABEL: Final = "clusterkit.host"
_RELEASE_LABEL: Final = "clusterkit.debian"
_CHECKOUT_LABEL: Final = "clusterkit.checkout"

#: Each systemd takes five or six of them, and all hosts share the limit of the machine's root; with Linux's
#: default of 128 the units of the twentieth host fail for no visible reason.
_INOTIFY_INSTANCES: Final = 1024
_INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")
#: What systemd needs to be the first process of a container. `--privileged` would give it the machine, too,
#: and fails on machines that are themselves not allowed everything.
_BOOTS_SYSTEMD: Final = (
    *("--env=container=docker", "--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN", "--cgroupns=private"),
    # On a machine of its own root may look at every process; preflight asks whose a taken port is.
    "--cap-add=SYS_PTRACE",
    *("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
    *("--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec"),
)


@dataclass(frozen=True)
class Lab:
    """A lab of the checkout ``root``, whether it exists yet or not."""

    name: str
    root: Path

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadInputError(
                f"{self.name!r} is no name for a lab: at most 20 lower-case letters, digits and dashes"
            )

    @property
    def directory(self) -> Path:
        """Directory with the lab's keys, for its owner alone."""
        return self.root / ".cluster" / self.name / "lab"

    @property
    def key(self) -> Path:
        """Private key that opens the hosts."""
        return self.directory / "key"

    @property
    def known_hosts(self) -> Path:
        """The hosts' own keys, as read from them when they were made."""
        return self.directory / "known_hosts"

    @property
    def inventory(self) -> Path:
        """The inventory directory that the lab writes."""
        return self.root / "deploy" / "clusters" / self.name

    @property
    def network(self) -> str:
        """Name of the lab's Docker network."""
        return f"clusterkit-{self.name}"

    def container(self, host: str) -> str:
        """Return the name of the container that is ``host``."""
        return f"clusterkit-{self.name}-{host}"


@dataclass(frozen=True)
class Container:
    """What Docker says about one host."""

    host: str
    name: str
    release: str
    checkout: str
    state: str
    """Docker's word: created, running, paused, exited, dead."""
    connected: bool
    """Whether it is on the lab's network."""
    started: datetime

    @property
    def well(self) -> bool:
        """Whether it runs and can be reached."""
        return self.state == "running" and self.connected


def raise_limits(tell: Callable[[str], None]) -> None:
    """Let the machine's kernel carry many systemds, until its next boot; without root only say what to do."""
    now = int(_INOTIFY_LIMIT.read_text(encoding="ascii"))
    if now >= _INOTIFY_INSTANCES:
        return
    setting = f"fs.inotify.max_user_instances={_INOTIFY_INSTANCES}"
    try:
        _INOTIFY_LIMIT.write_text(str(_INOTIFY_INSTANCES), encoding="ascii")
    except OSError:
        tell(f"many hosts need more inotify instances than {now}: sudo sysctl {setting}")
    else:
        tell(f"sysctl {setting}, was {now}")


def containers(lab: Lab) -> dict[str, Container]:
    """Return the lab's containers by host, in order.

    Raises:
        PreflightError: they belong to the lab of another checkout.
    """
    ids = docker("ps", "--all", "--quiet", "--filter", f"label={_LAB_LABEL}={lab.name}").split()
    if not ids:
        return {}
    found = [_container(lab, said) for said in json.loads(docker("inspect", *ids))]
    for each in found:
        if each.checkout != str(lab.root) and Path(each.checkout).exists():
            raise PreflightError(
                f"the lab {lab.name!r} belongs to the checkout {each.checkout}",
                next_step="take another name (LAB=...), or make lab-down there",
            )
    return {each.host: each for each in sorted(found, key=lambda each: labplan.number(each.host))}


def _container(lab: Lab, said: dict[str, Any]) -> Container:
    labels = said["Config"]["Labels"]
    return Container(
        host=labels[_HOST_LABEL],
        name=said["Name"].removeprefix("/"),
        release=labels[_RELEASE_LABEL],
        checkout=labels[_CHECKOUT_LABEL],
        state=said["State"]["Status"],
        connected=lab.network in said["NetworkSettings"]["Networks"],
        started=datetime.fromisoformat(said["State"]["StartedAt"]),
    )


def subnet(lab: Lab) -> ipaddress.IPv4Network | None:
    """Return the addresses of the lab's network, if there is one."""
    names = docker("network", "ls", "--quiet", "--filter", f"label={_LAB_LABEL}={lab.name}").split()
    return _subnets(names)[0] if names else None


def _subnets(networks: list[str]) -> list[ipaddress.IPv4Network]:
    described = json.loads(docker("network", "inspect", *networks))
    configured = [config.get("Subnet", "") for each in described for config in each["IPAM"]["Config"] or ()]
    return [ipaddress.IPv4Network(subnet) for subnet in configured if "." in subnet]


def ensure_network(lab: Lab) -> ipaddress.IPv4Network:
    """Return the addresses of the lab's network, which is made of a free range when there is none.

    Raises:
        PreflightError: no range is free.
    """
    if found := subnet(lab):
        return found
    routes = Path("/proc/net/route").read_text(encoding="ascii")
    taken = _subnets(docker("network", "ls", "--quiet").split()) + labplan.routed_networks(routes)
    label = f"{_LAB_LABEL}={lab.name}"
    for network in labplan.free_networks(taken):
        try:
            docker("network", "create", "--subnet", str(network), "--label", label, lab.network)
        except DeployError as error:
            if "overlaps" not in str(error):  # another lab took it just now
                raise
        else:
            return network
    raise DeployError(f"no network could be made for lab {lab.name!r}")


def make(lab: Lab, host: str, ip: str, image: str, release: str) -> None:
    """Make and start the container that is ``host``: blank, and open to the lab's key."""
    labels = {
        _LAB_LABEL: lab.name,
        _HOST_LABEL: host,
        _RELEASE_LABEL: release,
        _CHECKOUT_LABEL: lab.root,
    }
    name = lab.container(host)
    docker(
        *(
            "run",
            "--detach",
            f"--name={name}",
            f"--hostname={host}",
            f"--network={lab.network}",
            f"--ip={ip}",
        ),
        *(f"--label={label}={value}" for label, value in labels.items()),
        *(f"--memory={MEMORY}", "--restart=no", *_BOOTS_SYSTEMD, image),
        # To labinit:
        *(name, lab.key.with_suffix(".pub").read_text(encoding="ascii").strip(), *_nameservers()),
    )


def _nameservers() -> list[str]:
    """Return the machine's name servers; none when only it can reach them, and Docker must pass on."""
    for file in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if file.exists() and (found := labplan.nameservers(file.read_text(encoding="utf-8"))):
            return found
    return []


def revive(lab: Lab, container: Container, ip: str) -> None:
    """Undo what may have been done to a host: taken off the network, paused, stopped."""
    if not container.connected:
        docker("network", "connect", "--ip", ip, lab.network, container.name)
    if container.state == "paused":
        docker("unpause", container.name)
    elif container.state != "running":
        docker("start", container.name)


def remove(gone: Iterable[Container]) -> None:
    """Remove containers with all that is in them, however they are."""
    names = [each.name for each in gone]
    if names:
        docker("rm", "--force", "--volumes", *names)
        _remove_control_groups(names)


def _remove_control_groups(names: list[str]) -> None:
    """Remove the groups `labinit` made on a machine with version 1, where Docker does not know them."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mounted_on, kind, *_ = line.split()
        if kind != "cgroup2":
            continue
        for name in names:
            for folder, _, _ in os.walk(Path(mounted_on) / name, topdown=False):
                with contextlib.suppress(OSError):  # not empty, or not ours
                    Path(folder).rmdir()
