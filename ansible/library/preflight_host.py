#!/usr/bin/python
"""Ansible module: find everything on a host that would keep a cluster from coming up, before any change."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_firewall import kernel_problem
from ansible.module_utils.clusterkit_processes import (
    Listener,
    Process,
    belongs_to,
    cluster_processes,
    describe,
    home_of,
    listeners,
    overlaps,
    socket_owners,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DOCUMENTATION = r"""
---
module: preflight_host
short_description: Find everything that would keep a cluster from coming up
description:
  - Looks at ports, processes, packages, Python, the file system and the limits of the host, changes nothing,
    and fails with all problems at once, each with the way out of it.
  - Runs on Python 3.9, to be able to say that a newer one is needed.
options:
  home:
    description: Absolute path of the cluster's home.
    type: path
    required: true
  ports:
    description: Ports the cluster will listen on.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: The port.
        type: int
        required: true
      address:
        description: Numeric address it is bound to.
        type: str
        required: true
      service:
        description: What listens there, for the message.
        type: str
        required: true
      variable:
        description: The variable that changes it, for the message.
        type: str
        required: true
  packages:
    description: Programs that have to be there, or that can be installed.
    type: list
    elements: dict
    default: []
    suboptions:
      names:
        description: Packages of the distribution, any of which will do; the first that it has is meant.
        type: list
        elements: str
        required: true
      provides:
        description: Absolute paths, one of which is enough.
        type: list
        elements: path
        required: true
  variables_file:
    description: The file in which variables are changed, for the messages.
    type: str
    default: ""
  python_version:
    description: Lowest version of Python on the host.
    type: str
    default: "3.11"
  disk_free_mb:
    description: Megabytes that have to be free in the home's file system.
    type: int
    default: 1024
  memory_free_mb:
    description: Megabytes of memory that have to be available; not asked of a cluster that runs.
    type: int
    default: 1024
  processes_free:
    description: Processes and threads that may still be started.
    type: int
    default: 300
  stop_command:
    description: The command that stops this cluster, for the messages.
    type: str
    default: make cluster-down
  service_backend:
    description: What runs the services. A supervisor can die and leave them behind; systemd cannot.
    type: str
    choices: [supervisor, systemd]
    default: supervisor
  port_base_variable:
    description: The variable that moves all ports at once, for the messages.
    type: str
    default: port_base
  address_variable:
    description: The variable that changes the address the services listen on, for the messages.
    type: str
    default: bind_address
  control_time:
    description: Seconds since 1970 on the machine that runs Ansible; V(0) leaves the clock alone.
    type: float
    default: 0
  clock_tolerance:
    description: Seconds the clocks may differ. Certificates and delayed tasks count on them.
    type: int
    default: 30
  firewall:
    description: Whether the host is to get firewall rules.
    type: bool
    default: false
  cluster:
    description: Name of the cluster; a host on which another one lives is refused. Only with systemd.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Look at the host
  preflight_host:
    home: /srv/demo/.cluster/local
    variables_file: deploy/clusters/local/group_vars/all.yml
    ports:
      - {port: 24672, address: 127.0.0.1, service: RabbitMQ (AMQP), variable: ports.amqp}
    packages:
      - {names: [rabbitmq-server], provides: [/usr/lib/rabbitmq/bin/rabbitmq-server]}
"""

RETURN = r"""
problems:
  description: What was found; empty when the module does not fail.
  type: list
  elements: dict
  returned: always
  sample:
    - what: port 24672 on 127.0.0.1, for RabbitMQ (AMQP), is taken by process 812 (beam.smp)
      variable: ports.amqp
      next: end that process, or set ports.amqp in deploy/clusters/local/group_vars/all.yml to a free port
running:
  description: Whether the cluster runs, or with supervisor its supervisor.
  type: bool
  returned: always
packages:
  description: Packages that have to be installed, and can be.
  type: list
  elements: str
  returned: always
python:
  description: Version of the host's Python.
  type: str
  returned: always
  sample: "3.13"
machine:
  description: The host's processor architecture.
  type: str
  returned: always
  sample: x86_64
control_address:
  description: Address of the machine that runs Ansible as this host sees it; empty without SSH.
  type: str
  returned: always
