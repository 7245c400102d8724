#!/usr/bin/python
"""Ansible module: have the distribution's packages on a host, without their services."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DOCUMENTATION = r"""
---
module: distribution_packages
short_description: Have the distribution's packages, without their services
description:
  - Installs what is missing in one go with apt-get, which asks nothing, removes nothing and starts nothing,
    and keeps O(services) that came along from starting with the machine. What was there stays as it is.
  - Needs nothing on the host but apt-get, not even C(python3-apt).
options:
  packages:
    description: Programs that have to be there.
    type: list
    elements: dict
    required: true
    suboptions:
      names:
        description: Packages, any of which will do; the first that the distribution has is installed.
        type: list
        elements: str
        required: true
      provides:
        description: Absolute paths; nothing is installed when one of them is there.
        type: list
        elements: path
        required: true
  services:
    description: Units and init scripts that do not start with the machine when an installation brings them.
    type: list
    elements: str
    default: []
  bundle:
    description: Directory on the host with a bundle, the only source then; empty for the host's own sources.
    type: path
    default: ""
  cache_valid_time:
    description: Seconds for which the lists of packages count as fresh; if they lack something, they do not.
    type: int
    default: 3600
  lock_timeout:
    description: Seconds to wait for other programs that install packages.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Install a broker and a result store
  distribution_packages:
    packages:
      - {names: [rabbitmq-server], provides: [/usr/lib/rabbitmq/bin/rabbitmq-server]}
      - {names: [valkey-server, redis-server], provides: [/usr/bin/valkey-server, /usr/bin/redis-server]}
    services: [rabbitmq-server.service, epmd.socket, valkey-server.service, redis-server.service]
"""

RETURN = r"""
programs:
  description: For each of O(packages), by the first of its names, the path that is there; empty if none is.
  type: dict
  returned: always
  sample: {"nftables": "/usr/sbin/nft", "valkey-server": "/usr/bin/redis-server"}
missing:
  description: The first names of what was not there before.
  type: list
  elements: str
  returned: always
installed:
  description: Packages that were chosen and installed.
  type: list
  elements: str
  returned: always
