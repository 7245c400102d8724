"""Labs: blank hosts on this machine, as containers that boot systemd and sshd on a network of their own.

    lab = Lab("lab", root)
    up(lab, hosts=7, release="trixie", progress=progress)
    status(lab), down(lab)

What there is, Docker knows: containers and network are found by their labels. On disk are only the key
pair, the hosts' pinned keys and the inventory.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import yaml

from clusterkit.ops import images, labhosts, labplan, labssh
from clusterkit.ops.errors import DeployError, PreflightError
from clusterkit.ops.images import docker
from clusterkit.ops.labhosts import Lab
from clusterkit.runtime.errors import BadInputError, NoClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clusterkit.ops.labhosts import Container
    from clusterkit.ops.model import Group
    from clusterkit.ops.progress import Progress

__all__ = ["PHASES", "HostStatus", "Lab", "Up", "address", "down", "remove", "status", "up"]

#: The parts of `lab-up`, in order.
PHASES: Final = ("engine", "image", "hosts", "ssh")
#: Hosts started at once. More make each slower, and none earlier.
_AT_ONCE: Final = 4


@dataclass(frozen=True)
class HostStatus:
    """One host, as `lab-status` shows it."""

    host: str
    address: str
    groups: list[Group]
    release: str
    state: str
    """Docker's word (running, paused, exited); `disconnected` from the lab's network, or `missing`."""
    systemd: str
    """systemd's word (running, degraded, starting); empty when nobody can be asked."""
    uptime: float
    """Seconds since it was started; 0 when it does not run."""

    @property
    def well(self) -> bool:
        """Whether the host and all of its units run."""
        return self.state == self.systemd == "running"


@dataclass(frozen=True)
class Up:
    """What `up` found and did."""

    addresses: dict[str, str]
    """IP address of every host."""
    added: list[str]
    """Hosts that are new, and blank."""
    started: list[str]
    """Hosts that were there and did not run, or not on the network."""
    surplus: list[str]
    """Hosts beyond the number asked for; they stay."""
    moved: list[str]
    """Hosts that were there and now belong to other groups."""
    seconds: float
    """From the call until every host answered by SSH."""


def up(lab: Lab, hosts: int | None, release: str | None, progress: Progress) -> Up:
    """Make the lab's missing hosts, start those that stand still, and wait until all answer by SSH.

    ``hosts`` and ``release`` default to what the lab has, else to seven hosts of the newest release. A host
    that was removed is made anew, blank, as long as the inventory has it.

    Raises:
        PreflightError: no Docker engine, or the name is taken by something else.
        DeployError: a host could not be made or does not answer; the message has its log.
    """

    def tell(what: str) -> None:
        progress.doing(what)
        progress.done(what, changed=True)

    if not sys.platform.startswith("linux"):
        raise PreflightError("a lab needs Linux: elsewhere Docker keeps its containers' addresses to itself")
    _check_inventory_is_ours(lab)
    progress.start("engine")
    labssh.ensure_client(tell)
    images.ensure_engine(lab.root / ".cluster" / "docker.log", tell)
    there = labhosts.containers(lab)
    _check_key_is_there(lab, there)
    release = _release(lab, there, release)
    before = _size(lab, there)
    wanted = hosts or before or labplan.DEFAULT_HOSTS
    names = labplan.host_names(max(wanted, _highest(there)))
    added = [host for host in names if host not in there]
    stood = [host for host in there if not there[host].well]

    progress.start("image")
    image = images.ensure_image(lab.root, "host", release, tell) if added else ""

    progress.start("hosts")
    labhosts.raise_limits(tell)
    labssh.ensure_key(lab)
    network = labhosts.ensure_network(lab)
    addresses = {host: labplan.address(network, host) for host in names}
    _each(added, lambda host: labhosts.make(lab, host, addresses[host], image, release), tell)
    _each(stood, lambda host: labhosts.revive(lab, there[host], addresses[host]), tell)
    _write_inventory(lab, addresses)

    progress.start("ssh")
    labssh.pin_host_keys(lab, addresses)
    _each(names, lambda host: labssh.wait(lab, host, addresses[host], boots=host in added), progress.done)
    return Up(
        addresses=addresses,
        added=added,
        started=stood,
        surplus=names[wanted:],
        moved=labplan.moved(before, len(names)),
        seconds=progress.seconds,
    )


def status(lab: Lab) -> list[HostStatus]:
    """Return the state of every host that the lab has or had.

    Raises:
        NoClusterError: there is no such lab.
    """
    there = _existing(lab)
    network = labhosts.subnet(lab)
    names = labplan.host_names(_size(lab, there))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        systemd = dict(zip(there, pool.map(_systemd_state, there.values()), strict=True))
    return [
        HostStatus(
            host=host,
            address=labplan.address(network, host) if network else "",
            groups=labplan.groups_of(host, len(names)),
            release=there[host].release if host in there else "",
            state=_state(there[host]) if host in there else "missing",
            systemd=systemd.get(host, ""),
            uptime=_uptime(there[host]) if host in there else 0,
        )
        for host in names
    ]