programs:
  description: For each of O(packages), by the first of its names, the path that is there, or an empty text.
  type: dict
  returned: always
  sample: {"rabbitmq-server": "/usr/lib/rabbitmq/bin/rabbitmq-server", "valkey-server": ""}
"""

# Letters that no shell, no file of supervisor (%, ;, #) and no argument of Erlang takes for something else.
_PLAIN_PATH = re.compile(r"[\w./+@,=~-]+")

_DISTRIBUTIONS = {"debian", "ubuntu"}
# Whole hosts are only managed where the kit has been run.
_HOSTS = {"debian": ("12", "13"), "ubuntu": ("24.04",)}
# In the home: the name of the cluster the host belongs to.
CLUSTER_FILE = "cluster"
_MEGABYTE = 1024 * 1024

# Left-over processes that are named in a message; the others are counted.
_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """One thing that is in the way: what it is, the variable that changes it (if one does), what to do."""

    what: str
    next: str
    variable: str = ""


@dataclass(frozen=True)
class Host:
    """What of the host is looked at once and needed by several checks."""

    home: str
    variables_file: str
    stop_command: str
    base_variable: str
    address_variable: str
    running: bool
    left: tuple[Process, ...]

    def set_variable(self, name: str) -> str:
        """Return how to change a variable, as a part of a sentence."""
        return f"set `{name}`" + (f" in {self.variables_file}" if self.variables_file else "")


def supervisor_pid(home: str) -> int:
    """Return the id of the running supervisord of the cluster in `home`, or 0."""
    try:
        pid = int(Path(home, "supervisor", "supervisord.pid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return pid if describe(pid) and belongs_to(pid, home) else 0


def check_ports(host: Host, ports: list[Mapping[str, Any]]) -> Iterator[Problem]:
    """Yield a problem for each port that is taken, not ours to bind, or wanted twice."""
    table = listeners()
    taken = {
        (entry["address"], entry["port"]): next(
            (item for item in table if item.port == entry["port"] and overlaps(item, entry["address"])), None
        )
        for entry in ports
    }
    owners = socket_owners(item.inode for item in taken.values() if item)
    wanted: dict[tuple[str, int], str] = {}
    other_clusters: dict[str, list[Mapping[str, Any]]] = {}
    for entry in ports:
        place = (entry["address"], entry["port"])
        first = wanted.setdefault(place, entry["variable"])
        if first != entry["variable"]:
            what = f"port {place[1]} on {place[0]} is wanted by both `{first}` and `{entry['variable']}`"
            yield Problem(what, f"{host.set_variable(entry['variable'])} to another port", entry["variable"])
            continue
        listener = taken[place]
        owner = owners.get(listener.inode, 0) if listener else 0
        home = home_of(owner) if owner else None
        if home and home != host.home:
            other_clusters.setdefault(home, []).append(entry)
        elif not (owner and belongs_to(owner, host.home)):
            yield from check_port(host, entry, holder(listener, owner))
    for home, entries in other_clusters.items():
        places = ", ".join(f"{entry['port']} ({entry['service']})" for entry in entries)
        what = f"these ports are taken by the cluster in {home}: {places}"
        variable = host.base_variable if len(entries) > 1 else entries[0]["variable"]
        yield Problem(what, f"{host.set_variable(variable)} to another, or stop that cluster", variable)


def check_port(host: Host, entry: Mapping[str, Any], held: str) -> Iterator[Problem]:
    """Yield a problem when the port of `entry` cannot be bound; `held` says by whom it is held if it is."""
    error = bind_error(entry["address"], entry["port"])
    if not error:
        return
    place = f"port {entry['port']} on {entry['address']}, for {entry['service']},"
    change = f"{host.set_variable(entry['variable'])} to a free port"
    if error.errno == errno.EADDRNOTAVAIL:
        what = f"the address {entry['address']}, for {entry['service']}, is not one of this host's"
        change = f"set `{host.address_variable}` of this host to one of its addresses"
        yield Problem(what, change, host.address_variable)
    elif error.errno == errno.EADDRINUSE:
        yield Problem(f"{place} is taken {held}", f"end that, or {change}", entry["variable"])
    else:
        yield Problem(f"{place} cannot be used: {error.strerror}", change, entry["variable"])


def bind_error(address: str, port: int) -> OSError | None:
    """Try to listen, as a server does, and return the error, if any. The port is free again afterwards."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as server:
            # As every server here does: connections of an earlier run that are winding up do not count.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen(1)
    except OSError as error:
        return error
    return None