"""

_LISTS = Path("/var/lib/apt/lists")
_UNITS = [Path("/usr/lib/systemd/system"), Path("/lib/systemd/system")]
_INIT_SCRIPTS = Path("/etc/init.d")
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_BEFORE = Path("/usr/sbin/policy-rc.d.before-clusterkit")
#: What apt-get and dpkg say when somebody else is at it.
_LOCKED = re.compile(r"Could not get lock|Unable to (acquire|lock)|(using it|locked) by another process")
_INTERRUPTED = "dpkg --configure -a"
#: What apt-get says when it cannot reach a registry, or has no list of one.
_NO_REGISTRY = re.compile(
    r"Could not resolve|Temporary failure resolving|Could not connect|Connection (failed|timed out|refused)"
    r"|Network is unreachable|Failed to fetch|Unable to locate package|No installation candidate"
)
_POLL = 1.0
#: Lines of a failed command's output that are shown.
_TAIL = 25

# A list that cannot be fetched is an error, not a warning; and a host without a network knows it soon.
_UPDATE = [
    *("apt-get", "update", "--quiet"),
    *("--option=APT::Update::Error-Mode=any", "--option=Acquire::Retries=1"),
]
_INSTALL = [
    *("apt-get", "install", "--quiet", "--assume-yes", "--no-install-recommends"),
    # An operator's other programs are worth more than ours.
    "--no-remove",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
]


class PackagesError(Exception):
    """The packages cannot be had; `output` is what the failed command said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class Apt:
    """apt-get with the host's own sources, or with those of a bundle alone."""

    def __init__(self, bundle: str, lock_timeout: int) -> None:
        self.lists = Path(bundle, "lists") if bundle else _LISTS
        self.deadline = time.monotonic() + lock_timeout
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        # Ubuntu's needrestart would restart the host's services.
        self.environment["NEEDRESTART_SUSPEND"] = "1"
        if bundle:
            self.environment["APT_CONFIG"] = str(bundle_configuration(Path(bundle)))

    def run(self, command: list[str]) -> str:
        """Run a command and return its output; wait for others that hold apt's or dpkg's locks.

        Raises:
            PackagesError: it failed.
        """
        mended = False
        while True:
            done = self.once(command)
            output = done.stdout + done.stderr
            if done.returncode == 0:
                return done.stdout
            if _INTERRUPTED in output and not mended:
                mended = True
                self.run(["dpkg", "--configure", "-a"])
            elif _LOCKED.search(output) and time.monotonic() < self.deadline:
                time.sleep(_POLL)
            else:
                lines = output.strip().splitlines()[-_TAIL:]
                raise PackagesError(f"{' '.join(command[:2])} failed", "\n".join(lines))

    def once(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command that asks nothing."""
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
        )

    def update(self) -> None:
        """Fetch the lists of packages."""
        self.run(_UPDATE)

    def is_fresh(self, seconds: int) -> bool:
        """Tell whether the lists of packages were fetched within these seconds."""
        lists = [path for path in self.lists.glob("*_Packages*") if path.is_file()]
        return bool(lists) and time.time() - self.lists.stat().st_mtime < seconds

    def choose(self, names: list[str]) -> str | None:
        """Return the first of the packages that there is."""
        return next((name for name in names if self.once(["apt-cache", "show", name]).returncode == 0), None)


def bundle_configuration(bundle: Path) -> Path:
    """Write apt's configuration that makes a bundle its only source, and return its path.

    Raises:
        PackagesError: the bundle is for another release or machine.
    """
    about = json.loads(Path(bundle, "bundle.json").read_text(encoding="utf-8"))
    here = {"release": release_name(), "architecture": architecture()}
    if any(about[key] != value for key, value in here.items()):
        raise PackagesError(
            f"the bundle is for Debian {about['release']} ({about['architecture']}), and this host is "
            f"{here['release'] or 'something else'} ({here['architecture']}): "
            f"make a bundle for it with make bundle DEBIAN={here['release'] or '...'}"
        )
    sources, lists, configuration = bundle / "sources.list", bundle / "lists", bundle / "apt.conf"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    # Trusted, because it came from the control machine, which has checked the signatures.
    sources.write_text(f"deb [trusted=yes] file:{bundle} ./\n", encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::Cache::PkgCache": "",
        "Dir::Cache::SrcPkgCache": "",
        "Acquire::Languages": "none",
    }
    text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
    configuration.write_text(text, encoding="utf-8")
    return configuration


def release_name() -> str:
    """Return the host's release as Debian calls it, such as trixie (os-release(5))."""
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    match = re.search(r'^VERSION_CODENAME="?([\w-]+)', text, re.MULTILINE)
    return match[1] if match else ""


def architecture() -> str:
    """Return the architecture of the host's packages, such as amd64."""
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def find_programs(packages: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return, for each package by its first name, the path of what it provides; empty when it is missing."""
    return {
        package["names"][0]: next((path for path in package["provides"] if Path(path).exists()), "")
        for package in packages
    }


def install(apt: Apt, wanted: list[list[str]], cache_valid_time: int) -> list[str]:
    """Install one of each of the alternatives, and return which.

    Raises:
        PackagesError: that cannot be done.
    """
    fresh = apt.is_fresh(cache_valid_time)
    if fresh:
        # The lists may still be too old, or lack a package: then they are fetched, and all is tried again.
        with contextlib.suppress(PackagesError):
            return install_from_lists(apt, wanted)
    try:
        apt.update()
    except PackagesError as update:
        # One of the host's sources may be broken, and not the one that is needed.
        try:
            return install_from_lists(apt, wanted)
        except PackagesError as error:
            raise PackagesError(str(error), f"{update.output}\n{error.output}") from error
    return install_from_lists(apt, wanted)


def install_from_lists(apt: Apt, wanted: list[list[str]]) -> list[str]:
    """Install what the lists have, all at once."""
    chosen = [apt.choose(names) for names in wanted]
    unknown = [names for names, name in zip(wanted, chosen, strict=True) if name is None]
    if unknown:
        raise PackagesError(f"Unable to locate package {', '.join(' or '.join(names) for names in unknown)}")
    names = [name for name in chosen if name]
    with nothing_started():
        apt.run([*_INSTALL, *names])
    return names


@contextlib.contextmanager
def nothing_started() -> Iterator[None]:
    """Keep packages from starting their services: invoke-rc.d(8) asks a policy, and 101 is "not allowed".

    The policy counts as long as this process lives; should it be killed, what it leaves behind does nothing.
    """
    if _POLICY.exists() and not _POLICY_BEFORE.exists():
        _POLICY.rename(_POLICY_BEFORE)
    _POLICY.write_text(
        f"#!/bin/sh\n[ ! -d /proc/{os.getpid()} ] || exit 101\n"
        f'[ ! -x {_POLICY_BEFORE} ] || exec {_POLICY_BEFORE} "$@"\n',
        encoding="utf-8",
    )
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if _POLICY_BEFORE.exists():
            _POLICY_BEFORE.rename(_POLICY)
        else:
            _POLICY.unlink()


def there(services: list[str]) -> set[str]:
    """Return those of the services that the host has."""
    return {
        name
        for name in services
        if any((units / name).exists() for units in _UNITS)
        or (name.endswith(".service") and (_INIT_SCRIPTS / name.removesuffix(".service")).exists())
    }


def disable(apt: Apt, services: list[str]) -> None:
    """Keep services from starting with the machine."""
    if services and shutil.which("systemctl"):
        apt.run(["systemctl", "--quiet", "disable", *services])
        return
    for name in services:
        script = name.removesuffix(".service")
        if (_INIT_SCRIPTS / script).exists():
            apt.run(["update-rc.d", script, "disable"])


def explained(error: PackagesError, missing: list[str], bundle: str) -> str:
    """Return what failed, and what helps."""
    text = f"{', '.join(missing)}: cannot be installed: {error}"
    if _NO_REGISTRY.search(f"{error}\n{error.output}"):
        text += (
            "; the bundle lacks something: make it again with this version of the kit (make bundle)"
            if bundle
            else "; if the host is to reach no registry of packages: make bundle, then cluster-up BUNDLE=..."
        )
    return text


def main() -> None:
    """Run the module."""
    package = {
        "names": {"type": "list", "elements": "str", "required": True},
        "provides": {"type": "list", "elements": "path", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "dict", "required": True, "options": package},
            "services": {"type": "list", "elements": "str", "default": []},
            "bundle": {"type": "path", "default": ""},
            "cache_valid_time": {"type": "int", "default": 3600},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    options = module.params
    programs = find_programs(options["packages"])
    missing = [name for name, path in programs.items() if not path]
    if not missing or module.check_mode:
        module.exit_json(changed=bool(missing), programs=programs, missing=missing, installed=[])
    before = there(options["services"])
    try:
        apt = Apt(options["bundle"], options["lock_timeout"])
        wanted = [item["names"] for item in options["packages"] if item["names"][0] in missing]
        installed = install(apt, wanted, options["cache_valid_time"])
        disable(apt, sorted(there(options["services"]) - before))
    except PackagesError as error:
        module.fail_json(
            msg=explained(error, missing, options["bundle"]), stderr=error.output, missing=missing
        )
    programs = find_programs(options["packages"])
    lost = [name for name, path in programs.items() if not path]
    if lost:
        module.fail_json(msg=f"{', '.join(lost)}: installed, but not where it is looked for", missing=missing)
    module.exit_json(changed=True, programs=programs, missing=missing, installed=installed)


if __name__ == "__main__":
    main()