def address(lab: Lab, host: str) -> str:
    """Return the IP address of ``host``.

    Raises:
        NoClusterError: there is no such lab.
        BadInputError: it has no such host.
    """
    there = _existing(lab)
    network = labhosts.subnet(lab)
    if host not in there or not network:
        raise BadInputError(f"lab {lab.name!r} has no host {host!r}. Hosts: {', '.join(there)}")
    return labplan.address(network, host)


def down(lab: Lab) -> list[str]:
    """Remove the lab's hosts, network, keys and inventory; return the names of the hosts.

    Raises:
        PreflightError: no Docker engine answers, or the lab is another checkout's.
    """
    _need_engine()
    _check_inventory_is_ours(lab)
    there = labhosts.containers(lab)
    labhosts.remove(there.values())
    if labhosts.subnet(lab):
        docker("network", "rm", lab.network)
    shutil.rmtree(lab.directory, ignore_errors=True)
    _remove_inventory(lab)
    return list(there)


def remove(lab: Lab, host: str) -> bool:
    """Remove one host; return whether it stays in the inventory, so that the next `up` makes it anew, blank.

    It does unless it was the last, and the others belong to the same groups without it.

    Raises:
        NoClusterError: there is no such lab.
        BadInputError: it has no such host.
    """
    address(lab, host)
    there = labhosts.containers(lab)
    size, network = _size(lab, there), labhosts.ensure_network(lab)
    labhosts.remove([there[host]])
    if labplan.number(host) < size or labplan.moved(size, size - 1):
        return True
    _write_inventory(lab, {name: labplan.address(network, name) for name in labplan.host_names(size - 1)})
    return False


def _existing(lab: Lab) -> dict[str, Container]:
    _need_engine()
    there = labhosts.containers(lab)
    if not there:
        raise NoClusterError(f"there is no lab {lab.name!r}", next_step=f"make lab-up LAB={lab.name}")
    return there


def _need_engine() -> None:
    if problem := images.engine_problem():
        raise PreflightError("Docker does not answer", [problem], next_step="make lab-up starts it, as root")


def _check_inventory_is_ours(lab: Lab) -> None:
    file = lab.inventory / "hosts.yml"
    if file.exists() and not file.read_text(encoding="utf-8").startswith(labplan.GENERATED):
        raise PreflightError(
            f"{file} was not written by lab-up: {lab.name!r} is the name of a cluster of your own",
            next_step="choose another name: LAB=...",
        )


def _check_key_is_there(lab: Lab, there: dict[str, Container]) -> None:
    if there and not lab.key.exists():
        raise PreflightError(
            f"lab {lab.name!r} has hosts, but {lab.key}, which opens them, is gone",
            next_step=f"make lab-down LAB={lab.name}, then lab-up",
        )


def _release(lab: Lab, there: dict[str, Container], asked: str | None) -> str:
    """Return the release of the lab's hosts, which is one for all."""
    has = {each.release for each in there.values()}
    if asked and has and has != {asked}:
        raise PreflightError(
            f"the hosts of lab {lab.name!r} have {', '.join(sorted(has))}, not {asked}",
            next_step=f"make lab-down LAB={lab.name} first, or a second lab: LAB=... DEBIAN={asked}",
        )
    return asked or next(iter(has), images.RELEASES[0])


def _size(lab: Lab, there: dict[str, Container]) -> int:
    """Return how many hosts the lab has by its inventory, and by what is there."""
    file = lab.inventory / "hosts.yml"
    written = yaml.safe_load(file.read_text(encoding="utf-8"))["all"]["hosts"] if file.exists() else ()
    return max(len(written), _highest(there))


def _highest(there: dict[str, Container]) -> int:
    return max(map(labplan.number, there), default=0)


def _state(container: Container) -> str:
    return container.state if container.well or container.state != "running" else "disconnected"


def _systemd_state(container: Container) -> str:
    if container.state != "running":
        return ""
    try:
        # Its exit code says the same in other words; `degraded` is an answer, not a failure.
        return docker(
            "exec", container.name, "sh", "-c", "systemctl is-system-running || true", deadline=15
        ).strip()
    except DeployError:
        return ""


def _uptime(container: Container) -> float:
    if container.state not in {"running", "paused"}:
        return 0
    return round((datetime.now(UTC) - container.started).total_seconds(), 1)


def _write_inventory(lab: Lab, addresses: dict[str, str]) -> None:
    settings = lab.inventory / "group_vars" / "all.yml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    (lab.inventory / "hosts.yml").write_text(labplan.hosts_file(lab.name, addresses), encoding="utf-8")
    (lab.inventory / ".gitignore").write_text("*\n", encoding="ascii")  # addresses of this machine alone
    if not settings.exists():
        settings.write_text(labplan.settings_file(lab.name), encoding="utf-8")


def _remove_inventory(lab: Lab) -> None:
    for name in ("hosts.yml", "group_vars/all.yml", ".gitignore"):
        (lab.inventory / name).unlink(missing_ok=True)
    for folder in (lab.inventory / "group_vars", lab.inventory, lab.directory.parent):
        with contextlib.suppress(OSError):  # something of the user's is in it, or it never was
            folder.rmdir()


def _each(hosts: Iterable[str], work: Callable[[str], None], tell: Callable[[str], None]) -> None:
    """Do ``work`` for several hosts at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        started = {host: pool.submit(work, host) for host in hosts}
        for host, future in started.items():
            future.result()
            tell(host)