def holder(listener: Listener | None, owner: int) -> str:
    """Say who holds a port."""
    if owner:
        process = describe(owner)
        return f"by process {owner} ({process.command[:80] if process else 'which has just ended'})"
    if listener:
        return "by a process of another user"
    return "(by a connection, or a process that this user cannot see)"


def check_leftovers(host: Host) -> Iterator[Problem]:
    """Yield a problem when processes of this cluster run without their supervisor."""
    if host.left:
        shown = host.left[:_SHOWN]
        names = ", ".join(f"{process.pid} ({process.command[:40]})" for process in shown)
        more = f" and {len(host.left) - len(shown)} more" if host.left != shown else ""
        what = f"the cluster's supervisor is dead, but processes of it still run: {names}{more}"
        yield Problem(what, f"run `{host.stop_command}`, which ends them")


def distribution() -> str:
    """Return the host's distribution and version, for messages."""
    text = " ".join(os_release().get(key, "") for key in ("NAME", "VERSION_ID")).strip()
    return text or sys.platform


def os_release() -> dict[str, str]:
    """Return /etc/os-release (os-release(5)); empty when there is none."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.strip().partition("=") for line in text.splitlines())
    return {name: value.strip("\"'") for name, sign, value in pairs if sign}


def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command that asks nothing and takes no time."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30)


def can_become_root() -> bool:
    """Tell whether this user is root or may use sudo without a password."""
    if os.geteuid() == 0:
        return True
    sudo = shutil.which("sudo")
    if not sudo:
        return False
    done = run([sudo, "-n", "true"])
    return done.returncode == 0


def installed_programs(packages: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return, for each package by its first name, the path of what it provides; empty when it is missing."""
    return {
        package["names"][0]: next((path for path in package["provides"] if Path(path).exists()), "")
        for package in packages
    }


def missing_packages(packages: list[Mapping[str, Any]], programs: Mapping[str, str]) -> list[str]:
    """Return the name under which the distribution has each package of which nothing is installed."""
    missing = [package["names"] for package in packages if not programs[package["names"][0]]]
    return [next((name for name in names if is_known(name)), names[-1]) for names in missing]


def is_known(package: str) -> bool:
    """Tell whether the distribution has this package, as far as its lists of packages are there."""
    command = shutil.which("apt-cache")
    return command is not None and run([command, "show", package]).returncode == 0


def check_packages(missing: list[str]) -> Iterator[Problem]:
    """Yield a problem when packages are missing and cannot be installed."""
    if not missing:
        return
    names = " ".join(missing)
    known = {os_release().get("ID", ""), *os_release().get("ID_LIKE", "").split()} & _DISTRIBUTIONS
    if not known:
        what = f"{names}: not installed, and the kit installs on Debian and Ubuntu, not on {distribution()}"
        yield Problem(what, "install them with the package manager of this host, without starting them")
    elif not can_become_root():
        what = f"{names}: not installed, and this user is neither root nor may use sudo without a password"
        # policy-rc.d is what keeps the packages from starting their own services (invoke-rc.d(8)).
        yield Problem(what, f"as root: apt-get update && apt-get install --no-install-recommends {names}")


def check_python(wanted: str, have: tuple[int, int]) -> Iterator[Problem]:
    """Yield a problem when the host's Python is older than `wanted`."""
    if have < tuple(int(part) for part in wanted.split(".")[:2]):
        what = f"Python {have[0]}.{have[1]} ({sys.executable}) is older than {wanted}"
        yield Problem(what, "use a host with a newer Python (Debian 12 or later has one)")


def check_systemd() -> Iterator[Problem]:
    """Yield a problem for what a host that runs its services under systemd lacks."""
    if not Path("/run/systemd/system").is_dir():
        what = "this host does not run systemd, and the services are to run under it"
        yield Problem(
            what, "use a host that boots systemd, or a private cluster (service_backend: supervisor)"
        )
    if os.geteuid():
        what = f"the user with id {os.geteuid()} is not root, and sudo was not used"
        yield Problem(
            what, "let the user use sudo without a password, or set ansible_become in the inventory"
        )
    release = os_release()
    known = _HOSTS.get(release.get("ID", ""), ())
    if release.get("VERSION_ID") not in known:
        what = f"the kit knows Debian 12 and 13 and Ubuntu 24.04, and this host is {distribution()}"
        yield Problem(what, "use one of those")


def check_firewall(host: Host) -> Iterator[Problem]:
    """Yield a problem when the kernel cannot have the firewall's rules."""
    what = kernel_problem()
    if what:
        way = f"{host.set_variable('firewall')} to false, and guard the ports another way"
        yield Problem(what, way, "firewall")


def check_clock(control_time: float, tolerance: int) -> Iterator[Problem]:
    """Yield a problem when this host's clock is not that of the machine that runs Ansible."""
    difference = time.time() - control_time
    if control_time and abs(difference) > tolerance:
        what = f"the clock is {abs(difference):.0f} s {'ahead' if difference > 0 else 'behind'}"
        yield Problem(what, "set it, and keep it right: apt-get install systemd-timesyncd (or chrony)")


def check_owner(home: str, cluster: str) -> Iterator[Problem]:
    """Yield a problem when the host belongs to another cluster."""
    try:
        owner = Path(home, CLUSTER_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return
    if owner != cluster:
        what = f"this host belongs to the cluster {owner!r} ({home}), and a host can be in one only"
        yield Problem(what, f"make cluster-destroy CLUSTER={owner}, or take another host")


def control_address() -> str:
    """Return where the SSH connection this runs in comes from; sudo hides it, the processes above do not."""
    process = os.getpid()
    while process > 1:
        try:
            environment = Path("/proc", str(process), "environ").read_bytes().split(b"\0")
            status = Path("/proc", str(process), "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        for entry in environment:
            if entry.startswith(b"SSH_CONNECTION="):
                return entry.partition(b"=")[2].split()[0].decode()
        process = int(status.rpartition(")")[2].split()[1])
    return ""


def nearest_directory(path: Path) -> Path:
    """Return the deepest directory on the way to `path` that exists."""
    return next(directory for directory in [path, *path.parents] if directory.is_dir())


def check_home(host: Host, disk_free_mb: int) -> Iterator[Problem]:
    """Yield a problem for everything that is wrong with the home's path and file system."""
    directory = nearest_directory(Path(host.home))
    move = f"move the checkout, or {host.set_variable('home')} to another path"
    if not _PLAIN_PATH.fullmatch(host.home):
        letters = "".join(sorted(set(_PLAIN_PATH.sub("", host.home))))
        what = f"the path {host.home} holds {letters!r}, which breaks the start scripts of the services"
        yield Problem(what, move, "home")
    owner = directory.stat().st_uid
    if str(directory) == host.home and owner != os.geteuid():
        what = f"{host.home} belongs to the user with id {owner}, and this one has the id {os.geteuid()}"
        yield Problem(what, "go on as that user, or remove that directory as that user")
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield Problem(f"{directory} cannot be written to, and {host.home} has to be made there", move, "home")
    else:
        yield from check_sockets(directory, move)
    status = os.statvfs(directory)
    if status.f_flag & os.ST_NOEXEC:
        yield Problem(
            f"programs cannot be run from {directory}: its file system is mounted noexec", move, "home"
        )
    free = status.f_bavail * status.f_frsize // _MEGABYTE
    if free < disk_free_mb:
        what = f"{free} MB are free in the file system of {directory}, {disk_free_mb} MB are needed"
        yield Problem(what, f"make room, or {move}", "home")


def check_sockets(directory: Path, move: str) -> Iterator[Problem]:
    """Yield a problem when unix sockets cannot be made, as on a folder shared with another machine.

    supervisord links its socket to the final name; where that fails it would try for ever.
    """
    with tempfile.TemporaryDirectory(dir=directory, prefix=".preflight-") as place:
        here = Path.cwd()
        os.chdir(place)
        try:
            # A relative name: the whole path may be longer than the address of a socket.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.bind("a")
                os.link("a", "b")
        except OSError as error:
            yield Problem(f"unix sockets cannot be made in {directory}: {error.strerror}", move, "home")
        finally:
            os.chdir(here)


def read_number(path: str) -> int | None:
    """Return the number in a file of /proc or /sys; None when there is none (such as `max`)."""
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def memory_available_mb() -> int | None:
    """Return the memory that new processes can use, in megabytes, or None when nothing says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    except (OSError, ValueError):
        return None
    available = values.get("MemAvailable", 0) // 1024
    # The container's own limit (cgroup v2, as it is seen from inside) may be lower.
    limit, used = read_number("/sys/fs/cgroup/memory.max"), read_number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        available = min(available, (limit - used) // _MEGABYTE)
    return available


def check_limits(host: Host, memory_free_mb: int, processes_free: int) -> Iterator[Problem]:
    """Yield a problem when a cluster that does not run yet would lack memory or processes."""
    if host.running:
        return
    available = memory_available_mb()
    if available is not None and available < memory_free_mb:
        what = f"{available} MB of memory are available, {memory_free_mb} MB are needed"
        yield Problem(what, "end what uses it, or use a larger host")
    limit, used = read_number("/sys/fs/cgroup/pids.max"), read_number("/sys/fs/cgroup/pids.current")
    if limit is not None and used is not None and limit - used < processes_free:
        what = f"{limit - used} more processes may be started, {processes_free} are needed"
        yield Problem(what, "raise the limit of this container or session (pids.max, TasksMax)")


def find_problems(options: Mapping[str, Any], host: Host, missing: list[str]) -> list[Problem]:
    """Return every problem of the host."""
    return [
        *check_python(options["python_version"], sys.version_info[:2]),
        *check_packages(missing),
        *check_home(host, options["disk_free_mb"]),
        *check_leftovers(host),
        *check_ports(host, options["ports"]),
        *check_limits(host, options["memory_free_mb"], options["processes_free"]),
        *check_clock(options["control_time"], options["clock_tolerance"]),
        *(check_firewall(host) if options["firewall"] else []),
        *(
            [*check_systemd(), *check_owner(host.home, options["cluster"])]
            if options["service_backend"] == "systemd"
            else []
        ),
    ]


def numbered(problems: list[Problem]) -> str:
    """Return the problems as the text of one failure."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{count} found, nothing was changed:"]
    for number, problem in enumerate(problems, 1):
        lines += [f"{number}. {problem.what}", f"   next: {problem.next}"]
    return "\n".join(lines)


def main() -> None:
    """Run the module."""
    port = {
        "port": {"type": "int", "required": True},
        "address": {"type": "str", "required": True},
        "service": {"type": "str", "required": True},
        "variable": {"type": "str", "required": True},
    }
    package = {
        "names": {"type": "list", "elements": "str", "required": True},
        "provides": {"type": "list", "elements": "path", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "ports": {"type": "list", "elements": "dict", "default": [], "options": port},
            "packages": {"type": "list", "elements": "dict", "default": [], "options": package},
            "variables_file": {"type": "str", "default": ""},
            "python_version": {"type": "str", "default": "3.11"},
            "disk_free_mb": {"type": "int", "default": 1024},
            "memory_free_mb": {"type": "int", "default": 1024},
            "processes_free": {"type": "int", "default": 300},
            "stop_command": {"type": "str", "default": "make cluster-down"},
            "service_backend": {"type": "str", "choices": ["supervisor", "systemd"], "default": "supervisor"},
            "port_base_variable": {"type": "str", "default": "port_base"},
            "address_variable": {"type": "str", "default": "bind_address"},
            "control_time": {"type": "float", "default": 0},
            "clock_tolerance": {"type": "int", "default": 30},
            "cluster": {"type": "str", "default": ""},
            "firewall": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    options = module.params
    home = os.path.realpath(options["home"])
    supervised = options["service_backend"] == "supervisor"
    supervisor = supervisor_pid(home) if supervised else 0
    processes = tuple(cluster_processes(home)) if not supervisor else ()
    host = Host(
        home=home,
        variables_file=options["variables_file"],
        stop_command=options["stop_command"],
        base_variable=options["port_base_variable"],
        address_variable=options["address_variable"],
        running=supervisor != 0 if supervised else bool(processes),
        left=processes if supervised else (),
    )
    programs = installed_programs(options["packages"])
    missing = missing_packages(options["packages"], programs)
    problems = find_problems(options, host, missing)
    result = {
        "problems": [asdict(problem) for problem in problems],
        "running": host.running,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": os.uname().machine,
        "control_address": control_address(),
    }
    if problems:
        module.fail_json(msg=numbered(problems), **result)
    module.exit_json(changed=False, packages=missing, programs=programs, **result)


if __name__ == "__main__":
    main()
